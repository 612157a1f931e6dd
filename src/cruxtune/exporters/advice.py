"""What the user has to set in the consumer, and what would go wrong silently otherwise: one function per consumer.

Each takes the directory and the facts, and returns (settings to copy, warnings).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cruxtune.exporters.files import JSONL, PARQUET, SAVED

Advice = tuple[str, list[str]]


@dataclass(frozen=True)
class Facts:
    """What was written: rows, the most tokens that one has, and whether weights are other than 0 and 1."""

    rows: int
    longest_row: int
    fractional: bool


def trl(directory: Path, facts: Facts) -> Advice:
    """TRL's SFTTrainer; its defaults cut rows at 1024 tokens."""
    settings = f"""\
rows = load_dataset("json", data_files="{directory / JSONL}", split="train")
SFTTrainer(model, args=SFTConfig(max_length=None, packing=False), train_dataset=rows)"""
    return settings, [
        *_cut(facts, 1024, "TRL", "max_length=None"),
        "TRL before 1.7 drops the labels under packing or use_liger_kernel and trains on every token: "
        "use a newer one, or --assistant-masks",
    ]


def dpo(directory: Path, facts: Facts) -> Advice:
    """TRL's DPOTrainer; its defaults cut rows at 1024 tokens."""
    settings = f"""\
pairs = load_dataset("json", data_files="{directory / JSONL}", split="train")
DPOTrainer(model, args=DPOConfig(max_length=None), train_dataset=pairs, processing_class=tokenizer)"""
    return settings, [
        *_cut(facts, 1024, "TRL", "max_length=None"),
        "DPOTrainer tokenises the text again: use the tokenizer of the model that annotated",
    ]


def axolotl(directory: Path, facts: Facts) -> Advice:
    """Axolotl takes rows that have all three columns as they are, whatever `type` says."""
    settings = f"""\
datasets:
  - path: {directory / JSONL}
    ds_type: json
    type:
sequence_len: {facts.longest_row}
excess_length_strategy: raise
sample_packing: false"""
    return settings, [
        f"Axolotl drops rows longer than sequence_len without an error by default; the longest has {facts.longest_row}",
        "keep all three columns: without attention_mask or labels, Axolotl tokenises rows anew by `type`",
    ]


def llamafactory(directory: Path, facts: Facts) -> Advice:
    """LLaMA-Factory wants the name of some data set too, which it then ignores."""
    settings = f"""\
stage: sft
tokenized_path: {directory / SAVED}
dataset: identity
packing: false"""
    return settings, [
        "LLaMA-Factory does not read `dataset` while tokenized_path exists; where the path is mistyped it silently "
        "trains on all responses of `dataset` instead",
        f"rows are taken whole, whatever cutoff_len says; the longest has {facts.longest_row} tokens",
    ]


def unsloth(directory: Path, facts: Facts) -> Advice:
    """Unsloth's SFTTrainer, with the collator that it swaps in for rows that have labels."""
    settings = f"""\
model, tokenizer = FastLanguageModel.from_pretrained(MODEL, max_seq_length={facts.longest_row})
rows = load_dataset("json", data_files="{directory / JSONL}", split="train")
SFTTrainer(model, tokenizer, args=SFTConfig(max_length={facts.longest_row}, packing=False), train_dataset=rows)"""
    return settings, [
        "keep the column labels: without it, Unsloth trains on every token",
        "do not call train_on_responses_only: labels say already what is trained",
    ]


def torchtune(directory: Path, facts: Facts) -> Advice:
    """Torchtune finds our dataset on PYTHONPATH."""
    settings = f"""\
# PYTHONPATH={directory} tune run …
dataset:
  _component_: cruxtune_torchtune.rows
  path: {directory / JSONL}
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss"""
    return settings, [
        "`mask` is True where there is NO loss: read the other way round, everything but the chosen tokens is trained",
        f"rows are taken whole; the longest has {facts.longest_row} tokens",
    ]


def verl(directory: Path, facts: Facts) -> Advice:
    """The SFT trainer of verl, with our dataset class."""
    settings = f"""\
torchrun -m verl.trainer.sft_trainer data.train_files={directory / PARQUET} \\
  data.custom_cls.path={directory / "cruxtune_verl.py"} data.custom_cls.name=CruxtuneDataset \\
  data.pad_mode=no_padding data.max_length={facts.longest_row} data.truncation=error"""
    return settings, [
        "without data.custom_cls, verl renders messages and trains on every token of the answers",
        "engines other than FSDP may take weights for booleans (Megatron does)" if facts.fractional else "",
    ]


def swift(directory: Path, facts: Facts) -> Advice:
    """`swift sft` of ms-swift, with our plugin."""
    binary = "false" if facts.fractional else "true"
    settings = f"""\
swift sft --external_plugins {directory / "cruxtune_swift.py"} --dataset cruxtune --template cruxtune \\
  --loss_scale default --is_binary_loss_scale {binary} --max_length {facts.longest_row} --packing false \\
  --split_dataset_ratio 0"""
    return settings, [
        "keep --template cruxtune: others add tokens of their own, and may train an end of sequence not chosen",
        "without --is_binary_loss_scale false, every weight above 0 counts as 1" if facts.fractional else "",
    ]


def tinker(directory: Path, facts: Facts) -> Advice:
    """Tinker's training client takes datums."""
    settings = f"""\
# PYTHONPATH={directory}
from cruxtune_tinker import datums
client.forward_backward(list(datums("{directory / JSONL}")), "cross_entropy")"""
    return settings, [
        "the loss is a sum over the batch, so that steps grow with the weights in it: scale the learning rate, or "
        'pass reduction="mean"',
        f"rows are taken whole; the longest has {facts.longest_row} tokens",
    ]


def _cut(facts: Facts, default: int, name: str, setting: str) -> list[str]:
    if facts.longest_row <= default:
        return []
    return [f"{name} cuts rows at {default} tokens by default and the longest has {facts.longest_row}: keep {setting}"]
