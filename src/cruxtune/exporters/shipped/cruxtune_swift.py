"""Rows of `cruxtune export --to ms-swift`: a data set and a template, both called cruxtune.

swift sft --external_plugins cruxtune_swift.py --dataset cruxtune --template cruxtune
"""

from pathlib import Path

from swift.dataset import DatasetMeta, MessagesPreprocessor, register_dataset
from swift.template import TemplateMeta, register_template

# Rows are whole sequences, prompt and end of sequence included: nothing may be added, before or after. With a suffix,
# ms-swift would also train an end-of-sequence token that follows a trained token, whatever its `loss`.
register_template(TemplateMeta("cruxtune", prefix=[], prompt=["{{QUERY}}"], chat_sep=None, suffix=[]))

# Left to itself, ms-swift takes a list as content for blocks in another provider's form.
register_dataset(
    DatasetMeta(
        dataset_name="cruxtune",
        dataset_path=str(Path(__file__).with_name("train.jsonl")),
        preprocess_func=MessagesPreprocessor(message_format="swift"),
    )
)
