from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import DataError
from cruxtune.records import Annotation, Response
from cruxtune.stage_settings import AnnotateSettings, RespondSettings
from cruxtune.store import read_rows


def responded(world: Any, **leaves: Any) -> Path:
    """The output of `respond` in this world."""
    from cruxtune.stages.respond import respond

    output = world.root / "responses"
    respond(world.settings(RespondSettings, output=output, **leaves))
    return output


def annotated(world: Any, responses: Path, name: str = "annotations", **leaves: Any) -> tuple[Path, dict[str, Any]]:
    """The output of `annotate` on these responses, and its manifest."""
    from cruxtune.stages.annotate import annotate

    leaves = {
        "output": {"output": world.root / name},
        "group_size": 3,
        "engine": {"batch_size": 8, "draft_length": 4},
        **leaves,
    }
    settings = AnnotateSettings.model_validate({"responses": responses, **leaves})
    return settings.output.output, annotate(settings)


def brute_force(model: Any, response: Response, k: int, limit: int, correct: Callable[[list[int]], bool]) -> Any:
    """The definition of a critical token, word by word: one `generate` per rollout, nothing shared, nothing skipped."""
    import torch
    from transformers import GenerationConfig

    eos = model.generation_config.eos_token_id
    critical, verdicts = [], []
    for position, token in enumerate(response.response_ids):
        before = response.prompt_ids + response.response_ids[:position]
        with torch.no_grad():
            logits = model(torch.tensor([before])).logits[0, -1].tolist()
        ranked = sorted((i for i in range(len(logits)) if i != token), key=lambda i: (-logits[i], i))[:k]
        row = []
        for alternative in ranked:
            ids = [*response.response_ids[:position], alternative]
            if alternative not in eos and len(ids) < limit:
                config = GenerationConfig(
                    do_sample=False, max_new_tokens=limit - len(ids), eos_token_id=eos, pad_token_id=0
                )
                start = torch.tensor([response.prompt_ids + ids])
                whole = model.generate(start, generation_config=config, attention_mask=torch.ones_like(start))
                ids = whole[0, len(response.prompt_ids) :].tolist()
            row.append(correct(ids))
        verdicts.append((ranked, row))
        critical.append(not any(row))
    return critical, verdicts


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "olmo2"])
def test_labels_equal_the_definition(
    architecture: str, world: Any, tiny_checkpoint: Callable[..., Path], tiny_tokenizer: Callable[..., Any]
) -> None:
    """In float64 every label, alternative and verdict equals those of an independent brute-force implementation."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.rmtree(world.model)
    tiny_checkpoint(world.model, architecture, seed=3)
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64)
    tokenizer = tiny_tokenizer()
    # Without the loop rule: `generate` has none.
    responses = responded(world, loop_stop=False)
    output, manifest = annotated(world, responses, every_alternative=True)
    skipping, less = annotated(world, responses, "skipping")

    def correct(ids: list[int]) -> bool:
        return sum(tokenizer.decode(ids, skip_special_tokens=True).encode()) % 2 == 0

    annotations = [Annotation.from_row(row) for row in read_rows(output)]
    sparse = [Annotation.from_row(row) for row in read_rows(skipping)]
    assert len(annotations) >= 4
    seen = []
    for annotation, short in list(zip(annotations, sparse, strict=True))[:6]:
        critical, verdicts = brute_force(model, annotation.response, 2, 24, correct)
        assert annotation.critical == critical == short.critical
        assert annotation.alternatives == [ranked for ranked, _ in verdicts]
        assert annotation.alternative_correct == [row for _, row in verdicts]
        for full, part in zip(annotation.alternative_correct, short.alternative_correct, strict=True):
            assert part == (full if not full[0] else [True, None])
        seen.extend(verdict for _, row in verdicts for verdict in row)
    # The comparison means something: verdicts of both kinds, critical tokens of both kinds.
    assert 0.2 < sum(seen) / len(seen) < 0.8
    share = manifest["accounting"]["critical_tokens"] / manifest["accounting"]["response_tokens"]
    assert 0.02 < share < 0.8
    assert less["accounting"]["rollouts_made"] < manifest["accounting"]["rollouts_made"]
    assert manifest["accounting"]["rollouts_skipped"] == 0


def test_every_rollout_made_is_kept(world: Any) -> None:
    """Beside the annotations lie exactly the rollouts that were made, each with the verdict that the mask rests on."""
    output, manifest = annotated(world, responded(world))
    rollouts = {(row["id"], row["position"], row["rank"]): row for row in read_rows(output, "rollouts")}
    assert len(rollouts) == manifest["accounting"]["rollouts_made"]
    known = 0
    for annotation in map(Annotation.from_row, read_rows(output)):
        response = annotation.response
        for position, verdicts in enumerate(annotation.alternative_correct):
            for rank, verdict in enumerate(verdicts):
                row = rollouts.get((response.problem.id, position, rank))
                assert (row is None) == (verdict is None)
                if row is not None:
                    known += 1
                    assert row["correct"] == verdict
                    assert row["ids"][: position + 1] == [
                        *response.response_ids[:position],
                        annotation.alternatives[position][rank],
                    ]
                    assert len(row["ids"]) <= 24
    assert known == len(rollouts)


def test_only_correct_responses_are_annotated(world: Any) -> None:
    """Wrong responses stay in their file and are not annotated; --limit takes the first correct ones."""
    responses = responded(world)
    rows = [Response.from_row(row) for row in read_rows(responses)]
    right = [response.problem.id for response in rows if response.verdict.correct]
    assert 0 < len(right) < len(rows)
    output, _ = annotated(world, responses)
    assert [row["id"] for row in read_rows(output)] == right
    first, _ = annotated(world, responses, "first", output={"output": world.root / "first", "limit": 2})
    assert [row["id"] for row in read_rows(first)] == right[:2]


def test_no_correct_response_is_an_error(world: Any) -> None:
    """Where no response is correct the message says so, with the numbers and what helps."""
    (world.root / "judge_never.py").write_text("def judge(text, problem):\n    return False\n")
    responses = responded(world, verifier="judge_never:judge")
    with pytest.raises(DataError, match=r"0 of 24 responses are correct.*cold start"):
        annotated(world, responses)


def test_tokens_of_the_same_tokenizer_may_be_judged_by_another_model(
    world: Any, tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Cross-model annotation: another policy's alternatives and rollouts decide, so that its labels differ."""
    responses = responded(world)
    own, _ = annotated(world, responses)
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    crossed, _ = annotated(world, responses, "crossed", model={"model": str(other), "dtype": "float64"})
    mine = [row["critical"] for row in read_rows(own)]
    theirs = [row["critical"] for row in read_rows(crossed)]
    assert [len(mask) for mask in mine] == [len(mask) for mask in theirs]
    assert mine != theirs


