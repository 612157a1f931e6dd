"""Prompts: what a policy is asked, on any day and with any tokenizer, and how ids become text."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.errors import ConfigError, DataError, ModelError
from cruxtune.prompts import (
    CHAT_INSTRUCTION,
    CHOICE_INSTRUCTION,
    Renderer,
    end_of_turn_id,
    tokenizer_hash,
    worked_solution,
)
from cruxtune.records import Problem
from cruxtune.settings import PromptSettings

Tokenizers = Callable[..., Any]
SUM = Problem("p", "1 + 1?", "2", solution="One and one is two.")
CHOICE = Problem("c", "Which?", "B", kind="choice", choices=["red", "blue"])
END = 258


def rendered(tokenizer: Any, problem: Problem = SUM, **prompt: Any) -> str:
    """Return the prompt of a problem as text, special tokens shown."""
    return str(tokenizer.decode(Renderer(tokenizer, PromptSettings(**prompt)).render(problem)))


# What is asked


def test_chat_is_the_default_where_there_is_a_chat_template(tiny_tokenizer: Tokenizers) -> None:
    """The question with the instruction is the user's message, and the assistant's turn is opened."""
    expected = f"<|user|>1 + 1?\n{CHAT_INSTRUCTION}<|end|><|assistant|>"
    assert rendered(tiny_tokenizer("chatml")) == expected
    assert rendered(tiny_tokenizer("chatml"), template="chat") == expected


def test_plain_is_the_default_without_a_chat_template(tiny_tokenizer: Tokenizers) -> None:
    """A base model gets question and answer, without an instruction, and the two templates never mix."""
    assert rendered(tiny_tokenizer()) == "Question: 1 + 1?\nAnswer:"
    assert rendered(tiny_tokenizer("chatml"), template="plain") == "Question: 1 + 1?\nAnswer:"


def test_a_system_message_comes_first(tiny_tokenizer: Tokenizers) -> None:
    """--system is the first message; an empty one is a message too."""
    assert rendered(tiny_tokenizer("chatml"), system="Be brief.").startswith("<|system|>Be brief.<|end|><|user|>")
    assert rendered(tiny_tokenizer("chatml"), system="").startswith("<|system|><|end|><|user|>")


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_an_instruction_replaces_the_default_one(tiny_tokenizer: Tokenizers, template: str) -> None:
    """--instruction is what follows the question, in either template; '' is none at all."""
    tokenizer = tiny_tokenizer("chatml")
    assert "1 + 1?\nThink." in rendered(tokenizer, template=template, instruction="Think.")
    without = rendered(tokenizer, template=template, instruction="")
    assert "reason" not in without
    assert "1 + 1?\n<" not in without
    assert "1 + 1?\n\n" not in without


def test_options_are_lettered_after_the_question(tiny_tokenizer: Tokenizers) -> None:
    """A choice problem shows its options by letter, and the chat instruction asks for a letter."""
    assert f"Which?\n(A) red\n(B) blue\n{CHOICE_INSTRUCTION}<|end|>" in rendered(tiny_tokenizer("chatml"), CHOICE)
    assert rendered(tiny_tokenizer(), CHOICE) == "Question: Which?\n(A) red\n(B) blue\nAnswer:"


def test_a_plain_prompt_never_ends_the_sequence(tiny_tokenizer: Tokenizers) -> None:
    """A tokenizer that ends every text with EOS would ask for nothing: that EOS is dropped, once."""
    ending = tiny_tokenizer(final_eos=True)
    assert ending("x")["input_ids"][-1] == END
    assert rendered(ending) == "Question: 1 + 1?\nAnswer:"
    assert rendered(tiny_tokenizer("chatml", final_eos=True)) == rendered(tiny_tokenizer("chatml"))


class Tomorrow(datetime.datetime):
    """A clock that is wrong."""

    @classmethod
    def now(cls, tz: Any = None) -> Tomorrow:
        """Return a day that is not today."""
        return cls(2031, 12, 24)


@pytest.mark.parametrize(
    "template",
    [
        "dated",
        "{{ 'Today is ' }}{{ strftime_now( '%d %B %Y' ) + '. ' }}",
        '{%- if strftime_now is defined %}{%- set d = strftime_now("%d %B %Y") %}{%- endif %}Today is {{ d }}. ',
        "{% macro day() %}{{ strftime_now('%d %B %Y') }}{% endmacro %}Today is {{ day() }}. ",
    ],
)
def test_a_template_that_states_the_date_renders_the_same_on_any_day(
    tiny_tokenizer: Tokenizers, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """Prompts have the date of the settings, not that of the day, in all the ways in which templates ask for it."""
    from transformers.utils import chat_template_utils

    tokenizer = tiny_tokenizer(template)
    first = rendered(tokenizer)
    assert first.startswith("Today is 26 July 2024. ")
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    direct = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert direct.startswith("Today is 24 December 2031. ")
    assert rendered(tokenizer) == first
    assert rendered(tokenizer, date="2025-01-02").startswith("Today is 02 January 2025. ")


def test_of_several_chat_templates_the_default_one_is_used(tiny_tokenizer: Tokenizers) -> None:
    """Some tokenizers have a template for tools too; one without a default has none for us."""
    tokenizer = tiny_tokenizer("chatml")
    several = tiny_tokenizer()
    several.chat_template = {"tool_use": "tools!", "default": tokenizer.chat_template}
    assert rendered(several) == rendered(tokenizer)
    several.chat_template = {"tool_use": "tools!"}
    assert rendered(several) == rendered(tiny_tokenizer())


# What cannot be asked


def test_a_chat_template_that_is_not_there_cannot_be_asked_for(tiny_tokenizer: Tokenizers) -> None:
    """--template chat and --system need a chat template, and say what to do without one."""
    with pytest.raises(ConfigError, match=r"--template chat, but .* has no chat template; use --template plain"):
        rendered(tiny_tokenizer(), template="chat")
    for tokenizer, template in ((tiny_tokenizer(), "auto"), (tiny_tokenizer("chatml"), "plain")):
        with pytest.raises(ConfigError, match=r"--system 'Hi' needs a chat template"):
            rendered(tokenizer, template=template, system="Hi")


@pytest.mark.parametrize("date", ["yesterday", "2024-13-01", "26.07.2024", ""])
def test_a_date_must_be_one(tiny_tokenizer: Tokenizers, date: str) -> None:
    """--date is YYYY-MM-DD."""
    with pytest.raises(ConfigError, match="is no date; write it as YYYY-MM-DD"):
        rendered(tiny_tokenizer("chatml"), date=date)


def test_a_template_that_fails_is_told_with_the_problem(tiny_tokenizer: Tokenizers) -> None:
    """What the template says of its refusal is passed on."""
    with pytest.raises(DataError, match=r"fails on problem p \(no users here\); use --template plain"):
        rendered(tiny_tokenizer("failing"))


# Worked solutions


@pytest.mark.parametrize("final_eos", [False, True])
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_solution_ends_with_exactly_one_end_of_sequence(
    tiny_tokenizer: Tokenizers, template: str, final_eos: bool
) -> None:
    """The response of a gold row is the solution with its answer, then one end-of-sequence token."""
    tokenizer = tiny_tokenizer("chatml", final_eos=final_eos)
    ids = Renderer(tokenizer, PromptSettings(template=template)).solution_ids(SUM)
    assert ids[-1] == END
    assert ids.count(END) == 1
    space = "" if template == "chat" else " "
    assert tokenizer.decode(ids[:-1]) == f"{space}One and one is two.\n#### 2"


def test_prompt_and_solution_of_the_plain_template_are_one_text(tiny_tokenizer: Tokenizers) -> None:
    """A space stands between "Answer:" and the solution, and nothing else does."""
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer, PromptSettings())
    text = tokenizer.decode(renderer.render(SUM) + renderer.solution_ids(SUM))
    assert text == "Question: 1 + 1?\nAnswer: One and one is two.\n#### 2<|end|>"


def test_a_solution_needs_to_be_there_and_to_end(tiny_tokenizer: Tokenizers) -> None:
    """Without a worked solution, or a token that ends it, there is nothing to train on."""
    with pytest.raises(DataError, match="problem q has no worked solution"):
        Renderer(tiny_tokenizer(), PromptSettings()).solution_ids(Problem("q", "?", "1"))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Renderer(tiny_tokenizer(eos=None), PromptSettings()).solution_ids(SUM)


TURNS = "{% for message in messages %}{{ message['content'] }}BEHIND{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, None),
        ("chatml", "<|end|>"),
        ("failing", None),
        (TURNS.replace("BEHIND", "\n <eos>\n"), "<eos>"),
        (TURNS.replace("BEHIND", "{% generation %}<|end|>{% endgeneration %}"), "<|end|>"),
        (TURNS.replace("BEHIND", " over."), None),
        (TURNS.replace("BEHIND", ""), None),
        ("<bos>{{ messages[0]['content'] }}", None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_puts_there(
    tiny_tokenizer: Tokenizers, template: str | None, end: str | None
) -> None:
    """The special token behind what an assistant says, whatever the tokenizer calls its end of sequence."""
    tokenizer = tiny_tokenizer(template, eos="<bos>")
    assert end_of_turn_id(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


def test_worked_solutions_end_as_turns_do(tiny_tokenizer: Tokenizers) -> None:
    """With the chat template's token where that is used, else with the tokenizer's."""
    tokenizer = tiny_tokenizer("chatml", eos="<eos>")
    for template, end in (("chat", "<|end|>"), ("plain", "<eos>")):
        ids = Renderer(tokenizer, PromptSettings(template=template)).solution_ids(SUM)
        assert tokenizer.convert_ids_to_tokens(ids)[-1] == end
        assert not {*tokenizer.convert_tokens_to_ids(["<eos>", "<|end|>"])} & {*ids[:-1]}


def test_a_blank_line_ends_what_follows_plain_examples(tiny_tokenizer: Tokenizers, tmp_path: Path) -> None:
    """Behind it a base model asks itself the next question; not so where an example's own answer has a blank line."""
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.add_tokens([".\n\n", "\n\n", "\n"])
    blank = {*tokenizer.convert_tokens_to_ids([".\n\n", "\n\n"])}

    def ends(**prompt: Any) -> set[int]:
        return Renderer(tokenizer, PromptSettings(**prompt)).end_ids()

    assert ends(template="plain", examples="word") == blank
    assert ends(template="plain", examples="word", shots=0) == ends(template="plain") == set()
    assert ends(template="chat", examples="word", shots=2) == set()
    rows = [{"question": f"{n}?", "answer": "1", "solution": "So.\n\nIt is 1."} for n in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ends(template="plain", examples=str(tmp_path / "own.jsonl"), shots=2) == set()


@given(st.text(), st.text())
def test_a_worked_solution_states_its_answer_once(solution: str, answer: str) -> None:
    """What states the answer in a form of its own stays as it is; else the answer follows in the form of GSM8K."""
    text = worked_solution(Problem("p", "?", answer, solution=solution))
    if "####" in solution or "\\boxed" in solution:
        assert text == solution.strip()
    else:
        assert text == (f"{solution.strip()}\n" if solution.strip() else "") + f"#### {answer}"


# From ids to text

unicode = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer: Tokenizers) -> Renderer:
    """A renderer whose tokens are single bytes: every character beyond ASCII is several tokens."""
    return Renderer(tiny_tokenizer("chatml"), PromptSettings())


