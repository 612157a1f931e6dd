"""Reads an export through a consumer's own data path and tells what carries loss; runs in the consumers' environment.

    python consume.py NAME DIRECTORY MODEL OUTPUT

writes one JSON list of [input ids, weight of each] per row to OUTPUT. It imports nothing of ours but what is exported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Found = Iterator[tuple[list[int], list[float]]]


def unpadded(batch: Any) -> Found:
    """Rows of a batch of labels, without padding."""
    for ids, labels, real in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        assert set(labels[~real].tolist()) <= {-100}
        assert all(label in (-100, token) for token, label in zip(ids.tolist(), labels.tolist(), strict=True))
        yield ids[real].tolist(), [float(label != -100) for label in labels[real].tolist()]


def axolotl(directory: Path, model: str) -> Found:
    """`prepare_datasets` as `axolotl train` calls it, then its collator."""
    from axolotl.utils.collators import DataCollatorForSeq2Seq
    from axolotl.utils.data.sft import _load_and_prepare_datasets
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    source = {"path": str(directory / "train.jsonl"), "ds_type": "json", "type": None}
    cfg = DictDefault(
        datasets=[source],
        sequence_len=512,
        excess_length_strategy="raise",
        sample_packing=False,
        dataset_prepared_path=str(directory / "prepared"),
        tokenizer_config=model,
        dataset_num_proc=1,
        seed=0,
        val_set_size=0,
        shuffle_merged_datasets=False,
        shuffle_before_merging_datasets=False,
    )
    rows, _, _ = _load_and_prepare_datasets(tokenizer, cfg, split="train")
    yield from unpadded(DataCollatorForSeq2Seq(tokenizer)([rows[index] for index in range(len(rows))]))


def llamafactory(directory: Path, model: str) -> Found:
    """`get_dataset` with `tokenized_path`, then its collator."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from transformers import AutoTokenizer

    arguments = {
        "model_name_or_path": model,
        "stage": "sft",
        "do_train": True,
        "tokenized_path": str(directory / "dataset"),
        "dataset": "identity",
        "template": "empty",
        "output_dir": str(directory / "work"),
        "report_to": "none",
        "bf16": False,
    }
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(model)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer)[
        "train_dataset"
    ]
    collator = SFTDataCollatorWith4DAttentionMask(template=template, tokenizer=tokenizer, label_pad_token_id=-100)
    yield from unpadded(collator([rows[index] for index in range(len(rows))]))


def unsloth(directory: Path, model: str) -> Found:
    """Unsloth's SFTTrainer, patched over TRL's, and the collator that it chose."""
    from unsloth import FastLanguageModel  # noqa: I001  (it must come before TRL)
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    rows = load_dataset("json", data_files=str(directory / "train.jsonl"), split="train")
    loaded, tokenizer = FastLanguageModel.from_pretrained(model, max_seq_length=512, load_in_4bit=False)
    config = SFTConfig(str(directory / "work"), max_length=512, packing=False, use_cpu=True, report_to="none")
    trainer = SFTTrainer(loaded, args=config, train_dataset=rows, processing_class=tokenizer)
    rows = trainer.train_dataset
    yield from unpadded(trainer.data_collator([rows[index] for index in range(len(rows))]))


def torchtune(directory: Path, model: str) -> Found:
    """The shipped dataset through torchtune's SFTDataset and collator."""
    sys.path.insert(0, str(directory))
    from cruxtune_torchtune import rows
    from torchtune.data import padded_collate_sft

    dataset = rows(None, path=str(directory / "train.jsonl"))
    items = [dataset[index] for index in range(len(dataset))]
    batch = padded_collate_sft(items, padding_idx=0)
    for item, ids, labels in zip(items, batch["tokens"].tolist(), batch["labels"].tolist(), strict=True):
        length = len(item["tokens"])
        assert set(labels[length:]) <= {-100}
        # Version 0.6 shifts in the recipe, later ones in the dataset; this is 0.6.
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
        yield ids[:length], [float(label != -100) for label in labels[:length]]


