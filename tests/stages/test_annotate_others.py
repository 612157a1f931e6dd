"""Annotation of what is not the model's own greedy response, of tokens together, and by several rollouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError, DataError
from cruxtune.records import Annotation, Response, Selection
from cruxtune.settings import build
from cruxtune.stage_settings import AnnotateSettings, EstimateSettings, RespondSettings, SelectSettings
from cruxtune.store import read_manifest, read_rows


def responded(world: Any, name: str = "responses", **leaves: Any) -> Path:
    """The output of `respond` in this world."""
    from cruxtune.stages.respond import respond

    output: Path = world.root / name
    respond(world.settings(RespondSettings, output=output, **leaves))
    return output


def annotated(responses: Path, name: str = "annotations", **leaves: Any) -> tuple[Path, dict[str, Any]]:
    """The output of `annotate` on these responses, and its manifest."""
    from cruxtune.stages.annotate import annotate

    output = responses.parent / name
    fixed = {"batch_size": 8, "draft_length": 4, "dtype": "float64"} if "model" in leaves else {"batch_size": 8}
    leaves = {"draft_length": 4, "group_size": 3, **fixed, **leaves}
    return output, annotate(build(AnnotateSettings, {"responses": responses, "output": output, **leaves}))


def rows_of(output: Path) -> list[Annotation]:
    """The annotations in a directory."""
    return [Annotation.from_row(row) for row in read_rows(output)]


def decoder(model: Any, limit: int) -> Callable[[list[int], list[int]], list[int]]:
    """One `generate` per rollout: (prompt ids, beginning) → the whole response."""
    import torch
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id

    def decode(prompt: list[int], head: list[int]) -> list[int]:
        if head[-1] in ends or len(head) >= limit:
            return head
        config = GenerationConfig(do_sample=False, max_new_tokens=limit - len(head), eos_token_id=ends, pad_token_id=0)
        start = torch.tensor([prompt + head])
        whole = model.generate(start, generation_config=config, attention_mask=torch.ones_like(start))
        return whole[0, len(prompt) :].tolist()  # type: ignore[no-any-return]

    return decode


def even(ids: list[int], tokenizer: Any) -> bool:
    """The verdict of the world's verifier."""
    return sum(tokenizer.decode(ids, skip_special_tokens=True).encode()) % 2 == 0


def test_only_the_models_own_greedy_responses_keep_by_themselves(
    world: Any, tiny_tokenizer: Callable[..., Any]
) -> None:
    """Greedy ones are annotated as they are without samples; a sampled one as an independent definition says."""
    import torch
    from transformers import AutoModelForCausalLM

    leaves = {"loop_stop": False, "limit": 8}
    greedy, _ = annotated(responded(world, "greedy", **leaves), "alone")
    output, manifest = annotated(responded(world, samples=2, **leaves))
    found = rows_of(output)
    own = [one for one in found if one.response.origin == "greedy"]
    assert [(one.critical, one.alternative_correct) for one in own] == [
        (one.critical, one.alternative_correct) for one in rows_of(greedy)
    ]
    assert all(set(one.kept_correct or []) == {None} for one in own)
    assert not any(any(one.undecided) for one in own)
    others = [one for one in found if one.response.origin == "sampled"]
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64)
    tokenizer, decode = tiny_tokenizer(), decoder(model, 24)
    seen = []
    for annotation in others[:5]:
        prompt, ids = annotation.response.prompt_ids, annotation.response.response_ids
        assert annotation.kept_correct is not None
        for t, token in enumerate(ids):
            kept = even(decode(prompt, [*ids[:t], token]), tokenizer)
            failed = [not even(decode(prompt, [*ids[:t], one]), tokenizer) for one in annotation.alternatives[t]]
            assert annotation.kept_correct[t] is kept
            assert annotation.critical[t] is (all(failed) if kept else None)
            seen.append(annotation.critical[t])
    assert {True, False, None} == set(seen)
    done = manifest["accounting"]
    assert done["responses_not_own"] == len(others)
    assert done["undecided_tokens"] == sum(sum(one.undecided) for one in found) > 0
    # A rollout answers for all tokens before it that the model would have chosen itself.
    assert len(others) <= done["rollouts_kept"] < sum(len(one.response.response_ids) for one in others)
    assert done["known_tokens"] + done["undecided_tokens"] == done["response_tokens"]
    assert done["rollouts_made"] == len(list(read_rows(output, "rollouts")))
    kept = [row for row in read_rows(output, "rollouts") if row["rank"] == -1]
    assert {row["sample"] for row in kept} == {1, 2}


