r"""From a response's text to the answer it gives: pure functions, no comparison.

An explicit form is one that the text offers as its answer: `\boxed{x}` or `\fbox{x}` ("boxed"), `#### x` ("hash"), and
"the answer is x" or "Answer: x" ("phrase"). The last explicit form wins, since a model that corrects itself does so
later in the text. For choices, a last line that is nothing but an option counts too ("line"). Where there is none, a
documented guess is made ("last-number", "last-letter", "last-line": `FALLBACK_REASONS`), unless `strict`.

Only the text after the last `</think>` is read, where there is one.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

NO_ANSWER = "no-answer"
FALLBACK_REASONS = frozenset({"last-number", "last-letter", "last-line"})
"""Reasons of verdicts on a guessed answer: the text had no explicit form."""


class Found(NamedTuple):
    """An answer in a text: the string (None for no answer) and the form that it was found in."""

    answer: str | None
    form: str


NOTHING = Found(None, NO_ANSWER)

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*((?:(?!####)[^\n])*)")
_PHRASE = re.compile(
    r"""\banswer\b[*_]{0,3}
    (?:\s(?:to|for|of|in)\s[^\n.:=?]{1,100}?)?            # the answer to the question
    (?:(?P<verb>\s+(?:is|would\ be|should\ be|must\ be|will\ be)\b)(?!\s+not\b)(?:\s+(?:therefore|thus|simply))?\s*[:=]?
      |\s*:)                                              # Answer:
    [*_]{0,3}\s*
    (?P<answer>\$\$.*?\$\$|\\\[.*?\\\]|[^\n]+)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
# Markdown headings of four hashes that are no answers: "#### Step 2: multiply", "#### Final answer".
_HEADING = re.compile(r"step\b|(?:the )?(?:final )?(?:answer|solution|conclusion|explanation)$|.*:$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bJr)[.!?](?=[\s*\"”]|$)")
_CLAUSE = re.compile(r",?\s(?:because|since|so|which|as|where|but|hence|therefore)\b.*", re.IGNORECASE | re.DOTALL)
_LABEL_WORDS = 12
"""Words after "Answer:" up to which it is an answer; longer ones are a solution that starts with that label."""

_NUMBER = re.compile(
    r"""(?P<fraction>(?<!\w)[-−]?\d*\\[dt]?frac\s*\{\d+\}\s*\{\d+\})
    |(?<![\w.])(?P<sign>[-−])?\s?\\?[$€£]?(?P<sign2>-)?   # -5, -$5, $-5; not the 5 of H5
    (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][+-]?\d{1,3}(?!\w))?)
    (?P<over>/\d+(?!\w))?(?P<percent>\s?\\?%|\s?percent\b)?""",
    re.VERBOSE,
)
_WORDS = re.compile(r"(?:\s|\\[$ ]|[A-Za-z'’]{2,}|\ba\b|[.,;:!$€£()*\"–-])*")
# Words that are part of a number's value: "2 pi" and "3 million" must not be cut down to 2 and 3.
_VALUE_WORD = re.compile(r"\b(?:pi|sqrt|sin|cos|tan|log|ln|exp|mod|hundred|thousand|million|billion|dozen)\b", re.I)
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_DIGIT_GROUP = re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!,?|,\\!)(?=\d{3})")


def answer_text(text: str) -> str:
    """Return the part of a response that may hold its answer: what follows the last `</think>`.

    >>> answer_text("<think>maybe #### 3</think>So #### 4")
    'So #### 4'
    """
    return text.rpartition("</think>")[2]


def clean(answer: str) -> str:
    r"""Return an answer without what surrounds it: Markdown, quotes, a closing full stop, maths delimiters.

    >>> clean(" **$42$**. "), clean(r"\(x+1\)"), clean("$48$, $384$")
    ('42', 'x+1', '$48$, $384$')
    """
    before = None
    while answer != before:
        before = answer
        answer = answer.strip(" \t\r\n*`\"“”").rstrip(".,;:!")
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = answer[len(left) : -len(right)]
            if answer.startswith(left) and answer.endswith(right) and inner and left not in inner:
                answer = inner
    return answer


def explicit_forms(text: str, multiline: bool = False) -> list[Found]:
    r"""Return the explicit answers of a text in order, uncleaned and without empty ones.

    Args:
        text: the response's answer text.
        multiline: `####` and phrases reach to the end of the text, for answers that are grids.

    >>> explicit_forms(r"The answer is 3. No: \boxed{\frac{1}{2}}")
    [Found(answer='3', form='phrase'), Found(answer='\\frac{1}{2}', form='boxed')]
    """
    found = [(match.start(), Found(_balanced(text, match.end()), "boxed")) for match in _BOX.finditer(text)]
    for match in _HASH.finditer(text):
        answer = text[match.start(1) :] if multiline else match[1]
        if not _HEADING.match(answer.strip(" *")) or (multiline and "\n" in answer.strip()):
            found.append((match.start(), Found(answer.rstrip(" #"), "hash")))
    for match in _PHRASE.finditer(text):
        answer = text[match.start("answer") :] if multiline else _sentence(match["answer"])
        if match["verb"] or multiline or len(answer.split()) <= _LABEL_WORDS:
            found.append((match.start(), Found(answer, "phrase")))
    return [form for _, form in sorted(found, key=lambda item: item[0]) if form.answer and form.answer.strip()]


