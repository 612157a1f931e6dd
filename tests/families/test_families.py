"""Families of models through every stage, engine and export: their tokenizers' habits must change nothing.

The counts of what was compared are printed at the end: `pytest tests/families`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from cruxtune.engines.plain import PlainEngine
from cruxtune.errors import DataError
from cruxtune.exporters import CONSUMERS
from cruxtune.exporters.preferences import Pairing
from cruxtune.exporters.settings import ExportSettings, InspectSettings
from cruxtune.models import Policy, load_model, load_policy, load_renderer
from cruxtune.prompts import Renderer
from cruxtune.records import Annotation, Problem, Response
from cruxtune.rl_settings import RlSettings
from cruxtune.runner import open_verifier
from cruxtune.settings import EngineSettings, ModelSettings, PromptSettings, VerifierSettings, build
from cruxtune.stage_settings import (
    SELECT_METHODS,
    AnnotateSettings,
    CompareSettings,
    EstimateSettings,
    EvaluateSettings,
    RespondSettings,
    SelectSettings,
    TrainSettings,
)
from cruxtune.stats_settings import StatsSettings
from cruxtune.store import read_manifest, read_rows

from .habits import FAMILIES, Family, make_checkpoint

pytestmark = pytest.mark.slow

JUDGE = "def judge(text, problem):\n    return sum(text.encode()) % 2 == 0\n"
LIMIT = 20
TRAINED = {
    "full": {"method": "cft"},
    "lora": {"method": "cft", "lora": True, "lora_rank": 2},
    "gold": {"method": "gold"},
}
REINFORCED: dict[str, dict[str, Any]] = {"grpo": {}, "grpo-lora": {"lora": True, "lora_rank": 2}}


@dataclass
class Run:
    """All stages of one family: where they wrote, and what was counted."""

    family: Family
    root: Path
    counts: dict[str, int] = field(default_factory=dict)
    asked: dict[str, list[list[int]]] = field(default_factory=dict)
    """By model of GRPO: the prompts that its rollouts were sampled from, without padding."""
    rolled: dict[str, list[list[int]]] = field(default_factory=dict)
    """… and the rollouts, as they were judged."""
    penalties: set[float | None] = field(default_factory=set)
    """Repetition penalties under which GRPO's rollouts were sampled."""

    def model(self, name: str = "model") -> ModelSettings:
        """Where a model is: the family's own, or one that was trained."""
        return ModelSettings(model=str(self.root / name), dtype="float64")

    def policy(self, name: str = "model") -> Policy:
        """A model on packed passes, which must serve it."""
        found = load_policy(self.model(name), PromptSettings(), EngineSettings(batch_size=16, draft_length=4))
        assert getattr(found.engine, "_passes")  # noqa: B009
        return found

    @cached_property
    def start(self) -> Policy:
        """The family's own model on packed passes."""
        return self.policy()

    def plainly(self) -> Policy:
        """The same model on the plain engine."""
        model, _ = load_model(self.model())
        eos, context = self.start.facts["eos_ids"], self.start.engine.context_length
        return replace(self.start, engine=PlainEngine(model, eos_ids=eos, context_length=context))

    @property
    def tokenizer(self) -> Any:
        """The family's tokenizer."""
        return self.start.renderer.tokenizer

    def responses(self) -> list[Response]:
        """What `respond` wrote."""
        return [Response.from_row(row) for row in read_rows(self.root / "responses")]

    def annotations(self) -> list[Annotation]:
        """What `annotate` wrote."""
        return [Annotation.from_row(row) for row in read_rows(self.root / "annotations")]

    def stops(self) -> set[int]:
        """The ids at which responses have to end."""
        return set(self.tokenizer.convert_tokens_to_ids(list(self.family.stops)))


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The verifier of all stages and families: starting one takes longer than all that it judges here."""
    here = tmp_path_factory.mktemp("judge")
    (here / "judge_even.py").write_text(JUDGE)
    before = Path.cwd()
    os.chdir(here)
    with open_verifier(VerifierSettings(verifier="judge_even:judge")) as shared:
        yield shared
    os.chdir(before)


def watch(patch: pytest.MonkeyPatch, made: Run, name: str) -> None:
    """Keep what GRPO asks, how it samples, and what it judges."""
    from transformers import GenerationMixin
    from trl import GRPOTrainer

    generate, judge = GenerationMixin.generate, GRPOTrainer._calculate_rewards
    made.asked[name], made.rolled[name] = [], []

    def asking(self: Any, *args: Any, input_ids: Any, attention_mask: Any, **options: Any) -> Any:
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            made.asked[name].append([token for token, real in zip(ids, mask, strict=True) if real])
        made.penalties.add(options["generation_config"].repetition_penalty)
        return generate(self, *args, input_ids=input_ids, attention_mask=attention_mask, **options)

    def judging(self: Any, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        made.rolled[name] += completion_ids_list
        return judge(self, inputs, prompts, completions, completion_ids_list)

    patch.setattr(GenerationMixin, "generate", asking)
    patch.setattr(GRPOTrainer, "_calculate_rewards", judging)


@pytest.fixture(scope="module", params=FAMILIES)
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    verifier: Any,
    counts: dict[str, dict[str, int]],
) -> Run:
    """A family through every stage."""
    from cruxtune.stages import annotate, compare, evaluate, export, respond, rl, select, train

    root = tmp_path_factory.mktemp(request.param)
    made = Run(FAMILIES[request.param], root)
    counts[request.param] = made.counts
    make_checkpoint(made.family, root / "model")
    rows = [
        {"id": f"p{n}", "question": f"What is {n} and {n * 7}?", "answer": f"{n * 8}", "solution": f"It is {n * 8}."}
        for n in range(8)
    ]
    (root / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"problems": str(root / "problems.jsonl"), "kind": "custom", "verifier": "judge_even:judge"}
    common |= {"max_new_tokens": LIMIT}
    own = made.model().model_dump()
    with pytest.MonkeyPatch.context() as patch:
        for stage in (annotate, evaluate, respond, rl):
            patch.setattr(stage, "open_verifier", lambda settings: nullcontext(verifier))
        respond.respond(
            build(RespondSettings, {**common, **own, "output": root / "responses", "loop_stop": False}),
            policy=made.start,
        )
        for name, policy in (("annotations", made.start), ("annotations-plain", made.plainly())):
            leaves = {"responses": root / "responses", "output": root / name, "every_alternative": True}
            annotate.annotate(build(AnnotateSettings, leaves), policy=policy)
        annotations = {"annotations": root / "annotations"}
        digits = any(char.isdigit() for annotation in made.annotations() for char in annotation.response.text)
        for method in SELECT_METHODS:
            leaves = {**annotations, "method": method, "output": root / "selections" / method}
            if method == "rho1":
                leaves["reference"] = str(root / "model")
            if method in ("union", "intersection"):
                leaves |= {"first": "critical", "second": "numeric" if method == "union" else "all"}
            # Responses of random weights may have no digit, which is an error that says so.
            absent = pytest.raises(DataError, match="numeric") if method == "numeric" and not digits else nullcontext()
            with absent:
                select.select(build(SelectSettings, leaves))
        for name, leaves in TRAINED.items():
            source = {"problems": common["problems"], **own} if name == "gold" else annotations
            leaves = {**leaves, "batch_size": 4, "epochs": 1, "learning_rate": 1e-3, "output": root / name}
            train.train(build(TrainSettings, {**source, **leaves}))
        for name, leaves in REINFORCED.items():
            leaves = {**common, **own, **leaves, "generations": 4, "batch_size": 8, "steps": 4, "learning_rate": 1e-2}
            leaves |= {"method": "grpo", "validation": 2, "evaluate_every": 4, "output": root / name}
            with patch.context() as spy:
                watch(spy, made, name)
                rl.rl(build(RlSettings, leaves))
        scores = {}
        for name in ("model", *TRAINED, *REINFORCED):
            scores[name] = root / f"scores-{name}"
            leaves = {**common, **made.model(name).model_dump(), "output": scores[name], "limit": 4, "samples": 1}
            policy = made.start if name == "model" else made.policy(name)
            evaluate.evaluate(build(EvaluateSettings, {**leaves, "loop_stop": False}), policy=policy)
    compare.compare(CompareSettings(evaluations=scores, output=root / "comparison"))
    for to in CONSUMERS:
        export.export(build(ExportSettings, {"to": to, **annotations, "output": root / "exports" / to}))
    return made


def test_prompts_are_those_of_the_tokenizer(run: Run) -> None:
    """What `respond` asked is what tokenizer and template make of it, with at most one beginning."""
    tokenizer, bos = run.tokenizer, run.tokenizer.bos_token_id
    for response in run.responses():
        ids = response.prompt_ids
        if run.family.template:
            turns = [{"role": "user", "content": run.start.renderer.user_text(response.problem)}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            text = re.sub(r"Today Date: \d+ \w+ \d+", "Today Date: 26 Jul 2024", text)
        else:
            text = (run.family.bos or "") * run.family.begins + f"Question: {response.problem.question}\nAnswer:"
        assert tokenizer.decode(ids) == text
        assert ids.count(bos) == (bos is not None and text.startswith(run.family.bos or ""))
    run.counts["prompts"] = len(run.responses())


def test_a_policy_without_its_weights_has_the_same_facts(run: Run) -> None:
    """The ids that end a response too, which configs, tokenizer and chat template name together."""
    facts = load_renderer(run.model(), PromptSettings()).facts
    assert facts == {name: run.start.facts[name] for name in facts}
    assert "eos_ids" in facts


def by_generate(model: Any, prompt: list[int], ends: set[int]) -> list[int]:
    """What transformers generates greedily, one prompt at a time, without the model's own generation config."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=False, max_new_tokens=LIMIT, eos_token_id=sorted(ends), pad_token_id=0)
    ids = torch.tensor([prompt])
    model.generation_config = GenerationConfig()
    return model.generate(ids, generation_config=config, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["model", "full", "lora", *REINFORCED])
