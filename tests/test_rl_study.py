"""GRPO from the models of a tiny study, with a verifier that finds about half of all texts correct."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from cruxtune.errors import ConfigError, StoreError
from cruxtune.rl_study import read_rl_study, runs
from cruxtune.rl_study_commands import listing, rl_study_command, write_results
from cruxtune.rl_study_page import ends, page
from cruxtune.rl_study_summary import bands, equal_compute, summarise
from cruxtune.study_clock import Clock
from cruxtune.study_commands import study_command

ROOT = Path(__file__).parents[1]

RUNS = [
    *("sums/grpo-0", "sums/sft-grpo-0", "sums/cft-grpo-0", "sums/grpo-longer-0"),
    *("sums/grpo-1", "sums/sft-grpo-1", "sums/cft-grpo-1", "sums/grpo-longer-1"),
]


@pytest.fixture
def content(study_recipe: dict[str, Any]) -> dict[str, Any]:
    """The file of a study of four arms and two seeds, beside that of the study whose models they go on from."""
    record = {
        "output": "work",
        "results": "found",
        "threads": 1,
        "recipe": {
            **study_recipe,
            "decoding": {"max_new_tokens": 8},
            "splits": {"coldstart": 8, "train": 18, "heldout": 6},
            "validation": {"probe": 2},
            "evaluate": {"samples": 4, "sampled_problems": 4},
        },
        "tasks": {
            "sums": {
                "seeds": {"sft": 2, "cft": 2},
                "recipe": {"problems": {"problems": "gym:chain_sum", "size": 80, "kind": "custom"}},
            }
        },
        "methods": {"sft": {"method": "sft", "epochs": 1}, "cft": {"method": "cft", "epochs": 1}},
        "tuning": {"learning_rates": [1e-4], "problems": 12},
        "power": {"disagreement": 0.2, "between_seeds": 0.1, "seed_deviation": 0.0},
    }
    Path("studies").mkdir()
    Path("studies/record.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    return {
        "study": "record.yaml",
        "task": "sums",
        "output": "rl-work",
        "results": "rl-found",
        "arms": {
            "grpo": {"from": "start"},
            "sft-grpo": {"from": "sft"},
            "cft-grpo": {"from": "cft"},
            "grpo-longer": {"from": "start", "compute_of": "cft-grpo", "most_steps": 40},
        },
        "seeds": 2,
        "validation_problems": 4,
        "rl": {
            "steps": 2,
            "generations": 4,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "evaluate_every": 2,
            "validation_samples": 8,
        },
        "expected_minutes": {"*/grpo-longer-*": 9, "*": 3},
    }


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed results, and of the studies' files, in the working directory."""
    for name in ("small", "rl"):
        shutil.copytree(ROOT / "docs" / "results" / name, tmp_path / "docs" / "results" / name)
    shutil.copytree(ROOT / "recipes" / "studies", tmp_path / "recipes" / "studies")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "docs" / "results"


