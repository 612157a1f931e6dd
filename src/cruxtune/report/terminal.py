"""An annotated response in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from cruxtune.records import Annotation
from cruxtune.report.text import printable

CRITICAL_STYLE = "bold underline yellow"
"""Weight and underline carry the mark where there is no colour."""


def mark(annotation: Annotation, pieces: Callable[[Sequence[int]], list[str]]) -> Text:
    """Return the response's text with its critical tokens bold, underlined and coloured.

    A newline in a critical token is preceded by ↵, and an empty one shown as ∅: else nothing there could carry a mark.

    Args:
        annotation: The response and which of its tokens are critical.
        pieces: Gives one string per token id.
    """
    text = Text()
    response_ids = annotation.response.response_ids
    for piece, critical in zip(pieces(response_ids), annotation.critical, strict=True):
        shown = printable(piece)
        if critical:
            text.append(shown.replace("\n", "↵\n") or "∅", style=CRITICAL_STYLE)
        else:
            text.append(shown)
    return text
