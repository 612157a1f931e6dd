"""Stage 4: fine-tune on the chosen tokens (DESIGN §2.5): cft on critical ones, sft on all, gold on worked solutions.

What `select` chose trains alike. All but gold see the same rows in the same order: those with at least one critical
token. No token is added to a response or cut from it: its end-of-sequence token is trained by sft always, and by cft
where it is critical.

Several processes may train one model: each comes through here, and the first alone writes.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cruxtune.accounting import WorkClock, peak_memory_gib
from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.chosen import Chosen, Entry, Weigh
from cruxtune.contamination import training_problems
from cruxtune.errors import ConfigError, DataError
from cruxtune.masks import training_row
from cruxtune.modelcard import write_card
from cruxtune.models import (
    context_length,
    end_of_sequence_ids,
    end_with,
    fingerprint,
    load_model,
    load_tokenizer,
    pick_device,
)
from cruxtune.problems import fingerprint as problems_fingerprint
from cruxtune.processes import agreed, count, index, refuse_layouts, sharding
from cruxtune.prompts import Renderer, tokenizer_hash
from cruxtune.records import Problem
from cruxtune.runner import greedy, open_verifier
from cruxtune.selectors import critical, every
from cruxtune.settings import DecodingSettings, PromptSettings, VerifierSettings, identity_of
from cruxtune.stage_settings import HubSettings, TrainSettings
from cruxtune.store import Workspace, write_atomic
from cruxtune.trainer import (
    build_trainer,
    gathered_weights,
    keep_logs,
    prepare_base,
    run_trainer,
    save_result,
    train_together,
    training_model_settings,
)
from cruxtune.validation import Held, hold_back

_log = logging.getLogger("cruxtune")


def train(settings: TrainSettings) -> dict[str, Any]:
    """Fine-tune, save the checkpoint (or the adapter) in --output, and return its manifest.

    Raises:
        DataError: nothing to train on, test problems of a benchmark, or a problem without a worked solution (gold).
        ConfigError: another tokenizer than the one that made the annotations, a trainer field that is refused, a
            repository of the Hub that cannot be written, or what several processes cannot do together.
        StoreError: the annotations are unfinished, or the output belongs to other settings.
    """
    source = _Gold(settings) if settings.method == "gold" else _Responses(settings)
    identity = identity_of(settings, model=fingerprint(source.model), **source.identity)
    # Where the result goes besides is no part of what it is.
    for name in (*HubSettings.model_fields, "validation_source", *(() if source.held else ("keep",))):
        identity.pop(name)
    device = pick_device(source.model.device)
    refuse_layouts(device, settings)
    return train_together("train", settings, identity, device, partial(_train, settings, source))


@dataclass(frozen=True)
class _Prepared:
    """What is trained, on which rows, and the rows that the loss is validated on."""

    model: Any
    tokenizer: Any
    entries: list[Entry]
    unseen: list[Entry]
    context: int | None


def _prepare(settings: TrainSettings, source: _Gold | _Responses, workspace: Workspace) -> _Prepared:
    """Load model and rows, and describe them in the workspace."""
    held = source.held
    asked = training_model_settings(source.model, settings.low_rank)
    entries = list(source.entries(load_tokenizer(asked)))  # first: what there is nothing to train on needs no model
    # What is spread over devices must fit no single one.
    model, tokenizer = load_model(asked.model_copy(update={"device": "cpu"}) if sharding() else asked)
    context = context_length(model.config)
    entries, dropped = _within_context(entries, context)
    unseen: list[Entry] = []
    if held:
        unseen = [entry for entry in held.entries if context is None or len(entry.row.input_ids) <= context]
        if not held.entries:
            unseen = [entry for entry in entries if entry.id in held.left_out]
        entries = [entry for entry in entries if entry.id not in held.left_out]
        if not entries:
            raise DataError(
                f"--validation {settings.validation.validation} takes every training row; hold back fewer problems"
            )
    rows = [entry.row for entry in entries]
    trained = sum(row.trained for row in rows)
    workspace.describe(
        {
            "tokenizer": tokenizer_hash(tokenizer),
            "eos_ids": end_of_sequence_ids(model, tokenizer),
            "method": source.method,
            "rows": len(rows),
            "rows_dropped": dropped,
            "tokens_per_epoch": trained,
            "response_tokens_per_epoch": sum(entry.response_length for entry in entries),
            "longest_row": max(len(row.input_ids) for row in rows),
            **({"validation_problems": len(held.problems), "validation_rows": len(unseen)} if held else {}),
        }
    )
    if settings.low_rank.lora:
        prepare_base(model, tokenizer, source.model, settings.output.output)
    # The sequence ends as responses end, whatever the checkpoint said of it before.
    end_with(model, workspace.manifest["facts"]["eos_ids"])
    return _Prepared(model, tokenizer, entries, unseen, context)


def _train(settings: TrainSettings, source: _Gold | _Responses, workspace: Workspace) -> None:
    """Train, and finish the workspace."""
    output, held = settings.output, source.held
    clock = WorkClock(workspace)
    with agreed():
        found = _prepare(settings, source, workspace)
    tokenizer, eos_ids = found.tokenizer, workspace.manifest["facts"]["eos_ids"]
    rows, work = [entry.row for entry in found.entries], output.output / "trainer"
    # The trainer gives its tokenizer a padding token; the one that is saved stays as it was.
    trainer = build_trainer(found.model, copy.deepcopy(tokenizer), rows, settings, source.model, work)
    with ExitStack() as stack:
        if held or settings.validation.probe:
            trainer.examination = _examination(settings, source, found, eos_ids, stack)
        keeps = held is not None and settings.validation.keep == "best"
        log = run_trainer(
            trainer,
            f"train {source.method}",
            on_save=clock.save,
            measured=settings.validation,
            save=partial(save_result, trainer, tokenizer) if keeps else None,
        )
    weights = gathered_weights(trainer)
    with agreed():
        if index() == 0:
            best = _finish_weights(trainer, tokenizer, output.output, work, keeps, weights)
            _finish(settings, source, workspace, log, _validation(log, best, trainer) if held else None, trainer, clock)


def _finish(
    settings: TrainSettings,
    source: _Gold | _Responses,
    workspace: Workspace,
    log: Sequence[dict[str, Any]],
    validation: dict[str, Any] | None,
    trainer: Any,
    clock: WorkClock,
) -> None:
    """Write what there is to say of the weights, and finish the workspace."""
    output = settings.output
    write_atomic(output.output / "training_log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log).encode())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    results = {
        "base_model": source.model.model,
        "settings": settings.model_dump(mode="json"),
        "accounting": {
            "seconds": clock.read(),
            "steps": trainer.state.global_step,
            "tokens_trained": trainer.tokens_trained,
            "processes": count(),
            "tokens_computed": trainer.tokens_computed,
        },
        "loss": {"first": losses[0], "last": losses[-1]},
        **({"validation": validation} if validation else {}),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        **source.notes,
    }
    write_card(output.output, {**workspace.manifest, **results}, source.model, source.data)
    shutil.rmtree(trainer.args.output_dir)
    workspace.finish(**results)


def _examination(
    settings: TrainSettings,
    source: _Gold | _Responses,
    found: _Prepared,
    eos_ids: Sequence[int],
    stack: ExitStack,
) -> Any:
    """Return what is asked of the model at evaluation steps; `stack` ends the verifier."""
    from cruxtune.examination import Examination, draw_probe

    asked: dict[str, Any] = {}
    if source.held:
        prompt, verifier, decoding = source.conditions
        asked = {
            "problems": source.held.problems,
            "rows": [entry.row for entry in found.unseen],
            "renderer": Renderer(found.tokenizer, prompt),
            "verifier": stack.enter_context(open_verifier(verifier)),
            "decoding": greedy(decoding.loop_stop),
            "max_new_tokens": decoding.max_new_tokens,
        }
    number = settings.validation.probe
    probe = draw_probe(found.entries, number, settings.output.seed) if number else []
    return Examination(probe=probe, loss=settings.loss, eos_ids=eos_ids, context_length=found.context, **asked)


def _finish_weights(
    trainer: Any, tokenizer: Any, output: Path, work: Path, keeps: bool, weights: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Put the weights that are kept into the output; return the validation that they are of, if of one.

    `weights` are the last ones where they had to be gathered.
    """
    from cruxtune.examination import best_validation, best_weights

    keep_logs(work, output)
    path = best_weights(work, trainer.state.log_history) if keeps else None
    if path is None:
        save_result(trainer, tokenizer, output, weights)
        return None
    shutil.copytree(path, output, dirs_exist_ok=True)
    best = best_validation(trainer.state.log_history)
    return dict(best) if best else None