def written(content: dict[str, Any]) -> Path:
    """The file of a study."""
    path = Path("studies/rl.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_runs_come_seed_by_seed(content: dict[str, Any]) -> None:
    """A seed of every arm before two of one; the listing has them with their minutes, and what can be detected."""
    study, record = read_rl_study(written(content), {})
    assert [run.name for run in runs(study)] == RUNS
    lines = list(listing(study, record))
    assert lines[3] == "missing    9 min  sums/grpo-longer-0"
    assert lines[8] == f"left: about {(2 * 9 + 6 * 3) / 60:.1f} hours"
    assert [line.split(" | ")[:2] for line in lines[-2:]] == [
        ["| 6 held-out", "2 and 2"],
        ["| 4 validation", "2 and 2"],
    ]


def test_an_arm_may_have_fewer_seeds(content: dict[str, Any]) -> None:
    """Its runs are left out and nothing else changes; what can be detected with as few is said."""
    content["arms"]["grpo-longer"]["seeds"] = 1
    study, record = read_rl_study(written(content), {})
    assert [run.name for run in runs(study)] == RUNS[:-1]
    lines = list(listing(study, record))
    assert lines[7] == f"left: about {(9 + 6 * 3) / 60:.1f} hours"
    assert [line.split(" | ")[:2] for line in lines[-4:]] == [
        ["| 6 held-out", "2 and 2"],
        ["| 6 held-out", "2 and 1"],
        ["| 4 validation", "2 and 2"],
        ["| 4 validation", "2 and 1"],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "words"}, "record.yaml has no task words"),
        ({"seeds": 3}, "record.yaml has 2 seeds of sft, and seeds says 3"),
        ({"validation_problems": 12}, "record.yaml keeps 12 problems to validate on, of which some are to be left"),
        ({"arms": {"cft": {"from": "start"}}}, "arms.cft: record.yaml calls something else so"),
        ({"arms": {"a": {"from": "start", "most_steps": 3}}}, "arms.a.most_steps: this arm has rl.steps"),
        ({"arms": {"a": {"from": "start", "compute_of": "b"}}}, "arms.a.compute_of: b is no arm above"),
        ({"arms": {"a": {"from": "start", "seeds": 3}}}, "arms.a.seeds: seeds has 2; give it no more"),
        (
            {"arms": {"a": {"from": "start", "seeds": 1}, "b": {"from": "start", "compute_of": "a"}}},
            "arms.b.seeds: a, whose compute it takes, has 1; give it no more",
        ),
        ({"rl": {"steps": 2, "seed": 1}}, "rl.seed: this follows from the study"),
        ({"rl": {}}, "rl.steps is missing"),
        ({"study": "none.yaml"}, "none.yaml does not exist"),
    ],
)
def test_wrong_studies_are_explained(content: dict[str, Any], change: dict[str, Any], message: str) -> None:
    """What does not fit the other study, and what follows from it."""
    with pytest.raises(ConfigError, match=message):
        read_rl_study(written({**content, **change}), {})


def test_what_is_gone_on_from_must_be_there(content: dict[str, Any]) -> None:
    """Without the other study's result nothing is trained, and the page says that nothing was run."""
    with pytest.raises(StoreError, match=r"found/sums/sft-0.json is missing.*--only sums/sft-0"):
        rl_study_command(written(content), {}, Clock(only="*/sft-grpo-0"))
    assert "Not run yet: 0 of 8 runs." in Path("rl-found.md").read_text()
    assert not Path("rl-found").exists()


@pytest.mark.slow
def test_the_committed_files_are_those_of_the_results(committed: Path) -> None:
    """Page, numbers, figures and comparison are what the study's file and the committed results give, byte for byte."""
    written = [f"{name}.{ending}" for name in ("rl", "rl/comparison") for ending in ("md", "json", "svg")]
    for name in written:
        (committed / name).unlink(missing_ok=True)
    path = Path("recipes/studies/rl-small.yaml")
    write_results(path, *read_rl_study(path, {}))
    for name in written:
        assert (committed / name).read_bytes() == (ROOT / "docs" / "results" / name).read_bytes(), name


def test_a_run_is_beside_the_bits_that_it_went_on_from(committed: Path) -> None:
    """Also where other runs of its arm went on from others; the comparison has the record's model if any run had."""
    from cruxtune.rl_study_run import compared_files, read_origins, read_runs

    study, record = read_rl_study(Path("recipes/studies/rl-small.yaml"), {})
    own, remade = Path("docs/results/small/sums/start.json"), Path("docs/results/rl/sums/start-9f350fda.json")
    hashes = {file: json.loads(file.read_text())["settings"]["study"]["start"] for file in (own, remade)}
    plain = [run for run in runs(study) if run.arm in ("grpo", "grpo-longer")]

    def let(*bits: str) -> None:
        """Let the runs of plain GRPO have gone on from these bits, seed by seed and over again."""
        for run in plain:
            if (file := committed / f"rl/{run.name}.json").exists():
                cell = json.loads(file.read_text())
                cell["settings"]["study"]["from_weights"] = bits[run.seed % len(bits)]
                file.write_text(json.dumps(cell))

    def starts() -> list[Path]:
        return [file for file in compared_files(study, record, read_runs(study, record)) if file in (own, remade)]

    let(hashes[remade])
    assert starts() == [remade]
    let(hashes[remade], hashes[own])
    assert starts() == [own]
    found = read_origins(study, record, read_runs(study, record))
    greedy = {file: json.loads(file.read_text())["greedy"] for file in (own, remade)}
    assert greedy[own] != greedy[remade]
    assert [found[f"sums/grpo-{seed}"]["greedy"] for seed in (0, 1)] == [greedy[remade], greedy[own]]
    # The name has eight digits of the hash alone.
    let(hashes[remade][:8] + "0" * 56)
    assert "sums/grpo-0" not in read_origins(study, record, read_runs(study, record))

    let(hashes[own])
    done = read_runs(study, record)
    result = summarise(study, done, read_origins(study, record, done))
    for name, arm in result["arms"].items():
        cells = [json.loads((committed / f"rl/sums/{name}-{seed}.json").read_text()) for seed in arm["seeds"]]
        took = [(cell["seconds"]["rl"] + cell["seconds"]["evaluate"]) / 60 for cell in cells]
        assert arm["minutes"] == [round(minutes) for minutes in took]
    # Another arm from the same start, of fewer seeds: what is said of the start is of as many as there are.
    fewer = {**result["arms"]["grpo"], "seeds": [0], "from_weights": [hashes[own]]}
    fewer["before"] = {name: {**part, "seeds": 1} for name, part in result["arms"]["sft-grpo"]["before"].items()}
    fewer["steps_bought"] = fewer["steps"]
    text = page("x", study, record, {**result, "arms": {**result["arms"], "grpo-longer": fewer}})
    (line,) = (line for line in text.splitlines() if line.startswith("| start, before GRPO"))
    assert line.startswith("| start, before GRPO | 0 | 46.7 % [46.7, 46.7] |")
    assert "; 3 seeds of each arm, 2 of grpo-longer, on the task sums" in text
    assert "A value is over the seeds that the arm of its row and that of its column both have." in text


