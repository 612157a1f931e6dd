"""Write the chosen tokens for another trainer, with the settings that it needs beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cruxtune.chosen import Chosen
from cruxtune.errors import ConfigError, DataError
from cruxtune.exporters import CONSUMERS, advice
from cruxtune.exporters.files import JSONL, PARQUET
from cruxtune.exporters.labels import write_labels_and_masks
from cruxtune.exporters.preferences import CUT_OFF, TEXT, Pair, Pairing, write_pairs
from cruxtune.exporters.settings import ExportSettings
from cruxtune.masks import TrainingRow
from cruxtune.records import Annotation
from cruxtune.selectors import critical
from cruxtune.settings import identity_of
from cruxtune.store import CARD, MANIFEST, Workspace, read_rows, write_atomic

_log = logging.getLogger("cruxtune")


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write rows (or pairs) for the consumer; return the manifest, which has the settings that it needs.

    Raises:
        ConfigError: weights that the consumer has no room for, or a tokenizer that is no longer the annotations'.
        DataError: nothing to export.
        StoreError: the annotations are unfinished, or the output belongs to other settings.
    """
    chosen = Chosen(settings.annotations, settings.selection)
    facts = chosen.manifest["facts"]
    with Workspace(
        settings.output, "export", identity_of(settings, **chosen.identity), overwrite=settings.overwrite
    ) as workspace:
        if not workspace.complete:
            workspace.describe({name: facts[name] for name in ("tokenizer", "chat_template", "eos_ids")})
            advise: Callable[[Path, advice.Facts], advice.Advice]
            if settings.to == "dpo":
                pairing = Pairing(chosen.tokenizer(), read_rows(chosen.path, "rollouts"))
                counts = _write_pairs(settings, pairing, islice(read_rows(chosen.path), settings.limit))
                advise = advice.dpo
            else:
                rows = chosen.rows(settings.limit, partial(critical, unknown=float(settings.unknown == "train")))
                counts = write_rows(settings.to, settings.output, rows, assistant_masks=settings.assistant_masks)
                advise = CONSUMERS[settings.to].advise
            known = advice.Facts(counts["rows"], counts["longest_row"], counts["fractional"])
            text, warnings = advise(settings.output.absolute(), known)
            write_atomic(settings.output / CARD, _card(settings, text, warnings).encode())
            workspace.finish(
                settings=settings.model_dump(mode="json") | {"model": chosen.model.model_dump(mode="json")},
                advice={"settings": text, "warnings": [warning for warning in warnings if warning]},
                accounting=counts,
            )
        for warning in workspace.manifest["advice"]["warnings"]:
            _log.warning(warning)
        return workspace.manifest


def write_rows(
    to: str, directory: Path, rows: Iterable[TrainingRow], *, assistant_masks: bool = False
) -> dict[str, Any]:
    """Write rows in the form of a consumer; return their counts, the longest row, and whether a weight is fractional.

    Raises:
        ConfigError: weights that the consumer has no room for.
        DataError: no row has a token to train.
    """
    consumer = CONSUMERS[to]
    count: dict[str, Any] = {"rows": 0, "rows_left_out": 0, "tokens": 0, "tokens_trained": 0, "longest_row": 0}
    count["fractional"] = False

    def useful() -> Iterator[TrainingRow]:
        for row in rows:
            if row.trained:
                yield row
            else:  # no trainer has a use for it, and some divide by the number of its trained tokens
                count["rows_left_out"] += 1

    def counted(kept: Iterable[TrainingRow]) -> Iterator[TrainingRow]:
        for number, row in enumerate(kept):
            if row.fraction is not None and not consumer.fractional:
                able = ", ".join(name for name, other in CONSUMERS.items() if other.fractional)
                raise ConfigError(
                    f"--to {to} has no room for weights other than 0 and 1, and row {number} has one of "
                    f"{row.fraction:g}; export to one of {able}, choose whole tokens, or train here (cruxtune train)"
                )
            count["rows"] += 1
            count["tokens"] += len(row.input_ids)
            count["tokens_trained"] += row.trained
            count["longest_row"] = max(count["longest_row"], len(row.input_ids))
            count["fractional"] |= row.fraction is not None
            yield row

    write: Callable[[Path, Iterable[TrainingRow]], None] = write_labels_and_masks if assistant_masks else consumer.write
    found = useful()
    first = next(found, None)
    if first is None:
        raise DataError(f"none of {count['rows_left_out']} rows has a token to train on, so there is nothing to export")
    write(directory, counted(chain([first], found)))
    return count


def _write_pairs(
    settings: ExportSettings, pairing: Pairing, annotations: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write the pairs and return the counts, those left out included."""
    counts: dict[str, Any] = {"rows": 0, "tokens": 0, "longest_row": 0, "fractional": False}

    def counted() -> Iterator[tuple[Pair, dict[str, str]]]:
        for row in annotations:
            for pair, texts in pairing.pairs(Annotation.from_row(row)):
                sizes = [len(pair.prompt_ids) + len(ids) for ids in (pair.chosen_ids, pair.rejected_ids)]
                counts["rows"] += 1
                counts["tokens"] += sum(sizes)
                counts["longest_row"] = max(counts["longest_row"], *sizes)
                yield pair, texts

    write_pairs(settings.output, counted())
    counts |= {"cut_off": pairing.left_out[CUT_OFF], "other_ids": pairing.left_out[TEXT]}
    if not counts["rows"]:
        (settings.output / JSONL).unlink()
        raise DataError(
            f"--annotations {settings.annotations}: no critical position gives a pair ({counts['cut_off']} have only "
            f"rollouts that were cut off, {counts['other_ids']} only text that DPOTrainer would tokenise otherwise); "
            "annotate more responses"
        )
    return counts


def _card(settings: ExportSettings, text: str, warnings: list[str]) -> str:
    """Return the dataset card: which file `datasets` is to load, and what to set in the consumer."""
    file = next((name for name in (JSONL, PARQUET) if (settings.output / name).exists()), None)
    front = f"---\nconfigs:\n- config_name: default\n  data_files: {file}\n---\n" if file else ""
    listed = "".join(f"- {warning}\n" for warning in warnings if warning)
    made = f"Written by `cruxtune export --to {settings.to}`; `{MANIFEST}` says with which settings."
    return f"{front}{made}\n\n```\n{text}\n```\n\n{listed}"
