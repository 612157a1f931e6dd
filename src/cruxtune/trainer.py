"""TRL's SFTTrainer on our rows: what is set, what is left to the user, how a run resumes, what is saved.

The loss is L = −Σ_t w_t log p_θ(y_t | Q, y_<t) / Σ_t w_t over the batch (DESIGN §2.5; see `cruxtune.weighted`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cruxtune.errors import ConfigError, DataError
from cruxtune.hub import check_access, push
from cruxtune.masks import IGNORE_INDEX, TrainingRow
from cruxtune.models import computes_in_bfloat16, locate, pick_device, quiet_libraries
from cruxtune.processes import agreed, count, from_first, index, join, share_batch
from cruxtune.progress import bar
from cruxtune.rl_settings import RlSettings
from cruxtune.settings import ModelSettings
from cruxtune.stage_settings import LoraSettings, TrainSettings, ValidationSettings
from cruxtune.store import Workspace, read_manifest

STATE = "trainer_state.json"
SAVE_EVERY = 180.0
"""Seconds of training between checkpoints: the most that a crash costs. A checkpoint is three times the weights."""
_NEVER = 10**9
_PATIENCE = 1800.0
"""Seconds that processes wait for each other: the Trainer's own."""
_PARTS = (
    # By itself; in one file or in shards of FSDP; DeepSpeed's.
    ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest"),
    ("scheduler.pt",),
    # Of one process, or of the first of several.
    ("rng_state.pth", "rng_state_0.pth"),
)
"""What a checkpoint must have besides its state: one of each."""
_LOGGED = {name: name for name in ("step", "epoch", "loss", "grad_norm", "learning_rate")}
"""Names of the trainer's log and of ours."""
_COUNTED = ("tokens_trained", "tokens_computed")
"""What a trainer counts, which its checkpoints carry."""


def train_together(
    stage: str,
    settings: TrainSettings | RlSettings,
    identity: Mapping[str, Any],
    device: str,
    train: Callable[[Workspace], None],
) -> dict[str, Any]:
    """Train in the workspace of --output, unless that is done, push the result if asked, and return its manifest.

    Every process comes through here: they join, and the first alone writes and pushes.

    Raises:
        ConfigError: a repository of the Hub that cannot be written.
        StoreError: the output belongs to other settings.
    """
    join(device, settings.trainer.get("ddp_timeout", _PATIENCE))
    first, output = index() == 0, settings.output
    workspace = Workspace(output.output, stage, identity, overwrite=output.overwrite, writes=first)
    with ExitStack() as stack:
        for turn in (True, False):
            with agreed():
                if turn == first:
                    stack.enter_context(workspace)
        repository = None
        with agreed():
            wanted = settings.hub.push_to_hub
            pushes = wanted is not None and workspace.manifest.get("pushed", {}).get("asked") != wanted
            if first and pushes:
                # Before hours are spent.
                repository = check_access(settings.hub)
        if not workspace.complete:
            train(workspace)
        if repository:
            workspace.remember(pushed={"asked": wanted, "url": push(output.output, repository)})
        return workspace.manifest if first else read_manifest(output.output)


def training_model_settings(model: ModelSettings, lora: LoraSettings) -> ModelSettings:
    """Return how the model is loaded for training: float32 weights, or bfloat16 where they stay frozen under LoRA.

    With dtype auto, arithmetic is bfloat16 (autocast) where the hardware has it; a named dtype is used as it is.
    """
    if model.dtype != "auto":
        return model
    frozen = lora.lora and computes_in_bfloat16(pick_device(model.device))
    return model.model_copy(update={"dtype": "bfloat16" if frozen else "float32"})


def build_trainer(
    model: Any, tokenizer: Any, rows: Sequence[TrainingRow], settings: TrainSettings, asked: ModelSettings, work: Path
) -> Any:
    """Return the trainer for these rows; checkpoints go to `work`.

    Raises:
        ConfigError: SFTConfig refuses a field of `settings.trainer`, the model has a prompt-tuning adapter, rows are
            to be packed into less than the longest of them, or the processes cannot share the batch.
    """
    from trl import SFTConfig

    from cruxtune.weighted import WeightedTrainer

    refuse_virtual_tokens(model, asked)
    options: dict[str, Any] = {
        **common_options(settings, asked, work, *share_batch(settings)),
        "max_length": None,
        "padding_free": settings.padding_free or settings.packing is not None,
        "activation_checkpointing": pick_device(asked.device).startswith("cuda"),
        **settings.trainer,
    }
    config = make_config(SFTConfig, options, settings.trainer)
    with quiet_libraries():
        return WeightedTrainer(
            loss=settings.loss,
            model=model,
            args=config,
            train_dataset=_dataset(rows, settings.packing),
            processing_class=tokenizer,
            peft_config=lora_config(settings.low_rank) if settings.low_rank.lora else None,
        )


