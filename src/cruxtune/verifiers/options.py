r"""A problem's options, and how a piece of text names one: by its letter or by its text.

Functions here look at one form (what is in a box, a line, what follows "the answer is"); `cruxtune.verifiers.choice`
decides which form counts.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from cruxtune.verifiers.extract import TEXT_MACRO, clean, normalised

_WORDS = ("yes", "no", "maybe")
_LETTERS_UNKNOWN = 10
"""Letters, at least, that may be an answer where a problem gives the gold letter but no options."""

_LETTER = re.compile(
    r"(?:\((?P<round>[A-Za-z])\)|\[(?P<square>[A-Za-z])\]|(?P<lower>[a-z])(?=[.):]\s)"
    r"|(?i:(?:option|choice|letter)\s+(?P<named>[a-z])(?![\w'’]|-\w))"
    r"|(?P<bare>[A-Z])(?![\w'’]|-\w))(?P<rest>.*)",
    re.DOTALL,
)
_KINDS = ("round", "square", "lower", "named", "bare")
# What may follow a letter that is an answer: punctuation or a reason; not the noun of "A patient with".
_AFTER_LETTER = re.compile(r"\s*[()\[\].:,;!?=*|→\"“‒–—―−]|\s+-\s|\s+(?:because|since|as|which|is|and not|rather)\b")
# What may follow an option's text that is an answer; more words go on with a sentence, as in "A. No effect was seen".
_AFTER_TEXT = re.compile(r"\s*(?:[()\[\],.;:!?*‒–—―]|$)|\s+(?:because|since|as|which)\b")
_ANOTHER_LETTER = re.compile(
    r"[\s)\]]*(?:[,;/&+|–-]\s*(?:and|or)?|\(?\bor\b|\band\b|\bas well as\b)\s*[(\[]?(?P<letter>[A-Z])[)\]]?"
    r"(?=\s*(?:$|[.,;:!?)\]/&+|–-]|(?:are|or|and|both|as well)\b))"
)
"""What follows a letter where two are named: "A or B"; not "B, I think"."""
_ANOTHER_LABEL = re.compile(r"\W*(?:\bor\b|\band\b|[,/])\W*?(?:\((?P<round>[a-z])\)|(?P<bare>[a-z])[.):])")
"""… and what follows an option's text, folded: "(A) aspirin or (B) heparin"."""
_LABEL_BEHIND = re.compile(r"\s*[(,]\s*(?:option\s+|choice\s+)?(?P<letter>[a-z])\s*(?:$|[.,;)])")
"""A letter behind an option's text, folded: "heparin (A)"."""
_JOINED = re.compile(r"\s*(?:[,/]|\bor\b|\band\b)\s*")
_DENIED = re.compile(
    r"\b(?:is|are|was|were|would be)\s+(?:\w+\s+){0,2}?"
    r"(?:not|wrong|incorrect|ineffective|insufficient|contraindicated)\b"
    r"|\bwould not\b|n['’]t\b"
)
_NOT = re.compile(r"\b(?:not|never|but|other than|except|avoid|rather than|instead of)\b|n['’]t\b")
_ADVERB = re.compile(r"(?:most likely|likely|probably|clearly|definitely|indeed|actually|certainly)\s+", re.IGNORECASE)
_SPACING = re.compile(r"~|\\[ ,;:!]|\\q?quad\b|\\(?:rm|bf|it|large|Large)\b")
_MARKS = ' \t()[]{}.:,;=*|→"“”'
_DASHES = re.compile(r"^[-‒–—―]+(?!\d)|[-‒–—―]+$")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")


@dataclass(frozen=True)
class Options:
    """A problem's options: letters (none for word answers), texts, the gold's name, and whether names are letters."""

    letters: str
    texts: Sequence[str]
    gold: str
    by_letter: bool

    def name(self, index: int) -> str:
        """Return an option's name, of the kind that the gold has."""
        return self.letters[index] if self.by_letter else self.texts[index]

    def is_another(self, letter: str, index: int) -> bool:
        """Return whether a letter is that of an option, and not of this one."""
        return letter in self.letters and letter != self.letters[index]

    @cached_property
    def folded(self) -> list[str]:
        """The texts as `plain` has them; they are compared with every form of a response."""
        return list(map(plain, self.texts))

    @cached_property
    def cores(self) -> list[str]:
        """The texts, folded, without the marks around them; of one that is nothing else, the marks."""
        return [_core(text) for text in self.texts]

    @cached_property
    def are_words(self) -> bool:
        """Whether the options are yes, no and maybe, which prose is full of."""
        return bool(self.texts) and all(text in _WORDS for text in self.folded)


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
        known = max(_LETTERS_UNKNOWN, string.ascii_uppercase.index(letter) + 1)
        return Options(string.ascii_uppercase[:known], (), letter, by_letter=True)
    word = normalised(gold)
    return Options("", _WORDS if word in _WORDS else (gold,), word if word in _WORDS else gold, by_letter=False)


def whole(text: str, known: Options) -> int | None:
    """Return the option that a text is, and nothing else: its letter, its text, or both."""
    text = uncovered(text)
    text = text.upper() if len(text) == 1 else text
    if found := lettered(text, known):
        index, match = found
        rest = _beside(match)
        if not rest or (known.texts and rest == known.cores[index]):
            return index
    core = _core(text)
    return known.cores.index(core) if core and core in known.cores else None


