from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from cruxtune.records import Annotation
from cruxtune.report.html import write_report

VOID = {"meta", "link", "input", "br", "img", "hr", "line", "rect", "circle"}


class Page(HTMLParser):
    """A page's elements, its text, and the tokens of each response."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.responses: list[list[dict[str, Any]]] = []
        self.text = ""
        self._depth_of_response = 0
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element, and a token of a response."""
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute given twice in {tag}"
        self.elements.append((tag, attributes))
        classes = (attributes.get("class") or "").split()
        if "response" in classes:
            self.responses.append([])
            self._depth_of_response = len(self.open) + 1
        if self._depth_of_response and "tok" in classes:
            details = json.loads(attributes["data-details"] or "")
            token = {"text": "", "classes": classes, "details": details, "title": attributes["title"]}
            self.responses[-1].append(token)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that what is closed was the last opened."""
        if tag in VOID:
            return
        assert self.open, f"{tag} closed, not opened"
        assert self.open.pop() == tag
        if len(self.open) < self._depth_of_response:
            self._depth_of_response = 0

    def handle_data(self, data: str) -> None:
        """Add text to the page and to the token it stands in."""
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if self._depth_of_response:
            assert self.open[self._depth_of_response :], "text of a response outside its tokens"
            self.responses[-1][-1]["text"] += data


@pytest.fixture
def write(tmp_path: Path, pieces: Any) -> Callable[..., Page]:
    """A writer of reports that reads them back."""

    def make(summary: dict[str, Any], annotations: list[Annotation]) -> Page:
        return Page(write_report(tmp_path / "new" / "report.html", summary, annotations, pieces))

    return make


def test_report_shows_ten_responses_and_says_of_how_many(write, summary, annotations) -> None:
    """Ten of the annotated responses are shown, well-formed, with the number of all."""
    page = write(summary, annotations)
    assert len(page.responses) == 10
    assert "The first 10 of 110" in page.text


def test_critical_positions_are_marked_once_and_no_others(write, summary, annotations) -> None:
    """Marked tokens are exactly the critical ones, one element a position."""
    page = write(summary, annotations)
    for tokens, annotation in zip(page.responses, annotations, strict=False):
        assert ["critical" in token["classes"] for token in tokens] == annotation.critical
        assert [token["details"]["position"] for token in tokens] == list(range(len(annotation.critical)))


def test_shown_pieces_concatenate_to_the_text(write, summary, annotations, pieces) -> None:
    """A response reads as its pieces do, whitespace and newlines included."""
    page = write(summary, annotations)
    for tokens, annotation in zip(page.responses, annotations, strict=False):
        assert "".join(token["text"] for token in tokens) == "".join(pieces(annotation.response.response_ids))
        assert "".join(token["text"] for token in tokens) == annotation.response.text


def test_each_newline_has_a_mark_before_the_break(write, annotate) -> None:
    """A newline shows as an arrow of the style's, so that copied text has none."""
    page = write({}, [annotate("one\n\ntwo")])
    assert page.source.count('<i class="nl"></i>\n') == 2
    assert page.source.count('<i class="nl"></i> new line') == 1


def test_text_of_models_and_problems_is_escaped(write, annotate) -> None:
    """Markup in a response, question, answer, choice, id or summary stays text."""
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;</style>"
    annotation = annotate(attack, question=attack, answer=attack, problem_id=attack, choices=[attack])
    names = ("task", "model", "command")
    page = write(
        dict.fromkeys(names, attack) | {"seconds_by_stage": {attack: 1.0}, "versions": {attack: attack}},
        [annotation],
    )
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in page.elements)
    assert "".join(token["text"] for token in page.responses[0]) == attack
    assert page.text.count(attack) == 1 + 4 + 3 + 1 + 2


def test_token_that_closes_an_attribute_stays_inside_it(write, annotate, pieces) -> None:
    """Quotes and markup in an alternative reach the details and nothing else."""
    attack = "\"'></span><script>"
    annotation = annotate("7")
    page = write({}, [replace(annotation, alternatives=[[pieces.id(attack)] * 2])])
    token = page.responses[0][0]
    assert [shown for shown, _, _ in token["details"]["alternatives"]] == [attack, attack]
    assert attack in token["title"]