def test_responses_are_those_of_generate(run: Run, name: str) -> None:
    """Greedy responses end where a text or a turn ends; no repetition penalty of a generation config has a part."""
    model, _ = load_model(run.model(name))
    if name == "model":
        found = [(response.prompt_ids, response.response_ids) for response in run.responses()]
    else:
        rows = [row for row in read_rows(run.root / f"scores-{name}") if row["temperature"] == 0]
        prompts = {response.problem.id: response.prompt_ids for response in run.responses()}
        found = [(prompts[row["id"]], row["response_ids"]) for row in rows]
    for prompt, ids in found:
        assert ids == by_generate(model, prompt, run.stops())
    assert len(found) >= 4
    run.counts[f"{name}: tokens as generate's"] = sum(len(ids) for _, ids in found)


def _flat(value: Any) -> list[Any]:
    """The numbers of lists in lists, one behind the other."""
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, list) else [value]


def test_engines_agree(run: Run) -> None:
    """Every rollout, verdict and label of packed passes is that of the plain engine."""
    for table in ("data", "rollouts"):
        packed, plain = (list(read_rows(run.root / name, table)) for name in ("annotations", "annotations-plain"))
        assert len(packed) == len(plain) > 0
        for one, other in zip(packed, plain, strict=True):
            for column, value in one.items():
                close = "prob" in column or "entrop" in column
                assert _flat(value) == (pytest.approx(_flat(other[column])) if close else _flat(other[column]))
    run.counts["rollouts alike"] = len(packed)
    labels = [mark for annotation in run.annotations() for mark in annotation.critical]
    run.counts |= {"labels": len(labels), "critical": sum(map(bool, labels))}
    assert 0 < run.counts["critical"] < len(labels)


