from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from cruxtune.errors import ConfigError
from cruxtune.rl_settings import REFUSED_RL_FIELDS, RlSettings
from cruxtune.settings import build

NEEDED = {"method": "grpo", "model": "m", "problems": "gym:chain_sum", "output": "out"}


def test_ratios_can_clip_by_default() -> None:
    """With the defaults a rollout is trained on after a step was made on it, so that ratios leave 1."""
    settings = build(RlSettings, NEEDED)
    assert settings.steps_per_rollouts >= 2
    assert settings.loss == "grpo"


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"generations": 1}, "nothing would be learned; use 2 or more"),
        ({"generations": 6}, "no multiple of --generations 6"),
        ({"micro_batch_size": 7}, "does not divide --batch-size 64"),
        ({"validation": "0.1.2.3x", "validation_source": {}}, None),
        ({"validation": 0}, "neither a share between 0 and 1 nor a number"),
        ({"validation": "2.5"}, "neither a share between 0 and 1 nor a number"),
        ({"validation": "0.1", "validation_source": {"split": "test"}}, "belongs to a --validation that is a source"),
        ({"format_reward": 0.1, "verifier": "a:b"}, "--verifier names no form"),
        ({"method": "ppo"}, "--method: Input should be 'grpo'"),
        ({"loss": "sum"}, "--loss"),
    ],
)
def test_what_cannot_learn_is_refused(leaves: dict[str, Any], message: str | None) -> None:
    """Settings that cannot learn, or do not fit together, are refused with the reason."""
    if message is None:
        assert build(RlSettings, {**NEEDED, **leaves}).measured.drawn is None
        return
    with pytest.raises(ConfigError, match=message):
        build(RlSettings, {**NEEDED, **leaves})


@pytest.mark.parametrize("name", sorted(REFUSED_RL_FIELDS))
def test_refused_fields_are_those_of_trl(name: str) -> None:
    """Every refused field exists in GRPOConfig, and its reason is told."""
    from trl import GRPOConfig

    assert name in {field.name for field in fields(GRPOConfig)}
    with pytest.raises(ConfigError) as caught:
        build(RlSettings, {**NEEDED, "trainer": {name: None}})
    assert REFUSED_RL_FIELDS[name] in str(caught.value)


def test_losses_are_those_of_trl() -> None:
    """GRPOConfig takes every loss that we name as its loss type."""
    from typing import get_args

    from trl import GRPOConfig

    told = next(field for field in fields(GRPOConfig) if field.name == "loss_type").metadata["help"]
    losses = get_args(RlSettings.model_fields["loss"].annotation)
    assert [name for name in losses if f"'{name}'" not in told] == []