def test_positions_that_were_not_asked_about_are_unknown(world: Any) -> None:
    """A sample of positions: the same labels there, nothing elsewhere, and a larger sample contains a smaller one."""
    responses = responded(world)
    whole, _ = annotated(world, responses)
    labels = [row["critical"] for row in read_rows(whole)]
    known: list[list[set[int]]] = []
    for count in (2, 5, 0.5):
        output, manifest = annotated(world, responses, f"sample-{count}", positions=count)
        sampled = [Annotation.from_row(row) for row in read_rows(output)]
        known.append([])
        for annotation, full in zip(sampled, labels, strict=True):
            here = {place for place, label in enumerate(annotation.critical) if label is not None}
            known[-1].append(here)
            assert len(here) == min(len(full), max(1, round(count * len(full) if count < 1 else count)))
            assert all(annotation.critical[place] == full[place] for place in here)
            assert all(
                verdicts == [None, None] if place not in here else verdicts[0] is not None
                for place, verdicts in enumerate(annotation.alternative_correct)
            )
            assert len(annotation.alternatives) == len(annotation.entropies) == len(full)
        accounting = manifest["accounting"]
        assert accounting["known_tokens"] == sum(map(len, known[-1]))
        assert accounting["response_tokens"] == sum(map(len, labels))
        assert accounting["rollouts_wanted"] == 2 * accounting["known_tokens"]
        assert accounting["rollouts_made"] == len(list(read_rows(output, "rollouts")))
    assert all(few <= many for few, many in zip(known[0], known[1], strict=True))


def test_a_token_budget_bounds_the_rollouts(world: Any) -> None:
    """About as many tokens are rolled out as a budget allows, over all responses; a generous one changes nothing."""
    responses = responded(world)
    whole, manifest = annotated(world, responses)
    generous, _ = annotated(world, responses, "generous", token_budget=10**9)
    assert list(read_rows(generous)) == list(read_rows(whole))
    emitted = manifest["accounting"]["tokens_emitted"]
    output, small = annotated(world, responses, "small", token_budget=emitted // 3)
    assert 0.5 < small["accounting"]["tokens_emitted"] / (emitted / 3) < 1.5
    assert 0 < small["accounting"]["known_tokens"] < manifest["accounting"]["known_tokens"]
    assert sum(None not in row["critical"] for row in read_rows(output)) < len(list(read_rows(whole))) / 2


def test_settings_of_the_engine_change_no_label(world: Any) -> None:
    """Batches, drafts and groups of any size: the same annotations (in float64) and the same rollouts."""
    responses = responded(world)
    first, manifest = annotated(world, responses, output={"output": world.root / "first", "limit": 4})
    expected = [list(read_rows(first, table)) for table in ("data", "rollouts")]
    assert manifest["accounting"]["tokens_accepted"] > 0
    for number, (batch, draft, group) in enumerate(((2, 0, 1), (3, 9, 3), (200, 1, 50))):
        output, other = annotated(
            world,
            responses,
            output={"output": world.root / f"other-{number}", "limit": 4},
            engine={"batch_size": batch, "draft_length": draft},
            group_size=group,
        )
        assert [list(read_rows(output, table)) for table in ("data", "rollouts")] == expected
        assert other["accounting"]["tokens_emitted"] == manifest["accounting"]["tokens_emitted"]
        assert (other["accounting"]["tokens_accepted"] > 0) == (draft > 0)