def test_responses_end_with_an_end(run: Run) -> None:
    """Some responses stop by themselves, each at its first end of text or turn."""
    stopped = [response for response in run.responses() if response.finish_reason == "stop"]
    for response in run.responses():
        ends = [place for place, token in enumerate(response.response_ids) if token in run.stops()]
        assert ends == ([len(response.response_ids) - 1] if response in stopped else [])
    assert stopped
    run.counts["stopped"] = len(stopped)


def test_selections_weigh_every_token(run: Run) -> None:
    """Each method gives a weight to each token of each response."""
    found = [path for path in (run.root / "selections").iterdir() if read_manifest(path)["complete"]]
    assert {path.name for path in found} >= {*SELECT_METHODS} - {"numeric"}
    for path in found:
        rows = list(read_rows(path))
        assert [len(row["weights"]) for row in rows] == [len(row["response_ids"]) for row in rows]
        assert any(sum(row["weights"]) for row in rows)
    run.counts["selections"] = len(found)


@pytest.mark.parametrize("name", REINFORCED)
def test_grpo_asks_and_ends_as_respond_does(run: Run, name: str) -> None:
    """The prompts are those of `respond`, a rollout ends at its first end, and no penalty of a config has a part."""
    asked = [tuple(ids) for ids in run.asked[name]]
    assert set(asked) <= {tuple(response.prompt_ids) for response in run.responses()}
    assert len(asked) == len(run.rolled[name]) == 16
    for ids in run.rolled[name]:
        ends = [place for place, token in enumerate(ids) if token in run.stops()]
        assert ends == [len(ids) - 1] or (not ends and len(ids) == LIMIT)
    assert run.penalties <= {None, 1.0}
    run.counts[f"{name}: rollouts"] = len(run.rolled[name])


