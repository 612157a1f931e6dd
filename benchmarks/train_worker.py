"""One trainer in one process, which makes a step when it is told to: what `train.py` starts for every row of its table.

It reads "step" lines from standard input, and writes a line of JSON for the model being ready, and for each step.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from limits import peak_gib, reset_peak
from train_rows import full_rows, masked
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from cruxtune.masks import TrainingRow
from cruxtune.models import load_model, quiet_libraries
from cruxtune.settings import ModelSettings, build
from cruxtune.stage_settings import TrainSettings
from cruxtune.trainer import build_trainer

VARIANTS = ("sft", "labels", "cft")
"""TRL on all response tokens, TRL with our labels, our trainer."""
_OWN = ("output_dir", "logging_dir", "run_name", "save_total_limit", "save_steps", "logging_nan_inf_filter")
"""Settings of a trainer that cost nothing here, and differ."""
_LEARNING_RATE = 1e-5
_SEED = 5


@dataclass(frozen=True)
class Work:
    """What a worker does; `variant` is one of VARIANTS."""

    variant: str
    model: str
    lora: bool
    precision: str
    share: float
    batch_size: int
    steps: int
    directory: str
    """For what trainers write, and for the gradients of the first step."""


def main() -> None:
    """Train as the line on standard input says."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # What libraries print is no answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = Work(**json.loads(sys.stdin.readline()))
    bfloat16 = work.precision == "bfloat16"
    # As `cruxtune train` loads it: float32 weights and autocast, or frozen weights in bfloat16.
    loaded = ModelSettings(model=work.model, dtype="bfloat16" if bfloat16 and work.lora else "float32", device="cpu")
    model, tokenizer = load_model(loaded)
    for parameter in model.parameters():
        # Weights that are mapped from the file count as memory only once they are touched.
        parameter.data = parameter.data.clone()
    rows = full_rows(Path(work.model), work.batch_size * work.steps)
    if work.variant != "sft":
        rows = masked(rows, work.share)
    torch.manual_seed(_SEED)
    with quiet_libraries():
        trainer = (_ours if work.variant == "cft" else _plain)(work, model, tokenizer, rows)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Steps(trainer, work, answers))
        trainer.train()


def _plain(work: Work, model: Any, tokenizer: Any, rows: list[TrainingRow]) -> Any:
    """Return TRL's trainer on the rows' labels, with nothing of ours."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    settings = _settings(work)
    lora = settings.low_rank
    config = SFTConfig(
        output_dir=str(Path(work.directory) / work.variant),
        learning_rate=_LEARNING_RATE,
        num_train_epochs=1.0,
        per_device_train_batch_size=work.batch_size,
        seed=_SEED,
        data_seed=_SEED * 1000,
        max_length=None,
        use_cpu=True,
        bf16=work.precision == "bfloat16",
        activation_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
    )
    adapter = LoraConfig(
        r=lora.lora_rank, lora_alpha=lora.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=tokenizer,
        peft_config=adapter if work.lora else None,
    )


def _ours(work: Work, model: Any, tokenizer: Any, rows: list[TrainingRow]) -> Any:
    asked = ModelSettings(model=work.model, dtype="auto" if work.precision == "bfloat16" else "float32", device="cpu")
    return build_trainer(model, tokenizer, rows, _settings(work), asked, Path(work.directory) / work.variant)


def _settings(work: Work) -> TrainSettings:
    leaves = {
        "method": "cft",
        "annotations": "rows",
        "output": work.directory,
        "learning_rate": _LEARNING_RATE,
        "epochs": 1,
        "batch_size": work.batch_size,
        "lora": work.lora,
        "seed": _SEED,
        # bfloat16 also where the processor has no arithmetic for it, and float32 where it has.
        "trainer": {"bf16": work.precision == "bfloat16", "save_strategy": "no"},
    }
    return build(TrainSettings, leaves)


class _Steps(TrainerCallback):
    """Waits for the word before each step, and answers behind it."""

    def __init__(self, trainer: Any, work: Work, answers: TextIO) -> None:
        self._trainer = trainer
        self._work = work
        self._answers = answers
        self._first = True
        self._started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        gc.collect()
        exact = reset_peak()
        baseline = peak_gib()
        settings = {name: str(value) for name, value in self._trainer.args.to_dict().items() if name not in _OWN}
        self._answer(baseline_gib=baseline, baseline_is_exact=exact, settings=settings)
        self._wait()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        # Both sides are clipped by their norm alike. The first step is for nobody's time.
        if self._first and self._work.variant != "sft":
            named = self._trainer.model.named_parameters()
            gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
            torch.save(gradients, Path(self._work.directory) / f"{self._work.variant}.pt")
        self._first = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._answer(seconds=time.perf_counter() - self._started, peak_gib=peak_gib())
        if state.global_step < state.max_steps:
            self._wait()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            # Logged when the next step is asked for, so that its time has the cost of logging.
            self._answer(loss=logs["loss"], positions=logs["num_tokens"])

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit("the benchmark has ended")
        self._started = time.perf_counter()

    def _answer(self, **facts: Any) -> None:
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()


if __name__ == "__main__":
    main()
