r"""Which option a response chooses: by letter ("(B)"), by the option's text, or by yes, no and maybe.

Forms that name no option ("the answer is clear from the x-ray") are passed over, so that the last form that does name
one decides. A form with the letter of one option and the text of another is no answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from cruxtune.verifiers.extract import (
    NOTHING,
    TEXT_MACRO,
    Found,
    answer_text,
    clean,
    explicit_forms,
    last_lines,
    normalised,
)

_WORDS = ("yes", "no", "maybe")
_LETTERS_UNKNOWN = string.ascii_uppercase[:10]
"""Letters that may be an answer where a problem gives the gold letter but no options."""

_TAIL = 2000
"""Characters at the end of a text in which an option is looked for."""

_LETTER = re.compile(
    r"(?i:(?:option|choice|letter)\s+)?(?:\((?P<round>[A-Za-z])\)|\[(?P<square>[A-Za-z])\]|(?P<bare>[A-Z]))(?P<rest>.*)",
    re.DOTALL,
)
# What may follow a letter that is an answer: punctuation or a reason; not the noun of "A patient with".
_AFTER_LETTER = re.compile(r"\s*[).:,;\]*]|\s+[–—-]\s|\s+(?:because|since|as|which|is|and not|rather)\b")


class Options(NamedTuple):
    """A problem's options: letters (none for word answers), texts, the gold's name, and whether names are letters."""

    letters: str
    texts: Sequence[str]
    gold: str
    by_letter: bool

    def name(self, index: int) -> str:
        """Return an option's name, of the kind that the gold has."""
        return self.letters[index] if self.by_letter else self.texts[index]


def options(gold: str, choices: Sequence[str] | None) -> Options:
    """Return the options of a problem, from its gold answer and its choices.

    >>> options("(B)", ["aspirin", "heparin"])
    Options(letters='AB', texts=['aspirin', 'heparin'], gold='B', by_letter=True)
    >>> options("Heparin", ["aspirin", "heparin"]).gold, options("maybe", None).texts
    ('heparin', ('yes', 'no', 'maybe'))
    """
    letter = gold.strip(" ().").upper()
    is_letter = len(letter) == 1 and letter in string.ascii_uppercase
    if choices:
        letters = string.ascii_uppercase[: len(choices)]
        same = [text for text in choices if normalised(text) == normalised(gold)]
        if not same and is_letter and letter in letters:
            return Options(letters, choices, letter, by_letter=True)
        return Options(letters, choices, same[0] if same else gold, by_letter=False)
    if is_letter:
        return Options(_LETTERS_UNKNOWN, (), letter, by_letter=True)
    word = normalised(gold)
    return Options("", _WORDS if word in _WORDS else (gold,), word if word in _WORDS else gold, by_letter=False)


def extract_choice(text: str, problem_options: Options, strict: bool = False) -> Found:
    r"""Return the option that a response chooses, named as the gold is: by its letter or by its text.

    Args:
        text: the response's text.
        problem_options: what `options` says of the problem.
        strict: do not fall back to the last letter that stands alone, or the last option that is named.

    >>> two = options("A", ["aspirin", "heparin"])
    >>> extract_choice("Hence the answer is (B).", two), extract_choice("It must thin the blood.\n\nHeparin.", two)
    (Found(answer='B', form='phrase'), Found(answer='B', form='line'))
    >>> extract_choice("I go for B here", two), extract_choice("I go for B here", two, strict=True)
    (Found(answer='B', form='last-letter'), Found(answer=None, form='no-answer'))
    """
    text = answer_text(text)
    if lines := last_lines(text, 1):
        if _contradicts(lines[0], problem_options):
            return NOTHING
        index = _whole_line(lines[0], problem_options)
        if index is not None:
            return Found(problem_options.name(index), "line")
    for answer, form in reversed(explicit_forms(text, "line")):
        if _contradicts(answer or "", problem_options):
            return NOTHING
        index = _named(answer or "", problem_options)
        if index is not None:
            return Found(problem_options.name(index), form)
    if strict or not problem_options.letters:
        return NOTHING
    # A bare "A" or "I" before a word is English, not an option.
    pattern = (
        rf"(?<![\w'’])(?:\(([{problem_options.letters}])\)|([{problem_options.letters}])(?![\w'’]|(?<=[AI])\s+\w))"
    )
    letters = [one or two for one, two in re.findall(pattern, text)]
    if letters:
        return Found(problem_options.name(problem_options.letters.index(letters[-1])), "last-letter")
    last = _last_named(text[-_TAIL:], problem_options)
    return Found(problem_options.name(last), "last-option") if last is not None else NOTHING


def _whole_line(line: str, known: Options) -> int | None:
    """Return the option that a line is: its letter, its text, both, or its text and a reason after a comma."""
    line = clean(TEXT_MACRO.sub(r"\1", line))
    if lettered := _lettered(line, known):
        index, match = lettered
        rest = _beside(match)
        return index if not rest or (known.texts and rest == normalised(known.texts[index])) else None
    text = normalised(line)
    for index, option in enumerate(map(normalised, known.texts)):
        if text == option or (text.startswith(option) and text[len(option)] in ",.;:!"):
            return index
    return None


def _contradicts(line: str, known: Options) -> bool:
    """Return whether a line is the letter of one option and the text of another: "A: no" where B is no."""
    lettered = _lettered(clean(TEXT_MACRO.sub(r"\1", line)), known)
    if lettered is None:
        return False
    index, match = lettered
    texts = list(map(normalised, known.texts))
    # "A heparin" has an article.
    stated = not match["bare"] or _AFTER_LETTER.match(match["rest"]) is not None
    return stated and _beside(match) in texts and _beside(match) != texts[index]


def _named(answer: str, known: Options) -> int | None:
    """Return the option that an explicit form names: by letter first, else by text at its start, else within it."""
    answer = clean(TEXT_MACRO.sub(r"\1", answer))
    if len(answer) == 1:
        answer = answer.upper()
    if lettered := _lettered(answer, known):
        index, match = lettered
        rest = match["rest"]
        follows = known.texts and normalised(rest).startswith(normalised(known.texts[index]))
        if not rest.strip() or not match["bare"] or _AFTER_LETTER.match(rest) or follows:
            return index
    text = normalised(answer)
    spans = [
        (found.start(), -found.end(), index)
        for index, option in enumerate(map(normalised, known.texts))
        if (found := re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text))
    ]
    # An option inside a longer one ("fever" in "yellow fever") is not what the text names.
    outer = [(a, b, i) for a, b, i in spans if not any((c, d) != (a, b) and c <= a and d <= b for c, d, _ in spans)]
    starting = [index for start, _, index in outer if start == 0]
    return starting[0] if starting else outer[0][2] if len(outer) == 1 else None


def _last_named(text: str, known: Options) -> int | None:
    """Return the option whose text stands last in a text, the longer one of two that end together."""
    text = normalised(text)
    ends = [
        (match.end(), -match.start(), index)
        for index, option in enumerate(map(normalised, known.texts))
        for match in re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)", text)
    ]
    return max(ends)[2] if ends else None


def _lettered(text: str, known: Options) -> tuple[int, re.Match[str]] | None:
    """Return the option whose letter a text begins with, and the match; None where it begins with none."""
    match = _LETTER.fullmatch(text)
    letter = (match["round"] or match["square"] or match["bare"]).upper() if match else None
    return (known.letters.index(letter), match) if match and letter and letter in known.letters else None


def _beside(match: re.Match[str]) -> str:
    """Return what stands with a letter, without the marks between them."""
    return normalised(match["rest"].strip(" ).:-–"))
