r"""Which option a response chooses: by letter ("(B)"), by the option's text, or by yes, no and maybe.

Forms that name no option ("the answer is clear from the x-ray") are passed over, so that the last form that does name
one decides. A form with the letter of one option and the text of another is no answer, nor is one with two letters. A
list of options chooses none, nor does a letter that is dismissed ("A and C are wrong").
"""

from __future__ import annotations

import re

from cruxtune.verifiers.extract import NOTHING, Found, answer_text, explicit_forms, last_lines
from cruxtune.verifiers.options import (
    Options,
    another_begins,
    divided,
    lettered,
    named,
    occurrences,
    plain,
    uncovered,
    whole,
)

_TAIL = 2000
"""Characters at the end of a text in which an option is looked for."""
_FORMS = 50
"""Explicit forms at the end of a text that are looked at."""
_BEFORE = 40
"""Characters before a letter in which the word before it is looked for."""

_POINTS = frozenset(
    (
        *("answer", "option", "choice", "letter", "choose", "chose", "pick", "select", "say", "with", "for", "to"),
        *("take", "took", "get", "want", "mean", "prefer", "guess", "think", "believe", "favor", "favour", "conclude"),
        *("is", "be", "was", "being", "it's", "that's", "so", "therefore", "thus", "hence", "then", "but"),
        *("likely", "probably", "clearly", "definitely", "indeed", "actually", "certainly"),
    )
)
"""Words before a bare letter that is an option, as in "I choose B"; the C of "vitamin C" is none."""
# Nor is the B of "B cells", the C of "C. difficile", or the A of "10 A.M.".
_BEHIND = (
    r"(?!\.\s*[A-Z]\.|\.\s+[a-z])"
    r"(?=[ \t]*(?:\n|\Z|[.,;:!?)\]*_\"”'’=→–—])"
    r"|[ \t]+(?:is|seems|fits|it|here|because|since|as|and|or|rather|over|not|then|must|would|best|-)(?:\b|\s))"
)
"""What may follow a bare letter that is an option."""

_HEADING = re.compile(
    r"(?<!each )(?<!every )(?<!wrong )(?<!incorrect )\b(?:answer|(?:correct|best|right) (?:option|choice))"
    r"(?: is| would be| must be)?\s*[*_]*:[*_]*\s*$",
    re.IGNORECASE,
)
"""A line behind which the answer comes."""
_BULLET = re.compile(r"[\s#>*•_-]*")
_WRONG = re.compile(r"\b(?:wrong|incorrect|false|too \w+)\b")
_IS_WRONG = r"[ \t]+(?:is|are|was|were|seems?)[ \t]+(?:(?:both|all|also|clearly|therefore|thus)[ \t]+)?"
_IS_WRONG += r"(?:not\b|incorrect\b|wrong\b|false\b|ruled out\b|unlikely\b)"
_NO_MORE = r"(?:\b(?i:not|cannot|never|nor|neither|rules? out|ruled out|eliminates?|excludes?|discard|avoid)|n['’]t)"
_NO_MORE += r"(?:[ \t]+(?:choose|be|pick|select|think|it|is|option|choice|answer|the)){0,6}[ \t]+"


def extract_choice(text: str, problem_options: Options, strict: bool = False) -> Found:
    r"""Return the option that a response chooses, named as the gold is: by its letter or by its text.

    Args:
        text: the response's text.
        problem_options: what `options` says of the problem.
        strict: do not fall back to the last letter that stands alone, or the last option that is named.

    >>> from cruxtune.verifiers.options import options
    >>> two = options("A", ["aspirin", "heparin"])
    >>> extract_choice("Hence the answer is (B).", two), extract_choice("It must thin the blood.\n\nHeparin.", two)
    (Found(answer='B', form='phrase'), Found(answer='B', form='line'))
    >>> extract_choice("I go for B here", two), extract_choice("I go for B here", two, strict=True)
    (Found(answer='B', form='last-letter'), Found(answer=None, form='no-answer'))
    """
    known = problem_options
    text = _without_list(_without_dismissed(answer_text(text), known), known)
    line = "".join(last_lines(text, 1))
    if divided(line, known, entirely=True):
        return NOTHING
    if (index := whole(line, known)) is not None:
        return Found(known.name(index), "line")
    for answer, form in reversed(explicit_forms(text, "line")[-_FORMS:]):
        if divided(answer or "", known):
            return NOTHING
        if (index := named(answer or "", known)) is not None:
            return Found(known.name(index), form)
    # Behind an explicit form a line that begins so is a comment: "\boxed{C}. No, it was not significant."
    if (index := _with_reason(line, known)) is not None:
        return Found(known.name(index), "line")
    if strict or not known.letters:
        return NOTHING
    text = _without_labels(text, known)
    if guessed := _last_letter(text, known):
        return guessed
    last = _last_named(text[-_TAIL:], known)
    return Found(known.name(last), "last-option") if last is not None else NOTHING


def _without_dismissed(text: str, known: Options) -> str:
    """Return a text without the options that it says are wrong: "A and C are wrong", "not (B)", "aspirin is wrong"."""
    if known.letters:
        letter = rf"\(?[{known.letters}]\)?"
        several = rf"{letter}(?:[ \t]*(?:,[ \t]*and\b|,[ \t]*or\b|[,/&]|\band\b|\bor\b)[ \t]*{letter}){{0,25}}"
        text = _blanked(rf"(?<![\w'’-]){several}{_IS_WRONG}|{_NO_MORE}{several}(?![\w'’]|-\w)", text)
    for place, option in enumerate(known.texts):
        label = rf"(?:\(?{known.letters[place]}\)?[.):]?[ \t]*)?" if known.letters else ""
        stated = rf"{label}(?i:{re.escape(option)})"
        pattern = rf"(?<!\w){stated}{_IS_WRONG}|{_NO_MORE}{stated}(?!\w)"
        # "Neither genotype nor phenotype" is an option of its own beside "genotype".
        if option.strip() and not any(re.search(pattern, other, re.IGNORECASE) for other in known.texts):
            text = _blanked(pattern, text)
    return text