def _validation(log: Sequence[dict[str, Any]], best: dict[str, Any] | None, trainer: Any) -> dict[str, Any]:
    """Return what validation came to: at the start, and of the weights that were kept."""
    scored = [entry for entry in log if "eval_accuracy" in entry]
    kept = best or scored[-1]
    return {
        "accuracy": kept["eval_accuracy"],
        "loss": kept.get("eval_loss"),
        "step": kept["step"],
        "accuracy_at_start": scored[0]["eval_accuracy"],
        "validations": len(scored),
        "stopped_early": trainer.state.global_step < trainer.state.max_steps,
    }


Conditions = tuple[PromptSettings, VerifierSettings, DecodingSettings]


class _Responses:
    """Rows from annotated responses or a selection of them; the model is the one that annotated, or another named."""

    def __init__(self, settings: TrainSettings) -> None:
        self._chosen = Chosen(settings.annotations, settings.selection)
        self._limit = settings.output.limit
        critical_ones = partial(critical, unknown=float(settings.unknown == "train"))
        self._weigh: Weigh = every if settings.method == "sft" else critical_ones
        self.method = settings.method or self._chosen.manifest["settings"]["method"]
        self.model = settings.model or self._chosen.model
        self.data = self._chosen.path.name
        self.identity: dict[str, Any] = dict(self._chosen.identity)
        self.notes: dict[str, Any] = {}
        self.held: Held | None = None
        if settings.validation.validation is not None:
            origin = self._chosen.origin(f"--validation {settings.validation.validation}")
            self.held = hold_back(
                settings.validation,
                origin.problems,
                seed=settings.output.seed,
                selected=self._chosen.selected,
                weigh=self._weigh,
                tokenizer=self._chosen.tokenizer_hash,
                benchmarks_dir=settings.training.benchmarks_dir,
            )
            past = origin.settings
            self.conditions: Conditions = (
                past.prompt,
                settings.verifier or past.verifier,
                settings.decoding or past.decoding,
            )
            self.identity |= _validation_identity(self.held, self.conditions)

    def entries(self, tokenizer: Any) -> Iterator[Entry]:
        if tokenizer_hash(tokenizer) != self._chosen.tokenizer_hash:
            raise ConfigError(
                f"--model {self.model.model} has another tokenizer than the model that made {self._chosen.flag} "
                f"{self._chosen.path}, so that its ids mean other text; train a model of the same tokenizer"
            )
        return self._chosen.entries(self._limit, self._weigh)