def named(answer: str, known: Options) -> int | None:
    """Return the option that an explicit form names: by letter first, else by text at its start, else within it."""
    answer = _ADVERB.sub("", uncovered(answer), count=1)
    if len(answer) == 1:
        answer = answer.upper()
    text = plain(answer)
    # An option's text may begin with a letter of its own ("C. difficile").
    own = [index for index, option in enumerate(known.folded) if len(option) > 1 and begins(option, text)]
    if (found := lettered(answer, known)) and not any(_LETTER.match(known.texts[index]) for index in own):
        index, match = found
        rest = match["rest"]
        follows = known.texts and plain(rest).startswith(known.folded[index])
        if not rest.strip() or not match["bare"] or _AFTER_LETTER.match(rest) or follows:
            return index
    spans = [
        (first.start(), -first.end(), index)
        for index, option in enumerate(known.folded)
        if (first := next(occurrences(option, text), None))
    ]
    # An option inside a longer one ("fever" in "yellow fever") is not what the text names.
    outer = [(a, b, i) for a, b, i in spans if not any((c, d) != (a, b) and c <= a and d <= b for c, d, _ in spans)]
    starting = [index for start, _, index in outer if start == 0]
    if starting:
        return starting[0]
    return outer[0][2] if len(outer) == 1 and not _NOT.search(text[: outer[0][0]]) else None


def divided(text: str, known: Options, *, entirely: bool = False) -> bool:
    """Return whether a text begins with two options, or `entirely` is that: "A: no" where B is no, or "A or B"."""
    found = lettered(uncovered(text), known)
    if found is None:
        return not entirely and _begins_with_two(plain(uncovered(text)), known)
    index, match = found
    bare_rest = re.sub(r'[*_"“”$\\]', "", match["rest"])
    another = _ANOTHER_LETTER.match(bare_rest)
    if another and known.is_another(another["letter"], index):
        return not entirely or not bare_rest[another.end() :].strip(_MARKS)
    # "A heparin" has an article.
    if match["bare"] and not _AFTER_LETTER.match(match["rest"]):
        return False
    beside, texts = _beside(match), known.cores
    if not texts or beside == texts[index] or (entirely and beside not in texts):
        return False
    if beside.startswith(texts[index]) and (label := _ANOTHER_LABEL.match(beside[len(texts[index]) :])):
        return known.is_another((label["round"] or label["bare"]).upper(), index)
    # A sentence on another option: "B. Aspirin, an antiplatelet, is ineffective."
    if match["rest"].startswith(".") and not known.are_words and _DENIED.search(match["rest"]):
        return False
    begun = [
        number
        for number, option in enumerate(texts)
        if option and beside.startswith(option) and _AFTER_TEXT.match(beside[len(option) :])
    ]
    return bool(begun) and max(begun, key=lambda number: len(texts[number])) != index


def begins(option: str, text: str) -> bool:
    """Return whether a folded text begins with an option as a whole."""
    first = next(occurrences(option, text), None)
    return first is not None and first.start() == 0


def another_begins(text: str, index: int, known: Options) -> bool:
    """Return whether a folded text begins with an option other than this one."""
    return any(begins(option, text) for number, option in enumerate(known.folded) if number != index)


def occurrences(option: str, text: str) -> Iterator[re.Match[str]]:
    """Return where an option stands in a folded text as a whole: not within a word, nor within another number."""
    before = r"(?<![\w.,/\\{^–-])" if option[:1].isdigit() else r"(?<!\w)"
    after = r"(?![\w/}^%!]|[.,:–-]\d)" if option[-1:].isdigit() else r"(?!\w)"
    return re.finditer(before + re.escape(option) + after, text) if option else iter(())


def lettered(text: str, known: Options) -> tuple[int, re.Match[str]] | None:
    """Return the option whose letter an uncovered text begins with, and the match; None where it begins with none."""
    match = _LETTER.fullmatch(text)
    letter = next((match[kind] for kind in _KINDS if match[kind]), "").upper() if match else ""
    return (known.letters.index(letter), match) if match and letter and letter in known.letters else None


def uncovered(text: str) -> str:
    r"""Return a text without what it is dressed in: Markdown, LaTeX's text macros and spaces, quotes.

    >>> uncovered(r" **\textbf{(A)}\ \text{Heparin}** "), uncovered("‘B’.")
    ('(A) Heparin', 'B')
    """
    text = clean(TEXT_MACRO.sub(r"\1", _SPACING.sub(" ", text)))
    return clean(text.strip("'‘’_"))


def plain(text: str) -> str:
    r"""Return a text to be compared, folded, with fractions, per cent and minus written alike.

    >>> plain(r"\frac{1}{4}"), plain(r"25 \%"), plain("Heparin."), plain("−1")
    ('1/4', '25%', 'heparin', '-1')
    """
    text = _FRACTION.sub(r"\1/\2", text.replace(r"\%", "%").replace("−", "-"))
    return normalised(re.sub(r"(?<=\d)\s+%", "%", text))


def _begins_with_two(text: str, known: Options) -> bool:
    """Return whether a folded text begins with an option's text and names another one: "heparin (A)", "yes or no"."""
    begun = [(len(option), number) for number, option in enumerate(known.folded) if begins(option, text)]
    if not begun:
        return False
    length, index = max(begun)
    after = text[length:]
    label = _LABEL_BEHIND.match(after)
    if label and known.is_another(label["letter"].upper(), index):
        return True
    joined = _JOINED.match(after)
    return joined is not None and another_begins(after[joined.end() :], index, known)


def _beside(match: re.Match[str]) -> str:
    """Return what stands with a letter, without the marks between them."""
    return plain(_unmarked(match["rest"]))


def _core(text: str) -> str:
    """Return a text to be compared as a whole: without the marks around it, unless it is nothing else."""
    return plain(_unmarked(text) or text)


def _unmarked(text: str) -> str:
    before = None
    while text != before:
        before = text
        # The dash of "-1" is a sign.
        text = _DASHES.sub("", text.strip(_MARKS))
    return text
