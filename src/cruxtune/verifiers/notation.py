r"""One spelling for each thing: what models and answer keys write in many ways, as the LaTeX that the parser knows.

Text in, text out; nothing here is evaluated. Words that Python or NumPy call functions (`np.arcsin`, `sqrt(2)`) become
LaTeX commands, so that no identifier of a text ever has to go through an expression parser.
"""

from __future__ import annotations

import re

from cruxtune.verifiers.extract import TEXT_MACRO

_LATEX = str.maketrans(
    {
        **dict.fromkeys("−–", "-"),
        **dict.fromkeys("·⋅", r"\cdot "),
        "×": r"\times ",
        "÷": r"\div ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "π": r"\pi ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "λ": r"\lambda ",
        "ω": r"\omega ",
        "½": r"\frac{1}{2}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "°": r"^\circ ",
        "²": "^2",
        "³": "^3",
        "′": "'",
        "¢": " cents",
        "\u00a0": " ",
    }
)
_FUNCTIONS = (
    *("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot"),
    *("ln", "log", "exp", "pi"),
)

_BOLD = re.compile(r"\\(?:mathbf|boldsymbol|bm|pmb|mathit|mathsf)\s*\{([^{}]*)\}")
_SPLIT_DIGITS = re.compile(r"(?<=[\d.])\s+(?=[\d.])")
_DELIMITED = re.compile(r"(?<!\\)\$\$?|\\[()]|\\\[(?![^\]]*\\\\)|(?<!\\)\\\]")
_BETWEEN = re.compile(r"(?:[\s\d,;.:=+*/()-]|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\})*")
_TWICE = (
    (re.compile(r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|quad|qquad|hfill)(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:[,;:!> ]|hspace\s*\{[^{}]*\}|phantom\s*\{[^{}]*\})|~"), " "),
    (
        re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr)(?![a-zA-Z])\s*\.?(?=[\s\\()\[\]{}|/.]|$)"),
        "",
    ),
    (re.compile(r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne"),
    (re.compile(r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\(?:dbinom|tbinom)(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\{\s*([^{}]+?)\s*\\choose\s*([^{}]+?)\s*\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<![a-zA-Z\\_^{])C_\{?(\w+)\}?\^\{?(\w+)\}?"), r"\\binom{\1}{\2}"),
    # Math-Verify misreads such a product without a sign.
    (re.compile(r"(?<=\})\s*(?=\\binom)"), r"\\cdot "),
    (re.compile(r"\\operatorname\*?\s*\{\s*(" + "|".join(_FUNCTIONS) + r")\s*\}"), r"\\\1 "),
    (re.compile(r"(?<![a-zA-Z\\])(?:np|math|numpy)\.(" + "|".join((*_FUNCTIONS, "sqrt")) + r")(?![a-zA-Z])"), r"\1"),
    (re.compile(r"(?<![a-zA-Z\\])(" + "|".join(_FUNCTIONS) + r")(?![a-zA-Z])"), r"\\\1 "),
    (re.compile(r"(?<![a-zA-Z\\])(?:infinity|inf)(?![a-zA-Z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"\\exp\s*(?=\{)"), "e^"),
    (re.compile(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"\*\*"), "^"),
    # 1./3 is Python's 1/3; a full stop at the end is no part of a number either.
    (re.compile(r"(?<=\d)\.(?![\d.])"), ""),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*[eE]([-+]?\d{1,3})(?!\w)"), r"\1\\times 10^{\2}"),
    (re.compile(r"\\langle\s*(.*?)\s*\\rangle"), r"(\1)"),
)
_CALL = re.compile(r"(?:(?<![a-zA-Z\\])sqrt|√)\s*\(")
_APPROXIMATE = re.compile(
    r"^(?:\\approx|\\simeq|\\sim|about|approximately|approx\.?|roughly|around)(?![a-zA-Z])\s*", re.I
)
_SET_BUILDER = re.compile(
    r"\\?\{\s*\(?\s*[a-zA-Z](?:_\{?\w\}?)?\s*\)?\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*R\s*\}?|R))?\s*(?:\\mid|\||:|\\vert)\s*(.*?)\\?\}$",
    re.DOTALL,
)
_MEMBER = re.compile(r"^[a-zA-Z](?:_\{?\w\}?)?\s*\\in(?![a-zA-Z])\s*(?=[(\[\\{])")
_LETTER_C = re.compile(r"\+\s*(?:[cCkK]|\\text\s*\{\s*[cC](?:onstant)?\s*\}|\\mathrm\s*\{\s*C\s*\})(?:_\{?0\}?)?\s*$")
_MIXED = re.compile(
    r"(?<![\w.}^_])(-?)(\d+)(?:\s*(\\frac)\s*\{?\s*(\d+)\s*\}?\s*\{?\s*(\d+)\s*\}?|\s+(\d+)/(\d+))(?![\w/])"
)


def tidy(answer: str) -> str:
    r"""Return an answer in one spelling: Unicode, text macros, fractions, relations, Python's functions, spacing.

    >>> tidy("$48$, $384$"), tidy("x ≤ 3"), tidy(r"\mathbf{1 3}"), tidy("np.arcsin(10/13)")
    ('48, 384', 'x \\le 3', '13', '\\arcsin (10/13)')
    >>> tidy("-1./3"), tidy(r"2\frac58"), tidy("4.5e33"), tidy(r"\{x \mid -2 \leq x < 1\}")
    ('-1/3', '(2+\\frac{5}{8})', '4.5\\times 10^{33}', '-2 \\le x < 1')
    """
    answer = undelimited(answer).translate(_LATEX)
    answer = _BOLD.sub(lambda match: _SPLIT_DIGITS.sub("", match[1]), answer)
    answer = TEXT_MACRO.sub(r" \1 ", answer) if not _needs_text(answer) else answer
    for pattern, replacement in _TWICE:
        answer = pattern.sub(replacement, answer)
    answer = _roots(answer)
    answer = " ".join(answer.split())
    answer = _APPROXIMATE.sub("", answer)
    if match := _SET_BUILDER.fullmatch(answer):
        answer = match[1].strip()
    answer = _MEMBER.sub("", answer)
    answer = _MIXED.sub(_mixed, answer)
    return _LETTER_C.sub("+ C", answer).strip()


def undelimited(answer: str) -> str:
    r"""Return an answer without its maths delimiters, where nothing but separators stands between what they enclose.

    >>> undelimited(r"$x=1$ or $x=2$"), undelimited(r"the line $y=2$")
    ('x=1 or x=2', 'the line $y=2$')
    """
    parts = _DELIMITED.split(answer)
    if len(parts) < 3 or len(parts) % 2 == 0 or not all(_BETWEEN.fullmatch(part) for part in parts[::2]):
        return answer
    return re.sub(r"\s*\n\s*", ", ", "".join(parts).strip()) if len(parts) > 3 else "".join(parts).strip()


def _needs_text(answer: str) -> bool:
    """Return whether text macros mean something where they are: cases of a function."""
    return r"\begin{" in answer


def _mixed(match: re.Match[str]) -> str:
    top, bottom = (match[4], match[5]) if match[3] else (match[6], match[7])
    return rf"{match[1]}({match[2]}+\frac{{{top}}}{{{bottom}}})"


def _roots(answer: str) -> str:
    r"""Return an answer with `sqrt(…)` as `\sqrt{…}`, brackets matched."""
    while match := _CALL.search(answer):
        depth, end = 1, match.end()
        while end < len(answer) and depth:
            depth += {"(": 1, ")": -1}.get(answer[end], 0)
            end += 1
        if depth:
            return answer
        answer = rf"{answer[: match.start()]}\sqrt{{{answer[match.end() : end - 1]}}}{answer[end:]}"
    return answer