def test_not_asked_and_undecided_are_told_apart(world: Any) -> None:
    """Of a sample of positions the rest is not asked about; where keeping fails it is undecided, and never trained."""
    from cruxtune.chosen import Chosen
    from cruxtune.selectors import critical
    from cruxtune.stages.select import select

    output, manifest = annotated(responded(world, samples=2), positions=0.5)
    found = rows_of(output)
    unknown = [(one.kept_correct or [])[t] for one in found for t, mask in enumerate(one.critical) if mask is None]
    assert {None, False} == set(unknown)
    assert manifest["accounting"]["undecided_tokens"] == unknown.count(False)
    usable = [one for one in found if any(one.critical)]
    rows = list(Chosen(output, None).rows(None, lambda mask: critical(mask, unknown=1.0)))
    for row, annotation in zip(rows, usable, strict=True):
        weights = row.weights[len(annotation.response.prompt_ids) :]
        assert weights == [
            0.0 if open_ else 1.0 if mask is None else float(mask)
            for mask, open_ in zip(annotation.critical, annotation.undecided, strict=True)
        ]
    for method in ("critical", "non-critical", "random", "all"):
        where = world.root / f"selected-{method}"
        leaves = {"method": method, "annotations": output, "output": where}
        if "critical" in method:
            leaves["unknown"] = "train"
        done = select(build(SelectSettings, leaves))["accounting"]
        selections = [Selection.from_row(row) for row in read_rows(where)]
        assert [(one.id, one.sample) for one in selections] == [one.response.key for one in usable]
        assert [one.undecided for one in selections] == [one.undecided for one in usable]
        assert done["undecided_tokens"] == sum(sum(one.undecided) for one in usable)
        if "critical" in method:
            for one in selections:
                assert not any(w for w, open_ in zip(one.weights, one.undecided, strict=True) if open_)
                left = zip(one.weights, one.critical, one.undecided, strict=True)
                assert all(w == 1 for w, mask, open_ in left if mask is None and not open_)
    drawn = [tuple(Selection.from_row(row).weights) for row in read_rows(world.root / "selected-random")]
    assert len(set(drawn)) > len(drawn) / 2


def test_a_response_twice_is_annotated_once(world: Any) -> None:
    """Samples that say what another said are left out and counted; the first one stays."""
    responses = responded(world, samples=6, temperature=0.02, limit=16)
    output, manifest = annotated(responses)
    keys = [one.response.key for one in rows_of(output)]
    right = [one for one in map(Response.from_row, read_rows(responses)) if one.verdict.correct]
    distinct = {(one.problem.id, tuple(one.response_ids)): one.key for one in reversed(right)}
    assert sorted(keys) == sorted(distinct.values())
    assert manifest["responses_left_out"]["repeated"] == len(right) - len(keys) > 0


