from __future__ import annotations

from rich.console import Console

from cruxtune.report.terminal import CRITICAL_STYLE, marked
from cruxtune.report.text import one_line, printable


def mark(annotation, pieces):
    """Return a response with its critical tokens marked."""
    return marked(pieces(annotation.response.response_ids), annotation.critical)


def test_marked_text_reads_as_the_response(annotations, pieces) -> None:
    """The text is the response's, with as many marks as critical tokens."""
    for annotation in annotations:
        text = mark(annotation, pieces)
        assert text.plain == annotation.response.text
        assert sum(span.style == CRITICAL_STYLE for span in text.spans) == sum(annotation.critical)


def test_marks_lie_on_the_critical_tokens(annotate, pieces) -> None:
    """What is styled is the critical tokens' text."""
    text = mark(annotate("Lena has 12 apples"), pieces)
    assert [text.plain[span.start : span.end] for span in text.spans] == ["1", "2"]


def test_marks_do_not_need_colour(annotate, pieces) -> None:
    """On a terminal without colours the marks are still bold and underlined."""
    console = Console(force_terminal=True, color_system="standard", no_color=True)
    with console.capture() as capture:
        console.print(mark(annotate("so 7"), pieces))
    assert "\x1b[1;4m" in capture.get()


def test_terminal_gets_no_control_characters_of_the_model(annotate, pieces) -> None:
    """Escape sequences in a response are shown, not obeyed."""
    text = mark(annotate("a\x1b]0;title\x07\x9b2J"), pieces)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text.plain)


def test_critical_newline_and_empty_token_are_visible(annotate, pieces) -> None:
    """Where a critical token has nothing to underline, a sign stands for it."""
    annotation = annotate("7\n7")
    annotation.critical[1] = True
    assert mark(annotation, pieces).plain == "7↵\n7"
    annotation.response.response_ids[1] = pieces.id("")
    assert mark(annotation, pieces).plain == "7∅7"


def test_labels_show_all_whitespace() -> None:
    """A label is one line in which nothing is invisible."""
    assert one_line(" a\tb\r\n") == "␣a⇥b␍↵"
    assert printable("\x00\x7f\x85 ok\n\t") == "␀␡\ufffd ok\n\t"