def _without_list(text: str, known: Options) -> str:
    """Return a text without the beginnings of lines that list options, unless the last line says one once more."""
    lines = text.splitlines(keepends=True)
    labels = [_label(line, known) if line.strip() else None for line in lines]
    filled = [number for number, line in enumerate(lines) if line.strip()]
    for before, number, after in zip(filled, filled[1:], [*filled[2:], None], strict=False):
        # "The answer is:" and one option behind it are no list; several are.
        if labels[number] and _HEADING.search(lines[before]) and (after is None or labels[after] is None):
            labels[number] = None
    if len({index for index, _ in filter(None, labels)}) < 2:
        return text
    last = filled[-1]
    said = labels[last]
    restated = (
        said is not None
        and whole(lines[last], known) is not None
        and any(label is not None and label[0] == said[0] for label in labels[:last])
    )
    return "".join(
        line if label is None or (number == last and restated) else " " * label[1] + line[label[1] :]
        for number, (line, label) in enumerate(zip(lines, labels, strict=True))
    )


def _label(line: str, known: Options) -> tuple[int, int] | None:
    """Return the option that a line of a list begins with, and where its name ends; None where it begins with none."""
    bullet = _BULLET.match(line)
    assert bullet
    body = line[bullet.end() :]
    if (index := whole(body, known)) is not None:
        return index, len(line.rstrip("\r\n"))
    found = lettered(uncovered(body), known)
    for place, option in enumerate(known.texts):
        # "A) Aspirin - an antiplatelet", or "Aspirin: an antiplatelet"
        label = rf"\(?{known.letters[place]}\)?[.):]*[*_]*[ \t]*" if found and found[0] == place else ""
        match = re.match(rf"{label}(?i:{re.escape(option)})(?!\w)[*_]*{'' if label else ':'}", body)
        if option.strip() and match:
            return place, bullet.end() + match.end()
    return None


def _with_reason(line: str, known: Options) -> int | None:
    """Return the option whose text a line begins with, the longest one, where a reason follows after a mark."""
    line = plain(uncovered(line))
    begun = [(len(option), index) for index, option in enumerate(known.folded) if option and line.startswith(option)]
    if not begun:
        return None
    length, index = max(begun)
    rest = line[length:]
    if rest[:1] not in tuple(",.;:!") or another_begins(rest[1:].lstrip(), index, known):
        return None
    return None if _WRONG.search(rest) and not known.are_words else index


def _without_labels(text: str, known: Options) -> str:
    """Return a text without letters that stand with their own options, where there are several: a list in a line."""
    labels = [
        rf"\(?{letter}\)?[.):]?[ \t]+(?i:{re.escape(option)})(?!\w)"
        for letter, option in zip(known.letters, known.texts, strict=False)
        if option.strip()
    ]
    present = [label for label in labels if re.search(label, text)]
    return _blanked("|".join(present), text) if len(present) > 1 else text


def _last_letter(text: str, known: Options) -> Found | None:
    """Return the last letter that stands alone and is pointed at, no answer where two are, None where none is."""
    alone, masked = rf"[{known.letters}]", text
    for option in known.texts:
        # A letter inside an option's own text ("hepatitis C virus") chooses nothing.
        if len(option) > 1 and re.search(rf"(?<!\w){alone}(?!\w)", option):
            masked = re.sub(re.escape(option), lambda match: "_" * len(match[0]), masked, flags=re.IGNORECASE)
    letters = rf"(?<![\w'’°-])(?:\(({alone})\)|(?:(?<=['‘])|(?<!['’]))({alone})(?!['’]?\w|-\w){_BEHIND})"
    for match in reversed(list(re.finditer(letters, masked))):
        if match[1] or _is_pointed_at(text[max(0, match.start() - _BEFORE) : match.start()]):
            break
    else:
        return None
    pairs = re.finditer(rf"\(?{alone}\)?\s*(?:[,/&]|or\b|and\b)\s*\(?{alone}\)?(?![\w'’])", text)
    line = text[match.start() :].partition("\n")[0]
    if any(pair.start() <= match.start() < pair.end() for pair in pairs) or divided(line, known):
        return NOTHING
    return Found(known.name(known.letters.index(match[1] or match[2])), "last-letter")


def _is_pointed_at(before: str) -> bool:
    before = before.rstrip(" \t*_\"“'‘")
    word = re.search(r"[A-Za-z'’]+\Z", before)
    if word:
        return word[0].lower().replace("’", "'") in _POINTS
    return not before or before[-1] in "\n.,:;=>([-–—!?→"


def _last_named(text: str, known: Options) -> int | None:
    """Return the option whose text stands last in a text, the longer one of two that end together."""
    text = plain(text)
    ends = [
        (match.end(), -match.start(), index)
        for index, option in enumerate(known.folded)
        for match in occurrences(option, text)
        # Prose is full of "no": there it has to end a clause.
        if not known.are_words or re.match(r"\s*(?:[.,;:!)]|$)", text[match.end() : match.end() + 9])
    ]
    return max(ends)[2] if ends else None


def _blanked(pattern: str, text: str) -> str:
    return re.sub(pattern, lambda match: " " * len(match[0]), text)