def test_bands_are_over_all_seeds() -> None:
    """Curves go as far as every seed does; at equal compute each seed counts with its own last validation."""
    curves = [{"reward": [[1, 0.0], [3, 0.5]]}, {"reward": [[1, 1.0], [3, 0.0], [5, 1.0]]}]
    assert bands(curves) == {"reward": [[1, 0.5, 0.0, 1.0], [3, 0.25, 0.0, 0.5]]}
    late = {0: [(40, {"a": 0.0}), (90, {"a": 1.0})], 1: [(60, {"a": 0.5}), (80, {"a": 0.75})]}
    soon = {0: [(0, {"a": 0.25}), (50, {"a": 0.5})], 1: [(0, {"a": 0.25}), (50, {"a": 0.0}), (70, {"a": 1.0})]}
    only = {1: [(0, {"a": 0.0}), (55, {"a": 1.0})]}
    only_end, soon_end, late_end = equal_compute({"late": late, "soon": soon, "only": only})
    assert [(end["end_of"], end["tokens"]) for end in (only_end, soon_end, late_end)] == [
        *(("only", 55), ("soon", 60), ("late", 85))
    ]
    assert only_end["arms"]["late"] == {"state": "not begun"}
    assert only_end["arms"]["soon"] == {"state": "running", "a": {"mean": 0.0, "low": 0.0, "high": 0.0, "seeds": 1}}
    # In seed 0 at 50 tokens, in seed 1 at 70.
    assert soon_end["arms"]["late"] == {"state": "running", "a": {"mean": 0.25, "low": 0.0, "high": 0.5, "seeds": 2}}
    assert late_end["arms"]["late"]["a"] == {"mean": 0.875, "low": 0.75, "high": 1.0, "seeds": 2}
    assert late_end["arms"]["soon"] == {"state": "ended", "a": {"mean": 0.75, "low": 0.5, "high": 1.0, "seeds": 2}}


def test_the_ends_of_curves_are_of_what_can_differ() -> None:
    """Of rollouts the thirds are shown, of ratios those of steps on which one can be other than 1."""
    steps = range(1, 11)
    curves = {
        "reward": [[step, step / 10, 0.0, 1.0] for step in steps if step % 2],
        "clipped": [[step, 0.0 if step % 2 else step / 100, 0.0, 1.0] for step in steps],
        "eval_accuracy": [[0, 0.25, 0.0, 1.0], [10, 0.75, 0.0, 1.0]],
    }
    # Two of the five generations at each end, and of the five steps after them.
    assert ends(curves, "reward") == "0.200 → 0.800"
    assert ends(curves, "clipped") == "0.030 → 0.090"
    assert ends(curves, "eval_accuracy") == "25.0 → 75.0 %"
    assert ends({**curves, "clipped": curves["clipped"][::2]}, "clipped") == ends(curves, "kl") == ""


