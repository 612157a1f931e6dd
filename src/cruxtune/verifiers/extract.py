r"""From a response's text to the answer it gives: pure functions, no comparison.

An explicit form is one that the text offers as its answer: `\boxed{x}` or `\fbox{x}` ("boxed"), `#### x` ("hash"),
`<answer>x</answer>` ("tag"), and "the answer is x" or "Answer: x" ("phrase"). The last explicit form wins, since a
model that corrects itself does so later in the text. A text that is nothing but an answer is explicit too ("bare"; for
choices, a last line that is nothing but an option: "line"). Where there is none, a documented guess is made
("last-number", "last-maths", "last-letter", "last-option", "last-line": `FALLBACK_REASONS`), unless `strict`.

A text that thinks first is read from its last `</think>` on; one that never ends thinking has no answer.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, NamedTuple

NO_ANSWER = "no-answer"
FALLBACK_REASONS = frozenset({"last-number", "last-maths", "last-letter", "last-option", "last-line"})
"""Reasons of verdicts on a guessed answer: the text had no explicit form."""


Reach = Literal["sentence", "line", "text"]


class Found(NamedTuple):
    """An answer in a text: the string (None for no answer) and the form that it was found in."""

    answer: str | None
    form: str


NOTHING = Found(None, NO_ANSWER)

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*((?:(?!####)[^\n])*)")
_PHRASE = re.compile(
    r"""\b(?:answer(?:\ (?:choice|option))?|(?:correct|best|right)\ (?:option|choice))\b[*_]{0,3}
    (?:\s(?:to|for|of|in)\s[^\n.:=?]{1,100}?)?            # the answer to the question
    (?:(?P<verb>\s+(?:is|would\ be|should\ be|must\ be|will\ be)\b)(?!\s+not\b)(?:\s+(?:therefore|thus|simply))?\s*[:=]?
      |\s*[:=])                                           # Answer:
    [*_]{0,3}\s*
    (?P<answer>\$\$.*?\$\$|\\\[.*?\\\]|[^\n]+)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
# Markdown headings of four hashes that are no answers: "#### Step 2: multiply", "#### Final answer".
_HEADING = re.compile(r"step\b|(?:the )?(?:final )?(?:answer|solution|conclusion|explanation)$|.*:$", re.IGNORECASE)
# "5! = 120" goes on behind its mark, which is a factorial's.
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bJr)(?<!\bsq)(?:[.?](?=[\s*\"”]|$)|!(?=[\s*\"”]*$|[\s*\"”]+[A-Z]))"
)
_CLAUSE = re.compile(r",?\s(?:because|since|so|which|as|where|but|hence|therefore)\b.*", re.IGNORECASE | re.DOTALL)
_COMMENT = re.compile(
    r"(?:in)?(?:correct|right|wrong|reasonable|positive|negative|clear|unique|verified)\b", re.IGNORECASE
)
"""What "our answer is correct" says of an answer is none."""
_LABEL_WORDS = 12
"""Words after "Answer:" up to which it is an answer; longer ones are a solution that starts with that label."""

_NUMBER = re.compile(
    r"""(?P<fraction>(?<!\w)[-−]?\d*\\[dt]?frac\s*\{\d+\}\s*\{\d+\})
    |(?<![\w.])(?P<sign>[-−])?\s?\\?[$€£]?(?P<sign2>-)?   # -5, -$5, $-5; not the 5 of H5
    (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][+-]?\d{1,3}(?!\w))?)
    (?P<over>/\d+(?!\w))?(?P<percent>\s?\\?%|\s?percent\b)?""",
    re.VERBOSE,
)
_WORDS = re.compile(r"(?:\s|\\[$ ]|[A-Za-z'’]{2,}|\ba\b|[.,;:$€£()*\"–-])*")
# Words that are part of a number's value: "2 pi" and "3 million" must not be cut down to 2 and 3.
_VALUE_WORD = re.compile(r"\b(?:pi|sqrt|sin|cos|tan|log|ln|exp|mod|hundred|thousand|million|billion|dozen)\b", re.I)
TEXT_MACRO = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LONGEST_BARE = 4000
_TAIL = 2000
"""Characters at the end of a text in which its last formula is looked for."""
_LATEX_WORD = re.compile(r"\\(?:begin|end|operatorname)\s*\{[^{}]*\}(?:\{[clr|]*\})?|\\[A-Za-z]+")
_SHORT_WORDS = re.compile(r"am|an|as|at|be|by|do|go|he|hi|if|in|is|it|me|my|no|of|oh|ok|on|so|to|us|we", re.IGNORECASE)
_NO_PROSE = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|exp|sqrt|max|min|gcd|lcm|mod|and|inf(?:inity)?|det|[A-Z]{3}|abc|xyz"
)
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\\w$])\$(?=[^\s$])([^$\n]*?[^\s$\\])\$(?![\w$])", re.DOTALL
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}")
_LAST_SIDE = re.compile(r"(?<![<>!:\\])=|\\(?:approx|equiv|Rightarrow|implies|Longrightarrow)(?![a-zA-Z])|≈|⇒")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|ne|neq|leqslant|geqslant|in)(?![a-zA-Z])")
_DIGIT_GROUP = re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!,?|,\\!)(?=\d{3})")


