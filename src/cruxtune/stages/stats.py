"""Which tokens are critical: by class, position, entropy and rank gap, by number of alternatives, and by model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cruxtune.chosen import tokenizer_that_made
from cruxtune.critical_stats import agreement, bin_names, binned, deciles, labels_with, quantile_edges, shares
from cruxtune.errors import DataError
from cruxtune.prompts import character_spans
from cruxtune.records import Annotation
from cruxtune.report.figures import Panel, bars
from cruxtune.report.stats import PANELS, figure_name, markdown
from cruxtune.settings import ModelSettings, recorded
from cruxtune.stats_settings import StatsSettings
from cruxtune.store import finished_manifest, read_rows, write_atomic
from cruxtune.token_classes import TOKEN_CLASSES, token_classes

DECILES = [f"{10 * tenth} to {10 * tenth + 10} %" for tenth in range(10)]


@dataclass(frozen=True)
class _Source:
    name: str
    model: str
    tokenizer_hash: str
    tokenizer: Any
    annotations: list[Annotation]


def stats(settings: StatsSettings) -> dict[str, Any]:
    """Return the statistics of each of the annotations and of each pair of them; write them where that is asked for.

    Raises:
        StoreError: annotations that are missing or unfinished.
        ConfigError: the tokenizer is no longer the one that annotated.
        DataError: no token is known to be critical or not.
    """
    sources = [_read(path, name, settings.limit) for path, name in _named(settings.annotations)]
    result: dict[str, Any] = {
        "seed": settings.seed,
        "limit": settings.limit,
        "annotations": {source.name: _describe(source, settings) for source in sources},
        "models": [_compared(first, second, settings.seed) for first, second in combinations(sources, 2)],
    }
    if settings.json_file:
        settings.json_file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        write_atomic(settings.json_file, text.encode())
    if settings.page:
        settings.page.parent.mkdir(parents=True, exist_ok=True)
        for name, found in result["annotations"].items():
            panels = [Panel(title, found[key]) for key, title in PANELS.items()]
            write_atomic(settings.page.with_name(figure_name(settings.page, name)), bars(panels, "critical tokens, %"))
        write_atomic(settings.page, markdown(result, settings.page).encode())
    return result


def _named(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return each directory with its last name, or the whole path where several share that."""
    times = Counter(path.name for path in paths)
    return [(path, path.name if times[path.name] == 1 else path.as_posix()) for path in paths]


def _read(path: Path, name: str, limit: int | None) -> _Source:
    manifest = finished_manifest(path, "annotate", "ANNOTATIONS")
    model = recorded(ModelSettings, manifest["settings"]["model"], path)
    made_with = manifest["facts"]["tokenizer"]
    annotations = [Annotation.from_row(row) for row in read_rows(path)][:limit]
    if not any(known is not None for annotation in annotations for known in annotation.critical):
        raise DataError(
            f"{path}: of none of {len(annotations)} responses it is known which tokens are critical; annotate with "
            "more --positions or a larger --token-budget"
        )
    return _Source(name, model.model, made_with, tokenizer_that_made(str(path), model, made_with), annotations)


