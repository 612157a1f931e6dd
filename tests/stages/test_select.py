"""Selections on disk: what each method keeps of real annotations, what the manifest says, and what training eats."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError, DataError, StoreError
from cruxtune.records import Annotation, Selection
from cruxtune.settings import build
from cruxtune.stage_settings import AnnotateSettings, RespondSettings, SelectSettings, TrainSettings
from cruxtune.store import read_rows


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[[Path], Any]) -> Path:
    """Annotated responses in the world of the stages, every alternative asked, and those where they were not."""
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.respond import respond

    root = tmp_path_factory.mktemp("select")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        world = make_world(root)
        respond(world.settings(RespondSettings, output=root / "responses"))
        for name, every in (("annotations", True), ("sparing", False)):
            leaves = {"responses": root / "responses", "output": root / name, "every_alternative": every}
            annotate(world.settings(AnnotateSettings, **leaves))
    return root / "annotations"


def selected(annotations: Path, method: str, **leaves: Any) -> tuple[dict[str, Any], list[Selection]]:
    """Select, and return the manifest and the rows."""
    from cruxtune.stages.select import select

    output = annotations.parent / f"selected-{method}-{len(list(annotations.parent.iterdir()))}"
    manifest = select(build(SelectSettings, {"method": method, "annotations": annotations, "output": output, **leaves}))
    return manifest, [Selection.from_row(row) for row in read_rows(output)]


def usable(annotations: Path) -> list[Annotation]:
    """The annotations that have a critical token."""
    return [row for row in map(Annotation.from_row, read_rows(annotations)) if any(row.critical)]


def test_every_method_sees_the_same_rows_and_keeps_its_budget(annotations: Path) -> None:
    """All methods write the same responses in the same order; rankings and random keep as many as are critical."""
    rows = usable(annotations)
    for method in ("critical", "all", "non-critical", "random", "numeric", "entropy", "attention", "criticality"):
        manifest, found = selected(annotations, method)
        assert [(row.id, row.prompt_ids, row.response_ids) for row in found] == [
            (row.response.problem.id, row.response.prompt_ids, row.response.response_ids) for row in rows
        ]
        assert [row.critical for row in found] == [row.critical for row in rows]
        counts = [sum(row.weights) for row in found]
        if method in ("critical", "random", "entropy", "attention"):
            assert counts == [sum(map(bool, row.critical)) for row in rows]
        kept = sum(weight > 0 for row in found for weight in row.weights)
        total = sum(len(row.weights) for row in found)
        assert manifest["accounting"]["tokens_kept"] == kept
        assert manifest["shares"]["kept"] == kept / total
        assert sum(token["kept"] for token in manifest["most_kept"]) <= kept
        assert manifest["settings"]["method"] == method
        assert manifest["settings"]["annotations"] == str(annotations)
        assert manifest["identity"]["annotations"].startswith("sha256:")


def test_shares_are_of_each_response(annotations: Path) -> None:
    """--share keeps that part of every response, one token at least."""
    for method in ("random", "entropy", "attention"):
        manifest, found = selected(annotations, method, share=0.3)
        assert [sum(row.weights) for row in found] == [max(1, round(0.3 * len(row.weights))) for row in found]
        assert manifest["settings"]["share"] == 0.3


def test_random_depends_on_the_seed_and_on_nothing_before_it(annotations: Path) -> None:
    """The same seed draws the same tokens, of fewer responses too; another seed draws others."""
    _, whole = selected(annotations, "random")
    assert len(whole) > 4
    _, part = selected(annotations, "random", limit=6)
    assert part == whole[: len(part)]
    _, other = selected(annotations, "random", seed=1)
    assert [row.weights for row in other] != [row.weights for row in whole]


def test_entropy_takes_the_annotating_policys(annotations: Path) -> None:
    """What is kept has no lower entropy in the annotations than what is not."""
    _, found = selected(annotations, "entropy")
    for row, annotation in zip(found, usable(annotations), strict=True):
        kept = [value for value, weight in zip(annotation.entropies, row.weights, strict=True) if weight]
        left = [value for value, weight in zip(annotation.entropies, row.weights, strict=True) if not weight]
        assert not left or min(kept) >= max(left)


def test_numeric_is_what_the_text_has(annotations: Path) -> None:
    """Of a byte-level tokenizer without merges, tokens of digits are the digits' bytes."""
    _, found = selected(annotations, "numeric")
    digits = set(b"0123456789")
    kept = {token for row in found for token, weight in zip(row.response_ids, row.weights, strict=True) if weight}
    assert kept & digits
    for row in found:
        for token, weight in zip(row.response_ids, row.weights, strict=True):
            if token in digits:
                assert weight == 1


def test_union_and_intersection_join_two_methods(annotations: Path) -> None:
    """Weights are the larger or smaller of the two methods' own."""
    _, one = selected(annotations, "critical")
    _, other = selected(annotations, "entropy", share=0.2)
    _, union = selected(annotations, "union", first="critical", second="entropy", share=0.2)
    _, both = selected(annotations, "intersection", first="critical", second="entropy", share=0.2)
    for a, b, larger, smaller in zip(one, other, union, both, strict=True):
        assert larger.weights == [max(pair) for pair in zip(a.weights, b.weights, strict=True)]
        assert smaller.weights == [min(pair) for pair in zip(a.weights, b.weights, strict=True)]