@settings(max_examples=150, deadline=None)
@given(
    text=unicode | st.sampled_from(["é", "日本", "👩‍👩‍👧 family", "a\ufffdb", "\ufffd", " \n\t", "fi 🇫🇷!"]),
    end=st.booleans(),
)
def test_pieces_of_a_text_concatenate_to_it(renderer: Renderer, text: str, end: bool) -> None:
    """One piece per token; a character of several tokens is shown once, whole, at its last token."""
    ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"] + [END] * end
    pieces = renderer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text + "<|end|>" * end
    if "\ufffd" not in text:
        assert [piece for piece in pieces if piece] == [*text, *(["<|end|>"] * end)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, END), max_size=12))
def test_pieces_of_any_ids_concatenate_to_what_they_decode_to(renderer: Renderer, ids: list[int]) -> None:
    """A policy may write broken UTF-8 (a response cut within a character): nothing is lost or shown twice."""
    pieces = renderer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == renderer.tokenizer.decode(ids, skip_special_tokens=False)


@settings(max_examples=50, deadline=None)
@given(unicode)
def test_the_verifier_reads_the_text_without_special_tokens(renderer: Renderer, text: str) -> None:
    """Decoding gives the text as it is (no spaces cleaned up), without the end-of-turn token."""
    ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert renderer.decode([*ids, END]) == text


