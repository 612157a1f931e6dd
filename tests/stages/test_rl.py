from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError, DataError
from cruxtune.models import Location
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.records import Problem
from cruxtune.rl_settings import RlSettings
from cruxtune.settings import build
from cruxtune.stage_settings import EvaluateSettings, RespondSettings
from cruxtune.stages.evaluate import evaluate
from cruxtune.stages.respond import respond
from cruxtune.store import read_manifest, read_rows
from cruxtune.validation import draw

ROOT = Path(__file__).parents[2]

ROLLED = {"reward", "reward_std", "group_std", "correct", "equal_rewards", "length", "truncated"}
STEPPED = {"step", "epoch", "loss", "grad_norm", "learning_rate", "entropy", "clipped", "tokens_computed"}
MEASURED = {
    *("step", "epoch", "tokens_computed", "eval_accuracy", "eval_entropy", "eval_kl", "eval_length", "eval_truncated"),
    *("eval_accuracy_sampled", "eval_pass@2", "eval_pass@4"),
}


def reinforced(world: Any, output: Path, **leaves: Any) -> dict[str, Any]:
    """Reinforce the world's model for a few short steps in float64 unless told otherwise."""
    from cruxtune.stages.rl import rl

    given: dict[str, Any] = {
        **{name: value for name, value in world.leaves.items() if name not in ("batch_size", "draft_length")},
        "method": "grpo",
        "output": output,
        "generations": 4,
        "batch_size": 8,
        "micro_batch_size": 4,
        "max_new_tokens": 12,
        "learning_rate": 1e-3,
        "steps": 4,
        "validation": 4,
        "evaluate_every": 2,
    }
    return rl(build(RlSettings, {**given, **leaves}))


def log_of(output: Path) -> list[dict[str, Any]]:
    """The entries of a training log."""
    return [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]


def weights_of(path: Path) -> dict[str, Any]:
    """The tensors that were saved in a directory."""
    from safetensors.torch import load_file

    return load_file(next(path.glob("*model.safetensors")))