def _describe(source: _Source, settings: StatsSettings) -> dict[str, Any]:
    """Return the shares of critical tokens among those that are known, grouped in every way."""
    annotations, tokenizer = source.annotations, source.tokenizer
    places = [
        (number, position)
        for number, annotation in enumerate(annotations)
        for position, known in enumerate(annotation.critical)
        if known is not None
    ]
    marks = [bool(annotations[number].critical[position]) for number, position in places]
    response_of = [number for number, _ in places]

    def share_of(groups: Sequence[str], group_of: Sequence[str]) -> list[dict[str, Any]]:
        return [asdict(one) for one in shares(groups, group_of, marks, response_of, seed=settings.seed)]

    def share_of_bins(values: list[float]) -> list[dict[str, Any]]:
        edges = quantile_edges(values, settings.bins)
        names = bin_names(edges)
        return share_of(names, [names[place] for place in binned(values, edges)])

    classes = [token_classes(*character_spans(tokenizer, one.response.response_ids)) for one in annotations]
    tenths = [deciles(len(one.critical)) for one in annotations]
    ids = [annotations[number].response.response_ids[position] for number, position in places]
    often = Counter(token for token, mark in zip(ids, marks, strict=True) if mark)
    top = sorted(often, key=lambda token: (-often[token], token))[: settings.top]
    (total,) = share_of(["all"], ["all"] * len(places))
    listed = share_of([*map(str, top), "other"], [str(token) if token in top else "other" for token in ids])
    return {
        "model": source.model,
        "alternatives": _most_alternatives(annotations),
        "responses": len(annotations),
        "response_tokens": sum(len(one.critical) for one in annotations),
        "undecided": sum(sum(one.undecided) for one in annotations),
        **{name: total[name] for name in ("tokens", "critical", "share", "interval")},
        "classes": share_of(TOKEN_CLASSES, [classes[number][position] for number, position in places]),
        "positions": share_of(DECILES, [DECILES[tenths[number][position]] for number, position in places]),
        "entropy": share_of_bins([annotations[number].entropies[position] for number, position in places]),
        "rank_gap": share_of_bins(
            [
                annotations[number].logprobs[position] - annotations[number].alternative_logprobs[position][0]
                for number, position in places
            ]
        ),
        "top_tokens": [
            {"id": int(row["group"]), "text": _text(tokenizer, int(row["group"])), **row}
            for row in listed
            if row["group"] != "other"
        ],
        "by_alternatives": _by_alternatives(annotations, settings.seed),
    }


def _by_alternatives(annotations: Sequence[Annotation], seed: int) -> dict[str, Any]:
    """Return the shares with 1, 2, 4 … of the alternatives that were asked, and how their labels agree."""
    most = _most_alternatives(annotations)
    counts = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    masks = {
        count: [labels_with(one.alternative_correct, one.undecided, count) for one in annotations] for count in counts
    }
    rows = []
    for count, labels in masks.items():
        known = [(number, mark) for number, mask in enumerate(labels) for mark in mask if mark is not None]
        marks, response_of = [mark for _, mark in known], [number for number, _ in known]
        rows += [
            {"alternatives": count, **asdict(one)}
            for one in shares(["all"], ["all"] * len(known), marks, response_of, seed=seed)
        ]
    pairs = [(a, b, agreement(masks[a], masks[b], seed=seed)) for a, b in combinations(counts, 2)]
    return {
        "shares": rows,
        "agreement": [{"first": a, "second": b, "agreement": asdict(found)} for a, b, found in pairs if found],
    }


def _most_alternatives(annotations: Sequence[Annotation]) -> int:
    return max(len(asked) for one in annotations for asked in one.alternatives)


def _compared(first: _Source, second: _Source, seed: int) -> dict[str, Any]:
    """Return how two models agree on the responses that both annotated, or why that cannot be said."""
    theirs = {(one.response.key, tuple(one.response.response_ids)): one.critical for one in second.annotations}
    pairs = [
        (one.critical, theirs[key])
        for one in first.annotations
        if (key := (one.response.key, tuple(one.response.response_ids))) in theirs
    ]
    result: dict[str, Any] = {"first": first.name, "second": second.name, "responses": len(pairs), "agreement": None}
    if first.tokenizer_hash != second.tokenizer_hash:
        return {**result, "responses": 0, "left_out": "their models have different tokenizers"}
    found = agreement([mine for mine, _ in pairs], [other for _, other in pairs], seed=seed) if pairs else None
    if found is None:
        return {**result, "left_out": "they share no response with tokens known in both"}
    return {**result, "agreement": asdict(found)}


def _text(tokenizer: Any, token: int) -> str:
    """Return a token as text, or as the tokenizer writes it where it is a part of a character."""
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text