def answer_text(text: str) -> str:
    """Return the part of a response that may hold its answer: what follows the last `</think>`.

    >>> answer_text("<think>maybe #### 3</think>So #### 4"), answer_text("<think>maybe #### 3, cut off")
    ('So #### 4', '')
    """
    return text.rpartition("</think>")[2].partition("<think>")[0]


def clean(answer: str) -> str:
    r"""Return an answer without what surrounds it: Markdown, quotes, a closing full stop, maths delimiters.

    >>> clean(" **$42$**. "), clean(r"\(x+1\)"), clean("$48$, $384$")
    ('42', 'x+1', '$48$, $384$')
    """
    before = None
    while answer != before:
        before = answer
        answer = answer.strip(' \t\r\n*`"“”').rstrip(".,;:")
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = answer[len(left) : -len(right)]
            if answer.startswith(left) and answer.endswith(right) and inner and left not in inner:
                answer = inner
    return answer


def explicit_forms(text: str, reach: Reach = "sentence") -> list[Found]:
    r"""Return the explicit answers of a text in order, uncleaned and without empty ones.

    Args:
        text: the response's answer text.
        reach: how far a phrase's answer goes: to the end of its sentence, of its line ("B. Heparin" is one option), or
            of the text (grids; `####` reaches as far then, and to the end of its line otherwise).

    >>> explicit_forms(r"The answer is 3. No: \boxed{\frac{1}{2}}")
    [Found(answer='3', form='phrase'), Found(answer='\\frac{1}{2}', form='boxed')]
    """
    found = _boxes(text)
    found += [(match.start(), Found(match[1], "tag")) for match in _TAG.finditer(text)]
    for match in _HASH.finditer(text):
        answer = text[match.start(1) :] if reach == "text" else _whole_formula(text, match.start(1), match.end(1))
        if not _HEADING.match(match[1].strip(" *")):
            found.append((match.start(), Found(answer, "hash")))
    for match in _PHRASE.finditer(text):
        answer = match["answer"]
        if reach == "text":
            answer = text[match.start("answer") :]
        elif reach == "sentence" and not answer.startswith(("$$", r"\[")):
            answer = _SENTENCE_END.split(answer, maxsplit=1)[0]
        if match["verb"] or reach != "sentence" or len(answer.split()) <= _LABEL_WORDS:
            found.append((match.start(), Found(answer, "phrase")))
    return [form for _, form in sorted(found, key=lambda item: item[0]) if form.answer and form.answer.strip()]