@pytest.mark.parametrize("name", [*TRAINED, *REINFORCED])
def test_a_trained_model_is_asked_and_ends_as_before(run: Run, name: str) -> None:
    """Weights change; the tokenizer, its template, what ends a response and how to sample stay."""
    import torch

    model, tokenizer = load_model(run.model(name))
    before, its_tokenizer = load_model(run.model())
    assert tokenizer.get_vocab() == its_tokenizer.get_vocab()
    assert Renderer(tokenizer, PromptSettings()).facts() == run.start.renderer.facts()
    assert tokenizer.pad_token == run.family.pad
    manifest = read_manifest(run.root / name)
    assert set(manifest["facts"]["eos_ids"]) == run.stops()
    if "lora" not in name:
        assert set(model.generation_config.eos_token_id) == run.stops()
        assert model.config.pad_token_id == its_tokenizer.pad_token_id
        for key, value in run.family.generation.items():
            sampling = key in ("temperature", "top_p") and "do_sample" not in run.family.generation
            assert getattr(model.generation_config, key) == (None if sampling else value)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        logits = [one(ids).logits for one in (model, before)]
    assert logits[0].shape == logits[1].shape
    assert not torch.equal(*logits)
    run.counts[f"{name}: steps"] = manifest["accounting"]["steps"]
    run.counts[f"{name}: tokens"] = manifest["accounting"]["tokens_trained"]


def test_a_worked_solution_ends_as_responses_do(run: Run) -> None:
    """The last token of a gold row ends a turn where there is a template, else a text."""
    problem = Problem("p", "1 + 1?", "2", solution="It is 2.")
    ids = run.start.renderer.solution_ids(problem)
    if run.family.template:
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is 2.\n#### 2"}]
        text = run.tokenizer.apply_chat_template(said, tokenize=False)
        assert text.rstrip().endswith(run.tokenizer.decode(ids))
    else:
        assert run.tokenizer.decode(ids) == f" It is 2.\n#### 2{run.family.eos}"
    assert [token in run.stops() for token in ids] == [False] * (len(ids) - 1) + [True]


