r"""Worked solutions of reasoning-gym's tasks, for cold starts: reasoning-gym itself has some of `gsm_symbolic` only.

A style says how they are written. `lines` is terse: nearly every token decides. `sentences` words each step in one of
several ways, drawn by the question, so that most tokens could have been others. `checked` also says what was given, or
does the work a second time in another order: some of what decides is there twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Style = Literal["lines", "sentences", "checked"]

_FIRST = (
    "We begin with the first number, which is {a}.",
    "The first number here is {a}.",
    "Let us start at {a}, the first number.",
    "To start with, we have {a}.",
)
_PLUS = (
    "Next we add {b} to it, and that makes {c}.",
    "After that comes plus {b}, so now we have {c}.",
    "Then {b} is added, which brings us to {c}.",
    "Now add {b}, and the total becomes {c}.",
)
_MINUS = (
    "Next we take {b} away from it, and that makes {c}.",
    "After that comes minus {b}, so now we have {c}.",
    "Then {b} is subtracted, which brings us to {c}.",
    "Now subtract {b}, and the total becomes {c}.",
)
_END = ("So the answer is {a}.", "That is our result: {a}.", "We end at {a}.", "In the end there is {a}.")
_AGAIN = (
    "To be sure, let us do it again in another order.",
    "Let us check this, with what is added first.",
    "Now the same once more in another order, to be safe.",
    "We check it by working in another order.",
)
_LAST_WORD = (
    "The last word of the list is {a}.",
    "Going backward, we first meet {a}.",
    "At the end of the list there is {a}.",
    "From the end, the first one is {a}.",
)
_WORD_BEFORE = ("Before it comes {a}.", "Then there is {a}.", "The one before that is {a}.", "Next we find {a}.")
_WORDS = (
    "The list of words is {a}.",
    "We are given {a}.",
    "Here are the words: {a}.",
    "Let us first read the words: {a}.",
)
_SMALLEST = (
    "Of these, {a} comes first.",
    "The first of them is {a}.",
    "Here {a} goes to the front.",
    "Among them {a} has to be first.",
)
_LEFT = ("That leaves {a}.", "Now we still have {a}.", "What remains is {a}.", "Left over: {a}.")
_COUNTED = (
    "In {a} there are {b}, so we have {c} by now.",
    "The word {a} has {b} of them, which makes {c}.",
    "Then comes {a} with {b}, and the count is {c}.",
    "Next, {a} contains {b}; so far that is {c}.",
)


def worked(task: str, facts: Mapping[str, Any], style: Style) -> str | None:
    r"""Return the worked solution of an entry with these facts (its `metadata`), None where there is none.

    >>> worked("chain_sum", {"expression": "4 - 1 - 7"}, "lines")
    '4 - 1 = 3\n3 - 7 = -4\n#### -4'
    >>> worked("word_sequence_reversal", {"words": ["so", "it", "is"]}, "lines")
    '3 is\n2 it\n1 so\n#### is, it, so'
    >>> worked("leg_counting", {}, "lines") is None
    True
    """
    match task:
        case "chain_sum":
            return _sum(facts["expression"], style)
        case "word_sequence_reversal":
            return _reversal(facts["words"], style)
        case "word_sorting":
            return _sorting(facts["transformed_words"], facts["sorted_words"], style)
        case "letter_counting":
            return _counting(facts["span"], facts["target_letter"], style)
        case _:
            solution: str | None = facts.get("answer_cot")
            return solution


def _sum(expression: str, style: Style) -> str:
    first, *rest = expression.split()
    start, terms = int(first), [(sign, int(term)) for sign, term in zip(rest[::2], rest[1::2], strict=True)]
    steps = _steps(start, terms)
    value = steps[-1][3] if steps else start
    if style == "lines":
        return _stated([f"{before} {sign} {term} = {after}" for before, sign, term, after in steps], value, "\n")
    say = _Wording(expression)
    told = [say(_FIRST, a=start), *(say(_PLUS if s == "+" else _MINUS, b=term, c=after) for _, s, term, after in steps)]
    told.append(say(_END, a=value))
    if style == "checked":
        # What is added comes first: another way to the same number, so that the first one need not be right.
        again = _steps(start, sorted(terms))
        told += [say(_AGAIN), say(_FIRST, a=start)]
        told += [say(_PLUS if s == "+" else _MINUS, b=term, c=after) for _, s, term, after in again]
        told.append(say(_END, a=value))
    return _stated(told, value)


def _steps(start: int, terms: Sequence[tuple[str, int]]) -> list[tuple[int, str, int, int]]:
    """Return (before, sign, term, after) of each term."""
    steps, value = [], start
    for sign, term in terms:
        after = value + term if sign == "+" else value - term
        steps.append((value, sign, term, after))
        value = after
    return steps


def _reversal(words: Sequence[str], style: Style) -> str:
    answer = ", ".join(reversed(words))
    if style == "lines":
        numbered = list(enumerate(words, start=1))
        return _stated([f"{number} {word}" for number, word in reversed(numbered)], answer, "\n")
    say = _Wording(answer)
    told = [say(_WORDS, a=", ".join(words))] if style == "checked" else []
    told.append(say(_LAST_WORD, a=words[-1]))
    told += [say(_WORD_BEFORE, a=word) for word in reversed(words[:-1])]
    return _stated(told, answer)


def _sorting(words: Sequence[str], ordered: Sequence[str], style: Style) -> str:
    answer = ", ".join(ordered)
    if style == "lines":
        return _stated([f"{number} {word}" for number, word in enumerate(ordered, start=1)], answer, "\n")
    say, left = _Wording(answer), list(words)
    told = [say(_WORDS, a=", ".join(words))]
    for word in ordered:
        told.append(say(_SMALLEST, a=word))
        left.remove(word)
        if left and style == "checked":
            told.append(say(_LEFT, a=", ".join(left)))
    return _stated(told, answer)


def _counting(words: Sequence[str], letter: str, style: Style) -> str:
    say, total = _Wording(" ".join(words)), 0
    told = []
    for word in words:
        here = word.lower().count(letter)
        total += here
        spelled = f"{word} ({' '.join(word.lower())})" if style == "checked" else word
        told.append(f"{word} {here} {total}" if style == "lines" else say(_COUNTED, a=spelled, b=here, c=total))
    return _stated(told, total, "\n" if style == "lines" else " ")


class _Wording:
    """Says a sentence in one of its ways, the same at every call for the same problem."""

    def __init__(self, problem: str) -> None:
        self._choose: Callable[[Sequence[str]], str] = random.Random(problem).choice

    def __call__(self, ways: Sequence[str], **values: object) -> str:
        return self._choose(ways).format(**values)


def _stated(parts: Sequence[str], answer: object, between: str = " ") -> str:
    return "\n".join([*([between.join(parts)] if parts else []), f"#### {answer}"])