def common_options(
    settings: TrainSettings | RlSettings, asked: ModelSettings, work: Path, micro: int, accumulated: int
) -> dict[str, Any]:
    """Return what is set for every trainer: batches of `micro` rows, `accumulated` of them a step."""
    # The environment would override bf16 silently, and TRL reports its use to the Hub.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    device = pick_device(asked.device)
    return {
        "output_dir": str(work),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "seed": settings.output.seed,
        # Spaced, since an epoch's order is drawn from data_seed + epoch; unset, it would depend on what ran before.
        "data_seed": settings.output.seed * 1000,
        "use_cpu": device == "cpu",
        "bf16": asked.dtype == "auto" and computes_in_bfloat16(device),
        # By default the clock decides when to save (see `run_trainer`); a recipe may name steps instead.
        "save_strategy": "steps",
        "save_steps": _NEVER,
        "save_total_limit": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "run_name": settings.output.output.name,
    }


def make_config(kind: Any, options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return TRL's config of these options, of which the user has `given` some.

    Raises:
        ConfigError: it refuses them, or a logger that `report_to` names is not installed.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        config = kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--trainer: {kind.__name__} refuses these fields: {error}") from error
    # A process has one device. DataParallel, which would take them all, cuts batches where weights are not looked for.
    config._n_gpu = min(config.n_gpu, 1)
    try:
        for callback in get_reporting_integration_callbacks(config.report_to):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--trainer report_to={given.get('report_to')}: {error}") from error
    return config


def lora_config(lora: LoraSettings) -> Any:
    """Return the adapter that is asked for, as PEFT has it."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.lora_rank,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _dataset(rows: Sequence[TrainingRow], packing: int | None) -> Any:
    """Return the rows as a dataset, packed if asked for: by their whole length, so that methods share every batch.

    For several processes there is a blank one behind them; see `cruxtune.weighted`.
    """
    from datasets import Dataset, concatenate_datasets
    from trl.data_utils import pack_dataset

    columns = [{"input_ids": row.input_ids, "labels": row.labels, "weights": row.weights} for row in rows]
    blank = {"input_ids": [0, 0], "labels": [IGNORE_INDEX] * 2, "weights": [0.0] * 2}
    blanks = [blank] if count() > 1 else []
    if packing is None:
        return Dataset.from_list([*columns, *blanks])
    dataset = Dataset.from_list(columns)
    longest = max(len(row.input_ids) for row in rows)
    if packing < longest:
        raise ConfigError(
            f"--packing {packing} is less than the longest row has tokens ({longest}), and rows are never cut; "
            f"use at least {longest}"
        )
    packed = pack_dataset(dataset, packing, "bfd")
    filling = Dataset.from_list([{**blank, "seq_lengths": [2]}], features=packed.features)
    return concatenate_datasets([packed, filling]) if blanks else packed


def refuse_virtual_tokens(model: Any, asked: ModelSettings) -> None:
    """Refuse prompt tuning and its like: their virtual tokens stand before ours, so that weights would be elsewhere."""
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            raise ConfigError(
                f"--model {asked.model} has a {config.peft_type.value} adapter, whose virtual tokens would shift every "
                "weight; train the base model (with --lora, where an adapter is wanted)"
            )


def run_trainer(
    trainer: Any,
    title: str,
    *,
    on_save: Callable[[], None],
    measured: ValidationSettings | None = None,
    save: Callable[[Path], None] | None = None,
    logged: Mapping[str, str] = _LOGGED,
    apart: int = 1,
) -> list[dict[str, Any]]:
    """Train to the end, from the last usable checkpoint where there is one; return the log.

    The log has an entry per step, and one per examination where `trainer.examination` is set; `measured` says when
    those are and what follows from them, `save` writes the weights of the best one into a directory. `on_save` is
    called after every checkpoint; those that the clock asks for come after multiples of `apart` steps. `logged` has the
    trainer's names of what is logged, and ours.
    """
    from transformers import PrinterCallback

    args = trainer.args
    with agreed():
        found = last_checkpoint(Path(args.output_dir)) if index() == 0 else None
    checkpoint = from_first(found)
    per_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(per_epoch * args.num_train_epochs)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    trainer.remove_callback(PrinterCallback)
    if measured is not None and trainer.examination is not None:
        from cruxtune.examination import examiner

        every = measured.evaluate_every or per_epoch
        trainer.add_callback(examiner(trainer, every=every, patience=measured.patience, save=save))
    with bar(title, steps, "steps", done) as advance, quiet_libraries():
        trainer.add_callback(_watcher(trainer, advance, on_save, apart))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return [
        {name: entry[key] for key, name in (*logged.items(), *((name, name) for name in measures)) if key in entry}
        for entry in trainer.state.log_history
        if (measures := sorted(name for name in entry if name.startswith("eval_"))) or "loss" in entry
    ]


def _watcher(trainer: Any, advance: Callable[[int], None], on_save: Callable[[], None], apart: int) -> Any:
    """Return the callback that shows progress, saves by the clock, and stops a run whose loss is no number."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Watcher(TrainerCallback, ExportableState):
        def __init__(self) -> None:
            self._saved = time.monotonic()

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {name: getattr(trainer, name) for name in _COUNTED}}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for name in _COUNTED:
                setattr(trainer, name, state.stateful_callbacks["Watcher"]["attributes"][name])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(1)
            if args.save_steps == _NEVER and state.global_step % apart == 0:
                # Clocks differ, and processes save together.
                control.should_save |= from_first(time.monotonic() - self._saved > SAVE_EVERY)
            if state.global_step >= state.max_steps:
                # The last state is saved as the result.
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                raise DataError(
                    f"the loss is {loss} at step {state.global_step}, so that every weight would be lost; "
                    "lower --learning-rate, or use --dtype float32"
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._saved = time.monotonic()
            on_save()

    return Watcher()


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint that was saved whole; parts of one are deleted.

    The trainer writes its state file last, and takes a checkpoint without an optimizer for one that never had any. How
    many processes saved it does not matter.
    """
    for path in sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / STATE).read_text())
            if all(any((path / name).exists() for name in names) for names in _PARTS):
                return path
        except (OSError, ValueError):
            pass
        shutil.rmtree(path)
    return None


def gathered_weights(trainer: Any) -> dict[str, Any] | None:
    """Return the weights where processes have parts of them, else None; all processes must ask."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    weights: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def save_result(trainer: Any, tokenizer: Any, output: Path, weights: dict[str, Any] | None = None) -> None:
    """Save what was trained as a plain checkpoint (or adapter), with the tokenizer as it was before training.

    `weights` are those that were gathered.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # What a penalty compares with (beta) is an adapter of its own, and no result.
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
    # TRL turns the cache off in the config of the model that it trains, which may go on.
    before, inner.config.use_cache = inner.config.use_cache, True
    # It pads with the end of a sequence where there is no other token. A checkpoint that says so would never learn what
    # follows that token: an embedding has no gradient at its padding.
    pad, inner.config.pad_token_id = inner.config.pad_token_id, tokenizer.pad_token_id
    inner.generation_config.pad_token_id = tokenizer.pad_token_id
    with quiet_libraries():
        model.save_pretrained(output, state_dict=weights)
        tokenizer.save_pretrained(output)
    inner.config.use_cache, inner.config.pad_token_id = before, pad
    inner.generation_config.pad_token_id = pad


def keep_logs(work: Path, output: Path) -> None:
    """Copy what a trainer's loggers wrote beside its checkpoints, which are the user's."""
    for name in ("runs", "completions"):
        if (work / name).is_dir():
            shutil.copytree(work / name, output / name, dirs_exist_ok=True)


def prepare_base(model: Any, tokenizer: Any, asked: ModelSettings, output: Path) -> None:
    """Give a GGUF model a place that adapters can name: PEFT loads a base model from a directory."""
    where = locate(asked)
    base = output / "base" if where.gguf else Path(where.source)
    if where.gguf and index() == 0 and not (base / "config.json").exists():
        with quiet_libraries():
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
    model.config._name_or_path = str(base) if where.gguf or where.local else where.source
    model.name_or_path = model.config._name_or_path
