"""How often labels and rollout texts equal one-by-one decoding: our engine's, and plain batched `generate`'s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from case import Case
from decoders import Outcome, annotate_with, batched, one_by_one, packed

from cruxtune.engines.transformers import TransformersEngine

_BATCH = 64


def reference(case: Case, memory: Path, tick: Callable[[], None]) -> Outcome:
    """Return one-by-one decoding of the sampled positions of all responses; `memory` keeps it for the next run."""
    case.model.set_attn_implementation("sdpa")
    return annotate_with(case, range(len(case.responses)), case.sampled, one_by_one(case, memory=memory, tick=tick))


def compare(case: Case, expected: Outcome) -> dict[str, Any]:
    """Return the shares of labels and of texts that are those of `expected`."""
    places = range(len(case.responses))
    case.model.set_attn_implementation("sdpa")
    plain = annotate_with(case, places, case.sampled, batched(case, _BATCH))
    engine = TransformersEngine(case.model, eos_ids=case.eos_ids, context_length=case.context_length)
    ours = annotate_with(case, places, case.sampled, packed(case, engine))
    case.model.set_attn_implementation("sdpa")
    return {
        "responses": len(places),
        "labels": len(expected.labels),
        "rollouts": len(expected.rollouts),
        "label_agreement": _labels(expected, ours),
        "text_agreement": _texts(expected, ours),
        "batched_label_agreement": _labels(expected, plain),
        "batched_text_agreement": _texts(expected, plain),
    }


def _labels(expected: Outcome, found: Outcome) -> float:
    return sum(found.labels[key] == label for key, label in expected.labels.items()) / len(expected.labels)


def _texts(expected: Outcome, found: Outcome) -> float:
    """Of the rollouts that both made: where a verdict differs, only one of them asked the second alternative."""
    both = expected.rollouts.keys() & found.rollouts.keys()
    return sum(expected.rollouts[key] == found.rollouts[key] for key in both) / len(both)
