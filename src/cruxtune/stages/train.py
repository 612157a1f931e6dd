"""Stage 4: fine-tune on the chosen tokens (DESIGN §2.5): cft on critical ones, sft on all, gold on worked solutions.

What `select` chose trains alike. All but gold see the same rows in the same order: those with at least one critical
token. No token is added to a response or cut from it: its end-of-sequence token is trained by sft always, and by cft
where it is critical.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from cruxtune.accounting import peak_memory_gib
from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.chosen import Chosen, Weigh
from cruxtune.contamination import training_problems
from cruxtune.errors import ConfigError, DataError
from cruxtune.masks import TrainingRow, training_row
from cruxtune.models import context_length, end_of_sequence_ids, fingerprint, load_model, load_tokenizer
from cruxtune.problems import fingerprint as problems_fingerprint
from cruxtune.prompts import Renderer, tokenizer_hash
from cruxtune.records import Problem
from cruxtune.selectors import critical, every
from cruxtune.settings import identity_of
from cruxtune.stage_settings import TrainSettings
from cruxtune.store import Workspace, write_atomic
from cruxtune.trainer import build_trainer, prepare_base, run_trainer, save_result, training_model_settings

_log = logging.getLogger("cruxtune")


def train(settings: TrainSettings) -> dict[str, Any]:
    """Fine-tune, save the checkpoint (or the adapter) in --output, and return its manifest.

    Raises:
        DataError: nothing to train on, test problems of a benchmark, or a problem without a worked solution (gold).
        ConfigError: another tokenizer than the one that made the annotations, or a trainer field that is refused.
        StoreError: the annotations are unfinished, or the output belongs to other settings.
    """
    source = _Gold(settings) if settings.method == "gold" else _Responses(settings)
    output = settings.output
    identity = identity_of(settings, model=fingerprint(source.model), **source.identity)
    with Workspace(output.output, "train", identity, overwrite=output.overwrite) as workspace:
        if workspace.complete:
            return workspace.manifest
        clock = _Clock(workspace)
        asked = training_model_settings(source.model, settings.low_rank)
        rows = source.rows(load_tokenizer(asked))  # first: what there is nothing to train on needs no model
        model, tokenizer = load_model(asked)
        rows, dropped = _within_context(rows, context_length(model.config))
        trained = sum(row.trained for row in rows)
        workspace.describe(
            {
                "tokenizer": tokenizer_hash(tokenizer),
                "eos_ids": end_of_sequence_ids(model, tokenizer),
                "method": source.method,
                "rows": len(rows),
                "rows_dropped": dropped,
                "tokens_per_epoch": trained,
                "response_tokens_per_epoch": source.response_tokens,
                "longest_row": max(len(row.input_ids) for row in rows),
            }
        )
        work = output.output / "trainer"
        if settings.low_rank.lora:
            prepare_base(model, tokenizer, source.model, output.output)
        # The sequence ends as responses end, whatever the checkpoint said of it before.
        model.generation_config.eos_token_id = workspace.manifest["facts"]["eos_ids"]
        # The trainer gives its tokenizer a padding token; the one that is saved stays as it was.
        trainer = build_trainer(model, copy.deepcopy(tokenizer), rows, settings, source.model, work)
        log = run_trainer(trainer, f"train {source.method}", on_save=clock.save)
        save_result(trainer, tokenizer, output.output)
        write_atomic(output.output / "training_log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log).encode())
        shutil.rmtree(work)
        return workspace.finish(
            settings=settings.model_dump(mode="json"),
            accounting={
                "seconds": clock.read(),
                "steps": trainer.state.global_step,
                "tokens_trained": round(trained * settings.epochs),
            },
            loss={"first": log[0]["loss"], "last": log[-1]["loss"]},
            peak_memory_gib=round(peak_memory_gib(), 2),
            **source.notes,
        )


class _Clock:
    """Seconds of work that lasted: what a crash undid is not counted, what was checkpointed is."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._before = workspace.manifest.get("seconds_before", 0.0)
        self._started = time.monotonic()

    def read(self) -> float:
        return round(self._before + time.monotonic() - self._started, 3)

    def save(self) -> None:
        self._workspace.manifest["seconds_before"] = self.read()
        self._workspace.save()


class _Responses:
    """Rows from annotated responses or a selection of them; the model is the one that annotated, or another named."""

    def __init__(self, settings: TrainSettings) -> None:
        self._chosen = Chosen(settings.annotations, settings.selection)
        self._limit = settings.output.limit
        critical_ones = partial(critical, unknown=float(settings.unknown == "train"))
        self._weigh: Weigh = every if settings.method == "sft" else critical_ones
        self.method = settings.method or self._chosen.manifest["settings"]["method"]
        self.model = settings.model or self._chosen.model
        self.identity = self._chosen.identity
        self.notes: dict[str, Any] = {}

    @property
    def response_tokens(self) -> int:
        return self._chosen.response_tokens

    def rows(self, tokenizer: Any) -> list[TrainingRow]:
        if tokenizer_hash(tokenizer) != self._chosen.tokenizer_hash:
            raise ConfigError(
                f"--model {self.model.model} has another tokenizer than the model that made {self._chosen.flag} "
                f"{self._chosen.path}, so that its ids mean other text; train a model of the same tokenizer"
            )
        return list(self._chosen.rows(self._limit, self._weigh))


class _Gold:
    """Rows from worked solutions, prompted as the policy will be."""

    def __init__(self, settings: TrainSettings) -> None:
        assert settings.problems is not None
        assert settings.model is not None
        self.method = "gold"
        self.model = settings.model
        self._prompt = settings.prompt
        self._problems: list[Problem]
        self._problems, self.notes = training_problems(
            settings.problems, settings.training, seed=settings.output.seed, limit=settings.output.limit
        )
        refuse_test_problems(self._problems, f"--problems {settings.problems.problems}")
        self.identity = {"problems": problems_fingerprint(self._problems)}
        self.response_tokens = 0

    def rows(self, tokenizer: Any) -> list[TrainingRow]:
        renderer = Renderer(tokenizer, self._prompt)
        rows = []
        for problem in self._problems:
            ids = renderer.solution_ids(problem)
            self.response_tokens += len(ids)
            rows.append(training_row(renderer.render(problem), ids, [1.0] * len(ids)))
        return rows


def _within_context(rows: Sequence[TrainingRow], context: int | None) -> tuple[list[TrainingRow], int]:
    kept = [row for row in rows if context is None or len(row.input_ids) <= context]
    dropped = len(rows) - len(kept)
    if dropped:
        _log.warning(
            "%d of %d rows are longer than the model's context of %s tokens and are left out; the longest has %d",
            dropped,
            len(rows),
            context,
            max(len(row.input_ids) for row in rows),
        )
    if not kept:
        raise DataError(f"every one of {len(rows)} rows is longer than the model's context of {context} tokens")
    return kept, dropped
