"""The rows of the speed table: one after another in one process tree, so that they meet the same machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import mean, median
from typing import Any

from case import ALTERNATIVES, DECODING, Ask, Case, stratified
from decoders import Decoder, WholePrompts, annotate_with, batched, completing, continuous, one_by_one
from limits import prefill_rate
from vllm_client import Vllm

from cruxtune.accounting import Meter
from cruxtune.counterfactuals import Counterfactuals
from cruxtune.criticality import Inquiry
from cruxtune.engines.plain import PlainEngine
from cruxtune.engines.transformers import TransformersEngine
from cruxtune.models import Policy

Labels = dict[tuple[int, int], bool | None]

_BATCH_SIZES = (32, 64, 128)
_BATCH_SIZE = 64
_COUNTS = ("tokens_emitted", "tokens_computed", "tokens_drafted", "tokens_accepted", "model_calls")
_GIVEN = "alternatives given"
"""Said of methods that need not find the alternatives themselves, which costs the others a pass a response."""


class Speed:
    """The first `count` responses of a case, annotated by one method after the other.

    Methods that decode one response after the other are timed on the first `few`, and their time is scaled by the
    rollouts that all of them need; one-by-one decoding on `positions` sampled positions of these.
    """

    def __init__(self, case: Case, count: int, few: int, positions: int, say: Callable[[str], None]) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.limits: list[float] = []
        """Seconds, one beside each repetition of f."""
        self.prefill: dict[str, float] = {}
        self.needed: Counter[int] = Counter()
        """Rollouts that f made, by response."""
        self._case = case
        self._places = list(range(count))
        self._everywhere = [list(range(len(response.response_ids))) for response in case.responses[:count]]
        self._few = self._places[:few]
        self._positions = positions
        self._reference: Labels = {}
        self._say = say
        self._engine = TransformersEngine(case.model, eos_ids=case.eos_ids, context_length=case.context_length)
        # The calibration is not annotation; like start-up, it counts for nobody.
        self.plan = self._engine.tune()
        self._ours = case.model.config._attn_implementation
        self._plain = PlainEngine(
            case.model, eos_ids=case.eos_ids, context_length=case.context_length, batch_size=_BATCH_SIZE
        )

    def measure(self, repeats: int, *, quick: bool, vllm: Vllm | None, why_no_vllm: str | None) -> None:
        """Fill the rows."""
        self._warm_up(vllm)
        self._sequential()
        size = _BATCH_SIZE if quick else self._fastest_batch()
        for _ in range(repeats):
            self._limit_and_f()
            self._with_vllm(vllm, why_no_vllm)
            with self._attention("sdpa"):
                self._stage("c", "the first engine", self._plain, note=f"batches of {_BATCH_SIZE}", few=True)
                self._other(
                    "b", "generate, in batches", batched(self._case, size), f"left-padded batches of {size}", few=True
                )
        self._extrapolate_sequential()
        self._transformers_own(quick=quick)
        if not quick:
            self._variants()

    def _variants(self) -> None:
        """Add f and f without each of its ideas, all on the few responses, so that they are compared like with like."""
        self._stage("f-few", "f on the few responses", self._engine, few=True)
        self._stage("f-drafts", "f without drafts", self._undrafted(), few=True)
        self._stage(
            "f-prefix",
            "f without shared prefix",
            WholePrompts(self._engine),
            note="each from its whole prompt, which leaves it no drafts either",
            few=True,
        )
        self._stage(
            "f-skipping",
            "f without skipping",
            self._engine,
            every=True,
            note="both alternatives everywhere",
            few=True,
        )

    def ratio(self, row: str) -> float | None:
        """Return how many times as long a row took as f, the median over the pairs of repetitions; None if not run."""
        base = "f-few" if row in ("f-drafts", "f-prefix", "f-skipping") else "f"
        times, ours = self.rows[row]["seconds"], self.rows[base]["seconds"]
        if not times:
            return None
        if len(times) != len(ours):
            return median(times) / median(ours)
        return median(theirs / mine for theirs, mine in zip(times, ours, strict=True))

    def share_of_limit(self) -> float:
        """Return the limit's seconds ÷ f's, the median over repetitions."""
        return median(limit / mine for limit, mine in zip(self.limits, self.rows["f"]["seconds"], strict=True))

    @contextmanager
    def _attention(self, name: str) -> Iterator[None]:
        """Give the model to another method than ours, with the attention that it would have there."""
        self._case.model.set_attn_implementation(name)
        try:
            yield
        finally:
            self._case.model.set_attn_implementation(self._ours)

    def _warm_up(self, vllm: Vllm | None) -> None:
        """First passes are slow everywhere; nobody's are counted."""
        last = self._everywhere[0][-2:]
        self._annotate([0], [last], self._engine)
        with self._attention("sdpa"):
            self._annotate([0], [last], self._plain)
        if vllm is not None:
            with vllm.awake():
                annotate_with(self._case, [0], [last], completing(self._case, vllm.complete))

    def _fastest_batch(self) -> int:
        with self._attention("sdpa"):
            tried = {
                size: annotate_with(self._case, [0], self._everywhere[:1], batched(self._case, size)).seconds
                for size in _BATCH_SIZES
            }
        best = min(tried, key=lambda size: tried[size])
        self._say(f"b: batches of {best} are fastest ({', '.join(f'{n}: {t:.1f} s' for n, t in tried.items())})")
        return best

    def _limit_and_f(self) -> None:
        with self._attention("sdpa"):
            self.prefill = prefill_rate(self._case.model)
        self.needed = self._stage("f", "this engine", self._engine)
        self.limits.append(self.rows["f"]["tokens_emitted"] / max(self.prefill.values()))

    def _with_vllm(self, vllm: Vllm | None, why_not: str | None) -> None:
        name = "vLLM for CPU"
        if vllm is None:
            self.rows["e"] = _not_run(name, why_not or "")
            return
        with vllm.awake():
            vllm.begin()
            self._other("e", name, completing(self._case, vllm.complete), "its own process, the same skipping")
        self.rows["e"]["prefix_cache_hit_rate"] = vllm.hits / max(1, vllm.queries)

    def _sequential(self) -> None:
        """Decode sampled positions one by one: the reference of labels, and what row a is extrapolated from."""
        self._spent: dict[Ask, float] = {}
        sampled = [stratified(len(self._everywhere[place]), self._positions, place) for place in self._few]
        with self._attention("sdpa"):
            # The first call is slow everywhere.
            annotate_with(self._case, [0], [self._everywhere[0][-1:]], one_by_one(self._case))
            outcome = annotate_with(self._case, self._few, sampled, one_by_one(self._case, self._spent))
        self._reference = outcome.labels
        self._say(f"a: {len(self._spent)} rollouts one by one: {sum(self._spent.values()):.1f} s")

    def _extrapolate_sequential(self) -> None:
        """Add row a: the few responses' rollouts, each as long as the mean of its response's sampled first ones."""
        first: dict[int, list[float]] = {place: [] for place in self._few}
        for ask, seconds in self._spent.items():
            if ask.rank == 0:
                first[ask.place].append(seconds)
        total = sum(self.needed[place] * mean(times) for place, times in first.items()) * self._scale()
        sampled = sum(map(len, first.values()))
        note = f"extrapolated from {sampled} sampled first alternatives of {len(first)} responses"
        self._add("a", "generate, one by one", total, 1.0, rollouts=self.needed.total(), note=note)

    def _scale(self) -> float:
        """Return the rollouts that all responses need for each one that the few need."""
        return self.needed.total() / sum(self.needed[place] for place in self._few)

    def _transformers_own(self, *, quick: bool) -> None:
        """Add row d: all rollouts of one response, extrapolated to the others by their number."""
        name = "continuous batching"
        if quick:
            self.rows["d"] = _not_run(name, "left out of --quick: a minute or more a response")
            return
        try:
            with self._attention("sdpa"):
                outcome = annotate_with(self._case, [0], self._everywhere[:1], continuous(self._case))
        except Exception as error:  # whatever it is, it is the reason why it does not run here
            self.rows["d"] = _not_run(name, f"does not run here: {type(error).__name__}: {error}")
            return
        total = self.needed.total()
        note = f"`generate_batch`, extrapolated from {len(outcome.rollouts)} rollouts of one response; {_GIVEN}"
        seconds = outcome.seconds * total / len(outcome.rollouts)
        self._add("d", name, seconds, self._agreement(outcome.labels), rollouts=total, note=note)

    def _undrafted(self) -> TransformersEngine:
        case = self._case
        size = int(self.plan["branches"]) if self.plan else None
        engine = TransformersEngine(
            case.model, eos_ids=case.eos_ids, context_length=case.context_length, batch_size=size, draft_length=0
        )
        engine.tune()
        return engine

    def _stage(
        self, row: str, name: str, engine: Any, *, every: bool = False, note: str = "", few: bool = False
    ) -> Counter[int]:
        """Add a row of an engine behind our stage; return the rollouts of each response."""
        places = self._few if few else self._places
        everywhere = [self._everywhere[place] for place in places]
        seconds, used, labels, rollouts = self._annotate(places, everywhere, engine, every=every)
        counts = {count: used[count] for count in _COUNTS}
        scale = self._scale() if few else 1.0
        if scale != 1.0:
            note += f"; {len(places)} responses, scaled by rollouts"
        agreement = self._agreement(labels)
        self._add(row, name, seconds * scale, agreement, rollouts=rollouts.total(), note=note, **counts)
        return rollouts

    def _other(self, row: str, name: str, decode: Decoder, note: str, *, few: bool = False) -> None:
        """Add a row of another decoder."""
        places = self._few if few else self._places
        outcome = annotate_with(self._case, places, [self._everywhere[place] for place in places], decode)
        # Of a rollout, neither the beginning that it shares nor the alternative was emitted.
        emitted = sum(len(ids) - position - 1 for (_, position, _), ids in outcome.rollouts.items())
        scale = self._scale() if few else 1.0
        if scale != 1.0:
            note += f"; {len(places)} responses, scaled by rollouts"
        self._add(
            row,
            name,
            outcome.seconds * scale,
            self._agreement(outcome.labels),
            rollouts=len(outcome.rollouts),
            tokens_emitted=emitted,
            note=f"{note}; {_GIVEN}",
        )

    def _add(self, row: str, name: str, seconds: float, agreement: float, **facts: Any) -> None:
        kept = self.rows.setdefault(row, {"name": name, "seconds": []})
        kept["seconds"].append(seconds)
        kept.update(label_agreement=agreement, **facts)
        self._say(f"{row}: {name}: {seconds:.1f} s")

    def _agreement(self, labels: Labels) -> float:
        known = {key: label for key, label in self._reference.items() if key in labels}
        return mean(labels[key] == label for key, label in known.items())

    def _annotate(
        self, places: list[int], positions: list[list[int]], engine: Any, *, every: bool = False
    ) -> tuple[float, dict[str, float], Labels, Counter[int]]:
        """Annotate as `cruxtune annotate` does; return seconds, counts, labels, and the rollouts of each response."""
        group = [self._case.responses[place] for place in places]
        policy = Policy(engine, self._case.renderer, {})
        meter = Meter(engine)
        started = time.perf_counter()
        inquiries = [
            Inquiry(len(response.response_ids), ALTERNATIVES, every=every, positions=some)
            for response, some in zip(group, positions, strict=True)
        ]
        work = Counterfactuals(group, inquiries, alternatives=ALTERNATIVES)
        work.run(policy, self._case.verifier, DECODING, self._case.token_limit, progress=lambda _: None)
        seconds = time.perf_counter() - started
        labels = {
            (place, position): label
            for place, inquiry in zip(places, inquiries, strict=True)
            for position, label in enumerate(inquiry.critical())
        }
        place_of = {response.problem.id: place for place, response in zip(places, group, strict=True)}
        return seconds, meter.read(), labels, Counter(place_of[rollout.id] for rollout in work.rollouts)


def _not_run(name: str, why: str) -> dict[str, Any]:
    return {"name": name, "seconds": None, "note": why}
