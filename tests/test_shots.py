"""Few-shot examples: ours are right, a prompt shows them, and what a base model adds is not judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError, DataError
from cruxtune.prompts import CHAT_INSTRUCTION, Renderer, worked_solution
from cruxtune.records import Problem
from cruxtune.settings import PromptSettings
from cruxtune.shots import own_examples
from cruxtune.verifiers import verify

Tokenizers = Callable[..., Any]
SUM = Problem("p", "1 + 1?", "2", solution="One and one is two.")


def rendered(tokenizer: Any, problem: Problem = SUM, **prompt: Any) -> str:
    """Return the prompt of a problem as text."""
    return str(tokenizer.decode(Renderer(tokenizer, PromptSettings(**prompt)).render(problem)))


def test_our_examples_are_right() -> None:
    """The verifier accepts the worked solution of each, by the form in which prompts ask for answers."""
    for examples in own_examples().values():
        for example in examples:
            verdict = verify(worked_solution(example), example)
            assert (verdict.correct, verdict.reason) == (True, "boxed"), example.id


def test_a_base_model_is_shown_the_whole_set(tiny_tokenizer: Tokenizers) -> None:
    """Question and answer in turn, a blank line between them, then the question that is asked."""
    text = rendered(tiny_tokenizer(), examples="word")
    assert text.count("Question: ") == 9
    assert text.endswith("\n\nQuestion: 1 + 1?\nAnswer:")
    first = own_examples()["word"][0]
    assert text.startswith(f"Question: {first.question}\nAnswer: {first.solution}\n\nQuestion: ")
    assert rendered(tiny_tokenizer(), examples="word", shots=1).count("Question: ") == 2
    assert rendered(tiny_tokenizer(), examples="word", shots=0) == rendered(tiny_tokenizer())


def test_a_chat_model_is_shown_examples_only_if_asked_to(tiny_tokenizer: Tokenizers) -> None:
    """They are earlier turns then, with the instruction of the question."""
    tokenizer = tiny_tokenizer("chatml")
    assert rendered(tokenizer, examples="word") == rendered(tokenizer)
    text = rendered(tokenizer, examples="word", shots=2)
    assert text.count("<|user|>") == 3
    assert text.count(CHAT_INSTRUCTION) == 3
    assert "\\boxed{280}.<|end|><|user|>" in text


def test_a_question_is_not_among_its_own_examples(tiny_tokenizer: Tokenizers, tmp_path: Path) -> None:
    """Examples from the training split, with one to spare: the others are shown."""
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1), "solution": f"{n} and one."} for n in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"examples": str(tmp_path / "train.jsonl"), "shots": 2}
    text = rendered(tiny_tokenizer(), **settings)
    assert text == (
        "Question: 0 + 1?\nAnswer: 0 and one.\n#### 1\n\n"
        "Question: 2 + 1?\nAnswer: 2 and one.\n#### 3\n\nQuestion: 1 + 1?\nAnswer:"
    )
    assert rendered(tiny_tokenizer(), examples=settings["examples"]).count("Question:") == 5


def test_questions_of_the_models_own_are_no_part_of_its_answer(tiny_tokenizer: Tokenizers) -> None:
    """After plain examples the text ends where the next question begins; elsewhere nothing is cut."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer("It is \\boxed{2}.\n\nQuestion: 3 + 3?\nAnswer: \\boxed{6}")["input_ids"]
    assert Renderer(tokenizer, PromptSettings(examples="word")).decode(ids) == "It is \\boxed{2}.\n"
    assert Renderer(tokenizer, PromptSettings()).decode(ids).endswith("6}")


def test_manifests_say_which_examples_were_shown(tiny_tokenizer: Tokenizers) -> None:
    """By a hash, and only where there are some."""
    plain = tiny_tokenizer()
    one, two = (Renderer(plain, PromptSettings(examples="word", shots=n)).facts()["examples"] for n in (1, 2))
    assert one.startswith("sha256:")
    assert one != two
    assert "examples" not in Renderer(plain, PromptSettings()).facts()
    assert "examples" not in Renderer(tiny_tokenizer("chatml"), PromptSettings(examples="word")).facts()


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"shots": 3}, ConfigError, "--shots 3 needs examples"),
        ({"examples": "word", "shots": 9}, ConfigError, "has 8 only"),
        ({"examples": "nowhere.jsonl"}, ConfigError, "There is no file nowhere.jsonl"),
        ({"examples": "tests.jsonl"}, DataError, "--examples tests.jsonl: 5 of the problems are of the test split"),
    ],
)
def test_examples_that_cannot_be_shown_are_told(
    tiny_tokenizer: Tokenizers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    kind: type[Exception],
    told: str,
) -> None:
    """Test problems are no examples either."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"gsm8k/test/{n}", "question": f"{n}?", "answer": "1"} for n in range(9)]
    Path("tests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(kind, match=told):
        Renderer(tiny_tokenizer(), PromptSettings(**settings))