@pytest.mark.slow
def test_a_killed_study_goes_on_and_its_page_is_that_of_its_logs(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All arms, stopped before an evaluation and continued without models: JSON, page and compute agree."""
    from cruxtune import pipeline

    content["seeds"] = 1
    study_command(Path("studies/record.yaml"), {}, Clock(only="sums/*[t0]"))
    there = {path: path.read_bytes() for path in Path("found/sums").glob("*.json")}
    path, evaluate, logs = written(content), pipeline.STAGES["evaluate"], {}

    def stopping(settings: Any) -> Any:
        model = Path(settings.model.model)
        logs[model.name] = [json.loads(line) for line in (model / "training_log.jsonl").read_text().splitlines()]
        if model.name == "cft-grpo-0" and not Path("rl-work/stopped").exists():
            Path("rl-work/stopped").touch()
            raise KeyboardInterrupt
        return evaluate(settings)

    monkeypatch.setitem(pipeline.STAGES, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        study_command(path, {}, Clock())
    text = Path("rl-found.md").read_text()
    assert "2 of 4 runs are done. Missing: sums/cft-grpo-0, sums/grpo-longer-0." in text
    before = {file: file.read_bytes() for file in Path("rl-found/sums").iterdir()}
    shutil.rmtree("work")
    content["keep_checkpoints"] = True
    study_command(written(content), {}, Clock())
    assert {file: file.read_bytes() for file in before} == before
    # The start and the models that were gone came out as they were, and no result of theirs was touched.
    assert {file: file.read_bytes() for file in there} == there
    # Models of runs are kept from when it was asked for.
    kept = {file.relative_to("rl-work/sums/models").parts[0] for file in Path("rl-work").rglob("*.safetensors")}
    assert kept == {"cft-grpo-0", "grpo-longer-0"}

    result = json.loads(Path("rl-found.json").read_text())
    assert (result["done"], result["missing"]) == (RUNS[:4], [])
    runs_of = {name: json.loads(Path(f"rl-found/{name}.json").read_text()) for name in RUNS[:4]}
    totals = {}
    for name, run in runs_of.items():
        log, cost = logs[name.partition("/")[2]], run["settings"]["study"]["compute"]
        examined = [entry for entry in log if "eval_accuracy" in entry]
        assert run["training"]["curves"]["eval_pass@8"] == [[entry["step"], entry["eval_pass@8"]] for entry in examined]
        assert run["training"]["curves"]["reward"] == [
            [entry["step"], pytest.approx(entry["reward"], abs=1e-6)] for entry in log if "reward" in entry
        ]
        assert cost["rl"] == examined[-1]["tokens_computed"] > 0
        assert (len(run["greedy"]), len(run["sampled"]["problems"])) == (6, 4)
        method = result["arms"][run["method"]]["from"]
        origin = json.loads(Path(f"found/sums/{method}-{run['seed']}.json").read_text()) if method != "start" else None
        spent = origin["training"] if origin else {"respond_tokens": 0, "annotate_tokens": 0, "tokens_computed": 0}
        assert cost["annotation"] == spent["respond_tokens"] + spent["annotate_tokens"]
        assert cost["training"] == spent["tokens_computed"]
        totals[name] = sum(cost.values())
        took = run["settings"]["study"]["seconds"]
        parts = ("respond", "annotate", "train")
        assert [took[part] for part in ("annotation", "training", "rl")] == [
            pytest.approx(sum((origin or {"seconds": {}})["seconds"].get(part, 0) for part in parts[:2]), abs=1e-3),
            (origin or {"seconds": {}})["seconds"].get(parts[2], 0),
            run["seconds"]["rl"],
        ]
        before = result["arms"][run["method"]]["before"]["pass@1"]["mean"]
        origin = origin or json.loads(Path("found/sums/start.json").read_text())
        assert before == pytest.approx(sum(origin["greedy"]) / 6, abs=1e-6)
    cost, plain = (runs_of[f"sums/{arm}-0"]["settings"]["study"]["compute"] for arm in ("cft-grpo", "grpo"))
    assert cost["annotation"] > runs_of["sums/sft-grpo-0"]["settings"]["study"]["compute"]["annotation"] > 0
    assert result["arms"]["grpo"]["steps"] == [2]
    # At 2 steps for what they take from the start, all that CFT and GRPO took buys so many; each rollout serves 2.
    bought = totals["sums/cft-grpo-0"] / (plain["rl"] / 2)
    assert bought <= result["arms"]["grpo-longer"]["steps"][0] < bought + 2
    assert result["arms"]["grpo-longer"]["steps_bought"] == result["arms"]["grpo-longer"]["steps"]

    ends = result["equal_compute"]
    assert [end["tokens"] for end in ends] == sorted(totals.values())
    for end in ends:
        for arm, reached in end["arms"].items():
            spent = runs_of[f"sums/{arm}-0"]["settings"]["study"]["compute"]
            before = spent["annotation"] + spent["training"]
            examined = [entry for entry in logs[f"{arm}-0"] if "eval_accuracy" in entry]
            last = [entry for entry in examined if before + entry["tokens_computed"] <= end["tokens"]][-1]
            assert reached["eval_accuracy"]["mean"] == last["eval_accuracy"]
            assert reached["state"] == ("ended" if totals[f"sums/{arm}-0"] < end["tokens"] else "running")

    text = Path("rl-found.md").read_text()
    assert "All 4 runs are done." in text
    assert f"![Curves, bands over seeds]({Path('rl-found.svg').name})" in text
    assert "| pass@8, validation |" in text
    assert "There are 4 validation problems" in text
    assert "pass@8, validation (%)" in Path("rl-found.svg").read_text()
    share = sum(runs_of["sums/cft-grpo-0"]["greedy"]) / 6
    assert f"{100 * share:.1f} %" in next(line for line in text.splitlines() if line.startswith("| cft-grpo | 1 |"))
    comparison = json.loads(Path("rl-found/comparison.json").read_text())
    assert set(comparison["methods"]) == {*content["arms"], "start", "sft", "cft"}
    assert comparison["baseline"] == "start"
    # Each arm against its start and against each other; of the 21 differences the others are not of this study.
    differences = text.split("Each arm against its own start")[1].split("\n\n")[1].splitlines()[2:]
    assert {line.strip("| ").split(" | ")[0] for line in differences} == {
        *(f"{name} - {arm['from']}" for name, arm in content["arms"].items()),
        *(f"{later} - {before}" for before, later in combinations(content["arms"], 2)),
    }
    assert "for all 21 differences" in text

    # Accuracy on the held-out problems by tokens: the start first, for nothing, and what took most last.
    first, *_, last = (line for line in text.split("by all tokens")[1].split("\n\n")[1].splitlines()[2:])
    assert first.startswith("| start, before GRPO | 0 | ")
    most, tokens = max(((runs_of[name]["method"], total) for name, total in totals.items()), key=lambda one: one[1])
    assert last.startswith(f"| {most} | {tokens:,} | ")
    # No model was trained on what GRPO trains on, and no problem is examined that it trains on.
    trained, examined = (
        {json.loads(line)["id"] for line in Path(f"rl-work/sums/{name}.jsonl").read_text().splitlines()}
        for name in ("problems", "validation")
    )
    seen = {json.loads(line)["id"] for line in Path("work/sums/problems/train.jsonl").read_text().splitlines()}
    assert (len(trained), len(examined)) == (8, 4)
    assert not trained & examined
    assert not trained & seen

    # An arm that is stopped before it has taken as much as the other says so, in tokens.
    longer = {**result["arms"]["grpo-longer"], "steps": [2]}
    short = {**result, "arms": {**result["arms"], "grpo-longer": longer}}
    study, record = read_rl_study(path, {})
    stopped = [line for line in page("x", study, record, short).splitlines() if line.startswith("grpo-longer stopped")]
    share = 100 * longer["compute"]["total"] / result["arms"]["cft-grpo"]["compute"]["total"]
    assert stopped == [
        f"grpo-longer stopped at 2 of the {longer['steps_bought'][0]} steps that all compute of cft-grpo buys: it took "
        f"{share:.0f} % of that one's tokens."
    ]
    assert "grpo-longer stopped" not in Path("rl-found.md").read_text()

    content["rl"]["learning_rate"] = 0.02
    with pytest.raises(StoreError, match=r"rl.learning_rate = 0.01, and the study has 0.02"):
        study_command(written(content), {}, Clock())


@pytest.mark.slow
def test_a_model_made_again_with_other_bits_is_evaluated_and_named(content: dict[str, Any]) -> None:
    """Without --any-start it is refused; with it runs are compared with what they come from, and the page says so."""
    content["seeds"] = 1
    content["arms"] = {name: content["arms"][name] for name in ("grpo", "sft-grpo")}
    study_command(Path("studies/record.yaml"), {}, Clock(only="sums/s*t*"))
    one = "1" * 64
    changes: dict[str, dict[str, Any]] = {
        "coldstart": {"hash": one},
        "annotations": {"start": one},
        "start": {"start": one},
        "sft-0": {"start": one, "weights": one},
    }
    bits = {}
    for name, change in changes.items():
        file = Path(f"found/sums/{name}.json")
        kept = json.loads(file.read_text())
        where = kept["settings"]["study"] if name in ("start", "sft-0") else kept
        bits[name] = {key: where[key] for key in change}
        where.update(change)
        # What it had, had it been another model: none right.
        kept |= {"greedy": [0] * 6} if "greedy" in kept else {}
        file.write_text(json.dumps(kept))
    record_files = {file: file.read_bytes() for file in Path("found/sums").glob("*.json")}
    path = written(content)
    with pytest.raises(StoreError, match=r"coldstart.json hash is 1+, and what was made here has .*--any-start"):
        rl_study_command(path, {}, Clock())
    rl_study_command(path, {}, Clock(), any_start=True)
    assert {file: file.read_bytes() for file in Path("found/sums").glob("*.json")} == record_files

    weights = {"start": bits["start"]["start"], "sft-0": bits["sft-0"]["weights"]}
    cells = {}
    for name, seed in (("start", None), ("sft-0", 0)):
        cells[name] = json.loads(Path(f"rl-found/sums/{name}-{weights[name][:8]}.json").read_text())
        about = cells[name]["settings"]["study"]
        assert about["instead_of"] == one
        assert {key: about[key] for key in bits[name]} == bits[name]
        found = (cells[name]["method"], cells[name]["seed"], len(cells[name]["greedy"]))
        assert found == (name.removesuffix("-0"), seed, 6)
    result = json.loads(Path("rl-found.json").read_text())
    assert result["from_remade"] == ["sums/grpo-0", "sums/sft-grpo-0"]
    for arm, name in (("grpo", "start"), ("sft-grpo", "sft-0")):
        assert result["arms"][arm]["from_weights"] == [weights[name]]
        right = sum(cells[name]["greedy"]) / 6
        assert result["arms"][arm]["before"]["pass@1"]["mean"] == pytest.approx(right, abs=1e-6)
    spent = json.loads(Path("rl-found/sums/sft-grpo-0.json").read_text())["settings"]["study"]["compute"]
    assert spent["training"] == cells["sft-0"]["training"]["tokens_computed"]
    assert "sums/grpo-0, sums/sft-grpo-0 go on from models that were made again" in Path("rl-found.md").read_text()
    methods = json.loads(Path("rl-found/comparison.json").read_text())["methods"]
    # The start of the record is what no run goes on from.
    assert {name: about["benchmarks"]["sums"]["seeds"] for name, about in methods.items()} == {
        "start": [None],
        "sft": [0],
        "grpo": [0],
        "sft-grpo": [0],
    }

    # Each run is beside the bits that it went on from; where they are the record's, what was made again is not theirs.
    file = Path("rl-found/sums/grpo-0.json")
    run = json.loads(file.read_text())
    run["settings"]["study"]["from_weights"] = one
    file.write_text(json.dumps(run))
    rl_study_command(path, {}, Clock(max_minutes=0))
    result = json.loads(Path("rl-found.json").read_text())
    assert result["from_remade"] == ["sums/sft-grpo-0"]
    assert result["arms"]["grpo"]["before"]["pass@1"]["mean"] == 0.0
    compared = json.loads(Path("rl-found/comparison.json").read_text())["methods"]["start"]["benchmarks"]["sums"]
    assert compared["seeds"] == [None]
    assert compared["metrics"]["pass@1"]["value"] == 0.0
    # An arm that is given the compute of another one, and begins with other bits than the arm that begins alike.
    same = {**result["arms"]["grpo"], "steps_bought": [2]}
    content["arms"]["longer"] = {"from": "start", "compute_of": "sft-grpo"}
    study, record = read_rl_study(written(content), {})
    for begun, said in (({**same, "from_weights": ["2" * 64]}, True), (same, False)):
        text = page("x", study, record, {**result, "arms": {**result["arms"], "longer": begun}})
        assert ("In seed 0 the two models differ in bits" in text) is said
