r"""What kind of text a token carries: number, operator, word, punctuation or format.

Every character has a class by the text around it, and a token the class of its characters that comes first in
`TOKEN_CLASSES`. Characters are, by the first rule that applies:

1. *operator* in the LaTeX commands for operations and relations (`\times`, `\frac`, `\le` …).
2. *format* in other LaTeX commands (`\boxed`, `\[`), in `{`, `}`, `$`, `` ` ``, in two or more `#` or `*` in a row, in
   `#`, `-`, `*` or `•` followed by a space at the beginning of a line, and in tags such as `<think>`.
3. *number* in digits (`str.isdigit`) and in the points and commas between two of them.
4. *operator* in `+ - * / = < > ^ % ± × ÷ · − ≤ ≥ ≠ ≈ √ →`, but for `-` and `/` between two words of several letters.
5. *word* in letters (`str.isalpha`).
6. *punctuation* in all else but white space.

White space has no class. A token without any (white space alone, or special tokens) is *format*.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TOKEN_CLASSES = ("number", "operator", "word", "punctuation", "format")
"""In this order: the first one among a token's characters is the token's."""

_COMMANDS = (
    "times|div|cdot|pm|mp|frac|dfrac|tfrac|sqrt|le|leq|ge|geq|ne|neq|lt|gt|approx|equiv|sim|to|rightarrow|Rightarrow|"
    "implies|sum|prod|int"
)
_RULES = (
    ("operator", re.compile(rf"\\(?:{_COMMANDS})(?![A-Za-z])")),
    (
        "format",
        re.compile(r"\\(?:[A-Za-z]+|[^\w\s]?)|[{}$`]|#{2,}|\*{2,}|^[ \t]*[#*•-](?= )|</?[A-Za-z_]+>", re.MULTILINE),
    ),
    ("number", re.compile(r"\d+(?:[.,]\d+)*")),
    ("punctuation", re.compile(r"(?<=[^\W\d_]{2})[-/](?=[^\W\d_]{2})")),
    ("operator", re.compile(r"[-+*/=<>^%±×÷·−≤≥≠≈√→]")),
    ("word", re.compile(r"[^\W\d_]+")),
    ("punctuation", re.compile(r"\S")),
)


def token_classes(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    r"""Return the class of each token of a text; `spans` are the tokens' (start, end) in its characters.

    >>> token_classes("So 3 \\times 4", [(0, 2), (2, 4), (4, 6), (6, 11), (11, 13), (13, 13)])
    ['word', 'number', 'operator', 'operator', 'number', 'format']
    """
    characters = character_classes(text)
    found = [set(characters[start:end]) for start, end in spans]
    return [next((name for name in TOKEN_CLASSES if name in classes), "format") for classes in found]


def character_classes(text: str) -> list[str | None]:
    """Return the class of each character, None for white space.

    >>> character_classes("1.5 a.")
    ['number', 'number', 'number', None, 'word', 'punctuation']
    """
    found: list[str | None] = [None] * len(text)
    # Patterns know decimal digits only, not ² or ①.
    text = "".join("0" if character.isdigit() else character for character in text)
    for name, pattern in _RULES:
        for match in pattern.finditer(text):
            for place in range(*match.span()):
                if found[place] is None and not text[place].isspace():
                    found[place] = name
    return found
