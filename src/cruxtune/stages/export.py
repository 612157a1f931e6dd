"""Write the chosen tokens for another trainer, with the settings that it needs beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cruxtune.errors import ConfigError, DataError
from cruxtune.exporters import CONSUMERS, advice
from cruxtune.exporters.files import JSONL, PARQUET
from cruxtune.exporters.labels import write_labels_and_masks
from cruxtune.exporters.preferences import CUT_OFF, TEXT, Pair, Pairing, write_pairs
from cruxtune.exporters.rows import WeightedRow, critical_rows
from cruxtune.exporters.settings import ExportSettings
from cruxtune.models import load_tokenizer
from cruxtune.prompts import tokenizer_hash
from cruxtune.records import Annotation
from cruxtune.settings import ModelSettings, identity_of, recorded
from cruxtune.store import CARD, MANIFEST, Workspace, finished_manifest, read_rows, write_atomic

_log = logging.getLogger("cruxtune")


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write rows (or pairs) for the consumer; return the manifest, which has the settings that it needs.

    Raises:
        ConfigError: weights that the consumer has no room for, or a tokenizer that is no longer the annotations'.
        DataError: nothing to export.
        StoreError: the annotations are unfinished, or the output belongs to other settings.
    """
    manifest = finished_manifest(settings.annotations, "annotate", "--annotations")
    model = recorded(ModelSettings, manifest["settings"]["model"], settings.annotations)
    identity = identity_of(settings, annotations=manifest["fingerprint"])
    with Workspace(settings.output, "export", identity, overwrite=settings.overwrite) as workspace:
        if not workspace.complete:
            workspace.describe({name: manifest["facts"][name] for name in ("tokenizer", "chat_template", "eos_ids")})
            annotations = islice(read_rows(settings.annotations), settings.limit)
            advise: Callable[[Path, advice.Facts], advice.Advice]
            if settings.to == "dpo":
                tokenizer = _tokenizer(model, settings, manifest["facts"]["tokenizer"])
                counts = _write_pairs(
                    settings, Pairing(tokenizer, read_rows(settings.annotations, "rollouts")), annotations
                )
                advise = advice.dpo
            else:
                rows = critical_rows(annotations, unknown=float(settings.unknown == "train"))
                counts = write_rows(settings.to, settings.output, rows, assistant_masks=settings.assistant_masks)
                advise = CONSUMERS[settings.to].advise
            facts = advice.Facts(counts["rows"], counts["longest_row"], counts["fractional"])
            text, warnings = advise(settings.output.absolute(), facts)
            write_atomic(settings.output / CARD, _card(settings, text, warnings).encode())
            workspace.finish(
                settings=settings.model_dump(mode="json") | {"model": model.model_dump(mode="json")},
                advice={"settings": text, "warnings": [warning for warning in warnings if warning]},
                accounting=counts,
            )
        for warning in workspace.manifest["advice"]["warnings"]:
            _log.warning(warning)
        return workspace.manifest


def write_rows(
    to: str, directory: Path, rows: Iterable[WeightedRow], *, assistant_masks: bool = False
) -> dict[str, Any]:
    """Write rows in the form of a consumer; return their counts, the longest row, and whether a weight is fractional.

    Raises:
        ConfigError: weights that the consumer has no room for.
        DataError: no row, or one without a token to train.
    """
    consumer = CONSUMERS[to]
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataError(
            "no response has a critical token, so there is nothing to export; annotate more, or harder ones"
        )
    count: dict[str, Any] = {"rows": 0, "tokens": 0, "tokens_trained": 0, "longest_row": 0, "fractional": False}

    def counted() -> Iterator[WeightedRow]:
        for number, row in enumerate(chain([first], rows)):
            if not row.trained:
                raise DataError(f"row {number} has no token to train on; leave such rows out before they are exported")
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

    write: Callable[[Path, Iterable[WeightedRow]], None] = write_labels_and_masks if assistant_masks else consumer.write
    write(directory, counted())
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


def _tokenizer(model: ModelSettings, settings: ExportSettings, expected: str) -> Any:
    tokenizer = load_tokenizer(model)
    if tokenizer_hash(tokenizer) != expected:
        raise ConfigError(
            f"the tokenizer of {model.model} is no longer the one that made --annotations {settings.annotations}; "
            "annotate again"
        )
    return tokenizer


def _card(settings: ExportSettings, text: str, warnings: list[str]) -> str:
    """Return the dataset card: which file `datasets` is to load, and what to set in the consumer."""
    file = next((name for name in (JSONL, PARQUET) if (settings.output / name).exists()), None)
    front = f"---\nconfigs:\n- config_name: default\n  data_files: {file}\n---\n" if file else ""
    listed = "".join(f"- {warning}\n" for warning in warnings if warning)
    made = f"Written by `cruxtune export --to {settings.to}`; `{MANIFEST}` says with which settings."
    return f"{front}{made}\n\n```\n{text}\n```\n\n{listed}"