def test_control_characters_are_shown_as_pictures(write, annotate) -> None:
    """Characters that an HTML parser drops or rewrites are visible instead."""
    page = write({}, [annotate("a\x00\x1b\r\nb\t\ufffd")])
    assert "".join(token["text"] for token in page.responses[0]) == "a␀␛␍\nb\t\ufffd"


def test_page_refers_to_nothing_outside_itself(write, summary, annotations) -> None:
    """No address but data: in src, href or url(), and a policy that forbids requests."""
    page = write(summary, annotations)
    for _, attributes in page.elements:
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
        assert "style" not in attributes, "the policy would not let it apply"
    assert not re.search(r"url\(|@import|https?://", page.source)
    policies = [
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none';")
    assert "unsafe" not in policies[0]


def test_details_say_probability_entropy_and_verdicts(write, annotate, pieces) -> None:
    """A token's details and title hold its numbers, and of each alternative whether the answer stayed right."""
    annotation = replace(
        annotate("7 so"),
        logprobs=[-0.25, 0.0],
        entropies=[0.5, -0.0],
        alternatives=[[pieces.id("8"), pieces.id("\n")], [pieces.id(" the"), pieces.id("9")]],
        alternative_logprobs=[[-2.0, -3.0], [-30.0, -40.0]],
        alternative_correct=[[False, False], [True, None]],
    )
    first, second = write({}, [annotation]).responses[0]
    assert first["details"] == {
        "text": "7",
        "position": 0,
        "probability": "77.9\u202f%",
        "entropy": "0.50",
        "critical": True,
        "alternatives": [["8", "13.5\u202f%", "wrong"], ["↵", "5.0\u202f%", "wrong"]],
    }
    assert second["details"]["probability"] == ">\u202f99.9\u202f%"
    assert second["details"]["entropy"] == "0.00"
    assert second["details"]["alternatives"] == [
        ["␣the", "<\u202f0.1\u202f%", "still right"],
        ["9", "<\u202f0.1\u202f%", "not asked"],
    ]
    assert "position 0, critical" in first["title"]
    assert "answer still right" in second["title"]
    assert "not asked" in second["title"]


def test_undecided_tokens_are_told_from_those_not_asked_about(write, summary, annotate) -> None:
    """Where keeping a token fails it is undecided, marked as that and counted; the samples of a problem are named."""
    annotation = replace(
        annotate("7 so on"),
        alternative_correct=[[False, False], [None, None], [None, None]],
        critical=[True, None, None],
        kept_correct=[True, False, None],
    )
    annotation = replace(annotation, response=replace(annotation.response, sample=2))
    page = write({"undecided_tokens": 1, "joint": {"asked": 40, "critical": 3}}, [annotation])
    first, second, third = page.responses[0]
    assert "undecided" not in first["details"]
    assert second["details"]["undecided"] is True
    assert "undecided" not in third["details"]
    assert "position 1, undecided" in second["title"]
    assert "1 of 1 tokens critical, 1 undecided, 1 not asked about" in page.text
    assert "apples-0 · sample 2" in page.text
    assert "Undecided tokens" in page.text
    assert "of 40 sets of tokens" in page.text


def test_results_show_rates_intervals_and_trained_tokens(write, summary, annotations) -> None:
    """The table has the three models, their rates with intervals, and CFT's share of SFT's tokens."""
    text = write(summary, annotations).text
    for shown in ("pass@1 (greedy)", "pass@8", "40.0\u202f%", "32.5–47.5", "4,286", "31.4\u202f% of SFT’s"):
        assert shown in text


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([-0.041, 0.08], "cannot be told apart"),
        ([0.0, 0.08], "cannot be told apart"),
        ([0.01, 0.08], "CFT does better than SFT"),
        ([-0.08, -0.01], "CFT does worse than SFT"),
    ],
)
def test_difference_is_said_in_words(write, interval: list[float], words: str) -> None:
    """A difference counts only where its interval leaves 0 out."""
    text = write({"cft_minus_sft": {"pass@1": {"difference": sum(interval) / 2, "interval": interval}}}, []).text
    said = [
        phrase
        for phrase in ("cannot be told apart", "CFT does better than SFT", "CFT does worse than SFT")
        if phrase in text
    ]
    assert said == [words]