def extract_math(text: str, strict: bool = False) -> Found:
    r"""Return the answer to a mathematical problem; of a number among words, the number.

    >>> extract_math("She pays 3 * $6 = $18.\n#### 18"), extract_math("So she pays $1,250.50 in all.")
    (Found(answer='18', form='hash'), Found(answer='1,250.50', form='last-number'))
    >>> extract_math("So $x = \\frac{3}{4}$."), extract_math("So she pays $18.", strict=True)
    (Found(answer='\\frac{3}{4}', form='last-number'), Found(answer=None, form='no-answer'))
    """
    if found := explicit_math(text):
        return Found(lone_number(found.answer or "") or found.answer, found.form)
    return NOTHING if strict else _last_maths(answer_text(text))


def explicit_math(text: str) -> Found | None:
    r"""Return the answer that a text offers as such, with its words and units; None where it offers none.

    >>> explicit_math(r"Hence \boxed{18 \text{ km}}."), explicit_math("(1, 2]"), explicit_math("It is 5.")
    (Found(answer='18 \\text{ km}', form='boxed'), Found(answer='(1, 2]', form='bare'), None)
    """
    text = answer_text(text)
    for answer, form in reversed(explicit_forms(text)):
        value = clean(answer or "")
        if form == "phrase":
            main = clean(_CLAUSE.sub("", value))
            # A clause inside braces belongs to the answer.
            value = main if main and main.count("{") == main.count("}") else value
        if value and not (form == "phrase" and _COMMENT.match(value)):
            return Found(value, form)
    value = clean(text)
    return Found(value, "bare") if _is_bare(value) else None


def states_only(text: str, gold: str) -> bool:
    r"""Return whether a text is nothing but the gold answer, but for case, spaces, quotes and maths delimiters.

    >>> states_only("Mrs. Hilt", "mrs. hilt"), states_only("It is Mrs. Hilt", "Mrs. Hilt")
    (True, False)
    """
    text = answer_text(text)
    if not gold.strip() or len(text) > 2 * len(gold) + 20:
        return False
    one, other = ("".join(clean(side).casefold().split()) for side in (text, gold))
    return one == other


def extract_exact(text: str, strict: bool = False) -> Found:
    r"""Return the answer to a problem that is compared as a string; without a form, the last line.

    >>> extract_exact("Let me think.\nThe capital is known: the answer is Paris."), extract_exact("Paris")
    (Found(answer='Paris', form='phrase'), Found(answer='Paris', form='last-line'))
    """
    text = answer_text(text)
    for answer, form in reversed(explicit_forms(text)):
        if value := TEXT_MACRO.sub(r"\1", clean(answer or "")).strip():
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
    for answer, form in reversed(explicit_forms(text, "text" if gold_lines > 1 else "sentence")):
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


def lone_number(answer: str) -> str | None:
    r"""Return the number of an answer that is one number among words, else None.

    >>> lone_number("18 dollars per day"), lone_number(r"$18 \text{ per day}"), lone_number("3 (pounds)")
    ('18', '18', '3')
    >>> lone_number("x = 5"), lone_number("2 pi"), lone_number("5 hours and 20 minutes"), lone_number("6th")
    (None, None, None, None)
    """
    plain = TEXT_MACRO.sub(r" \1 ", _DIGIT_GROUP.sub(",", answer))
    matches = list(_NUMBER.finditer(plain))
    if len(matches) != 1 or plain[matches[0].end() :][:1].isalpha():
        return None
    rest = f"{plain[: matches[0].start()]} {plain[matches[0].end() :]}"
    return _number(matches[0]) if _WORDS.fullmatch(rest) and not _VALUE_WORD.search(rest) else None


def last_number(text: str) -> str | None:
    r"""Return the last number of a text, without currency sign.

    >>> last_number("from 1,200 down by -$3.50."), last_number(r"that is $\frac{3}{4}$ or 75 %")
    ('-3.50', '75%')
    >>> last_number("10-5 of them, i.e. 3/8"), last_number("none of H2O")
    ('3/8', None)
    """
    matches = list(_NUMBER.finditer(_DIGIT_GROUP.sub(",", text)))
    return _number(matches[-1]) if matches else None


