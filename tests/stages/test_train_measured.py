"""Training that is measured: validation by accuracy, early stopping, the probe, resuming, and what the logs get."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cruxtune.errors import ConfigError, DataError, StoreError
from cruxtune.records import Annotation, Problem
from cruxtune.stage_settings import (
    AnnotateSettings,
    HubSettings,
    RespondSettings,
    SelectSettings,
    TrainSettings,
    ValidationSettings,
)
from cruxtune.store import read_manifest, read_rows

PROBE = ("eval_loss_critical", "eval_loss_other", "eval_entropy_critical", "eval_entropy_other")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[[Path], Any]) -> Any:
    """A world with annotated responses, which no test changes."""
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.respond import respond

    root = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        world = make_world(root)
        respond(world.settings(RespondSettings, output=root / "responses"))
        annotate(world.settings(AnnotateSettings, responses=root / "responses", output=root / "annotations"))
    return world


@pytest.fixture
def annotations(made: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the annotations are; the working directory has the judge."""
    monkeypatch.chdir(made.root)
    return Path(made.root / "annotations")


def trained(data: Path, output: Path, **leaves: Any) -> dict[str, Any]:
    """Train on annotations (or a selection) with a few short steps in float64 unless told otherwise."""
    from cruxtune.settings import build
    from cruxtune.stages.train import train

    selected = (data / "manifest.json").exists() and read_manifest(data)["stage"] == "select"
    source = {"selection": data} if selected else {"method": "cft", "annotations": data}
    defaults = {**source, "epochs": 2, "batch_size": 2, "learning_rate": 3e-3}
    return train(build(TrainSettings, {**defaults, "output": output, **leaves}))


def log_of(output: Path) -> list[dict[str, Any]]:
    """Every entry of a training log."""
    return [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]


def validations(output: Path) -> list[dict[str, Any]]:
    """The entries that hold an accuracy."""
    return [entry for entry in log_of(output) if "eval_accuracy" in entry]


def losses(output: Path) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in log_of(output) if "loss" in entry]


