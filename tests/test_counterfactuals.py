"""Annotation by a scripted policy, against definitions spelled out here: nothing shared, nothing skipped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.counterfactuals import Counterfactuals, annotated, joint_sets
from cruxtune.criticality import Inquiry, Sampling, open_sets
from cruxtune.engines.base import Decoding, LoopRule
from cruxtune.engines.scripted import ScriptedEngine
from cruxtune.models import Policy
from cruxtune.records import Problem, Response, Verdict

VOCABULARY, END, LIMIT = 6, 0, 7
RIGHT = Verdict(True, None, "custom")


def logits_of(salt: int) -> Any:
    """A policy whose logits are a hash of the ids, so that every change of a token changes what follows."""

    def logits(ids: Sequence[int]) -> list[float]:
        digest = hashlib.blake2b(repr((salt, list(ids))).encode(), digest_size=VOCABULARY).digest()
        return [byte / 32 for byte in digest]

    return logits


def judge(ids: Sequence[int]) -> bool:
    """A verdict on ids: about half are correct."""
    return hashlib.blake2b(repr(list(ids)).encode()).digest()[0] % 2 == 0


class Renderer:
    """Decodes ids as their digits."""

    tokenizer = None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the digits."""
        return "".join(map(str, ids))


class Verifier:
    """Judges digits."""

    def verify_many(self, cases: Sequence[tuple[str, Problem]]) -> list[Verdict]:
        """Return the verdict on each text."""
        return [Verdict(judge([int(digit) for digit in text]), None, "custom") for text, _ in cases]


def policy_of(salt: int) -> Any:
    """A scripted policy."""
    return Policy(ScriptedEngine(logits_of(salt), eos_ids={END}), Renderer(), {})  # type: ignore[arg-type]


def response_of(number: int, ids: list[int], sample: int = 0) -> Response:
    """A response to problem `number`."""
    return Response(Problem(f"p{number}", "?", ""), [5, number % VOCABULARY], ids, "", "stop", RIGHT, sample)


def ranked(salt: int, ids: Sequence[int], without: int) -> list[int]:
    """Every token but one, the most probable first."""
    logits = logits_of(salt)(ids)
    return sorted((t for t in range(VOCABULARY) if t != without), key=lambda t: (-logits[t], t))


def greedy(salt: int, prompt: list[int], ids: list[int], loop: LoopRule | None = None) -> list[int]:
    """The response that greedy decoding makes of a beginning, up to where what it chose is a loop."""
    ids, since = list(ids), len(ids)
    while ids[-1] != END and len(ids) < LIMIT and not (loop and loop.caught(ids, since)):
        ids.append(ranked(salt, prompt + ids, -1)[0])
    return ids


def ask(salt: int, group: list[Response], inquiries: list[Any], decoding: Decoding, **options: Any) -> Counterfactuals:
    """Ask inquiries of two alternatives a token."""
    work = Counterfactuals(group, inquiries, alternatives=2, **options)
    work.run(policy_of(salt), Verifier(), decoding, LIMIT, progress=lambda _: None)  # type: ignore[arg-type]
    assert all(inquiry.settled and inquiry.left == 0 for inquiry in inquiries)
    return work


