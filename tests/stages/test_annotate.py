from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cruxtune.criticality import Inquiry
from cruxtune.errors import ConfigError, DataError
from cruxtune.records import Annotation, Response
from cruxtune.settings import AnnotateSettings, RespondSettings
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

    output = world.root / name
    leaves = {"group_size": 3, **leaves}
    settings = AnnotateSettings.model_validate({"responses": responses, "output": {"output": output}, **leaves})
    return output, annotate(settings)


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


def test_another_tokenizer_is_refused(world: Any, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    """A model whose ids mean other text cannot annotate; the message names both."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    responses = responded(world)
    other = tmp_path / "other"
    tiny_model("llama").save_pretrained(other)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(259)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(other)
    with pytest.raises(ConfigError, match="another tokenizer"):
        annotated(world, responses, model={"model": str(other), "dtype": "float64"})


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


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=12), st.booleans())
def test_inquiry_asks_no_more_than_decides(truth: list[list[bool]], every: bool) -> None:
    """Whatever the verdicts: the mask is the definition's, and nothing is asked after a first correct alternative."""
    inquiry = Inquiry(len(truth), 3, every=every)
    asked: set[tuple[int, int]] = set()
    while wanted := inquiry.wanted():
        assert not asked & set(wanted)
        asked |= set(wanted)
        for position, rank in wanted:
            inquiry.record(position, rank, correct=truth[position][rank])
    assert inquiry.critical() == [not any(row) for row in truth]
    for position, row in enumerate(truth):
        needed = 3 if every or True not in row else row.index(True) + 1
        assert {rank for place, rank in asked if place == position} == set(range(needed))
