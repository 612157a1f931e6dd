r"""Which option a response chooses: by letter ("(B)"), by the option's text, or by yes, no and maybe.

Forms that name no option ("the answer is clear from the x-ray") are passed over, so that the last form that does name
one decides. A form with the letter of one option and the text of another is no answer, nor is one with two letters.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
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
_BEFORE = 40
"""Characters before a letter in which the word before it is looked for."""

_LETTER = re.compile(
    r"(?i:(?:option|choice|letter)\s+)?"
    r"(?:\((?P<round>[A-Za-z])\)|\[(?P<square>[A-Za-z])\]|(?P<bare>[A-Z])(?![\w'’]|-\w))(?P<rest>.*)",
    re.DOTALL,
)
# What may follow a letter that is an answer: punctuation or a reason; not the noun of "A patient with".
_AFTER_LETTER = re.compile(r"\s*[()\[\].:,;=*–—]|\s+-\s|\s+(?:because|since|as|which|is|and not|rather)\b")
# What may follow an option's text that is an answer; more words go on with a sentence, as in "A. No effect was seen".
_AFTER_TEXT = re.compile(r"\s*(?:[()\[\],.;:!?*–—]|$)|\s+(?:because|since|as|which|is)\b")
_ANOTHER_LETTER = re.compile(
    r"[\s)\]]*(?:[,/&]|\bor\b|\band\b)\s*[(\[]?(?P<letter>[A-Z])[)\]]?(?=\s*(?:$|[.,;:!?)\]/&]|(?:are|or|and|both)\b))"
)
"""What follows a letter where two are named: "A or B"; not "B, I think"."""

_POINTS = frozenset(
    (
        *("answer", "option", "choice", "letter", "choose", "chose", "pick", "select", "say", "with", "for", "to"),
        *("take", "took", "get", "want", "mean", "prefer", "guess", "think", "believe", "favor", "favour", "conclude"),
        *("is", "be", "was", "being", "it's", "that's", "so", "therefore", "thus", "hence", "then", "but"),
    )
)
"""Words before a bare letter that is an option, as in "I choose B"; the C of "vitamin C" is none."""

_MARKS = " ()[]{}.:,;=*-–—"
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")


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
    known = problem_options
    line = "".join(last_lines(text, 1))
    if _divided(line, known, whole=True):
        return NOTHING
    if (index := _whole_line(line, known)) is not None:
        return Found(known.name(index), "line")
    for answer, form in reversed(explicit_forms(text, "line")):
        if _divided(answer or "", known):
            return NOTHING
        if (index := _named(answer or "", known)) is not None:
            return Found(known.name(index), form)
    # Behind an explicit form a line that begins so is a comment: "\boxed{C}. No, it was not significant."
    if (index := _line_with_reason(line, known)) is not None:
        return Found(known.name(index), "line")
    if strict or not known.letters:
        return NOTHING
    if guessed := _last_letter(text, known):
        return guessed
    last = _last_named(text[-_TAIL:], known)
    return Found(known.name(last), "last-option") if last is not None else NOTHING


def _divided(text: str, known: Options, *, whole: bool = False) -> bool:
    """Return whether a text begins with two options, or with `whole` is that: "A: no" where B is no, or "A or B"."""
    lettered = _lettered(_uncovered(text), known)
    if lettered is None:
        return False
    index, match = lettered
    another = _ANOTHER_LETTER.match(match["rest"])
    if another and another["letter"] in known.letters and another["letter"] != known.letters[index]:
        return not whole or not match["rest"][another.end() :].strip(_MARKS)
    # "A heparin" has an article.
    if match["bare"] and not _AFTER_LETTER.match(match["rest"]):
        return False
    beside = _beside(match)
    texts = list(map(_core, known.texts))
    if not texts or beside == texts[index] or (whole and beside not in texts):
        return False
    begun = [
        number
        for number, option in enumerate(texts)
        if beside.startswith(option) and _AFTER_TEXT.match(beside[len(option) :])
    ]
    return bool(begun) and max(begun, key=lambda number: len(texts[number])) != index


def _whole_line(line: str, known: Options) -> int | None:
    """Return the option that a line is, and nothing else: its letter, its text, or both."""
    line = _uncovered(line)
    texts = list(map(_core, known.texts))
    if lettered := _lettered(line, known):
        index, match = lettered
        rest = _beside(match)
        if not rest or (texts and rest == texts[index]):
            return index
    return texts.index(_core(line)) if line and _core(line) in texts else None


def _line_with_reason(line: str, known: Options) -> int | None:
    """Return the option whose text a line begins with, the longest one, where a reason follows after a mark."""
    line = _plain(_uncovered(line))
    begun = [
        (len(option), index)
        for index, option in enumerate(map(_plain, known.texts))
        if line.startswith(option) and line[len(option) :][:1] in tuple(",.;:!")
    ]
    return max(begun)[1] if begun else None


def _named(answer: str, known: Options) -> int | None:
    """Return the option that an explicit form names: by letter first, else by text at its start, else within it."""
    answer = _uncovered(answer)
    if len(answer) == 1:
        answer = answer.upper()
    text = _plain(answer)
    texts = list(map(_plain, known.texts))
    # An option's text may begin with a letter of its own ("C. difficile").
    own = [index for index, option in enumerate(texts) if len(option) > 1 and _begins(option, text)]
    if (lettered := _lettered(answer, known)) and not any(_LETTER.match(known.texts[index]) for index in own):
        index, match = lettered
        rest = match["rest"]
        follows = texts and _plain(rest).startswith(texts[index])
        if not rest.strip() or not match["bare"] or _AFTER_LETTER.match(rest) or follows:
            return index
    spans = [
        (found.start(), -found.end(), index)
        for index, option in enumerate(texts)
        if (found := next(_found(option, text), None))
    ]
    # An option inside a longer one ("fever" in "yellow fever") is not what the text names.
    outer = [(a, b, i) for a, b, i in spans if not any((c, d) != (a, b) and c <= a and d <= b for c, d, _ in spans)]
    starting = [index for start, _, index in outer if start == 0]
    return starting[0] if starting else outer[0][2] if len(outer) == 1 else None


def _last_letter(text: str, known: Options) -> Found | None:
    """Return the last letter that stands alone and is pointed at, no answer where two are, None where none is."""
    alone, masked = rf"[{known.letters}]", text
    for option in known.texts:
        # A letter inside an option's own text ("hepatitis C virus") chooses nothing.
        if len(option) > 1 and re.search(rf"(?<!\w){alone}(?!\w)", option):
            masked = re.sub(re.escape(option), lambda match: "_" * len(match[0]), masked, flags=re.IGNORECASE)
    # A bare "A" or "I" before a word is English, not an option.
    letters = rf"(?<![\w'’-])(?:\(({alone})\)|({alone})(?![\w'’]|-\w|(?<=[AI])\s+\w))"
    for match in reversed(list(re.finditer(letters, masked))):
        if match[1] or _is_pointed_at(text[max(0, match.start() - _BEFORE) : match.start()]):
            break
    else:
        return None
    pairs = re.finditer(rf"\(?{alone}\)?\s*(?:[,/&]|or\b|and\b)\s*\(?{alone}\)?(?![\w'’])", text)
    line = text[match.start() :].partition("\n")[0]
    if any(pair.start() <= match.start() < pair.end() for pair in pairs) or _divided(line, known):
        return NOTHING
    return Found(known.name(known.letters.index(match[1] or match[2])), "last-letter")


def _is_pointed_at(before: str) -> bool:
    word = re.search(r"[A-Za-z'’]+\Z", before.rstrip(' \t*_"“'))
    return word is None or word[0].lower().replace("’", "'") in _POINTS


def _last_named(text: str, known: Options) -> int | None:
    """Return the option whose text stands last in a text, the longer one of two that end together."""
    text = _plain(text)
    ends = [
        (match.end(), -match.start(), index)
        for index, option in enumerate(map(_plain, known.texts))
        for match in _found(option, text)
    ]
    return max(ends)[2] if ends else None


def _begins(option: str, text: str) -> bool:
    return any(match.start() == 0 for match in _found(option, text))


def _found(option: str, text: str) -> Iterator[re.Match[str]]:
    """Return where an option stands in a text as a whole: not within a word, nor within another number."""
    before = r"(?<![\w.,/\\{^–-])" if option[:1].isdigit() else r"(?<!\w)"
    after = r"(?![\w/}^%]|[.,–-]\d)" if option[-1:].isdigit() else r"(?!\w)"
    return re.finditer(before + re.escape(option) + after, text)


def _lettered(text: str, known: Options) -> tuple[int, re.Match[str]] | None:
    """Return the option whose letter a text begins with, and the match; None where it begins with none."""
    match = _LETTER.fullmatch(text)
    letter = (match["round"] or match["square"] or match["bare"]).upper() if match else None
    return (known.letters.index(letter), match) if match and letter and letter in known.letters else None


def _uncovered(text: str) -> str:
    return clean(TEXT_MACRO.sub(r"\1", text))


def _beside(match: re.Match[str]) -> str:
    """Return what stands with a letter, without the marks between them."""
    return _plain(match["rest"].strip(_MARKS))


def _core(text: str) -> str:
    """Return a text to be compared as a whole: without the marks around it, unless it is nothing else."""
    return _plain(text.strip(_MARKS) or text)


def _plain(text: str) -> str:
    r"""Return a text to be compared, fractions and per cent written alike.

    >>> _plain(r"\frac{1}{4}"), _plain(r"25 \%"), _plain("Heparin.")
    ('1/4', '25%', 'heparin')
    """
    text = _FRACTION.sub(r"\1/\2", text.replace(r"\%", "%"))
    return normalised(re.sub(r"(?<=\d)\s+%", "%", text))
