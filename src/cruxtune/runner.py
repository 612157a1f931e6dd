"""How a stage works through its groups: resume, load the policy only if there is work, meter, save, account."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from cruxtune.accounting import Meter, peak_memory_gib, shares
from cruxtune.engines.base import Decoding, Engine, LoopRule, Progress
from cruxtune.models import Policy
from cruxtune.progress import bar
from cruxtune.settings import OutputSettings, VerifierSettings
from cruxtune.store import DatasetWriter, Rows
from cruxtune.verifiers import Rules, Verifier

Work = Callable[[Policy, range, Meter, Progress], Mapping[str, Rows]]
"""Does one group: (policy, its slice of the source, meter, progress) → rows of every table."""


def run_groups(
    *,
    stage: str,
    settings: BaseModel,
    output: OutputSettings,
    identity: Mapping[str, Any],
    tables: Mapping[str, pa.Schema],
    groups: Sequence[range],
    steps: Callable[[range], int],
    unit: str,
    load: Callable[[], Policy],
    work: Work,
    saved: Callable[[], int] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Do what is not done yet of the source rows, group by group; return the manifest.

    `groups` are slices of the source, the same in every run. `steps` tells how many `unit`s of progress a slice is,
    `saved` how many of them were not needed so far. `notes` are entries of the manifest that the stage has to add.

    Raises:
        StoreError: the output belongs to other settings, or is being written.
    """
    with DatasetWriter(
        output.output, stage, identity, groups=len(groups), tables=tables, overwrite=output.overwrite
    ) as writer:
        pending = writer.pending()
        if writer.complete and not pending:
            return writer.manifest
        policy = load()
        writer.describe(policy.facts)
        writer.remember(tuning=policy.engine.tune(writer.manifest.get("tuning")))
        total = sum(steps(group) for group in groups)
        done = total - sum(steps(groups[group]) for group in pending)
        spent = writer.accounting()
        note = _note(policy.engine, saved if saved else lambda: 0)
        with bar(stage, total, unit, done, note) as advance:
            for group in pending:
                meter = Meter(policy.engine, before=spent)
                rows = work(policy, groups[group], meter, advance)
                cost = meter.read()
                writer.write(group, rows, cost)
                spent = {name: spent.get(name, 0) + value for name, value in cost.items()}
        totals = writer.accounting()
        return writer.close(
            settings=settings.model_dump(mode="json"),
            shares=shares(totals),
            peak_memory_gib=round(peak_memory_gib(), 2),
            **(notes or {}),
        )


def _note(engine: Engine, saved: Callable[[], int]) -> Callable[[], str]:
    """Return what says how decoding goes: its rate, how often drafts are right, how much was not needed."""
    before, started = replace(engine.usage), time.monotonic()

    def note() -> str:
        used = engine.usage.since(before)
        parts = [f"{used['tokens_emitted'] / max(time.monotonic() - started, 1e-9):,.0f} tokens/s"]
        if used["tokens_drafted"]:
            parts.append(f"{100 * used['tokens_accepted'] / used['tokens_drafted']:.0f} % of drafts right")
        if saved():
            parts.append(f"{saved():,} saved")
        return ", ".join(parts)

    return note


def open_verifier(settings: VerifierSettings) -> Verifier:
    """Return the verifier of these settings; a context manager."""
    return Verifier(
        strict=settings.strict_answers,
        timeout=settings.verify_timeout,
        memory=settings.verify_memory,
        function=settings.verifier,
        rules=Rules(
            list_order=settings.list_order,
            percent=settings.percent,
            units=settings.units,
            relative_tolerance=settings.relative_tolerance,
        ),
    )


def greedy(loop_stop: bool) -> Decoding:
    """Return greedy decoding as defined, with or without the loop rule."""
    return Decoding(loop=LoopRule() if loop_stop else None)
