from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.engines import drafts
from cruxtune.engines.drafts import GUESS, NEAR, SUFFIX, Acceptance, Draft, Sources, allot

# Few different ids, so that texts repeat themselves and each other.
texts = st.lists(st.integers(0, 5), max_size=30)
chances = st.lists(st.floats(0, 1), max_size=5).map(lambda values: sorted(values, reverse=True))


def agreement(text: Sequence[int], place: int, ids: Sequence[int]) -> int:
    """How many of the last ids stand before a place of a text."""
    count = 0
    while count < min(place, len(ids), 16) and text[place - 1 - count] == ids[-1 - count]:
        count += 1
    return count


@given(texts, texts, st.lists(st.tuples(texts, st.floats(0, 1)), max_size=3), texts)
def test_what_is_found_goes_on_behind_the_same_tokens(
    response: list[int], prompt: list[int], rollouts: list[tuple[list[int], float]], ids: list[int]
) -> None:
    """Two tokens or more agree before a place that is found, as many as it says; with few places, the most anywhere."""
    sources = Sources(response, prompt)
    for rollout, share in rollouts:
        sources.add(rollout, int(share * len(rollout)))
    known = [response, prompt, *(rollout for rollout, _ in rollouts)]
    assert [sources.text(number) for number in range(len(known))] == known
    assert sources.text(len(known)) == []
    found = sources.find(ids)
    starts = [1, 1, *(max(1, int(share * len(rollout))) for rollout, share in rollouts)]
    places = [
        (number, end)
        for number, (text, start) in enumerate(zip(known, starts, strict=True))
        for end in range(start + 1, len(text) + 1)
        if len(ids) >= 2 and text[end - 2 : end] == ids[-2:]
    ]
    if found is None:
        assert not places
        return
    number, place, agreed = found
    assert (number, place) in places
    assert agreed == agreement(known[number], place, ids) >= 2
    if len(places) <= 16:
        assert agreed == max(agreement(known[other], end, ids) for other, end in places)


def test_of_equal_places_the_nearest_wins() -> None:
    """Where several places agree equally well: the text one is in, then the place nearest by, then the later text."""
    response = [1, 2, 3, 8, 1, 2, 4, 9, 1, 2, 5]
    sources = Sources(response)
    assert sources.find([7, 1, 2], near=(0, 2)) == (0, 2, 2)
    assert sources.find([7, 1, 2], near=(0, 5)) == (0, 6, 2)
    assert sources.find([7, 1, 2], near=(0, 11)) == (0, 10, 2)
    sources.add([6, 1, 2, 0], fork=0)
    sources.add([6, 1, 2, 0], fork=0)
    assert sources.find([7, 1, 2], near=(0, 2)) == (0, 2, 2)
    # Numbers count the prompt as text 1.
    assert sources.find([7, 1, 2], near=(2, 3)) == (2, 3, 2)
    # Both rollouts are equally near.
    assert sources.find([7, 1, 2], near=(9, 3)) == (3, 3, 2)


RESPONSE = list(range(100, 130))


def test_a_draft_may_begin_with_nothing_said() -> None:
    """Without a response to follow nothing is proposed until what was said stands in the prompt, or was said before."""
    draft = Draft(Sources((), [7, 8, 9, 10]), ids := [], 0)
    assert draft.propose(4) == []
    for token, expected in ((1, []), (7, []), (8, [9, 10]), (1, [10]), (7, [8, 1])):
        ids.append(token)
        draft.advance(1)
        assert draft.propose(2) == expected


@pytest.mark.parametrize("fork", [0, 1, 7, 25])
def test_substitution_insertion_and_deletion_realign(fork: int) -> None:
    """After one changed, one more, or one token less, drafts go on where the response does."""
    sources = Sources(RESPONSE)
    changed = Draft(sources, [*RESPONSE[:fork], 7], fork)
    assert (changed.propose(3), changed.how) == (RESPONSE[fork + 1 : fork + 4], GUESS)
    ids = [*RESPONSE[:fork], 7]
    inserted = Draft(sources, ids, fork)
    ids.append(RESPONSE[fork])
    inserted.advance(1)
    assert (inserted.propose(3), inserted.how) == (RESPONSE[fork + 1 : fork + 4], NEAR)
    for missing in range(1, min(8, len(RESPONSE) - fork - 1)):
        deleted = Draft(sources, [*RESPONSE[:fork], RESPONSE[fork + missing]], fork)
        assert (deleted.propose(3), deleted.how) == (RESPONSE[fork + missing + 1 : fork + missing + 4], NEAR)