def verl(directory: Path, model: str) -> Found:
    """The shipped class as verl loads it, its collator, and the weights that its loss multiplies."""
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils
    from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator
    from verl.utils.import_utils import load_extern_object
    from verl.workers.utils.losses import sft_loss

    made = load_extern_object(str(directory / "cruxtune_verl.py"), "CruxtuneDataset")
    config = {"pad_mode": "no_padding", "max_length": 512}
    dataset = made(parquet_files=[str(directory / "train.parquet")], tokenizer=None, config=config)
    batch = SFTTensorCollator(DatasetPadMode.NO_PADDING)([dataset[index] for index in range(len(dataset))])
    masks = batch["loss_mask"]
    # The loss is linear in the log-probabilities: its gradient is the weight that each carries, shifted.
    logprobs = torch.nested.nested_tensor_from_jagged(
        torch.zeros_like(masks.values(), requires_grad=True), offsets=masks.offsets()
    )
    data = TensorDict({"loss_mask": masks}, batch_size=[len(dataset)])
    tensordict_utils.assign_non_tensor(data, pad_mode=DatasetPadMode.NO_PADDING, dp_size=1, batch_num_tokens=1)
    loss, _ = sft_loss(None, {"log_probs": logprobs}, data)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    for ids, felt in zip(batch["input_ids"].unbind(), gradient.unbind(), strict=True):
        # Predicting token i is what position i − 1 does; nothing may be predicted across a row's end.
        assert felt[-1] == 0
        yield ids.tolist(), [0.0, *(-felt[:-1]).tolist()]


def tinker(directory: Path, model: str) -> Found:
    """Datums by tinker-cookbook: target tokens and weights, shifted by one against the input."""
    sys.path.insert(0, str(directory))
    from cruxtune_tinker import datums

    for datum in datums(str(directory / "train.jsonl")):
        targets = datum.loss_fn_inputs["target_tokens"].to_torch().tolist()
        weights = datum.loss_fn_inputs["weights"].to_torch().tolist()
        inputs = datum.model_input.to_ints()
        assert inputs[1:] == targets[:-1]
        yield [inputs[0], *targets], [0.0, *weights]


def swift(directory: Path, model: str) -> Found:
    """The plugin, `load_dataset`, the template's encoding and its collator, as `swift sft` chains them."""
    os.environ["MODELSCOPE_CACHE"] = str(directory / "cache")
    sys.path.insert(0, str(directory))
    import cruxtune_swift  # noqa: F401
    from swift.dataset import load_dataset
    from swift.model import get_processor
    from swift.template import get_template

    binary = not any(0 < weight < 1 for row in (directory / "train.jsonl").open() for weight in scales(row))
    rows, _ = load_dataset("cruxtune", split_dataset_ratio=0.0)
    processor = get_processor(model, model_type="llama")
    template = get_template(
        processor, template_type="cruxtune", loss_scale="default", is_binary_loss_scale=binary, max_length=512
    )
    template.set_mode("train")
    encoded = [template.encode(row) for row in rows]
    lengths = [len(row["input_ids"]) for row in encoded]
    batch = template.data_collator([dict(row) for row in encoded])
    scale = batch.get("loss_scale")
    for number, length in enumerate(lengths):
        ids, labels = batch["input_ids"][number].tolist(), batch["labels"][number].tolist()
        assert set(labels[length:]) <= {-100}
        weights = [float(label != -100) for label in labels] if scale is None else scale[number].tolist()
        assert all(not weight or label == token for weight, label, token in zip(weights, labels, ids, strict=True))
        yield ids[:length], weights[:length]


def scales(row: str) -> list[float]:
    """The weights of a row."""
    found: list[float] = json.loads(row)["messages"][0]["content"]["loss_scale"]
    return found


CONSUMERS = {
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "unsloth": unsloth,
    "torchtune": torchtune,
    "verl": verl,
    "tinker": tinker,
    "ms-swift": swift,
}

if __name__ == "__main__":
    name, directory, model, output = sys.argv[1:]
    found = list(CONSUMERS[name](Path(directory), model))
    Path(output).write_text("".join(json.dumps(row) + "\n" for row in found))