def test_exports_hold_the_rows_that_training_sees(run: Run) -> None:
    """Every format gives back the ids and labels of the annotations."""
    wanted = [
        (
            [*annotation.response.prompt_ids, *annotation.response.response_ids],
            [-100] * len(annotation.response.prompt_ids)
            + [
                token if mark else -100
                for token, mark in zip(annotation.response.response_ids, annotation.critical, strict=True)
            ],
        )
        for annotation in run.annotations()
        if any(annotation.critical)
    ]
    for to, consumer in CONSUMERS.items():
        assert [(row.input_ids, row.labels) for row in consumer.read(run.root / "exports" / to)] == wanted
    run.counts |= {"exports": len(CONSUMERS), "rows": len(wanted)}


def test_the_estimate_counts_what_annotation_asked(run: Run, verifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many positions and rollouts as there were, from a short trial."""
    from cruxtune.stages import estimate

    monkeypatch.setattr(estimate, "open_verifier", lambda settings: nullcontext(verifier))
    leaves = {"responses": run.root / "responses", "trial_seconds": 0.2, "every_alternative": True}
    found = estimate.estimate(build(EstimateSettings, leaves), policy=run.start)
    done = read_manifest(run.root / "annotations")["accounting"]
    assert found.positions == sum(len(annotation.critical) for annotation in run.annotations())
    assert found.rollouts_wanted == done["rollouts_wanted"]
    assert found.seconds > 0


def test_statistics_and_inspection_see_every_token(run: Run) -> None:
    """Every label has a class, two engines agree, and what is shown as trained is what is critical."""
    from cruxtune.stages import inspect, stats

    both = [run.root / "annotations", run.root / "annotations-plain"]
    found = stats.stats(build(StatsSettings, {"annotations": both}))
    described, (pair,) = found["annotations"]["annotations"], found["models"]
    labels = [mark for annotation in run.annotations() for mark in annotation.critical if mark is not None]
    assert (described["tokens"], described["critical"]) == (len(labels), sum(labels))
    assert sum(row["tokens"] for row in described["classes"]) == len(labels)
    assert pair["agreement"]["equal"] == 1
    rows = [annotation for annotation in run.annotations() if any(annotation.critical)]
    shown = inspect.inspect(build(InspectSettings, {"annotations": both[0], "limit": len(rows)}))
    assert len(shown) == len(rows)
    for row, one in zip(rows, shown, strict=True):
        weights, kept = [weight for _, weight in one.before], [weight for _, weight in one.after]
        # What is behind the last trained token is not computed.
        assert weights == [*kept, *[0.0] * (len(weights) - len(kept))]
        assert kept[-1] == 1
        assert sum(kept) == sum(map(bool, row.critical))
        text = run.tokenizer.decode([*row.response.prompt_ids, *row.response.response_ids])
        assert "".join(piece for piece, _ in one.before) == text
    run.counts["shown"] = len(shown)


def test_pairs_for_dpo_are_what_the_policy_said(run: Run) -> None:
    """Their text gives back every id, beginnings included; where DPOTrainer would add an end, there is no pair."""
    annotation, renderer = run.annotations()[0], run.start.renderer
    said = {text: renderer.text_ids(text, ended=True) for text in (" The sum is 8.", " The sum is 9.")}
    ids, others = said.values()
    place = next(place for place, (one, other) in enumerate(zip(ids, others, strict=True)) if one != other)
    response = replace(annotation.response, response_ids=ids)
    critical: list[bool | None] = [number == place for number in range(len(ids))]
    rollout = {"id": response.problem.id, "sample": response.sample, "position": place, "rank": 0}
    rollout |= {"ids": others, "finish_reason": "stop", "correct": False}
    pairing = Pairing(run.tokenizer, [rollout])
    pairs = [pair for pair, _ in pairing.pairs(replace(annotation, response=response, critical=critical))]
    if ids[-1] != run.tokenizer.eos_token_id:
        assert (pairs, pairing.left_out) == ([], {"text": 1})
    else:
        (pair,) = pairs
        assert pair.prompt_ids == [*response.prompt_ids, *ids[:place]]
        assert (pair.chosen_ids, pair.rejected_ids) == (ids[place:], others[place:])
    run.counts["pairs for DPO"] = len(pairs)


@pytest.mark.parametrize("name", ["olmo2", "llama3"])
def test_a_blank_line_ends_what_a_base_model_says(
    name: str, verifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked with a worked example, as the recipes do: in every stage, and not in the checkpoint's own ends."""
    from cruxtune.stages import annotate, evaluate, respond, rl, train

    family = FAMILIES[name]
    family = replace(
        family,
        words=("\n\n",),
        stops=(*family.stops, "\n\n"),
        config={**family.config, "max_position_embeddings": 2048},
    )
    made = Run(family, tmp_path)
    make_checkpoint(family, tmp_path / "model")
    rows = [{"id": f"p{n}", "question": f"What is {n} and {n * 7}?", "answer": f"{n * 8}"} for n in range(8)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"problems": str(tmp_path / "problems.jsonl"), "kind": "custom", "verifier": "judge_even:judge"}
    common |= {"max_new_tokens": LIMIT, "template": "plain", "examples": "word", "shots": 1}
    own = made.model().model_dump()
    for stage in (annotate, evaluate, respond, rl):
        monkeypatch.setattr(stage, "open_verifier", lambda settings: nullcontext(verifier))
    respond.respond(build(RespondSettings, {**common, **own, "output": tmp_path / "responses", "loop_stop": False}))
    leaves = {"responses": tmp_path / "responses", "output": tmp_path / "annotations", "every_alternative": True}
    annotate.annotate(build(AnnotateSettings, leaves))
    leaves = {"annotations": tmp_path / "annotations", "method": "cft", "batch_size": 4, "epochs": 1}
    train.train(build(TrainSettings, {**leaves, "learning_rate": 1e-3, "output": tmp_path / "cft"}))
    leaves = {"method": "grpo", "generations": 4, "batch_size": 8, "steps": 2, "learning_rate": 1e-2, "validation": 2}
    watch(monkeypatch, made, "grpo")
    rl.rl(build(RlSettings, {**common, **own, **leaves, "evaluate_every": 2, "output": tmp_path / "grpo"}))
    leaves = {**common, **made.model("cft").model_dump(), "output": tmp_path / "scores", "samples": 1}
    evaluate.evaluate(build(EvaluateSettings, {**leaves, "loop_stop": False}))

    said = {
        "respond": [response.response_ids for response in made.responses()],
        "annotate": [row["ids"] for row in read_rows(tmp_path / "annotations", "rollouts")],
        "rl": made.rolled["grpo"],
        "evaluate": [row["response_ids"] for row in read_rows(tmp_path / "scores")],
    }
    tokenizer = load_renderer(made.model(), PromptSettings()).renderer.tokenizer
    blank = tokenizer.convert_tokens_to_ids("\n\n")
    for stage, responses in said.items():
        assert any(ids[-1] == blank for ids in responses), stage
        assert not any(blank in ids[:-1] for ids in responses), stage
    for trained in ("cft", "grpo"):
        model, _ = load_model(made.model(trained))
        assert blank not in model.generation_config.eos_token_id


def test_models_are_compared(run: Run) -> None:
    """The comparison has the start and all that was trained."""
    comparison = json.loads((run.root / "comparison" / "comparison.json").read_text())
    names = ["model", *TRAINED, *REINFORCED]
    assert list(comparison["methods"]) == names
    run.counts["evaluated"] = sum(read_manifest(run.root / f"scores-{name}")["rows"] for name in names)