responses = st.lists(
    st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=LIMIT - 1), min_size=1, max_size=4
).map(lambda some: [response_of(number // 2, [*ids, END], number % 2) for number, ids in enumerate(some)])
"""Two responses to a problem, ended, of any tokens: hardly ever the policy's own."""


@settings(deadline=None)
@given(responses, st.integers(0, 99), st.booleans(), st.sampled_from([None, LoopRule(2, 2, 2)]), st.data())
def test_a_response_of_another_is_kept_first(
    group: list[Response], salt: int, every: bool, loop: LoopRule | None, data: st.DataObject
) -> None:
    """Critical iff keeping the token succeeds and every alternative fails; undecided where keeping it fails."""
    # Beginnings of the policy's own, so that some tokens are what it would choose itself.
    group = [
        replace(one, response_ids=greedy(salt, one.prompt_ids, one.response_ids[: data.draw(st.integers(1, 3))]))
        if data.draw(st.booleans())
        else one
        for one in group
    ]
    inquiries = [Inquiry(len(one.response_ids), 2, every=every, keep=True) for one in group]
    work = ask(salt, group, inquiries, Decoding(loop=loop))
    made = {
        (*key, t, rank): ids
        for key, t, rank, ids in (((one.id, one.sample), one.position, one.rank, one.ids) for one in work.rollouts)
    }
    for annotation in annotated(group, work.scores, inquiries):
        response = annotation.response
        for t, token in enumerate(response.response_ids):
            before = response.response_ids[:t]
            kept = judge(greedy(salt, response.prompt_ids, [*before, token], loop))
            others = [
                greedy(salt, response.prompt_ids, [*before, other], loop)
                for other in ranked(salt, response.prompt_ids + before, token)[:2]
            ]
            expected = (not any(map(judge, others))) if kept else None
            assert annotation.critical[t] is expected
            assert annotation.kept_correct is not None
            assert annotation.kept_correct[t] is kept
            assert annotation.undecided[t] is (not kept)
            for rank, ids in enumerate(others):
                assert made.get((*response.key, t, rank), ids) == ids
                asked = every or (kept and (rank == 0 or not judge(others[0])))
                assert ((*response.key, t, rank) in made) is asked
                assert annotation.alternative_correct[t][rank] is (judge(ids) if asked else None)
    assert [(one.id, one.sample, one.position, one.rank) for one in work.rollouts] == sorted(made)


@settings(deadline=None)
@given(responses, st.integers(0, 99), st.integers(0, 2))
def test_tokens_together_are_replaced_from_left_to_right(group: list[Response], salt: int, width: int) -> None:
    """The alternative of a rank, then the best token other than the response's, given what stands there by then."""
    width += 2
    singles = [Inquiry(len(one.response_ids), 2) for one in group]
    ask(salt, group, singles, Decoding())
    wanted = [
        open_sets([(t, t + width) for t in range(len(one.response_ids) - width + 1)], inquiry.critical())
        for one, inquiry in zip(group, singles, strict=True)
    ]
    inquiries = [Inquiry(len(some), 2) for some in wanted]
    work = ask(salt, group, inquiries, Decoding(), sets=wanted)
    found = joint_sets(group, [dict.fromkeys(some, "pair") for some in wanted], inquiries, work.rollouts)
    assert len(found) == sum(map(len, wanted))
    by_key = {(one.id, one.sample, one.position): one for one in found}
    for response, some in zip(group, wanted, strict=True):
        prompt, ids = response.prompt_ids, response.response_ids
        for start, end in some:
            verdicts = []
            for rank in range(2):
                changed = [*ids[:start], ranked(salt, prompt + ids[:start], ids[start])[rank]]
                for t in range(start + 1, end):
                    if changed[-1] == END or len(changed) >= LIMIT:
                        break
                    changed.append(ranked(salt, prompt + changed, ids[t])[0])
                joint = by_key[*response.key, start]
                if joint.alternatives[rank] is not None:
                    assert joint.alternatives[rank] == changed[start:end]
                verdicts.append(judge(greedy(salt, prompt, changed)))
            assert joint.critical is (not any(verdicts))
            assert joint.alternative_correct == ([True, None] if verdicts[0] else verdicts)
            assert (joint.alternatives[1] is None) is verdicts[0]


@settings(deadline=None, max_examples=30)
@given(responses, st.integers(0, 99), st.integers(0, 3))
def test_samples_depend_on_the_seed_and_the_response_alone(group: list[Response], salt: int, seed: int) -> None:
    """Neither the others of the group nor their order decides a draw; another seed is another draw."""
    decoding = Decoding(temperature=2.0)

    def drawn(some: list[Response], seed: int) -> dict[Any, list[int]]:
        samplings = [Sampling(len(one.response_ids), 2, draws=3) for one in some]
        work = ask(salt, some, samplings, decoding, seed=seed)
        found = annotated(
            some, work.scores, [Inquiry(len(one.response_ids), 2, positions=[]) for one in some], samplings
        )
        for annotation in found:
            response = annotation.response
            mine = [one for one in work.rollouts if (one.id, one.sample) == response.key]
            assert annotation.kept_success is not None
            assert annotation.alternative_success is not None
            for t, (kept, others) in enumerate(
                zip(annotation.kept_success, annotation.alternative_success, strict=True)
            ):
                for rank, success in enumerate([kept, *others], start=-1):
                    right = [one.verdict.correct for one in mine if (one.position, one.rank) == (t, rank)]
                    assert len(right) == 3
                    assert success == sum(right) / 3
        return {(one.id, one.sample, one.position, one.rank, one.draw): one.ids for one in work.rollouts}

    together = drawn(group, seed)
    assert drawn(group[::-1], seed) == together
    assert {key: ids for one in group for key, ids in drawn([one], seed).items()} == together
    if len(together) > 30:
        assert drawn(group, seed + 1) != together


def test_a_policys_own_greedy_response_keeps_by_itself() -> None:
    """Rolling out the kept tokens of a greedy response gives the response, whatever the token."""
    for salt in range(20):
        ids = greedy(salt, [5, 0], [ranked(salt, [5, 0], -1)[0]])
        inquiry = Inquiry(len(ids), 2, keep=True)
        work = ask(salt, [response_of(0, ids)], [inquiry], Decoding())
        # One rollout says it for all of them: each token is what the policy would choose itself.
        assert [one.ids for one in work.rollouts if one.rank == -1] == [ids]
        assert set(inquiry.kept) == {judge(ids)}