def last_lines(text: str, count: int) -> list[str]:
    """Return the last `count` lines that are not blank, stripped of trailing white space."""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def normalised(text: str) -> str:
    """Return a string's form for comparison: NFKC, no case, single spaces, no surrounding punctuation or quotes.

    >>> normalised(" “New  York.” "), normalised("$5"), normalised("Ｙｅｓ")
    ('new york', '5', 'yes')
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(" .,;:!?\"'“”‘’`*_$") or folded


def _is_bare(text: str) -> bool:
    """Return whether a cleaned text is an answer and nothing else: one formula or list, without a word of prose."""
    # What is left of a form that holds no answer is none.
    if (
        len(text) > _LONGEST_BARE
        or re.search(r"\\boxed|\\fbox|####|</?answer>", text)
        or ("\n" in text and r"\begin" not in text)
    ):
        return False
    words = re.findall(r"[A-Za-z]{2,}", _LATEX_WORD.sub(" ", TEXT_MACRO.sub(" ", text)))
    # Products of letters ("ab") have no more than two, and no two-letter word of English.
    return bool(re.search(r"\w", text)) and not any(
        _SHORT_WORDS.fullmatch(word) if len(word) == 2 else not _NO_PROSE.fullmatch(word) for word in words
    )


def _last_maths(text: str) -> Found:
    """Return the last number of a text, or the formula that it is part of, where that is more than the number."""
    tail = text[-_TAIL:]
    number = last_number(text)
    formula = max(_FORMULA.finditer(tail), key=re.Match.start, default=None)
    if formula is not None and last_number(tail[formula.end() :]) is None:
        inside = next(group for group in formula.groups() if group is not None)
        inside = _ENVIRONMENT.sub(" ", inside).rpartition(r"\\")[2] if r"\begin{align" in inside else inside
        value = clean(_LAST_SIDE.split(inside.replace("&", ""))[-1] if not _INEQUALITY.search(inside) else inside)
        if value and value != number and _is_bare(value):
            return Found(value, "last-number" if value == last_number(value) else "last-maths")
    return Found(number, "last-number") if number else NOTHING


def _whole_formula(text: str, start: int, end: int) -> str:
    """Return an answer up to the end of its line, or of the formula that begins in the line and goes on."""
    line = text[start:end]
    for opening, closing in ((r"\begin", r"\end"), (r"\[", r"\]"), ("$$", "$$")):
        if line.count(opening) > line.count(closing) or (opening == closing and line.count(opening) % 2):
            rest = text[end : end + _LONGEST_BARE]
            stop = rest.rfind(closing) if opening == r"\begin" else rest.find(closing)
            after = rest.find("\n", stop)
            return line + (rest[:after] if after >= 0 else rest) if stop >= 0 else line
    return line


def _number(match: re.Match[str]) -> str:
    if match["fraction"]:
        return match["fraction"].replace("−", "-")
    sign = "-" if match["sign"] or match["sign2"] else ""
    return sign + match["digits"] + (match["over"] or "") + ("%" if match["percent"] else "")


def _boxes(text: str) -> list[tuple[int, Found]]:
    """Return the start and content of each box; one that generation did not close is none."""
    boxes = list(_BOX.finditer(text))
    closing: dict[int, int] = {}
    opened: list[int] = []
    # One pass for all boxes: a text that repeats an open box thousands of times must not take quadratic time.
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL) if boxes else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closing[opened.pop()] = brace.start()
    return [
        (box.start(), Found(text[box.end() : closing[box.end() - 1]], "boxed"))
        for box in boxes
        if box.end() - 1 in closing
    ]


def _unwrapped(answer: str) -> str:
    """Return an answer without Markdown bold or maths delimiters around the whole of it."""
    answer = answer.rstrip() if "\n" in answer else answer.strip()
    match = re.fullmatch(r"\*\*(.+)\*\*|\$([^$]+)\$|\\\((.+)\\\)|\\text\{([^{}]*)\}", answer, re.DOTALL)
    return next(group for group in match.groups() if group is not None) if match else answer


def _unfenced(text: str) -> str:
    """Return the content of the last code fence that the text consists of or ends with, else the text."""
    match = re.search(r"```[a-z]*\n((?:(?!```).)*?)\n?```\s*$", text, re.DOTALL)
    return match[1] if match else text
