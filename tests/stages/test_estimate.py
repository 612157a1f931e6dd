from __future__ import annotations

from typing import Any

import pytest

from cruxtune.records import Annotation
from cruxtune.stage_settings import AnnotateSettings, EstimateSettings, RespondSettings
from cruxtune.store import read_rows


@pytest.fixture
def responses(world: Any) -> Any:
    """The output of `respond` in this world."""
    from cruxtune.stages.respond import respond

    output = world.root / "responses"
    respond(world.settings(RespondSettings, output=output))
    return output


def annotated(world: Any, responses: Any, name: str, **leaves: Any) -> tuple[list[Annotation], dict[str, Any]]:
    """What `annotate` writes with these settings, and its manifest."""
    from cruxtune.stages.annotate import annotate

    output = world.root / name
    manifest = annotate(world.settings(AnnotateSettings, responses=responses, output=output, **leaves))
    return [Annotation.from_row(row) for row in read_rows(output)], manifest


def test_an_estimate_is_near_the_truth(world: Any, responses: Any) -> None:
    """Where everything is tried, rollouts and tokens are those of the run; the range holds the number."""
    from cruxtune.stages.estimate import estimate

    found = estimate(EstimateSettings(responses=responses, trial_seconds=1e6))
    _, manifest = annotated(world, responses, "whole")
    done = manifest["accounting"]
    assert found.responses == done["responses"]
    assert found.rollouts_wanted == done["rollouts_wanted"]
    assert found.rollouts == pytest.approx(done["rollouts_made"], rel=0.3)
    assert found.tokens == pytest.approx(done["tokens_emitted"], rel=0.3)
    assert found.tokens_low <= found.tokens <= found.tokens_high
    assert 0 < found.seconds_low < found.seconds < found.seconds_high


def test_an_estimate_covers_samples_and_budgets(world: Any, responses: Any) -> None:
    """Fewer positions cost less, and a budget that is smaller than the whole is what is estimated."""
    from cruxtune.stages.estimate import estimate

    whole = estimate(EstimateSettings(responses=responses))
    some = estimate(EstimateSettings(responses=responses, positions=0.25))
    assert 0.15 * whole.positions < some.positions < 0.4 * whole.positions
    assert some.tokens < 0.6 * whole.tokens
    budget = whole.tokens // 3
    assert estimate(EstimateSettings(responses=responses, token_budget=budget)).tokens == pytest.approx(
        budget, rel=0.01
    )


def test_a_short_trial_asks_about_few_positions(world: Any, responses: Any) -> None:
    """The trial takes a sample where the whole would take longer than allowed."""
    from cruxtune.stages.estimate import estimate

    whole = estimate(EstimateSettings(responses=responses))
    found = estimate(EstimateSettings(responses=responses, trial_seconds=1e-3))
    assert found.rollouts_wanted == whole.rollouts_wanted
    assert 0 < found.trial_rollouts < whole.trial_rollouts / 2


@pytest.mark.parametrize(("positions", "most"), [(3, 3), (0.2, 5)])
def test_positions_that_are_not_asked_about_stay_unknown(
    positions: float, most: int, world: Any, responses: Any
) -> None:
    """A sample of positions has the labels that it has without sampling; the others have none."""
    whole, _ = annotated(world, responses, "whole")
    some, manifest = annotated(world, responses, "some", positions=positions)
    for full, part in zip(whole, some, strict=True):
        known = [place for place, mask in enumerate(part.critical) if mask is not None]
        assert 1 <= len(known) <= most
        assert [part.critical[place] for place in known] == [full.critical[place] for place in known]
        unknown = set(range(len(full.critical))) - set(known)
        assert all(part.alternative_correct[place] == [None, None] for place in unknown)
        assert part.alternatives == full.alternatives
    done = manifest["accounting"]
    assert (
        done["known_tokens"] == sum(mask is not None for one in some for mask in one.critical) < done["response_tokens"]
    )
    again, _ = annotated(world, responses, "again", positions=positions)
    assert [one.critical for one in again] == [one.critical for one in some]


def test_a_token_budget_is_kept_about(world: Any, responses: Any) -> None:
    """The rollouts of a run with a budget take about as many tokens, spread over all responses."""
    _, manifest = annotated(world, responses, "whole")
    budget = int(manifest["accounting"]["tokens_emitted"] // 2)
    some, manifest = annotated(world, responses, "some", token_budget=budget, group_size=2)
    assert manifest["accounting"]["tokens_emitted"] == pytest.approx(budget, rel=0.35)
    assert sum(any(mask is not None for mask in one.critical) for one in some) >= len(some) - 2