def answers(model: Path, problems: Sequence[Problem]) -> float:
    """The share of problems that a checkpoint answers greedily as the judge wants it, one `generate` each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    right = 0
    for problem in problems:
        prompt = tokenizer(f"Question: {problem.question}\nAnswer:", add_special_tokens=False)["input_ids"]
        ids = loaded.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        right += sum(text.encode()) % 2 == 0
    return right / len(problems)


def held_problems(annotations: Path, wanted: float, seed: int = 0) -> list[Problem]:
    """The problems that `--validation` draws."""
    from cruxtune.validation import draw

    asked = [Problem.from_row(row) for row in read_rows(annotations.parent / "responses")]
    return draw(asked, wanted, seed)


def test_validation_is_our_greedy_accuracy_on_problems_kept_out(annotations: Path, tmp_path: Path) -> None:
    """Accuracy, at start and of the kept weights, is that of one `generate` per problem; what is held is left out."""
    manifest = trained(annotations, tmp_path / "out", validation=0.25, evaluate_every=2)
    held = held_problems(annotations, 0.25)
    found = manifest["validation"]
    assert manifest["facts"]["validation_problems"] == len(held) == 6
    assert validations(tmp_path / "out")[0]["step"] == 0
    assert found["accuracy_at_start"] == answers(annotations.parent / "model", held)
    assert found["accuracy"] == answers(tmp_path / "out", held)
    assert found["accuracy"] == max(entry["eval_accuracy"] for entry in validations(tmp_path / "out")[1:])
    usable = [row for row in map(Annotation.from_row, read_rows(annotations)) if any(row.critical)]
    kept_out = [row for row in usable if row.response.problem in held]
    assert kept_out
    assert manifest["facts"]["rows"] == len(usable) - len(kept_out)
    assert manifest["facts"]["validation_rows"] == len(kept_out)


def test_all_methods_validate_on_the_same_problems(annotations: Path, tmp_path: Path) -> None:
    """Cft, sft and a selection have the same validation problems and rows, and the same accuracy to start from."""
    from cruxtune.settings import build
    from cruxtune.stages.select import select

    select(build(SelectSettings, {"method": "entropy", "annotations": annotations, "output": tmp_path / "entropy"}))
    manifests = [
        trained(annotations, tmp_path / "cft", validation=6, epochs=1),
        trained(annotations, tmp_path / "sft", validation=6, epochs=1, method="sft"),
        trained(tmp_path / "entropy", tmp_path / "chosen", validation=6, epochs=1),
    ]
    assert len({manifest["identity"]["validation"] for manifest in manifests}) == 1
    assert len({(manifest["facts"]["rows"], manifest["facts"]["validation_rows"]) for manifest in manifests}) == 1
    assert len({manifest["validation"]["accuracy_at_start"] for manifest in manifests}) == 1


def loss_on(model: Path, annotations: Path, held: Sequence[Problem], method: str, dft: bool) -> float:
    """Σ w ℓ ÷ Σ w of a checkpoint over the rows of held problems, by one plain forward pass per row."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    adapter = (model / "adapter_config.json").exists()
    loader = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    loaded = loader.from_pretrained(model, dtype=torch.float64).eval()
    total, weight = 0.0, 0
    for row in map(Annotation.from_row, read_rows(annotations)):
        if row.response.problem in held and any(row.critical):
            prompt, response = row.response.prompt_ids, row.response.response_ids
            logprobs = loaded(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for place, (token, critical) in enumerate(zip(response, row.critical, strict=True)):
                if critical or method == "sft":
                    picked = logprobs[place, token].item()
                    total -= picked * (math.exp(picked) if dft else 1)
                    weight += 1
    return total / weight


@pytest.mark.parametrize(
    "leaves",
    [
        {"method": "cft"},
        {"method": "sft", "keep": "last"},
        {"method": "cft", "loss": "dft"},
        {"method": "cft", "lora": True, "lora_rank": 4, "learning_rate": 0.05},
    ],
    ids=["cft", "last", "dft", "lora"],
)
def test_the_weights_that_are_kept_have_the_loss_that_was_logged(
    annotations: Path, tmp_path: Path, leaves: dict[str, Any]
) -> None:
    """Validation loss is Σ loss ÷ Σ weight over the set, and the output holds the weights of that validation."""
    manifest = trained(annotations, tmp_path / "out", validation=0.25, evaluate_every=1, **leaves)
    found = manifest["validation"]
    held = held_problems(annotations, 0.25)
    scored = validations(tmp_path / "out")[1:]
    if leaves.get("keep") == "last":
        assert found["step"] == scored[-1]["step"]
    else:
        best = max(entry["eval_accuracy"] for entry in scored)
        assert found["step"] == next(entry["step"] for entry in scored if entry["eval_accuracy"] == best)
    expected = loss_on(tmp_path / "out", annotations, held, leaves["method"], leaves.get("loss") == "dft")
    assert found["loss"] == pytest.approx(expected, rel=1e-9)
    assert len({entry["eval_loss"] for entry in scored}) == len(scored)
    assert not (tmp_path / "out" / "trainer").exists()


def test_measuring_changes_no_step(annotations: Path, tmp_path: Path) -> None:
    """With problems from elsewhere, a probe and gradient checkpointing, every loss is that of a run without."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"question": f"And {n}?", "answer": str(n)}) + "\n" for n in range(4)))
    trained(annotations, tmp_path / "plain")
    trained(annotations, tmp_path / "resumable", trainer={"activation_checkpointing": True})
    more = {"validation": str(other), "validation_source": {"kind": "custom"}, "probe": 3, "evaluate_every": 1}
    manifest = trained(
        annotations, tmp_path / "measured", keep="last", trainer={"activation_checkpointing": True}, **more
    )
    assert losses(tmp_path / "measured") == losses(tmp_path / "resumable")
    assert losses(tmp_path / "measured") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    assert manifest["facts"]["validation_rows"] == 0
    assert manifest["validation"]["loss"] is None
    assert len(validations(tmp_path / "measured")) == len(losses(tmp_path / "measured")) + 1
    assert not any(name.startswith("eval_") for entry in log_of(tmp_path / "plain") for name in entry)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_mixed_precision_is_measured_as_it_is_trained(annotations: Path, tmp_path: Path, lora: bool) -> None:
    """Under autocast a model is examined between steps, and goes on training."""
    model = {"model": str(annotations.parent / "model"), "dtype": "float32"}
    leaves = {**model, "lora": lora, "trainer": {"bf16": True}}
    trained(annotations, tmp_path / "out", probe=3, evaluate_every=2, **leaves)
    trained(annotations, tmp_path / "plain", **leaves)
    assert losses(tmp_path / "out") == losses(tmp_path / "plain")
    probes = [entry for entry in log_of(tmp_path / "out") if PROBE[0] in entry]
    assert len({entry["eval_loss_critical"] for entry in probes}) == len(probes) > 2


def count_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens with loss of every batch that is trained on from now on."""
    from cruxtune.weighted import WeightedTrainer

    seen: list[int] = []
    original = WeightedTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        seen.append(int((inputs["weights"][:, 1:] > 0).sum()))
        return original(self, model, inputs, *args, **options)

    monkeypatch.setattr(WeightedTrainer, "compute_loss", spy)
    return seen


@pytest.mark.parametrize(
    ("leaves", "steps"),
    [
        ({"trainer": {"max_steps": 3}}, 3),
        ({"validation": 0.25, "patience": 2, "evaluate_every": 1, "learning_rate": 1e-12}, 3),
        ({"micro_batch_size": 1}, None),
    ],
    ids=["max-steps", "patience", "whole"],
)
def test_tokens_trained_are_those_that_were(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: dict[str, Any], steps: int | None
) -> None:
    """A run that ends early counts the tokens of its own batches, a whole one those of all epochs."""
    seen = count_trained(monkeypatch)
    manifest = trained(annotations, tmp_path / "out", **leaves)
    done = manifest["accounting"]
    assert done["tokens_trained"] == sum(seen) > 0
    if steps is None:
        assert done["tokens_trained"] == 2 * manifest["facts"]["tokens_per_epoch"]
    else:
        assert done["steps"] == steps
        assert done["tokens_trained"] < 2 * manifest["facts"]["tokens_per_epoch"]
    if "patience" in leaves:
        # The first validation is the best; two more without a gain end it.
        assert manifest["validation"]["stopped_early"]
        assert manifest["validation"]["step"] == 1


class Interrupted(BaseException):
    """What ends a run in the middle."""


def interrupt(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """End the run at a moment of its third step or thereabouts, as a crash would."""
    from transformers import Trainer, TrainerState

    import cruxtune.examination as examination

    save, to_json, whole = Trainer._save_checkpoint, TrainerState.save_to_json, examination._save_whole

    def stop(*_: Any) -> None:
        raise Interrupted

    def saving(self: Any, *args: Any) -> None:
        if moment == "inside-checkpoint" and self.state.global_step == 3:
            monkeypatch.setattr(TrainerState, "save_to_json", stop)
        save(self, *args)
        if moment == "after-checkpoint" and self.state.global_step == 3:
            stop()

    def keeping(path: Path, write: Callable[[Path], None]) -> None:
        whole(path, write)
        if moment == "after-best":
            stop()

    monkeypatch.setattr(Trainer, "_save_checkpoint", saving)
    monkeypatch.setattr(TrainerState, "save_to_json", to_json)
    monkeypatch.setattr(examination, "_save_whole", keeping)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("moment", ["after-checkpoint", "inside-checkpoint", "after-best"])
def test_an_interrupted_run_ends_with_the_same_best_checkpoint(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, lora: bool
) -> None:
    """Interrupted in its third step, in a checkpoint or after the best weights: the same weights, log and counts."""
    leaves: dict[str, Any] = {"validation": 0.25, "evaluate_every": 1, "patience": 6, "probe": 2, "lora": lora}
    leaves["trainer"] = {"save_steps": 1, "activation_checkpointing": True}
    whole = trained(annotations, tmp_path / "whole", **leaves)
    with monkeypatch.context() as patch:
        interrupt(patch, moment)
        with pytest.raises(Interrupted):
            trained(annotations, tmp_path / "broken", **leaves)
    assert not (tmp_path / "broken" / "training_log.jsonl").exists()
    broken = trained(annotations, tmp_path / "broken", **leaves)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "broken")
    assert whole["validation"] == broken["validation"]
    for count in ("steps", "tokens_trained"):
        assert whole["accounting"][count] == broken["accounting"][count]


def test_the_probe_is_read_teacher_forced_and_is_the_same_for_all(annotations: Path, tmp_path: Path) -> None:
    """Loss and entropy on critical and on other tokens are means over them, at the start the same for both methods."""
    import torch
    from transformers import AutoModelForCausalLM

    for method in ("cft", "sft"):
        trained(annotations, tmp_path / method, method=method, probe=100, epochs=1)
    curves = [[entry for entry in log_of(tmp_path / name) if PROBE[0] in entry] for name in ("cft", "sft")]
    assert [entry["step"] for entry in curves[0]] == [entry["step"] for entry in curves[1]]
    assert len(curves[0]) == 2
    assert curves[0][0] == curves[1][0]
    assert curves[0][1] != curves[1][1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "cft", dtype=torch.float64).eval()
    sums: dict[str, list[float]] = {name: [] for name in PROBE}
    for row in map(Annotation.from_row, read_rows(annotations)):
        if any(row.critical):
            prompt, response = row.response.prompt_ids, row.response.response_ids
            logprobs = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for place, (token, critical) in enumerate(zip(response, row.critical, strict=True)):
                kind = "critical" if critical else "other"
                sums[f"eval_loss_{kind}"].append(-logprobs[place, token].item())
                sums[f"eval_entropy_{kind}"].append(-(logprobs[place].exp() * logprobs[place]).sum().item())
    for name in PROBE:
        assert curves[0][1][name] == pytest.approx(sum(sums[name]) / len(sums[name]), rel=1e-9)


def test_reports_get_the_curves(annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `report_to` names hears of loss, validation and probe through the trainer's own callbacks."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    heard: list[tuple[int, dict[str, float]]] = []

    class Listener(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Listener)
    more = {"validation": 0.25, "probe": 2, "evaluate_every": 2, "trainer": {"report_to": "tensorboard"}}
    trained(annotations, tmp_path / "out", **more)
    measured = [(step, logs) for step, logs in heard if "eval_accuracy" in logs]
    assert [step for step, _ in measured] == [entry["step"] for entry in validations(tmp_path / "out")]
    assert all({"eval_loss", *PROBE} <= logs.keys() for _, logs in measured)
    assert sum("loss" in logs for _, logs in heard) == len(losses(tmp_path / "out"))


def test_tensorboard_has_the_curves(annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its callback writes, with the curves by step, is beside the checkpoint."""
    from transformers.integrations import integration_utils

    # The format of its files is TensorBoard's business, and its package is none of ours.
    class Writer:
        def __init__(self, log_dir: str) -> None:
            Path(log_dir).mkdir(parents=True)
            self._file = (Path(log_dir) / "scalars.jsonl").open("w")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self._file.write(json.dumps([name, step, value]) + "\n")

        def add_text(self, *_: Any) -> None:
            pass

        def flush(self) -> None:
            self._file.flush()

        def close(self) -> None:
            self._file.close()

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    more = {"validation": 0.25, "probe": 2, "evaluate_every": 2, "trainer": {"report_to": "tensorboard"}}
    trained(annotations, tmp_path / "out", **more)
    (run,) = (tmp_path / "out" / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    wanted = [(entry["step"], entry["eval_loss_critical"]) for entry in validations(tmp_path / "out")]
    assert [(step, value) for name, step, value in rows if name == "eval/loss_critical"] == wanted
    assert [value for name, _, value in rows if name == "train/loss"] == losses(tmp_path / "out")


def test_a_report_that_is_not_installed_is_one_line(annotations: Path, tmp_path: Path) -> None:
    """A logger whose package is missing is named before training."""
    with pytest.raises(ConfigError, match=r"--trainer report_to=comet_ml: .*comet"):
        trained(annotations, tmp_path / "out", trainer={"report_to": "comet_ml"})


def test_other_annotations_validate_by_rows_too(made: Any, annotations: Path, tmp_path: Path) -> None:
    """Annotations of other problems give both accuracy and loss; training problems among them are left out."""
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.respond import respond

    rows = [json.loads(line) for line in made.problems.read_text().splitlines()]
    shared = {**rows[3], "id": "again"}
    rows = [shared, *({**row, "id": f"v{n}", "question": f"Or {n}?"} for n, row in enumerate(rows[:10]))]
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in rows))
    respond(made.settings(RespondSettings, problems=str(more), output=tmp_path / "more-responses"))
    annotate(made.settings(AnnotateSettings, responses=tmp_path / "more-responses", output=tmp_path / "more"))
    manifest = trained(annotations, tmp_path / "out", validation=str(tmp_path / "more"), epochs=1)
    usable = [row for row in map(Annotation.from_row, read_rows(tmp_path / "more")) if any(row.critical)]
    assert manifest["facts"]["validation_problems"] == 11
    assert manifest["facts"]["validation_rows"] == len(usable) > 0
    mine = [row for row in map(Annotation.from_row, read_rows(annotations)) if any(row.critical)]
    assert manifest["facts"]["rows"] == sum(row.response.problem.id != "p3" for row in mine)
    held = [row.response.problem for row in usable]
    expected = loss_on(tmp_path / "out", tmp_path / "more", held, "cft", False)
    assert manifest["validation"]["loss"] == pytest.approx(expected, rel=1e-9)


def test_gold_validates_on_solutions_kept_out(world: Any, tmp_path: Path) -> None:
    """A cold start holds back problems too: accuracy by the verifier, loss on their worked solutions."""
    from cruxtune.stages.train import train

    rows = [json.loads(line) | {"solution": "So it is."} for line in world.problems.read_text().splitlines()]
    world.problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaves = {"method": "gold", "epochs": 1, "batch_size": 8, "validation": 4}
    manifest = train(world.settings(TrainSettings, output=tmp_path / "out", **leaves))
    assert (manifest["facts"]["rows"], manifest["facts"]["validation_rows"]) == (20, 4)
    assert manifest["validation"]["loss"] > 0
    assert 0 <= manifest["validation"]["accuracy"] <= 1
    assert manifest["accounting"]["tokens_trained"] == manifest["facts"]["tokens_per_epoch"]


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"validation": 24}, "asks for 24 of 24 distinct problems"),
        ({"validation": "gsm8k.jsonl"}, "There is no file gsm8k.jsonl"),
        ({"validation": "x.jsonl", "validation_source": {"splits": "a"}}, "--validation-source.splits"),
    ],
)
def test_what_cannot_be_held_back_is_an_error(
    annotations: Path, tmp_path: Path, leaves: dict[str, Any], message: str
) -> None:
    """Too many problems, or a source that is not there, end the run before a model is loaded."""
    with pytest.raises((ConfigError, DataError), match=message):
        trained(annotations, tmp_path / "out", **leaves)
    assert not (tmp_path / "out").exists()


def test_drawing_needs_the_responses(annotations: Path, tmp_path: Path) -> None:
    """Problems are drawn from all that were responded to: without the responses that is an error with the path."""
    responses, away = annotations.parent / "responses", annotations.parent / "away"
    responses.rename(away)
    try:
        with pytest.raises(StoreError, match=r"--validation 0\.1 needs what --annotations .*responses does not exist"):
            trained(annotations, tmp_path / "out", validation=0.1)
    finally:
        away.rename(responses)


def test_a_run_from_before_validation_is_still_finished(annotations: Path, tmp_path: Path) -> None:
    """Settings that are off are no part of what a run is: a finished one without their names is not refused."""
    before = trained(annotations, tmp_path / "out", epochs=1)
    new = {*ValidationSettings.model_fields, *HubSettings.model_fields, "verifier", "decoding"}
    for name in new:
        before["identity"].pop(name, None)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(before))
    assert trained(annotations, tmp_path / "out", epochs=1) == before
    with pytest.raises(StoreError, match="was made with"):
        trained(annotations, tmp_path / "out", epochs=1, validation=0.25)


def test_test_problems_choose_no_weights(annotations: Path, tmp_path: Path) -> None:
    """Test problems of a benchmark are refused for validation as they are for training."""
    tests = tmp_path / "tests.jsonl"
    tests.write_text(json.dumps({"id": "gsm8k/test/0", "question": "1 + 1?", "answer": "2"}) + "\n")
    with pytest.raises(DataError, match=r"--validation .*tests.jsonl: 1 of the problems are of the test split"):
        trained(annotations, tmp_path / "out", validation=str(tests))
