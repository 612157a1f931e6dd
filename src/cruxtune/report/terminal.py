"""Tokens in the terminal, those that count marked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cruxtune.report.text import printable

CRITICAL_STYLE = "bold underline yellow"
"""Weight and underline carry the mark where there is no colour."""


def marked(pieces: Sequence[str], marks: Sequence[bool | float | None]) -> Text:
    """Return pieces of text as one, those with a mark bold, underlined and coloured.

    A newline in a marked piece is preceded by ↵, and an empty one shown as ∅: else nothing there could carry a mark.
    """
    text = Text()
    for piece, mark in zip(pieces, marks, strict=True):
        text.append(_visible(piece) if mark else printable(piece), style=CRITICAL_STYLE if mark else None)
    return text


def bracketed(pieces: Sequence[str], weights: Sequence[float]) -> str:
    r"""Return pieces of text as one, those with a weight in brackets, and the weight unless it is 1.

    >>> bracketed(["4", " +", " 4", "\n"], [0.0, 0.5, 0.0, 1.0])
    '4[ +|0.5] 4[↵\n]'
    """
    return "".join(
        f"[{_visible(piece)}{'' if weight == 1 else f'|{weight:g}'}]" if weight else printable(piece)
        for piece, weight in zip(pieces, weights, strict=True)
    )


def _visible(piece: str) -> str:
    return printable(piece).replace("\n", "↵\n") or "∅"
