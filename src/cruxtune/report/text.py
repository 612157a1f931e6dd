"""Text of tokens made safe to show: model output may hold control characters."""

from __future__ import annotations

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_PICTURES[0x7F] = 0x2421
_PICTURES.update(dict.fromkeys(range(0x80, 0xA0), 0xFFFD))


def printable(text: str) -> str:
    r"""Return the text with control characters as pictures of themselves; tabs and newlines stay.

    A terminal would act on them, and an HTML parser drops or rewrites some.

    >>> printable("a\x1b[2Jb\n")
    'a␛[2Jb\n'
    """
    return text.translate(_PICTURES)


def one_line(text: str) -> str:
    r"""Return the text on one line with all its whitespace visible, as a label.

    >>> one_line(" 7\n")
    '␣7↵'
    >>> one_line("")
    '∅'
    """
    shown = printable(text).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return shown or "∅"
