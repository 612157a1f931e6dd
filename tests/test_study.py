"""Studies on a tiny model, with a verifier that finds about half of all texts correct."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cruxtune.errors import ConfigError, StoreError
from cruxtune.stage_settings import CompareSettings
from cruxtune.stages.compare import compare
from cruxtune.study import Study, units
from cruxtune.study_clock import Clock
from cruxtune.study_commands import study_command


@pytest.fixture
def content(study_recipe: dict[str, Any]) -> dict[str, Any]:
    """A study of one task, two methods and two seeds, whose working directory is the current one."""
    return {
        "output": "work",
        "results": "found",
        "threads": 1,
        "recipe": {
            **study_recipe,
            "decoding": {"max_new_tokens": 8},
            "splits": {"coldstart": 8, "train": 12, "heldout": 6},
            "validation": {"probe": 2},
            "evaluate": {"samples": 2, "sampled_problems": 4},
        },
        "tasks": {
            "sums": {
                "seeds": {"cft": 2, "random": 1},
                "recipe": {"problems": {"problems": "gym:chain_sum", "size": 80, "kind": "custom"}},
            }
        },
        "methods": {"cft": {"method": "cft", "epochs": 1}, "random": {"method": "random", "epochs": 1}},
        "tuning": {"learning_rates": [1e-4, 1e-5], "problems": 4},
        "power": {"disagreement": 0.2, "between_seeds": 0.1, "seed_deviation": 0.0},
        "expected_minutes": {"*/tune-*": 4, "*": 10},
    }


UNITS = [
    "sums/coldstart",
    "sums/annotations",
    "sums/start",
    "sums/tune-cft-0.0001",
    "sums/tune-cft-1e-05",
    "sums/tune-random-0.0001",
    "sums/tune-random-1e-05",
    "sums/cft-0",
    "sums/random-0",
    "sums/cft-1",
]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stages did work, as stage and directory; reading what is finished is none."""
    from cruxtune import pipeline
    from cruxtune.store import Workspace

    done: list[str] = []
    finish = Workspace.finish

    def told(self: Workspace, **values: Any) -> dict[str, Any]:
        done.append(f"{self.stage} {self.path.name}")
        return finish(self, **values)

    monkeypatch.setattr(Workspace, "finish", told)
    assert pipeline.STAGES
    return done


def test_units_come_seed_by_seed(content: dict[str, Any]) -> None:
    """The start, its annotations, learning rates, and then a seed of every method before two of one."""
    assert [unit.name for unit in units(Study.model_validate(content))] == UNITS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "methods and tuning are missing"),
        ({"methods": {"start": {}}}, "methods.start: this name is taken"),
        ({"methods": {"cft": {"seed": 3}}}, "methods.cft.seed: this follows from the study"),
        ({"methods": {"cft": {"method": "cft"}}}, "tasks.sums.seeds.random: there is no such method"),
        ({"tuning": {"learning_rates": [1e-5], "problems": 4, "seed": 1}}, "choose a larger one"),
        ({"search": {"coldstart": [8]}}, "a search has no methods"),
    ],
)
def test_wrong_studies_are_explained(content: dict[str, Any], change: dict[str, Any], message: str) -> None:
    """What the study decides, names that are taken, and methods that there are not."""
    with pytest.raises(ValidationError, match=message):
        Study.model_validate({**content, **change})


