"""What a counterfactual may say next, guessed from what was already said about the same problem (DESIGN §4.2).

Drafts are proposals only: an engine verifies them in one pass and keeps the longest beginning that greedy decoding
would have chosen, so a bad guess costs time and never changes a token. Everything here is plain Python on token ids;
it knows neither models nor tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

_SUFFIX = 16
"""Longest agreement that is looked at when places to continue from are compared."""
_WINDOW = 8
"""How far around the expected place a single token is looked for: insertions and deletions are short."""
_CANDIDATES = 16
"""Places compared in one search, the latest ones: finished rollouts are more alike than the response they left."""
_MOST_TOKENS = 1 << 15
"""Tokens kept as sources, beyond which the finished rollouts are forgotten: the index stays small."""

_OWN_TEXT = -1
"""The number of the branch's own text among the sources."""

GUESS, NEAR, SUFFIX = range(3)
"""How a draft found its place: by assuming a substitution, by one token near it, by two tokens or more."""
_STREAKS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
"""Lower ends of the classes of right guesses in a row that have one acceptance rate each."""
_CLASS_OF = [sum(streak >= low for low in _STREAKS) - 1 for streak in range(_STREAKS[-1] + 1)]


class Sources:
    """The texts that drafts of one problem are taken from: its response, its prompt, and finished rollouts.

    >>> sources = Sources([5, 6, 7, 8], [1, 2])
    >>> sources.add([5, 9, 7, 8, 4], fork=1)
    >>> sources.find([9, 7, 8])
    (2, 4, 3)
    """

    def __init__(self, response: Sequence[int], prompt: Sequence[int] = ()) -> None:
        self._response = list(response)
        self._prompt = list(prompt)
        self._restart()

    def add(self, ids: Sequence[int], fork: int) -> None:
        """Add a finished rollout that left the response at position `fork` (what comes before is there already)."""
        self._tokens += len(ids) - fork
        if self._tokens > _MOST_TOKENS:
            self._restart()
            return
        self._append(list(ids), max(1, fork))

    def text(self, number: int) -> list[int]:
        """Return a source (0 is the response), empty where it was forgotten."""
        return self._texts[number] if number < len(self._texts) else []

    def find(self, ids: Sequence[int], near: tuple[int, int] = (0, 0)) -> tuple[int, int, int] | None:
        """Return (source, place, tokens agreeing before it) where `ids` most probably goes on, None if nowhere.

        At least the last two ids agree. The longest agreement wins, then the source of `near`, then the place nearest
        to it, then the later source.
        """
        if len(ids) < 2:
            return None
        found = self._index.get((ids[-2], ids[-1]))
        if not found:
            return None
        best, best_rank = None, (-1, 0, 0, 0)
        for number, place in found[-_CANDIDATES:]:
            agreed = _agreement(self._texts[number], place, ids)
            rank = (agreed, int(number == near[0]), -abs(place - near[1]), number)
            if rank > best_rank:
                best, best_rank = (number, place, agreed), rank
        return best

    def _restart(self) -> None:
        self._texts: list[list[int]] = []
        self._index: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._tokens = 0
        self._append(self._response, 1)
        # Answers repeat the names and numbers of their questions.
        self._append(self._prompt, 1)

    def _append(self, text: list[int], start: int) -> None:
        number = len(self._texts)
        self._texts.append(text)
        for place in range(start, len(text)):
            self._index.setdefault((text[place - 1], text[place]), []).append((number, place + 1))