def test_model_beyond_the_usual_three_has_its_row(write, summary) -> None:
    """What else was trained comes after start, SFT and CFT, under its own name."""
    summary["models"] = {"random": {"pass@1": 0.123}, **summary["models"]}
    page = write(summary, [])
    rows = [attributes["data-model"] for _, attributes in page.elements if "data-model" in attributes]
    assert rows == ["start", "sft", "cft", "random"]
    assert "12.3\u202f%" in page.text


def test_every_key_of_the_summary_may_be_missing(write, summary, annotations) -> None:
    """Without any one key, or any at all, the page is well-formed and invents nothing."""
    for key in summary:
        page = write({name: value for name, value in summary.items() if name != key}, annotations[:1])
        assert "None" not in page.text
    bare = write({}, [])
    for absent in ("Result", "Peak memory", "Rollouts", "Where the time went", "token by token", "This run"):
        assert absent not in bare.text
    assert "Critical tokens" in bare.text.replace("Critical</span>", "Critical")


def test_models_may_lack_intervals_and_token_counts(write) -> None:
    """A model with a rate alone has a row with that rate and no interval."""
    page = write({"models": {"cft": {"pass@1": 0.5}}}, [])
    assert "50.0\u202f%" in page.text
    assert "Tokens trained" not in page.text
    assert "pass@N" not in page.text
    assert not any(attributes.get("class") == "range" for _, attributes in page.elements)


def test_histogram_counts_every_annotation(write, annotate, annotations) -> None:
    """All responses given are counted, one wholly critical in the last bar."""
    page = write({}, [*annotations, annotate("77")])
    assert "25 responses by the share" in page.text
    assert "90–100\u202f%: 1" in page.text


def test_curves_are_drawn_and_said(write, summary) -> None:
    """Each measure has a line per model, from its first value to its last, on one scale; validation loss has none."""
    log = [{"step": 0, "eval_accuracy": 0.25, "eval_loss_critical": 2.0, "eval_loss": 1.0}]
    curves = {
        "sft": [*log, {"step": 10, "eval_accuracy": 0.5, "eval_loss_critical": 1.5, "eval_loss": 1.0}],
        "cft": [*log, {"step": 5, "eval_accuracy": 0.75, "eval_loss_critical": 1.0, "eval_loss": 1.0}],
    }
    page = write({**summary, "curves": curves}, [])
    lines = [attributes for tag, attributes in page.elements if tag == "polyline"]
    assert [line["data-model"] for line in lines] == ["sft", "cft"] * 2
    assert [line["points"] for line in lines] == [
        "0.0,100.0 300.0,50.0",
        "0.0,100.0 150.0,0.0",
        "0.0,0.0 300.0,50.0",
        "0.0,0.0 150.0,100.0",
    ]
    for said in ("CFT 2.000 → 1.000", "SFT 25.0\u202f% → 50.0\u202f%", "Loss on critical tokens"):
        assert said in page.text
    assert "Entropy" not in page.text
    assert "While they trained" not in write(summary, []).text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(scheme: str) -> None:
    """Every text colour reaches 4.5 : 1 (WCAG AA) on every background it stands on, in both schemes."""
    style = resources.files("cruxtune.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    colours = light if scheme == "light" else light | dark

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(text, ground) for text in ("ink", "muted", "dim") for ground in ("paper", "panel")]
    pairs += [("right", "paper"), ("wrong", "paper"), ("mark-ink", "mark")]
    for text, ground in pairs:
        low, high = sorted(luminance(colours[name]) for name in (text, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
