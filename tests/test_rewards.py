from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cruxtune.prompts import Renderer
from cruxtune.records import Problem
from cruxtune.rewards import Reward
from cruxtune.settings import PromptSettings
from cruxtune.verifiers import Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A verifier that all cases share."""
    with Verifier() as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("text", "ended", "reward"),
    [
        ("So \\boxed{4}", True, 1.25),
        ("So \\boxed{4}", False, 1.0),
        ("So \\boxed{5}", True, 0.25),
        ("#### 4", True, 1.25),
        ("it is 2 + 2 = 4 then", True, 1.0),
        ("who knows", True, 0.0),
    ],
)
def test_the_reward_is_correctness_and_form(
    text: str, ended: bool, reward: float, tiny_tokenizer: Callable[..., Any], verifier: Verifier
) -> None:
    """1 where the verifier finds the answer, and the weight of form where it is stated and the response ended."""
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer, PromptSettings())
    logged: dict[str, float] = {}
    ids = renderer.text_ids(text, ended=ended)
    rewards = Reward({"p": Problem("p", "2 + 2?", "4")}, renderer, verifier, {tokenizer.eos_token_id}, 0.25)
    found = rewards(prompts=["p", "p"], completion_ids=[ids, ids], log_metric=logged.__setitem__)
    assert found == [reward, reward]
    assert logged == {"correct": float(reward >= 1), "formed": float(reward % 1 > 0)}
    assert rewards.verdicts.total() == 2
