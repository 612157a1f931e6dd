"""Stage 3: which tokens of the annotated responses are trained, and how much (DESIGN §6).

Every method sees the same responses in the same order: those with at least one critical token. The policy is the one
that annotated; `attention` and `rho1` read responses teacher-forced, once, before training. Weights may be put onto the
tokens of the model that responded, where that has another tokenizer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cruxtune import selectors
from cruxtune.accounting import peak_memory_gib
from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.chosen import tokenizer_that_made
from cruxtune.errors import ConfigError, DataError
from cruxtune.models import fingerprint, load_model, load_policy
from cruxtune.progress import bar
from cruxtune.projection import Projection
from cruxtune.prompts import character_spans
from cruxtune.records import SELECTION_SCHEMA, Annotation, Selection
from cruxtune.settings import EngineSettings, ModelSettings, PromptSettings, identity_of, recorded
from cruxtune.stage_settings import SelectSettings
from cruxtune.store import DatasetWriter, finished_manifest, groups_of, read_rows

_GROUP = 64
_MOST_KEPT = 20
"""Tokens that the manifest names as kept most often."""


def select(settings: SelectSettings) -> dict[str, Any]:
    """Write a weight for every token of the annotated responses; return the manifest of the dataset.

    Raises:
        DataError: nothing is selected, annotations that the method cannot use, or test problems of a benchmark.
        ConfigError: a reference of another tokenizer, or a model whose attention cannot be read.
        StoreError: the annotations are unfinished, or the output belongs to other settings.
    """
    manifest = finished_manifest(settings.annotations, "annotate", "--annotations")
    policy = recorded(ModelSettings, manifest["settings"]["model"], settings.annotations)
    reference = policy.model_copy(update={"model": settings.reference, "revision": None, "adapter": None})
    candidates = _candidates(settings)
    projection = Projection(settings.onto, manifest) if settings.onto else None
    output = settings.output
    groups = groups_of(len(candidates), _GROUP)
    identity = identity_of(
        settings,
        annotations=manifest["fingerprint"],
        reference=fingerprint(reference) if settings.reference else None,
        onto=projection.fingerprint if projection else None,
    )
    with DatasetWriter(
        output.output,
        "select",
        identity,
        groups=len(groups),
        tables={"data": SELECTION_SCHEMA},
        overwrite=output.overwrite,
    ) as writer:
        pending = writer.pending()
        if writer.complete and not pending:
            return writer.manifest
        weigher = _Weigher(settings, policy, reference, manifest["facts"]["tokenizer"])
        facts = projection.facts if projection else manifest["facts"]
        kept = {name: facts[name] for name in ("tokenizer", "chat_template", "eos_ids")}
        writer.describe({**kept, "reference": weigher.reference_facts})
        done = len(candidates) - sum(len(groups[group]) for group in pending)
        with bar(f"select {settings.method}", len(candidates), "responses", done) as advance:
            for group in pending:
                started, rows = time.monotonic(), []
                for index in groups[group]:
                    row = weigher.selection(candidates[index])
                    rows.append(projection.onto(row, weigher.tokenizer) if projection else row)
                    advance(1)
                cost = {"seconds": round(time.monotonic() - started, 3), **_counts(rows)}
                writer.write(group, {"data": [row.to_row() for row in rows]}, cost)
        totals = writer.accounting()
        if not totals["tokens_kept"]:
            raise DataError(
                f"--method {settings.method} keeps none of {totals['response_tokens']:.0f} tokens, so there is nothing "
                "to train on; choose another method, or annotate more responses"
            )
        made_by = projection.model if projection else policy
        tokenizer = projection.tokenizer if projection else weigher.tokenizer
        return writer.close(
            settings=settings.model_dump(mode="json") | {"model": made_by.model_dump(mode="json")},
            shares={"kept": totals["tokens_kept"] / totals["response_tokens"]},
            most_kept=_most_kept([Selection.from_row(row) for row in read_rows(output.output)], tokenizer),
            peak_memory_gib=round(peak_memory_gib(), 2),
        )


def _candidates(settings: SelectSettings) -> list[Annotation]:
    annotations = [Annotation.from_row(row) for row in read_rows(settings.annotations)][: settings.output.limit]
    problems = (annotation.response.problem for annotation in annotations)
    refuse_test_problems(problems, f"--annotations {settings.annotations}")
    found = [annotation for annotation in annotations if any(annotation.critical)]
    if not found:
        raise DataError(
            f"--annotations {settings.annotations}: none of {len(annotations)} responses has a critical token, so "
            "there is nothing to train on; annotate more responses, or harder problems"
        )
    return found


class _Weigher:
    """Applies the method, with the tokenizer and those models that it needs."""

    def __init__(
        self, settings: SelectSettings, policy: ModelSettings, reference: ModelSettings, tokenizer: str
    ) -> None:
        self._settings = settings
        self._unknown = float(settings.unknown == "train")
        self._reader: Any = None
        self._reference: Any = None
        self.tokenizer = tokenizer_that_made(f"--annotations {settings.annotations}", policy, tokenizer)
        self.reference_facts: dict[str, Any] | None = None
        if "attention" in settings.methods:
            self._reader = _attention_reader(policy)
        if "rho1" in settings.methods:
            self._reference = load_policy(reference, PromptSettings(template="plain"), EngineSettings())
            facts = self._reference.facts
            if facts["tokenizer"] != tokenizer:
                raise ConfigError(
                    f"--reference {settings.reference} has another tokenizer than the policy, so that losses per token "
                    "cannot be compared; name a reference of the same tokenizer"
                )
            names = ("architecture", "commit", "parameters", "dtype")
            self.reference_facts = {"model": settings.reference, **{name: facts[name] for name in names}}

    def selection(self, annotation: Annotation) -> Selection:
        """Return the response with its weights."""
        settings = self._settings
        if settings.first and settings.second:
            join = selectors.union if settings.method == "union" else selectors.intersection
            weights = join(self._weights(settings.first, annotation), self._weights(settings.second, annotation))
        else:
            weights = self._weights(settings.method, annotation)
        response = annotation.response
        return Selection(
            id=response.problem.id,
            sample=response.sample,
            prompt_ids=response.prompt_ids,
            response_ids=response.response_ids,
            weights=weights,
            critical=annotation.critical,
            undecided=annotation.undecided,
        )

    def _weights(self, method: str, annotation: Annotation) -> list[float]:
        response, mask = annotation.response, annotation.critical
        ids, undecided = response.response_ids, annotation.undecided
        count = selectors.budget(mask, self._settings.share)
        match method:
            case "critical":
                return selectors.critical(selectors.decided(mask, undecided, False), unknown=self._unknown)
            case "all":
                return selectors.every(mask)
            case "non-critical":
                return selectors.non_critical(selectors.decided(mask, undecided, True), unknown=self._unknown)
            case "random":
                seed = self._settings.output.seed
                return selectors.chance(len(ids), count, f"{seed}/{response.sample}/{response.problem.id}")
            case "numeric":
                return selectors.numeric(*character_spans(self.tokenizer, ids))
            case "entropy":
                return selectors.entropy(annotation.entropies, count)
            case "attention":
                return selectors.attention(self._reader.received(response.prompt_ids, ids), count)
            case "rho1":
                scores = self._reference.engine.score(response.prompt_ids, ids, alternatives=1)
                return selectors.rho1(annotation.logprobs, scores.logprobs, count)
            case _:
                return selectors.criticality(annotation, unknown=self._unknown)


def _attention_reader(policy: ModelSettings) -> Any:
    from cruxtune.engines.packing import Unservable
    from cruxtune.engines.received import AttentionReader

    model, _ = load_model(policy)
    try:
        return AttentionReader(model)
    except Unservable as error:
        raise ConfigError(
            f"--method attention cannot read the attention of {policy.model}: {error}; choose another method"
        ) from error


def _counts(rows: Sequence[Selection]) -> dict[str, float]:
    pairs = [pair for row in rows for pair in zip(row.weights, row.critical, strict=True)]
    return {
        "responses": len(rows),
        "empty": sum(not any(row.weights) for row in rows),
        "response_tokens": len(pairs),
        "tokens_kept": sum(weight > 0 for weight, _ in pairs),
        "critical_tokens": sum(critical is True for _, critical in pairs),
        "undecided_tokens": sum(sum(row.undecided) for row in rows),
        "critical_kept": sum(weight > 0 and critical is True for weight, critical in pairs),
        "weight": sum(weight for weight, _ in pairs),
    }


def _most_kept(rows: Sequence[Selection], tokenizer: Any) -> list[dict[str, Any]]:
    """Return the tokens kept most often: id, text, how often kept, how often seen."""
    kept, seen = Counter[int](), Counter[int]()
    for row in rows:
        seen.update(row.response_ids)
        kept.update(token for token, weight in zip(row.response_ids, row.weights, strict=True) if weight)
    return [
        {"id": token, "text": tokenizer.decode([token]), "kept": count, "seen": seen[token]}
        for token, count in sorted(kept.items(), key=lambda item: (-item[1], item[0]))[:_MOST_KEPT]
    ]