@given(st.integers(0, 20), st.lists(st.integers(0, 99), min_size=1, max_size=12), st.integers(0, 18))
def test_two_tokens_of_the_response_are_enough_to_return_to_it(fork: int, said: list[int], back: int) -> None:
    """However long a branch spoke of something else: two tokens that occur in the response bring it back, anywhere."""
    ids = [*RESPONSE[:fork], said[0]]
    draft = Draft(Sources(RESPONSE), ids, fork)
    for token in [*said[1:], *RESPONSE[back : back + 2]]:
        ids.append(token)
        draft.advance(1)
    assert draft.propose(4) == RESPONSE[back + 2 : back + 6]
    if draft.how == SUFFIX:
        assert draft.streak == 0
    ids.extend(RESPONSE[back + 2 : back + 5])
    draft.advance(3)
    assert draft.streak >= 3
    assert draft.propose(9) == RESPONSE[back + 5 : back + 14]


def test_a_finished_rollout_is_followed() -> None:
    """A branch that says what another rollout said goes on as that one did, not as the response does."""
    sources = Sources(RESPONSE, [1, 2, 3])
    sources.add([*RESPONSE[:5], 50, 51, 52, 53, 54], fork=5)
    ids = [*RESPONSE[:3], 60]
    draft = Draft(sources, ids, 3)
    ids += [50, 51]
    draft.advance(2)
    assert draft.propose(9) == [52, 53, 54]
    # The prompt is a source, too: answers repeat names.
    ids += [1, 2]
    draft.advance(2)
    assert draft.propose(9) == [3]


@settings(max_examples=200)
@given(texts, texts, st.lists(texts, max_size=3), st.floats(0, 1), texts, st.data())
def test_advancing_in_chunks_equals_advancing_one_by_one(
    response: list[int],
    prompt: list[int],
    rollouts: list[list[int]],
    share: float,
    said: list[int],
    data: st.DataObject,
) -> None:
    """What a draft proposes depends on what was said, not on how many tokens came at once; never too many."""
    fork = int(share * len(response))
    pair = []
    for chunked in (False, True):
        sources = Sources(response, prompt)
        for rollout in rollouts:
            sources.add(rollout, 0)
        ids = [*response[:fork], 3]
        draft = Draft(sources, ids, fork)
        rest = list(said)
        while rest:
            size = data.draw(st.integers(1, len(rest))) if chunked else 1
            ids += rest[:size]
            rest = rest[size:]
            draft.advance(size)
        for most in range(4):
            assert len(draft.propose(most)) <= most
        pair.append((draft.propose(50), draft.how, draft.streak))
    assert pair[0] == pair[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(texts, st.floats(0, 1)), min_size=1, max_size=12), st.integers(1, 60))
def test_forgetting_changes_drafts_and_nothing_else(rollouts: list[tuple[list[int], float]], most: int) -> None:
    """Past the limit finished rollouts are forgotten, the response never; drafts in forgotten texts end or move on."""
    response, prompt = [1, 2, 3, 4, 5, 1, 2], [9, 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "_MOST_TOKENS", most)
        sources = Sources(response, prompt)
        ids = [1, 0]
        draft = Draft(sources, ids, 1)
        for rollout, share in rollouts:
            sources.add(rollout, int(share * len(rollout)))
            assert sources.text(0) == response
            assert sources.text(1) == prompt
            for token in rollout:
                ids.append(token)
                draft.advance(1)
                assert len(draft.propose(5)) <= 5
        ids += [2, 3]
        draft.advance(2)
        assert isinstance(draft.propose(2), list)
        fresh = Draft(sources, [1, 9, 2, 3], 1)
        if sum(len(rollout) for rollout, _ in rollouts) == 0:
            assert fresh.propose(2) == [4, 5]