def test_spaces_before_punctuation_stay(renderer: Renderer) -> None:
    """Decoding does not tidy a text up: the verifier reads what was written."""
    text = "x = 3 . so , it 's 4 !"
    assert renderer.decode(renderer.tokenizer(text)["input_ids"]) == text


# What identifies a renderer


def test_facts_tell_tokenizers_templates_and_dates_apart(tiny_tokenizer: Tokenizers) -> None:
    """What changes a prompt is among the facts: vocabulary, template, date."""

    def facts(tokenizer: Any, **prompt: Any) -> dict[str, Any]:
        return Renderer(tokenizer, PromptSettings(**prompt)).facts()

    chat, plain = facts(tiny_tokenizer("chatml")), facts(tiny_tokenizer())
    assert chat == facts(tiny_tokenizer("chatml"))
    assert chat["tokenizer"] == plain["tokenizer"]
    assert chat["chat_template"] not in (None, facts(tiny_tokenizer("dated"))["chat_template"])
    assert facts(tiny_tokenizer("dated")) != facts(tiny_tokenizer("dated"), date="2025-01-01")
    assert (plain["chat_template"], plain["template_date"]) == (None, None)
    grown = tiny_tokenizer()
    grown.add_tokens(["<think>"])
    assert tokenizer_hash(grown) != tokenizer_hash(tiny_tokenizer())


def test_character_spans_cover_the_characters_that_tokens_hold(tiny_tokenizer: Callable[..., Any]) -> None:
    """Bytes of one character all have it, special tokens have nothing, and long texts come out as short ones do."""
    from cruxtune.prompts import character_spans

    tokenizer = tiny_tokenizer()
    text = "é５ 1" * 30
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    decoded, spans = character_spans(tokenizer, ids)
    expected = [(place, place + 1) for place, character in enumerate(text) for _ in character.encode()]
    assert decoded == text
    assert spans == [*expected, (len(text), len(text))]
