"""Rows of `cruxtune export --to torchtune` as a torchtune dataset.

In the recipe's YAML, with this directory on PYTHONPATH:

    dataset:
      _component_: cruxtune_torchtune.rows
      path: train.jsonl
"""

from typing import Any

from torchtune.datasets import SFTDataset


def rows(tokenizer: Any, *, path: str) -> SFTDataset:
    """Return the dataset: ids as they are, labels by torchtune from `mask` (True where there is no loss).

    The recipe hands over its tokenizer; rows are tokenised already.
    """
    return SFTDataset(source="json", data_files=path, split="train", message_transform=None, model_transform=dict)