class _Gold:
    """Rows from worked solutions, prompted as the policy will be."""

    def __init__(self, settings: TrainSettings) -> None:
        assert settings.problems is not None
        assert settings.model is not None
        self.method = "gold"
        self.model = settings.model
        self.data = settings.problems.problems
        self._prompt = settings.prompt
        self._problems: list[Problem]
        self._problems, self.notes = training_problems(
            settings.problems, settings.training, seed=settings.output.seed, limit=settings.output.limit
        )
        refuse_test_problems(self._problems, f"--problems {settings.problems.problems}")
        self.identity: dict[str, Any] = {"problems": problems_fingerprint(self._problems)}
        self.held: Held | None = None
        if settings.validation.validation is not None:
            where = settings.training.benchmarks_dir
            self.held = hold_back(settings.validation, self._problems, seed=settings.output.seed, benchmarks_dir=where)
            verifier, decoding = settings.verifier or VerifierSettings(), settings.decoding or DecodingSettings()
            self.conditions: Conditions = (settings.prompt, verifier, decoding)
            self.identity |= _validation_identity(self.held, self.conditions)

    def entries(self, tokenizer: Any) -> Iterator[Entry]:
        renderer = Renderer(tokenizer, self._prompt)
        for problem in self._problems:
            ids = renderer.solution_ids(problem)
            row = training_row(renderer.render(problem), ids, [1.0] * len(ids))
            yield Entry(problem.id, row, [None] * len(ids))


def _validation_identity(held: Held, conditions: Conditions) -> dict[str, Any]:
    _, verifier, decoding = conditions
    return {
        "validation": problems_fingerprint(held.problems),
        "verifier": verifier.verifier,
        **verifier.model_dump(exclude={"verify_timeout", "verify_memory", "verifier"}),
        **decoding.model_dump(),
    }


def _within_context(entries: Sequence[Entry], context: int | None) -> tuple[list[Entry], int]:
    lengths = [len(entry.row.input_ids) for entry in entries]
    kept = [entry for entry, length in zip(entries, lengths, strict=True) if context is None or length <= context]
    dropped = len(entries) - len(kept)
    if dropped:
        _log.warning(
            "%d of %d rows are longer than the model's context of %s tokens and are left out; the longest has %d",
            dropped,
            len(entries),
            context,
            max(lengths),
        )
    if not kept:
        raise DataError(f"every one of {len(entries)} rows is longer than the model's context of {context} tokens")
    return kept, dropped