class Draft:
    """The guess of how one branch goes on: a place in one of the sources, moved by every token that comes.

    `ids` is the whole counterfactual response so far, which the caller extends before it calls `advance`.

    A substitution goes on behind the replaced token, a deletion behind the next occurrence of the token, an insertion
    where it stood:

    >>> response = [10, 11, 12, 13, 14, 15]
    >>> Draft(Sources(response), [10, 99], 1).propose(9)
    [12, 13, 14, 15]
    >>> Draft(Sources(response), [10, 13], 1).propose(9)
    [14, 15]
    >>> draft = Draft(Sources(response), ids := [10, 99], 1)
    >>> ids.append(11)
    >>> draft.advance(1)
    >>> draft.propose(2)
    [12, 13]

    What the branch repeats of itself is a source, too, and goes on in a circle:

    >>> Draft(Sources(response), [10, 99, 98, 97, 99, 98], 1).propose(5)
    [97, 99, 98, 97, 99]
    """

    def __init__(self, sources: Sources, ids: list[int], fork: int) -> None:
        self._sources = sources
        self._ids = ids
        self._text = 0
        self._place = fork
        self._own: dict[tuple[int, int], int] = {}
        for end in range(fork + 1, len(ids)):
            self._note(end)
        self._realign(len(ids))

    def propose(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next."""
        if self._text != _OWN_TEXT:
            return self._sources.text(self._text)[self._place : self._place + most]
        period = len(self._ids) - self._place
        return [self._ids[self._place + ahead % period] for ahead in range(most)]

    def advance(self, count: int) -> None:
        """Take note of the last `count` tokens of `ids`."""
        for end in range(len(self._ids) - count + 1, len(self._ids) + 1):
            # Of its own text a branch follows only what came before the token at hand.
            text = self._ids[: end - 1] if self._text == _OWN_TEXT else self._sources.text(self._text)
            if self._place < len(text) and text[self._place] == self._ids[end - 1]:
                self._place += 1
                self.streak += 1
            else:
                self._realign(end)
            self._note(end)

    def _note(self, end: int) -> None:
        """Remember where the branch's own tokens before `end` were last said."""
        if end >= 2:
            self._own[self._ids[end - 2], self._ids[end - 1]] = end

    def _realign(self, end: int) -> None:
        """Find the place behind the token ids[end − 1], which was not the one expected."""
        self.streak = 0
        self.how = GUESS
        ids = self._ids[max(0, end - _SUFFIX) : end]
        if not ids:
            return
        found = self._sources.find(ids, (self._text, self._place + 1))
        again = self._own.get((ids[-2], ids[-1])) if len(ids) > 1 else None
        if again is not None:
            agreed = _agreement(self._ids, again, ids)
            if found is None or agreed > found[2]:
                found = (_OWN_TEXT, again, agreed)
        if found:
            self._text, self._place, _ = found
            self.how = SUFFIX
            return
        if self._text == _OWN_TEXT:
            # Its own text has nothing like it: back to the response, at about where the branch is.
            self._text, self._place = 0, end - 2
        text = self._sources.text(self._text)
        token = ids[-1]
        for distance in range(_WINDOW):
            for place in (self._place + distance, self._place - 1 - distance):
                if 0 <= place < len(text) and text[place] == token:
                    self._place = place + 1
                    self.how = NEAR
                    return
        self._place += 1


class Acceptance:
    """How often the next token of a draft was right, by how the draft found its place and its right guesses since.

    Starts from a prior worth a few observations and learns from every verified draft.

    >>> acceptance = Acceptance()
    >>> before = acceptance.chance(GUESS, 0)
    >>> acceptance.record(GUESS, 0, proposed=4, accepted=0)
    >>> acceptance.chance(GUESS, 0) < before
    True
    """

    _PRIOR = 8.0

    def __init__(self) -> None:
        # A first guess is right about half of the time, a long streak goes on nearly always.
        expected = [0.5, 0.65, 0.72, 0.78, 0.8, 0.85, 0.88, 0.9, 0.93]
        self._right = [[self._PRIOR * value for value in expected] for _ in range(3)]
        self._seen = [[self._PRIOR] * len(expected) for _ in range(3)]

    def chance(self, how: int, streak: int) -> float:
        """Return the share of tokens that were right in this state."""
        place = _CLASS_OF[min(streak, _STREAKS[-1])]
        return self._right[how][place] / self._seen[how][place]

    def chances(self, draft: Draft, count: int) -> list[float]:
        """Return, for each of the next `count` tokens of a draft, the chance that it and all before it are right."""
        together, result = 1.0, []
        for ahead in range(count):
            together *= self.chance(draft.how, draft.streak + ahead)
            result.append(together)
        return result

    def record(self, how: int, streak: int, *, proposed: int, accepted: int) -> None:
        """Learn from one verified draft; what follows its first wrong token says nothing."""
        for ahead in range(min(accepted + 1, proposed)):
            place = _CLASS_OF[min(streak + ahead, _STREAKS[-1])]
            self._seen[how][place] += 1
            self._right[how][place] += ahead < accepted


def allot(chances: Sequence[Sequence[float]], *, fixed: float, per_token: float, most: int) -> list[int]:
    """Return how many draft tokens each branch gets, so that a pass emits the most tokens a second.

    A pass with n tokens takes `fixed` + n · `per_token` seconds. `chances` holds, per branch, falling chances that its
    draft is right up to each token; every branch emits one token besides. A draft token is worth its cost as long as
    its chance exceeds (tokens emitted) ÷ (seconds) · `per_token`. At most `most` tokens go into the pass.

    >>> allot([[0.9, 0.8], [0.3, 0.1]], fixed=10.0, per_token=1.0, most=9)
    [2, 1]
    >>> allot([[0.9, 0.8], [0.3, 0.1]], fixed=0.1, per_token=1.0, most=9)
    [0, 0]
    """
    counts = [0] * len(chances)
    offers = sorted(
        ((-chance, branch) for branch, falling in enumerate(chances) for chance in falling),
    )
    emitted, tokens = float(len(chances)), len(chances)
    for negative, branch in offers:
        if tokens >= most or -negative * (fixed + tokens * per_token) <= emitted * per_token:
            break
        emitted -= negative
        tokens += 1
        counts[branch] += 1
    return counts


def _agreement(text: Sequence[int], place: int, ids: Sequence[int]) -> int:
    """Return how many of the last ids stand before a place of a text, at most `_SUFFIX`."""
    count = 0
    for back in range(1, min(place, len(ids), _SUFFIX) + 1):
        if text[place - back] != ids[-back]:
            break
        count += 1
    return count
