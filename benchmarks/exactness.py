"""How often labels and rollout texts equal one-by-one decoding: our engine's, and plain batched `generate`'s."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from case import Case, load, threads
from decoders import Outcome, annotate_with, batched, one_by_one, packed

from cruxtune.engines.transformers import TransformersEngine
from cruxtune.models import quiet_libraries
from cruxtune.records import Response
from cruxtune.verifiers import Verifier

_BATCH, _DRAFT_LENGTH = 64, 4
"""Fixed, so that passes are the same on every machine."""
_done: Any = None
"""In the processes of `decode_references`: how many rollouts all of them have."""


def decode_references(
    cache: Path,
    precisions: Sequence[str],
    responses: list[Response],
    positions: int,
    token_limit: int,
    tick: Callable[[int], None],
) -> None:
    """Decode the sampled positions of all responses one by one, and keep what comes out for `reference` and later runs.

    Each precision has a process of its own: one token at a time leaves threads with little to share, so that two
    processes of one thread take hardly longer than one of two. `tick` is told how many rollouts there are.
    """
    context = multiprocessing.get_context("spawn")
    done = context.Value("i", 0)
    each = max(1, threads() // len(precisions))
    with ProcessPoolExecutor(len(precisions), context, _begin, (done, each)) as pool:
        work = [pool.submit(_decode, cache, dtype, responses, positions, token_limit) for dtype in precisions]
        while wait(work, timeout=1.0).not_done:
            tick(done.value)
        for future in work:
            future.result()


def reference(case: Case, cache: Path, tick: Callable[[], None] | None = None) -> Outcome:
    """Return one-by-one decoding of the sampled positions of all responses, as far as it is kept without decoding."""
    case.model.set_attn_implementation("sdpa")
    decoder = one_by_one(case, memory=cache / f"one-by-one-{case.dtype}.jsonl", tick=tick)
    return annotate_with(case, range(len(case.responses)), case.sampled, decoder)


def compare(case: Case, expected: Outcome) -> dict[str, Any]:
    """Return the shares of labels and of texts that are those of `expected`."""
    places = range(len(case.responses))
    case.model.set_attn_implementation("sdpa")
    plain = annotate_with(case, places, case.sampled, batched(case, _BATCH, across=True))
    engine = TransformersEngine(
        case.model,
        eos_ids=case.eos_ids,
        context_length=case.context_length,
        batch_size=_BATCH,
        draft_length=_DRAFT_LENGTH,
    )
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


def _begin(done: Any, count: int) -> None:
    global _done
    _done = done
    torch.set_num_threads(count)


def _decode(cache: Path, dtype: str, responses: list[Response], positions: int, token_limit: int) -> None:
    with quiet_libraries(), Verifier() as verifier:
        reference(load(cache, dtype, responses, positions, token_limit, verifier), cache, _count)


def _count() -> None:
    with _done.get_lock():
        _done.value += 1


def _labels(expected: Outcome, found: Outcome) -> float:
    return sum(found.labels[key] == label for key, label in expected.labels.items()) / len(expected.labels)


def _texts(expected: Outcome, found: Outcome) -> float:
    """Of the rollouts that both made: where a verdict differs, only one of them asked the second alternative."""
    both = expected.rollouts.keys() & found.rollouts.keys()
    return sum(expected.rollouts[key] == found.rollouts[key] for key in both) / len(both)