@pytest.fixture(scope="module")
def learned(make_world: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """A world, and the manifest of a run in its directory `out`."""
    world = make_world(tmp_path_factory.mktemp("learned"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.root)
        return world, reinforced(world, world.root / "out", validation=8, validation_samples=4)


def held_back(world: Any) -> list[Problem]:
    """The problems that such a run validates on."""
    return draw(load_problems(ProblemSource(problems=str(world.problems), kind="custom")), 8, seed=0)


def test_a_run_learns_logs_and_accounts(learned: tuple[Any, dict[str, Any]]) -> None:
    """Weights change; the log has every named measure; KL is 0 at the start and grows; the counts add up."""
    import torch

    world, manifest = learned
    output = world.root / "out"
    before, after = weights_of(world.model), weights_of(output)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    log = log_of(output)
    steps = {entry["step"]: entry for entry in log if "loss" in entry}
    assert sorted(steps) == [1, 2, 3, 4]
    # Each rollout is trained on twice.
    assert all(steps[step].keys() == STEPPED | ROLLED for step in (1, 3))
    assert all(steps[step].keys() == STEPPED for step in (2, 4))
    # Before the first step on a rollout every ratio is 1.
    assert steps[1]["clipped"] == steps[3]["clipped"] == 0
    assert all(0 < steps[step]["clipped"] <= 1 for step in (2, 4))
    assert all(entry["entropy"] > 0 for entry in steps.values())
    assert all(entry["reward"] == entry["correct"] for entry in steps.values() if "reward" in entry)
    examined = [entry for entry in log if "eval_kl" in entry]
    assert [entry["step"] for entry in examined] == [0, 2, 4]
    assert all(entry.keys() == MEASURED for entry in examined)
    assert examined[0]["eval_kl"] == 0
    assert examined[1]["eval_kl"] > 1e-4
    assert examined[2]["eval_kl"] > 1e-4
    done = manifest["accounting"]
    assert (done["steps"], done["rollouts"], done["verdicts"]) == (4, 16, 16)
    assert done["tokens_trained"] == 2 * done["tokens_generated"]
    assert done["tokens_generated"] == pytest.approx(8 * (steps[1]["length"] + steps[3]["length"]))
    # To generate, to compare with, and twice to train; the shortest prompt has 24 bytes or more, and there is padding.
    assert [entry["tokens_computed"] for entry in examined] == [0, steps[2]["tokens_computed"], done["tokens_computed"]]
    assert done["tokens_computed"] > 4 * (done["tokens_generated"] + 16 * 24)
    last = examined[2]["eval_kl"]
    assert manifest["curves"]["eval_kl"] == {"first": 0, "first_step": 0, "last": last, "last_step": 4}
    assert manifest["facts"]["loss_type"] == "grpo"
    assert manifest["generator"] == "transformers"
    assert "reinforcement learning" in (output / "README.md").read_text()
    assert not (output / "trainer").exists()


def test_the_start_is_measured_as_by_evaluate(
    learned: tuple[Any, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At step 0 there is what `cruxtune evaluate` finds on the same problems, with the same prompts."""
    world, _ = learned
    monkeypatch.chdir(world.root)
    rows = [problem.to_row() for problem in held_back(world)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaves = {"problems": str(tmp_path / "held.jsonl"), "max_new_tokens": 12}
    evaluate(world.settings(EvaluateSettings, output=tmp_path / "eval", **leaves))
    answers = list(read_rows(tmp_path / "eval"))
    tokens = sum(answer["length"] for answer in answers)
    start = log_of(world.root / "out")[0]
    assert start["eval_accuracy"] == sum(answer["correct"] for answer in answers) / 8
    assert start["eval_truncated"] == sum(answer["finish_reason"] == "length" for answer in answers) / 8
    assert start["eval_length"] == tokens / 8
    summed = sum(answer["entropy"] * answer["length"] for answer in answers)
    assert start["eval_entropy"] == pytest.approx(summed / tokens, rel=1e-5)


def test_samples_of_validation_give_pass_at_k(learned: tuple[Any, dict[str, Any]]) -> None:
    """What the last examination says of samples is what the saved model's own samples give, subset by subset."""
    from itertools import combinations

    from cruxtune.engines.base import Decoding
    from cruxtune.engines.sampling import seed_of
    from cruxtune.models import load_policy
    from cruxtune.settings import EngineSettings, ModelSettings, PromptSettings

    world, _ = learned
    model = ModelSettings(model=str(world.root / "out"), dtype="float64")
    policy = load_policy(model, PromptSettings(), EngineSettings(batch_size=8, draft_length=2))
    problems = held_back(world)
    right = []
    for problem in problems:
        answers = policy.engine.generate(
            [policy.renderer.render(problem)] * 4,
            max_new_tokens=12,
            decoding=Decoding(temperature=1.0),
            seeds=[seed_of(0, problem.id, "validation", sample) for sample in range(4)],
        )
        texts = [policy.renderer.decode(answer.ids) for answer in answers]
        right.append([sum(text.encode()) % 2 == 0 for text in texts])
    last = [entry for entry in log_of(world.root / "out") if "eval_kl" in entry][-1]
    for name, k in (("eval_accuracy_sampled", 1), ("eval_pass@2", 2), ("eval_pass@4", 4)):
        chances = [sum(map(any, subsets)) / len(subsets) for row in right if (subsets := list(combinations(row, k)))]
        assert last[name] == pytest.approx(sum(chances) / 8)


def test_the_kl_is_that_of_its_definition(learned: tuple[Any, dict[str, Any]]) -> None:
    """The last one is the mean of r − 1 − log r over samples of the start, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from cruxtune.engines.base import Decoding
    from cruxtune.engines.sampling import seed_of
    from cruxtune.models import load_policy
    from cruxtune.settings import EngineSettings, ModelSettings, PromptSettings

    world, _ = learned
    policy = load_policy(ModelSettings(model=str(world.model), dtype="float64"), PromptSettings(), EngineSettings())
    problems = held_back(world)
    prompts = [policy.renderer.render(problem) for problem in problems]
    seeds = [seed_of(0, problem.id, 1) for problem in problems]
    sampled = policy.engine.generate(prompts, max_new_tokens=12, decoding=Decoding(temperature=1.0), seeds=seeds)
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (world.model, world.root / "out")
    ]
    terms = []
    for prompt, answer in zip(prompts, sampled, strict=True):
        ids = torch.tensor([prompt + answer.ids])
        with torch.no_grad():
            logits = [model(ids).logits[0, len(prompt) - 1 : -1] for model in models]
        start, now = (one.log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None]) for one in logits)
        terms.append(((now - start).exp() - 1 - (now - start)).flatten())
    assert log_of(world.root / "out")[-1]["eval_kl"] == pytest.approx(torch.cat(terms).mean().item(), rel=1e-4)


@pytest.mark.parametrize(("device", "on_gpu"), [("cpu", False), ("cuda:0", True)])
def test_the_hardware_decides_what_is_computed_again(
    device: str, on_gpu: bool, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU activations are recomputed and the trainer uses it; on the CPU neither."""
    asked: dict[str, Any] = {}

    def stop(_: Any, options: dict[str, Any], __: Any) -> None:
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("cruxtune.grpo.make_config", stop)
    monkeypatch.setattr("cruxtune.grpo.pick_device", lambda _: device)
    monkeypatch.setattr("cruxtune.trainer.pick_device", lambda _: device)
    monkeypatch.setattr("cruxtune.trainer.computes_in_bfloat16", lambda name: name == "cuda:0")
    for given in ({}, {"activation_checkpointing": not on_gpu}):
        with pytest.raises(KeyboardInterrupt):
            reinforced(world, tmp_path / f"out{len(given)}", dtype="auto", trainer=given)
        assert asked["use_cpu"] is not on_gpu
        assert asked["bf16"] is on_gpu
        assert asked["activation_checkpointing"] is (on_gpu if not given else not on_gpu)


def test_rollouts_may_serve_several_steps(world: Any, tmp_path: Path) -> None:
    """With --rollout-steps 2 they are made for two steps, each of which trains on its half."""
    manifest = reinforced(world, tmp_path / "out", rollout_steps=2, iterations=1, steps=2, loss="dapo")
    steps = [entry for entry in log_of(tmp_path / "out") if "loss" in entry]
    assert ["reward" in entry for entry in steps] == [True, False]
    assert steps[0]["clipped"] == 0 < steps[1]["clipped"]
    done = manifest["accounting"]
    assert (done["rollouts"], done["tokens_trained"]) == (16, done["tokens_generated"])


@pytest.mark.slow
def test_what_is_rewarded_becomes_more_frequent(world: Any, tmp_path: Path) -> None:
    """A reward that one token decides is learned within a few steps, and greedy answers earn it, too."""
    (tmp_path / "judge_first.py").write_text("def judge(text, problem):\n    return ord((text or '~')[0]) % 2 == 0\n")
    options = {"steps": 16, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 3e-3, "max_new_tokens": 2}
    reinforced(world, tmp_path / "out", verifier="judge_first:judge", evaluate_every=16, **options)
    log = log_of(tmp_path / "out")
    rewards = [entry["reward"] for entry in log if "reward" in entry]
    assert len(rewards) == 8
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.2
    assert log[-1]["eval_accuracy"] > log[0]["eval_accuracy"]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_prompt_ids_are_those_of_respond(
    template: str, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches `generate` are the renderer's ids, also for a tokenizer that puts a BOS before every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.model)
    bos = tokenizer.convert_tokens_to_ids("<bos>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(world.model)

    seen: list[list[int]] = []
    from transformers import LlamaForCausalLM

    generate = LlamaForCausalLM.generate

    def spy(self: Any, *args: Any, input_ids: Any, attention_mask: Any, **options: Any) -> Any:
        rows = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
        seen.extend([token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in rows)
        return generate(self, *args, input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(LlamaForCausalLM, "generate", spy)
    reinforced(world, tmp_path / "out", steps=1, template=template)
    monkeypatch.setattr(LlamaForCausalLM, "generate", generate)
    respond(world.settings(RespondSettings, output=tmp_path / "responses", template=template, samples=8))
    wanted = {tuple(response["prompt_ids"]) for response in read_rows(tmp_path / "responses")}
    assert len(seen) == 8
    assert {tuple(ids) for ids in seen} <= wanted
    assert len({tuple(ids) for ids in seen}) == 2
    # The template writes the BOS, and the tokenizer another: TRL's own way with text would double or drop one.
    assert all(ids[0] == bos for ids in seen)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """End a run when its so many-th step begins, as a crash would."""
    from cruxtune.grpo import PolicyTrainer

    training_step = PolicyTrainer.training_step

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args, **options)

    monkeypatch.setattr(PolicyTrainer, "training_step", failing)


@pytest.mark.parametrize("weight", [0, 0.25])
def test_the_log_is_of_what_was_rolled(
    weight: float, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards with their spread, form, length and truncation, from the rollouts themselves."""
    import numpy as np

    from cruxtune.models import load_renderer
    from cruxtune.rewards import Reward
    from cruxtune.settings import ModelSettings, PromptSettings

    rolled: list[tuple[list[str], list[list[int]], list[float]]] = []
    judged = Reward.__call__

    def spy(self: Reward, **given: Any) -> list[float]:
        rewards = judged(self, **given)
        rolled.append((list(given["prompts"]), [list(ids) for ids in given["completion_ids"]], rewards))
        return rewards

    monkeypatch.setattr(Reward, "__call__", spy)
    # The tiny model states no answer; let every other token be an explicit form.
    monkeypatch.setattr("cruxtune.rewards.well_formed", lambda verdict, ids, ends: ids[-1] % 2 == 0)
    reinforced(
        world, tmp_path / "out", format_reward=weight, steps=4, **({"verifier": None, "kind": "math"} if weight else {})
    )
    logged = [entry for entry in log_of(tmp_path / "out") if "reward" in entry]
    ends = set(load_renderer(ModelSettings(model=str(world.model)), PromptSettings()).facts["eos_ids"])
    assert len(logged) == len(rolled) == 2
    for entry, (names, ids, rewards) in zip(logged, rolled, strict=True):
        assert [len(set(names[place : place + 4])) for place in (0, 4)] == [1, 1]
        groups = np.array(rewards).reshape(2, 4)
        lengths = [len(one) for one in ids]
        assert entry["reward"] == pytest.approx(groups.mean())
        assert entry["reward_std"] == pytest.approx(groups.std(ddof=1), abs=1e-4)
        assert entry["group_std"] == pytest.approx(groups.std(axis=1, ddof=1).mean(), abs=1e-6)
        assert entry["equal_rewards"] == np.mean([len({*group}) == 1 for group in groups.tolist()])
        assert entry["reward"] == pytest.approx(entry["correct"] + weight * entry.get("formed", 0))
        assert entry["length"] == pytest.approx(np.mean(lengths))
        assert entry["truncated"] == np.mean([one[-1] not in ends for one in ids])
    assert any(entry["reward_std"] > 0 for entry in logged)
    assert all(("formed" in entry) == bool(weight) for entry in logged)


def test_entropies_and_clipped_ratios_are_of_the_step(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are what the weights of that step give for its rollouts: means over the tokens of each micro-batch."""
    import torch

    from cruxtune.grpo import PolicyTrainer

    found: dict[int, list[tuple[float, float]]] = {}
    compute_loss = PolicyTrainer._compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
        length = inputs["completion_ids"].shape[1]
        logprobs = (logits[:, -length - 1 : -1].double() / 0.7).log_softmax(dim=-1)
        taken = logprobs.gather(2, inputs["completion_ids"].unsqueeze(2)).squeeze(2)
        before = inputs.get("old_per_token_logps", taken)
        ratio = (taken - before).exp()
        sign = inputs["advantages"].unsqueeze(1)
        clipped = ((ratio < 0.95) & (sign < 0)) | ((ratio > 1.1) & (sign > 0))
        inside = inputs["completion_mask"].bool()
        entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
        means = (entropies[inside].mean().item(), clipped[inside].double().mean().item())
        found.setdefault(self.state.global_step + 1, []).append(means)
        return compute_loss(self, model, inputs)

    monkeypatch.setattr(PolicyTrainer, "_compute_loss", spy)
    trainer = {"epsilon": 0.05, "epsilon_high": 0.1}
    reinforced(world, tmp_path / "out", temperature=0.7, learning_rate=1e-2, trainer=trainer)
    steps = {entry["step"]: entry for entry in log_of(tmp_path / "out") if "loss" in entry}
    assert [(step, len(parts)) for step, parts in found.items()] == [(1, 2), (2, 2), (3, 2), (4, 2)]
    for step, parts in found.items():
        entropy, clipped = (sum(values) / 2 for values in zip(*parts, strict=True))
        assert steps[step]["entropy"] == pytest.approx(entropy, rel=1e-4)
        assert steps[step]["clipped"] == pytest.approx(clipped, abs=1e-6)
    assert 0 < steps[2]["clipped"] < 1


@pytest.mark.slow
def test_an_interrupted_adapter_goes_on(world: Any, tmp_path: Path) -> None:
    """A new adapter, and one that is trained on beside what it was, end as those of whole runs."""
    import torch

    reinforced(world, tmp_path / "first", lora=True, lora_rank=2, steps=2)
    for name, options in (
        ("new", {"lora": True, "lora_rank": 2}),
        ("on", {"model": str(tmp_path / "first"), "trainer": {"beta": 0.1}}),
    ):
        options["trainer"] = {**options.get("trainer", {}), "save_steps": 4}
        reinforced(world, tmp_path / f"{name}-whole", steps=6, **options)
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, 5)
            with pytest.raises(KeyboardInterrupt):
                reinforced(world, tmp_path / f"{name}-cut", steps=6, **options)
        assert (tmp_path / f"{name}-cut" / "trainer" / "checkpoint-4").is_dir()
        reinforced(world, tmp_path / f"{name}-cut", steps=6, **options)
        whole, cut = (weights_of(tmp_path / f"{name}-{how}") for how in ("whole", "cut"))
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
        assert log_of(tmp_path / f"{name}-whole") == log_of(tmp_path / f"{name}-cut")


@pytest.mark.slow
def test_an_interrupted_run_goes_on(world: Any, tmp_path: Path) -> None:
    """Cut off between rollouts, it ends with the weights of a whole run; amid them, it goes on at the right step."""
    import torch

    # An epoch of 8 problems is 8 steps: the run is cut off in the second one, whose order is another.
    options: dict[str, Any] = {"steps": 14, "validation": 16, "evaluate_every": 4, "trainer": {"save_steps": 10}}
    reinforced(world, tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 11)
        with pytest.raises(KeyboardInterrupt):
            reinforced(world, tmp_path / "cut", **options)
    assert (tmp_path / "cut" / "trainer" / "checkpoint-10").is_dir()
    manifest = reinforced(world, tmp_path / "cut", **options)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")
    assert manifest["accounting"]["rollouts"] == 56
    assert manifest["accounting"]["tokens_trained"] == 2 * manifest["accounting"]["tokens_generated"]

    options["trainer"] = {"save_steps": 5}
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            reinforced(world, tmp_path / "amid", **options)
    reinforced(world, tmp_path / "amid", **options)
    rolled = [entry["step"] for entry in log_of(tmp_path / "amid") if "reward" in entry]
    # The rollouts of step 5 were lost with the process, and new ones serve step 6.
    assert rolled == [1, 3, 5, 6, 7, 9, 11, 13]
    steps = [entry["step"] for entry in log_of(tmp_path / "amid") if "loss" in entry]
    assert steps == list(range(1, 15))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["new", "trained"])
def test_adapters_are_trained(start: str, world: Any, tmp_path: Path) -> None:
    """--lora trains a new adapter, and an adapter as --model is trained on; both load as --model."""
    import torch

    from cruxtune.models import load_model
    from cruxtune.settings import ModelSettings

    first = tmp_path / "first"
    reinforced(world, first, lora=True, lora_rank=2, steps=2)
    weights = weights_of(first)
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)
    output = first
    if start == "trained":
        output = tmp_path / "second"
        reinforced(world, output, model=str(first), steps=2)
        again = weights_of(output)
        assert again.keys() == weights.keys()
        assert any(not torch.equal(again[name], weights[name]) for name in weights)
        config = json.loads((output / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(world.model)
        with pytest.raises(ConfigError, match="--lora would put a new adapter"):
            reinforced(world, tmp_path / "third", model=str(first), lora=True)
    model, _ = load_model(ModelSettings(model=str(output), dtype="float64"))
    assert model.peft_config["default"].r == 2


def test_cispo_cuts_off_what_is_far_from_the_start_alone(world: Any, tmp_path: Path) -> None:
    """On the first step on a rollout, where every ratio is 1, its bound holds for none."""
    reinforced(world, tmp_path / "out", loss="cispo", steps=2, evaluate_every=2)
    first = log_of(tmp_path / "out")[1]
    assert first["equal_rewards"] < 1
    assert first["clipped"] == 0


def test_a_run_that_learns_nothing_stops(world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Groups of equal rewards in so many steps end the run with advice; its weights stay, and more patience goes on."""
    (tmp_path / "judge_none.py").write_text("def judge(text, problem):\n    return False\n")
    options = {"verifier": "judge_none:judge", "steps": 3, "evaluate_every": 3}
    advice = r"all equal in 2 steps in a row, up to step 2.*more --generations than 4.*checkpoint-2"
    # The same command says the same again, and makes no step more.
    for _ in range(2):
        with pytest.raises(DataError, match=advice):
            reinforced(world, tmp_path / "out", no_variance_steps=2, **options)
    # Also where that is the last step, of which there is no checkpoint.
    for _ in range(2):
        with pytest.raises(DataError, match=r"up to step 3.*Nothing is kept"):
            reinforced(world, tmp_path / "last", no_variance_steps=3, **options)
    assert "learned nothing" not in caplog.text
    assert reinforced(world, tmp_path / "last", no_variance_steps=4, **options)["accounting"]["steps"] == 3
    assert (tmp_path / "out" / "trainer" / "checkpoint-2" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    manifest = reinforced(world, tmp_path / "out", no_variance_steps=9, **options)
    assert manifest["accounting"]["steps"] == 3
    assert "equal in all 3 steps, so that the model has learned nothing" in caplog.text
    assert manifest["curves"]["equal_rewards"]["last"] == 1
    assert manifest["curves"]["eval_kl"]["last"] == 0


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"batch_size": 96, "micro_batch_size": 8}, "a step of rollouts takes 24 problems"),
        ({"validation": 24}, "leaves none to train on"),
        ({"max_new_tokens": 240}, "a step of rollouts takes 2 problems"),
        ({"dtype": "bfloat16"}, "keeps no exact copy of the weights"),
        ({"trainer": {"loss_typo": 1}}, "GRPOConfig refuses these fields"),
    ],
)
def test_what_cannot_be_trained_is_refused(leaves: dict[str, Any], message: str, world: Any, tmp_path: Path) -> None:
    """Too few problems for a batch, prompts beyond the context, coarse weights, unknown fields."""
    with pytest.raises((ConfigError, DataError), match=message):
        reinforced(world, tmp_path / "out", **leaves)


@pytest.mark.slow
def test_two_processes_train_one_model(world: Any, tmp_path: Path) -> None:
    """`accelerate launch … -m cruxtune rl`: the first alone writes and prints, groups lie across both."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    flags = (
        f"rl --method grpo --model {world.model} --problems {world.problems} --kind custom --verifier judge_even:judge "
        "--device cpu --dtype float64 --max-new-tokens 8 --generations 4 --batch-size 4 --steps 2 --validation 5 "
        f"--learning-rate 1e-3 --output {tmp_path / 'two'}"
    )
    command = [*launcher, str(ROOT / "recipes" / "accelerate" / "cpu-2.yaml"), "-m", "cruxtune", *flags.split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(tmp_path)])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "two")]
    counts = read_manifest(tmp_path / "two")["accounting"]
    assert (counts["processes"], counts["rollouts"], counts["verdicts"]) == (2, 4, 4)
    assert counts["tokens_trained"] == 2 * counts["tokens_generated"]
    log = log_of(tmp_path / "two")
    # Two rollouts of the one group are on each process: that all four are compared shows in shares of a quarter.
    assert log[1]["reward"] in (0, 0.25, 0.5, 0.75, 1)
    assert log[1]["length"] == counts["tokens_generated"] / 4
    measured = [entry["eval_kl"] for entry in log if "eval_kl" in entry]
    assert measured[0] == 0
    assert (measured[-1] > 0) == (log[1]["equal_rewards"] < 1)


def test_vllm_generates_where_it_can(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where it is installed, and for models that it reads."""
    from cruxtune.grpo import can_use_vllm

    asked = world.settings(RlSettings, method="grpo", output=world.root / "out", batch_size=8)
    assert not can_use_vllm(asked, "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm")
    assert can_use_vllm(asked, "cuda:0")
    assert not can_use_vllm(asked, "cpu")
    monkeypatch.setattr("cruxtune.grpo.locate", lambda _: Location("somewhere", gguf="weights.gguf"))
    assert not can_use_vllm(asked, "cuda")


@pytest.mark.parametrize("off", [0.0, 0.5])
def test_what_vllm_is_asked_and_what_it_gives(
    off: float, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ends of a response are its ends, its context is what is needed, and where it disagrees nothing is learned."""
    import torch

    from cruxtune.models import load_renderer
    from cruxtune.settings import ModelSettings, PromptSettings

    asked: dict[str, Any] = {}

    class StandIn:
        """Samples with the model itself, and is off by so much in each token's log-probability."""

        def __init__(self, **options: Any) -> None:
            asked.update(options, synced=0)

        def sync_weights(self) -> None:
            asked["synced"] += 1

        def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> Any:
            ends, model = asked["generation_kwargs"]["stop_token_ids"], asked["model"]
            completions, logprobs = [], []
            for prompt in prompts:
                ids, found = list(prompt), []
                while len(found) < asked["max_completion_length"] and not (found and ids[-1] in ends):
                    with torch.no_grad():
                        scores = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                    ids.append(int(torch.multinomial(scores.exp(), 1)))
                    found.append([float(scores[ids[-1]]) - off])
                completions.append(ids[len(prompt) :])
                logprobs.append(found)
            return prompts, completions, logprobs, None

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandIn)
    out = tmp_path / "out"
    done = reinforced(world, out, steps=2, trainer={"use_vllm": True, "vllm_mode": "colocate"})["accounting"]
    policy = load_renderer(ModelSettings(model=str(world.model)), PromptSettings())
    assert asked["generation_kwargs"]["stop_token_ids"] == sorted(policy.facts["eos_ids"])
    assert asked["repetition_penalty"] == asked["temperature"] == 1.0
    problems = load_problems(ProblemSource(problems=str(world.problems), kind="custom"))
    assert asked["max_model_length"] == max(len(policy.renderer.render(problem)) for problem in problems) + 12
    # Weights are given to it once for each batch of rollouts.
    assert asked["synced"] == 1
    assert done["rollouts"] == 8
    rolled = next(entry for entry in log_of(out) if "left_out" in entry)
    assert done["tokens_generated"] == pytest.approx(8 * rolled["length"])
    # At 0.5 nats a token, three tokens are above the ratio of 3 that TRL leaves out.
    assert rolled["left_out"] == 0 if not off else rolled["left_out"] > 0.5
    assert read_manifest(out)["curves"]["left_out"]["first"] == rolled["left_out"]


def test_a_penalty_is_refused_where_its_reference_would_be_another_model(world: Any, tmp_path: Path) -> None:
    """TRL loads the reference by name, without a revision and from no GGUF file; a directory is what it says."""
    with pytest.raises(ConfigError, match=r"--trainer beta=0.1: .*--revision abc of .*save the model as a directory"):
        reinforced(world, tmp_path / "out", revision="abc", trainer={"beta": 0.1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cruxtune.grpo.locate", lambda _: Location("somewhere", gguf="weights.gguf"))
        with pytest.raises(ConfigError, match=r"which is a GGUF file.*or use --lora"):
            reinforced(world, tmp_path / "out", trainer={"beta": 0.1})
        # An adapter is compared with the model without it.
        low_rank = {"lora": True, "lora_rank": 2, "revision": "abc"}
        reinforced(world, tmp_path / "adapter", steps=2, trainer={"beta": 0.1}, **low_rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cruxtune.grpo.can_use_vllm", lambda *_: True)
        with pytest.raises(ConfigError, match=r"--revision abc: vLLM would load"):
            reinforced(world, tmp_path / "out", revision="abc")
    # Of an adapter that is trained on, what it was is kept aside as the reference, and is no part of the result.
    reinforced(world, tmp_path / "on", model=str(tmp_path / "adapter"), steps=2, trainer={"beta": 0.1})
    assert (tmp_path / "on" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "on" / "ref").exists()
    done, plain = (
        reinforced(world, tmp_path / f"out{beta}", steps=2, trainer={"beta": beta})["accounting"]["tokens_computed"]
        for beta in (0.1, 0)
    )
    # One pass more, besides those that generate, compare with the rollouts and train twice.
    assert done == plain * 5 / 4
    assert [entry["kl"] > 0 for entry in log_of(tmp_path / "out0.1") if "kl" in entry] == [False, True]


def test_test_problems_are_refused(world: Any, tmp_path: Path) -> None:
    """Test problems of a benchmark are neither trained nor validated on."""
    rows = [{"id": f"gsm8k/test/{n}", "question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(30)]
    path = tmp_path / "tests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"--problems .*never trained on"):
        reinforced(world, tmp_path / "out", problems=str(path))
    with pytest.raises(DataError, match=r"--validation .*never trained on"):
        reinforced(world, tmp_path / "out", validation=str(path))