def test_wrong_recipes_are_explained(content: dict[str, Any]) -> None:
    """Keys of a task's recipe are checked, and those that the study decides are refused."""
    content["tasks"]["sums"]["recipe"]["decodign"] = {}
    with pytest.raises(ConfigError, match=r"tasks.sums.recipe: decodign"):
        Study.model_validate(content).recipe_of("sums", Path("x"))
    for key, value, reason in (
        ("output", "elsewhere", "this follows from the study"),
        ("benchmarks", "gsm8k", "a study evaluates on heldout alone"),
        ("rl", {}, "is a file of its own"),
    ):
        content["tasks"]["sums"]["recipe"] = {key: value}
        with pytest.raises(ConfigError, match=rf"tasks.sums.recipe.{key}: .*{reason}"):
            Study.model_validate(content).recipe_of("sums", Path("x"))


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_repeats_nothing(
    content: dict[str, Any], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between training and evaluation of a cell, continued without its working directory: each result once."""
    from cruxtune import study_run

    study = Study.model_validate(content)
    evaluate = study_run.STAGES["evaluate"]

    def stopping(settings: Any) -> Any:
        if settings.output.output.name == "random-0":
            raise KeyboardInterrupt
        return evaluate(settings)

    monkeypatch.setitem(study_run.STAGES, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        study_run.run_study(study, Clock())
    monkeypatch.setitem(study_run.STAGES, "evaluate", evaluate)
    there = {path: path.read_bytes() for path in Path("found/sums").glob("*.json")}
    assert sorted(path.stem for path in there) == sorted(name.partition("/")[2] for name in UNITS[:8])
    assert len(made) == len(set(made))
    first, made[:] = list(made), []

    found = study_run.run_study(study, Clock(only="*/random-*"))
    assert list(found) == UNITS[:9]
    # The trained model was there; its evaluation was all that was missing.
    assert made == ["evaluate random-0"]
    assert "train random-0" in first
    made.clear()

    shutil.rmtree("work")
    found = study_run.run_study(study, Clock())
    assert list(found) == UNITS
    # What the missing cell needs is made again, and nothing else: annotations are kept with the results.
    again = ["problems problems", "train start", "respond responses"]
    assert not list(Path("work/sums/annotations/rollouts").iterdir())
    assert "rollouts" not in Path("found/sums/annotations/README.md").read_text()
    assert made == [*again, "train cft-1", "evaluate cft-1"]
    assert {path: path.read_bytes() for path in there} == there
    assert not [path for path in Path("work").rglob("*.safetensors") if path.parent.name != "start"]
    made.clear()
    shutil.rmtree("work")
    assert study_run.run_study(study, Clock()) == found
    assert made == []

    cell = found["sums/cft-1"]
    assert cell["settings"]["learning_rate"] in (1e-4, 1e-5)
    assert list(cell["settings"]["study"]["validation"]) == ["0.0001", "1e-05"]
    assert cell["settings"]["study"]["start"] == found["sums/coldstart"]["hash"]
    assert (len(cell["greedy"]), len(cell["sampled"]["problems"])) == (6, 4)
    assert cell["training"]["curves"]["eval_loss_critical"]
    assert found["sums/start"]["training"] is None

    Path("study.yaml").write_text(yaml.safe_dump(content))
    study_command(Path("study.yaml"), {}, Clock())
    numbers = json.loads(Path("found.json").read_text())
    assert next(iter(numbers["methods"])) == "start"
    assert set(numbers["methods"]) == {"start", "cft", "random"}
    assert len(numbers["pairs"]["random - cft"]["benchmarks"]["sums"]["pass@1"]["interval"]) == 2
    compare(CompareSettings(cells=[Path("found")], output=Path("again")))
    assert Path("again/comparison.md").read_bytes() == Path("found/comparison.md").read_bytes()

    content["methods"]["cft"]["epochs"] = 2
    with pytest.raises(StoreError, match=r"method.epochs = 1, and the study has 2"):
        study_run.run_study(Study.model_validate(content), Clock())


def test_another_start_than_the_stated_one_is_refused(content: dict[str, Any]) -> None:
    """The hash of the study is checked, and a start that was made again must be what it was."""
    from cruxtune.study_run import make_starts, run_study, weights_hash

    content["tasks"]["sums"]["start_hash"] = "0" * 64
    with pytest.raises(StoreError, match=r"tasks.sums.start_hash is 0+, and what was made here has"):
        run_study(Study.model_validate(content), Clock(only="*/coldstart"))
    content["tasks"]["sums"]["start_hash"] = weights_hash(Path("work/sums/models/start"))
    found = run_study(Study.model_validate(content), Clock(only="*/coldstart"))
    assert found["sums/coldstart"]["hash"] == content["tasks"]["sums"]["start_hash"]

    weights = Path("work/sums/models/start/model.safetensors").read_bytes()
    shutil.rmtree("work")
    assert make_starts(Study.model_validate(content), Clock()) == {"sums": Path("work/sums/models/start")}
    assert Path("work/sums/models/start/model.safetensors").read_bytes() == weights

    path = Path("found/sums/coldstart.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "hash": "1" * 64}))
    del content["tasks"]["sums"]["start_hash"]
    with pytest.raises(StoreError, match=r"coldstart.json hash is 1+"):
        run_study(Study.model_validate(content), Clock(only="*/annotations"))
    assert "sums/annotations" in run_study(Study.model_validate(content), Clock(only="*/annotations"), any_start=True)

    # Annotations that are not those of the results are not kept in their place.
    shutil.rmtree("found/sums/annotations")
    path = Path("found/sums/annotations.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "masks": "1" * 64}))
    assert "sums/start" in run_study(Study.model_validate(content), Clock(only="*/start"), any_start=True)
    assert not Path("found/sums/annotations").exists()


def test_no_unit_begins_when_time_is_over(content: dict[str, Any]) -> None:
    """With no time, nothing is computed."""
    from cruxtune.study_run import run_study

    assert run_study(Study.model_validate(content), Clock(max_minutes=0)) == {}
    assert not Path("work").exists()


def test_the_best_learning_rate_is_chosen() -> None:
    """By accuracy; of equal ones the smaller."""
    from cruxtune.study_run import chosen_rate

    assert chosen_rate({1e-5: 0.2, 3e-5: 0.4, 1e-4: 0.4}) == 3e-5


def test_the_listing_says_what_is_missing_and_how_long_it_takes(content: dict[str, Any]) -> None:
    """A line for each unit with its expected minutes, their sum in hours, and what the study can detect."""
    from cruxtune.study_commands import listing

    Path("found/sums").mkdir(parents=True)
    Path("found/sums/tune-cft-1e-05.json").write_text("{}")
    lines = list(listing(Study.model_validate(content)))
    assert lines[3] == "missing    4 min  sums/tune-cft-0.0001"
    assert lines[4] == "done       4 min  sums/tune-cft-1e-05"
    assert [line.split()[-1] for line in lines[: len(UNITS)]] == UNITS
    assert lines[len(UNITS)] == f"left: about {(3 * 4 + 6 * 10) / 60:.1f} hours"
    assert "| 2 and the start | cft |" in "\n".join(lines)


def test_a_seed_decides_what_is_drawn_at_random(content: dict[str, Any]) -> None:
    """The selection of a model with a seed of its own has that seed."""
    from cruxtune.recipe import plan

    train = {"random": {"method": "random", "seed": 3}, "numeric": {"method": "numeric"}}
    steps = {step.name: step for step in plan(Study.model_validate(content).recipe_of("sums", Path("x"), train=train))}
    seeds = {name: step.settings.model_dump()["output"]["seed"] for name, step in steps.items() if name != "compare"}
    assert (seeds["select random"], seeds["train random"]) == (3, 3)
    assert (seeds["select numeric"], seeds["train numeric"], seeds["evaluate random"]) == (0, 0, 0)


@pytest.mark.slow
def test_the_committed_cells_give_the_committed_comparison(tmp_path: Path) -> None:
    """The study of record's table, JSON and figure follow from its cells, byte for byte."""
    results = Path(__file__).parent.parent / "docs" / "results"
    compare(CompareSettings(cells=[results / "small"], output=tmp_path / "again"))
    for name in ("comparison.md", "comparison.json", "comparison.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (results / "small" / name).read_bytes(), name
    assert (results / "small.json").read_bytes() == (results / "small" / "comparison.json").read_bytes()