def test_another_model_keeps_first(world: Any, tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    """Responses of another model, or of the same one in another precision, are nobody's own."""
    responses = responded(world)
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    _, crossed = annotated(responses, "crossed", model=str(other), limit=3)
    assert crossed["accounting"]["responses_not_own"] == crossed["accounting"]["responses"]
    _, rounded = annotated(responses, "rounded", model=str(world.model), dtype="float32", limit=3)
    assert rounded["accounting"]["responses_not_own"] == rounded["accounting"]["responses"]
    _, same = annotated(responses, "same", model=str(world.model), limit=3)
    assert same["accounting"]["responses_not_own"] == same["accounting"]["rollouts_kept"] == 0


@pytest.mark.parametrize("kind", ["pairs", "spans"])
def test_tokens_together(
    kind: str, world: Any, tiny_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets without a critical token, replaced from left to right, equal an independent definition; counted apart."""
    import torch
    from transformers import AutoModelForCausalLM

    from cruxtune import joint

    # Random bytes have few numbers and lines: any two or three characters make one here.
    monkeypatch.setattr(joint, "_NUMBER", joint.re.compile(r"(?s).{2,3}"))
    responses = responded(world, loop_stop=False, limit=8)
    alone, before = annotated(responses, "alone")
    output, manifest = annotated(responses, joint=kind)
    assert list(read_rows(output)) == list(read_rows(alone))
    assert list(read_rows(output, "rollouts")) == list(read_rows(alone, "rollouts"))
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64)
    tokenizer, decode = tiny_tokenizer(), decoder(model, 24)
    ends = model.generation_config.eos_token_id
    by_key = {one.response.key: one for one in rows_of(output)}
    sets = list(read_rows(output, "joint"))
    for row in sets[:30]:
        annotation = by_key[row["id"], row["sample"]]
        prompt, ids = annotation.response.prompt_ids, annotation.response.response_ids
        start, end = row["position"], row["position"] + row["length"]
        assert annotation.critical[start:end] == [False] * (end - start)
        verdicts = []
        for first in annotation.alternatives[start]:
            changed = [*ids[:start], first]
            for t in range(start + 1, end):
                if changed[-1] in ends:
                    break
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + changed])).logits[0, -1].tolist()
                changed.append(max((i for i in range(len(logits)) if i != ids[t]), key=lambda i: (logits[i], -i)))
            verdicts.append(even(decode(prompt, changed), tokenizer))
        assert row["critical"] is (not any(verdicts))
        assert row["alternative_correct"] == ([True, None] if verdicts[0] else verdicts)
    done = manifest["accounting"]
    rollouts = list(read_rows(output, "joint_rollouts"))
    assert {row["length"] >= 2 for row in rollouts} == {True}
    assert done["rollouts_joint"] == len(rollouts)
    assert done["joint_sets_asked"] == done["joint_sets_open"] == len(sets) > 0
    assert done["joint_sets_critical"] == sum(row["critical"] for row in sets)
    assert done["tokens_emitted"] == before["accounting"]["tokens_emitted"] + done["tokens_emitted_joint"]
    for name in ("rollouts_made", "rollouts_wanted", "critical_tokens", "tokens_expected"):
        assert done[name] == before["accounting"][name]
    if kind == "pairs":
        assert {row["kind"] for row in sets} == {"pair"}
        masks = [one.critical for one in by_key.values()]
        assert len(sets) == sum(mask[t : t + 2] == [False] * 2 for mask in masks for t in range(len(mask) - 1))


def test_a_joint_budget_bounds_them(world: Any) -> None:
    """About as many tokens go into sets as allowed, over all groups, and the same ones after a resume."""
    responses = responded(world)
    whole, manifest = annotated(responses, "whole", joint="pairs")
    budget = int(manifest["accounting"]["tokens_emitted_joint"] // 2)
    output, some = annotated(responses, "some", joint="pairs", joint_budget=budget)
    assert some["accounting"]["tokens_emitted_joint"] == pytest.approx(budget, rel=0.4)
    asked = [(row["id"], row["position"]) for row in read_rows(output, "joint")]
    assert set(asked) < {(row["id"], row["position"]) for row in read_rows(whole, "joint")}
    assert len({identifier for identifier, _ in asked}) > 4
    again = responses.parent / "again"
    shutil.copytree(output, again)
    (again / "manifest.json").write_text(json.dumps({**read_manifest(output), "complete": False}))
    for table in ("data", "rollouts", "joint", "joint_rollouts"):
        for shard in sorted((again / table).iterdir())[1:]:
            shard.unlink()
    annotated(responses, "again", joint="pairs", joint_budget=budget)
    for table in ("data", "rollouts", "joint", "joint_rollouts"):
        assert list(read_rows(again, table)) == list(read_rows(output, table))


def test_sampled_rollouts_grade(world: Any) -> None:
    """Shares of correct draws beside the greedy labels; they do not depend on batches or groups, and weigh tokens."""
    from cruxtune.stages.select import select

    responses = responded(world)
    leaves = {"rollouts_per_alternative": 3, "temperature": 1.5, "limit": 4}
    alone, _ = annotated(responses, "alone", limit=4)
    output, manifest = annotated(responses, **leaves)
    found = rows_of(output)
    assert [(one.critical, one.alternative_correct) for one in found] == [
        (one.critical, one.alternative_correct) for one in rows_of(alone)
    ]
    draws = list(read_rows(output, "sampled_rollouts"))
    length = sum(len(one.response.response_ids) for one in found)
    assert len(draws) == manifest["accounting"]["rollouts_sampled"] == 3 * 3 * length
    right: dict[tuple[str, int, int], list[bool]] = {}
    for row in draws:
        right.setdefault((row["id"], row["position"], row["rank"]), []).append(row["correct"])
    select(build(SelectSettings, {"method": "criticality", "annotations": output, "output": world.root / "graded"}))
    weights = {(row["id"], row["sample"]): row["weights"] for row in read_rows(world.root / "graded")}
    assert weights
    graded = set()
    for annotation in found:
        name = annotation.response.problem.id
        assert annotation.kept_success is not None
        assert annotation.alternative_success is not None
        for t, kept in enumerate(annotation.kept_success):
            shares = [sum(right[name, t, rank]) / 3 for rank in (-1, 0, 1)]
            assert [kept, *annotation.alternative_success[t]] == pytest.approx(shares)
            if annotation.response.key in weights:
                weight = max(0.0, shares[0] - (shares[1] + shares[2]) / 2)
                assert weights[annotation.response.key][t] == pytest.approx(weight, abs=1e-6)
                graded.add(round(weight, 3))
    assert len(graded) > 3
    other, _ = annotated(responses, "other", **leaves, batch_size=3, group_size=1, draft_length=0)
    for table in ("data", "rollouts", "sampled_rollouts"):
        assert list(read_rows(other, table)) == list(read_rows(output, table))


def merging_checkpoint(world: Any, tiny_model: Callable[..., Any]) -> Path:
    """A model whose byte-level tokenizer merges digits and common letters, so that its tokens are longer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    base = json.loads(AutoTokenizer.from_pretrained(world.model).backend_tokenizer.to_str())["model"]["vocab"]
    vocabulary = {token: number for token, number in base.items() if number < 256}
    merges = [("a", "n"), ("an", "d"), ("o", "n"), ("i", "s"), ("#", "#"), ("##", "##"), ("1", "0"), ("Ġ", "and")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    path: Path = world.root / "merging"
    end = tokenizer.token_to_id("<end>")
    tiny_model("llama", vocab_size=280, seed=2, eos=[end]).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path)
    return path


@pytest.fixture
def solved(world: Any) -> Path:
    """Worked solutions as responses, in the tokens of the world's model."""
    rows = [
        {"id": f"s{n}", "question": f"{n} + 1?", "answer": str(n + 1), "solution": f"{n} and one is {n + 1}. Né!"}
        for n in range(8, 20)
    ]
    (world.root / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return responded(
        world, "solved", problems=str(world.root / "solved.jsonl"), worked_solutions=True, max_new_tokens=48
    )


def test_a_model_of_another_tokenizer_annotates_its_own_tokens(
    solved: Path, world: Any, tiny_model: Callable[..., Any]
) -> None:
    """Prompt and text become its tokens; labels are those of the definition there; `select --onto` puts them back."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cruxtune.chosen import Chosen
    from cruxtune.stages.select import select

    other = merging_checkpoint(world, tiny_model)
    output, manifest = annotated(solved, model=str(other))
    tokenizer = AutoTokenizer.from_pretrained(other)
    decode = decoder(AutoModelForCausalLM.from_pretrained(other, dtype=torch.float64), 48)
    source = {one.key: one for one in map(Response.from_row, read_rows(solved)) if one.verdict.correct}
    found = rows_of(output)
    assert {one.response.key for one in found} == source.keys()
    assert manifest["facts"]["tokenizer"] != manifest["responses_tokenizer"]
    assert manifest["accounting"]["responses_not_own"] == len(found)
    for annotation in found[:2]:
        response = annotation.response
        theirs = source[response.key]
        assert response.text == theirs.text
        assert tokenizer.decode(response.response_ids) == response.text + "<end>"
        assert tokenizer.decode(response.prompt_ids) == "".join(map(chr, theirs.prompt_ids))
        assert len(response.response_ids) < len(theirs.response_ids)
        for t, token in enumerate(response.response_ids):
            before = response.response_ids[:t]
            kept = even(decode(response.prompt_ids, [*before, token]), tokenizer)
            failed = [
                not even(decode(response.prompt_ids, [*before, one]), tokenizer) for one in annotation.alternatives[t]
            ]
            assert annotation.critical[t] is (all(failed) if kept else None)
    leaves = {"method": "critical", "annotations": output, "onto": solved, "output": world.root / "onto"}
    select(build(SelectSettings, leaves))
    selections = [Selection.from_row(row) for row in read_rows(world.root / "onto")]
    usable = [one for one in found if any(one.critical)]
    assert [(one.id, one.sample) for one in selections] == [one.response.key for one in usable]
    for selection, annotation in zip(selections, usable, strict=True):
        response = source[selection.id, selection.sample]
        assert (selection.prompt_ids, selection.response_ids) == (response.prompt_ids, response.response_ids)
        # Tokens of the world's model are bytes, so that every byte has the label of the token that it is in.
        expected: list[bool | None] = []
        for token, mask in zip(annotation.response.response_ids, annotation.critical, strict=True):
            # Its name has a character for each byte; the end of sequence is one token on both sides.
            name = tokenizer.convert_ids_to_tokens(token)
            expected += [mask] * (1 if name == "<end>" else len(name))
        letter = response.text.encode().index("é".encode())
        parts = expected[letter : letter + 2]
        expected[letter : letter + 2] = [True if True in parts else None if None in parts else False] * 2
        assert selection.critical == expected
        assert selection.weights == [float(mask is True) for mask in expected]
    chosen = Chosen(None, world.root / "onto")
    assert chosen.model.model == str(world.model)
    assert len(list(chosen.rows(None))) == len(selections)
    chosen.tokenizer()


def test_onto_must_be_what_was_annotated(solved: Path, world: Any, tiny_model: Callable[..., Any]) -> None:
    """Other responses are refused, and say which ones are meant."""
    from cruxtune.stages.select import select

    output, _ = annotated(solved, model=str(merging_checkpoint(world, tiny_model)))
    onto = responded(world, limit=4)
    leaves = {"method": "all", "annotations": output, "onto": onto, "output": world.root / "onto"}
    with pytest.raises(ConfigError, match=r"--onto .*responses holds other responses"):
        select(build(SelectSettings, leaves))


def test_what_cannot_be_annotated_is_left_out(
    solved: Path, world: Any, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    """A tokenizer that changes every text leaves nothing; responses longer than the token limit are left out."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = tmp_path / "words"
    tiny_model("llama").save_pretrained(other)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(259)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(other)
    count = sum(row["correct"] for row in read_rows(solved))
    with pytest.raises(DataError, match=rf"none of {count} correct responses .* its tokenizer changes the text"):
        annotated(solved, model=str(other))
    short = responded(
        world, "short", problems=str(world.root / "solved.jsonl"), worked_solutions=True, max_new_tokens=29
    )
    output, manifest = annotated(short, "short-annotations")
    lengths = [len(one.response.response_ids) for one in rows_of(output)]
    assert max(lengths) <= 29
    assert manifest["responses_left_out"]["long"] == count - len(lengths) > 0


def test_an_estimate_counts_all_kinds_of_rollouts(world: Any) -> None:
    """Kept tokens, samples and sets come on top; a budget for sets bounds them."""
    from cruxtune.stages.estimate import estimate

    responses = responded(world, samples=1, limit=8)
    leaves: dict[str, Any] = {"responses": responses, "trial_seconds": 1e6}
    found = estimate(build(EstimateSettings, leaves))
    _, manifest = annotated(responses, "plain")
    done = manifest["accounting"]
    assert done["responses_not_own"] > 0
    assert found.rollouts_wanted == done["rollouts_wanted"]
    assert found.rollouts == pytest.approx(done["rollouts_made"], rel=0.3)
    assert found.sampled == found.joint == 0
    more = {"rollouts_per_alternative": 2, "joint": "pairs"}
    both = estimate(build(EstimateSettings, {**leaves, **more}))
    _, manifest = annotated(responses, "both", **more)
    done = manifest["accounting"]
    assert both.sampled == done["rollouts_sampled"]
    assert both.joint == pytest.approx(done["rollouts_joint"], rel=0.6)
    assert both.rollouts == both.sampled + both.joint + found.rollouts
    assert both.tokens == pytest.approx(done["tokens_emitted"], rel=0.4)
    assert both.seconds > found.seconds
    less = estimate(build(EstimateSettings, {**leaves, **more, "joint_budget": 50}))
    assert 0 < less.joint < both.joint / 2