@given(st.integers(0, 2), st.integers(0, 40), st.integers(0, 12), st.data())
def test_acceptance_learns_what_was_verified(how: int, streak: int, proposed: int, data: st.DataObject) -> None:
    """Chances stay chances; right drafts raise the ones that they tell of, wrong ones lower them, others stay."""
    accepted = data.draw(st.integers(0, proposed))
    acceptance = Acceptance()
    states = [(way, run) for way in range(3) for run in range(60)]
    before = {state: acceptance.chance(*state) for state in states}
    acceptance.record(how, streak, proposed=proposed, accepted=accepted)
    after = {state: acceptance.chance(*state) for state in states}
    assert all(0 < chance < 1 for chance in after.values())
    assert all(after[state] == before[state] for state in states if state[0] != how)
    if proposed and accepted == proposed:
        assert after[how, streak] > before[how, streak]
    if proposed and accepted == 0:
        assert after[how, streak] < before[how, streak]
    if not proposed:
        assert after == before


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=200))
def test_chances_of_a_whole_draft_fall(history: list[tuple[int, int]]) -> None:
    """The chance that a token and all before it are right never rises along a draft: `allot` builds on that."""
    acceptance = Acceptance()
    draft = Draft(Sources(RESPONSE), [7], 0)
    for proposed, right in history:
        acceptance.record(draft.how, draft.streak, proposed=proposed, accepted=min(proposed, right))
    together = acceptance.chances(draft, 20)
    assert len(together) == 20
    assert acceptance.chances(draft, 0) == []
    assert together == sorted(together, reverse=True)
    assert all(0 <= chance <= 1 for chance in together)


def rate(offers: Sequence[Sequence[float]], counts: Sequence[int], fixed: float, per_token: float) -> float:
    """Tokens that a pass with these drafts emits, by the second."""
    emitted = len(offers) + sum(sum(offer[:count]) for offer, count in zip(offers, counts, strict=True))
    return emitted / (fixed + per_token * (len(offers) + sum(counts)))


@settings(max_examples=300)
@given(st.lists(chances, min_size=1, max_size=4), st.floats(0, 20), st.floats(0.001, 5), st.integers(0, 24))
def test_drafts_are_allotted_as_the_best_rate_has_it(
    offers: list[list[float]], fixed: float, per_token: float, most: int
) -> None:
    """Within the width, no other choice of draft lengths emits more tokens a second (all choices are tried)."""
    counts = allot(offers, fixed=fixed, per_token=per_token, most=most)
    assert len(counts) == len(offers)
    assert all(0 <= count <= len(offer) for count, offer in zip(counts, offers, strict=True))
    assert len(offers) + sum(counts) <= max(most, len(offers))
    found = rate(offers, counts, fixed, per_token)
    room = max(most - len(offers), 0)
    best = max(
        rate(offers, choice, fixed, per_token)
        for choice in itertools.product(*(range(len(offer) + 1) for offer in offers))
        if sum(choice) <= room
    )
    assert found >= best * (1 - 1e-9)


@given(st.lists(chances, max_size=6), st.integers(0, 30))
def test_free_passes_are_filled_and_dear_tokens_left_out(offers: list[list[float]], most: int) -> None:
    """Where only the pass costs, drafts of any chance go in, the likeliest first; without a fixed cost none does."""
    counts = allot(offers, fixed=1e12, per_token=1e-6, most=most)
    likely = [sum(chance > 1e-6 for chance in offer) for offer in offers]
    room = max(0, most - len(offers))
    assert min(room, sum(likely)) <= sum(counts) <= room
    taken = [chance for offer, count in zip(offers, counts, strict=True) for chance in offer[:count]]
    left = [chance for offer, count in zip(offers, counts, strict=True) for chance in offer[count:]]
    assert not taken or not left or min(taken) >= max(left)
    assert sum(allot(offers, fixed=0.0, per_token=1.0, most=most)) == 0
    assert allot([], fixed=1.0, per_token=1.0, most=9) == []