def test_rho1_is_the_loss_beyond_the_references(annotations: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    """Against losses of both models by plain forward passes; the manifest names the reference."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = tiny_checkpoint(annotations.parent / "reference", seed=5)
    manifest, found = selected(annotations, "rho1", reference=str(reference), limit=6)
    assert manifest["facts"]["reference"]["model"] == str(reference)
    assert manifest["identity"]["reference"].startswith("sha256:")
    models = [
        AutoModelForCausalLM.from_pretrained(annotations.parent / name, dtype=torch.float64)
        for name in ("model", "reference")
    ]
    for row in found:
        losses = []
        for model in models:
            logits = model(torch.tensor([row.prompt_ids + row.response_ids])).logits[0, len(row.prompt_ids) - 1 : -1]
            targets = torch.tensor(row.response_ids)
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        excess = losses[0] - losses[1]
        kept = torch.tensor(row.weights) > 0
        assert kept.sum() == sum(map(bool, row.critical))
        assert kept.all() or excess[kept].min() >= excess[~kept].max() - 1e-5


def test_a_reference_of_another_tokenizer_is_refused(annotations: Path, tiny_model: Callable[..., Any]) -> None:
    """Its losses are of other tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = annotations.parent / "other"
    tiny_model("llama").save_pretrained(other)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(259)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(other)
    with pytest.raises(ConfigError, match=r"--reference .*other has another tokenizer"):
        selected(annotations, "rho1", reference=str(other))


def test_criticality_needs_every_alternative(annotations: Path) -> None:
    """With alternatives left out it is refused and told how to ask them; weights are shares of failures otherwise."""
    _, graded = selected(annotations, "criticality")
    assert {weight for row in graded for weight in row.weights} == {0.0, 0.5, 1.0}
    for row in graded:
        assert [weight == 1 for weight in row.weights] == row.critical
    with pytest.raises(DataError, match="--every-alternative"):
        selected(annotations.parent / "sparing", "criticality")


def test_a_selection_is_resumed_and_refused_like_any_dataset(
    annotations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that are there stay, another method in the same place is refused, a finished one is returned as it is."""
    import cruxtune.stages.select as stage

    monkeypatch.setattr(stage, "_GROUP", 2)
    output = annotations.parent / "out"
    settings = build(SelectSettings, {"method": "random", "annotations": annotations, "output": output})
    first = stage.select(settings)
    rows = list(read_rows(output))
    shards = sorted((output / "data").iterdir())
    assert len(shards) > 2
    (output / "manifest.json").write_text(json.dumps({**first, "complete": False}))
    shards[1].unlink()
    before = shards[0].stat().st_mtime_ns
    again = stage.select(settings)
    assert shards[0].stat().st_mtime_ns == before
    assert list(read_rows(output)) == rows
    assert again["fingerprint"] == first["fingerprint"]
    with pytest.raises(StoreError, match="method"):
        stage.select(settings.model_copy(update={"method": "all"}))


def test_nothing_kept_is_an_error(annotations: Path) -> None:
    """The intersection of critical and non-critical tokens is empty."""
    with pytest.raises(DataError, match=r"--method intersection keeps none of \d+ tokens"):
        selected(annotations, "intersection", first="critical", second="non-critical")


def test_training_eats_a_selection(annotations: Path) -> None:
    """A selection of critical tokens trains as `--method cft` does, and a graded one with its weights."""
    from cruxtune.stages.train import train

    losses = {}
    for name, leaves in {
        "cft": {"method": "cft", "annotations": annotations},
        "critical": {"selection": annotations.parent / "critical"},
        "graded": {"selection": annotations.parent / "graded"},
    }.items():
        if "selection" in leaves:
            from cruxtune.stages.select import select

            method = "criticality" if name == "graded" else name
            select(build(SelectSettings, {"method": method, "annotations": annotations, "output": leaves["selection"]}))
        output = annotations.parent / f"trained-{name}"
        manifest = train(build(TrainSettings, {**leaves, "output": output, "epochs": 1, "batch_size": 4}))
        lines = (output / "training_log.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
        assert manifest["facts"]["method"] == {"graded": "criticality"}.get(name, name)
    assert losses["cft"] == losses["critical"]
    assert losses["graded"] != losses["cft"]


def test_the_command_prints_the_share_and_the_most_kept_tokens(annotations: Path) -> None:
    """`cruxtune select` shows how much is kept, what is kept most, and where it is."""
    program = Path(sys.executable).with_name("cruxtune")
    command = [program, "select", "--method", "critical", "--annotations", annotations, "--output", "chosen"]
    done = subprocess.run(command, cwd=annotations.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "chosen\n"
    assert "tokens kept" in done.stderr
    assert "%" in done.stderr
    assert "most kept" in done.stderr