def extract_math(text: str, strict: bool = False) -> Found:
    r"""Return the answer to a mathematical problem.

    >>> extract_math("She pays 3 * $6 = $18.\n#### 18"), extract_math("So she pays $1,250.50 in all.")
    (Found(answer='18', form='hash'), Found(answer='1,250.50', form='last-number'))
    >>> extract_math("So she pays $18.", strict=True)
    Found(answer=None, form='no-answer')
    """
    text = answer_text(text)
    for answer, form in reversed(explicit_forms(text)):
        value = clean(answer or "")
        if form == "phrase":
            value = clean(_CLAUSE.sub("", value)) or value
        if value:
            return Found(lone_number(value) or value, form)
    number = None if strict else last_number(text)
    return Found(number, "last-number") if number else NOTHING


def extract_exact(text: str, strict: bool = False) -> Found:
    """Return the answer to a problem that is compared as a string; without a form, the last line.

    >>> extract_exact("Let me think.\\nThe capital is known: the answer is Paris."), extract_exact("Paris")
    (Found(answer='Paris', form='phrase'), Found(answer='Paris', form='last-line'))
    """
    text = answer_text(text)
    for answer, form in reversed(explicit_forms(text)):
        if value := _TEXT_MACRO.sub(r"\1", clean(answer or "")).strip():
            return Found(value, form)
    lines = [] if strict else last_lines(text, 1)
    return Found(clean(lines[0]) or lines[0], "last-line") if lines else NOTHING


def extract_gym(text: str, gold: str, strict: bool = False) -> Found:
    r"""Return the answer to a reasoning-gym task, as written: its scorers compare character by character.

    A gold answer of several lines makes the text's answer reach over several lines too. Without a form, a number is
    looked for where the gold is one, else as many last lines as the gold has.

    >>> extract_gym("The grid:\n#### 1 2\n3 4\n", gold="1 2\n3 5"), extract_gym("so it is 7.", gold="8")
    (Found(answer='1 2\n3 4', form='hash'), Found(answer='7', form='last-number'))
    """
    text = answer_text(text)
    gold_lines = gold.strip().count("\n") + 1
    for answer, form in reversed(explicit_forms(text, multiline=gold_lines > 1)):
        value = _unfenced((answer or "").strip("\r\n"))
        value = clean(value) if form == "phrase" and gold_lines == 1 else _unwrapped(value)
        if value:
            return Found(value, form)
    if strict:
        return NOTHING
    if re.fullmatch(r"-?\d+(?:\.\d+)?", gold):
        number = last_number(text)
        return Found(number, "last-number") if number else NOTHING
    lines = last_lines(_unfenced(text), gold_lines)
    return Found("\n".join(lines), "last-line") if lines else NOTHING


def extract_choice(text: str, gold: str, choices: Sequence[str] | None, strict: bool = False) -> Found:
    r"""Return the option that a response chooses, named as the gold is: by letter, or by the option's text.

    Args:
        text: the response's text.
        gold: the right option: its letter, its text, or (without choices) yes, no or maybe.
        choices: the options' texts in order: the first is A.
        strict: do not fall back to the last letter that stands alone.

    >>> extract_choice("Hence the answer is (B).", "A", ["aspirin", "heparin"])
    Found(answer='B', form='phrase')
    >>> extract_choice("It must be heparin.\n\nheparin", "A", ["aspirin", "heparin"])
    Found(answer='B', form='line')
    """
    text = answer_text(text)
    labels, texts = _options(gold, choices)
    names = labels if gold_letter(gold, choices) else texts
    found = [(form.form, _option(form.answer or "", labels, texts)) for form in explicit_forms_by_line(text)]
    if lines := last_lines(text, 1):
        found.append(("line", _option(lines[0], labels, texts, whole=True)))
    for form, index in reversed(found):
        if index is not None:
            return Found(names[index], form)
    letters = [] if strict or not labels else re.findall(rf"(?<![\w'’])({'|'.join(labels)})(?![\w'’])(?! [a-z])", text)
    return Found(names[labels.index(letters[-1])], "last-letter") if letters else NOTHING


def explicit_forms_by_line(text: str) -> list[Found]:
    """Return the explicit forms with phrases up to the end of the line: "the answer is B. Heparin" is one answer."""
    forms = [form for form in explicit_forms(text) if form.form != "phrase"]
    if forms and forms[-1].form == "boxed" and not _PHRASE.search(text, text.rindex(forms[-1].answer or "")):
        return forms
    phrases = [(match.start(), Found(match["answer"], "phrase")) for match in _PHRASE.finditer(text)]
    others = [(match.start(), Found(_balanced(text, match.end()), "boxed")) for match in _BOX.finditer(text)]
    hashes = [(match.start(), Found(match[1], "hash")) for match in _HASH.finditer(text)]
    return [form for _, form in sorted(phrases + others + hashes, key=lambda item: item[0]) if form.answer]
