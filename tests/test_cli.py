"""The command line as a user meets it: what goes wrong is one line, what is asked for is done, Ctrl-C loses nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cruxtune.store import read_manifest, read_rows

PROGRAM = Path(sys.executable).with_name("cruxtune")
ROOT = Path(__file__).parents[1]
STAGES = ["respond", "annotate", "select", "train", "evaluate", "compare", "benchmarks", "contamination"]
GOOD = '{"question": "1 + 1?", "answer": "2"}'


def cruxtune(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program in a directory, on a wide terminal, and return what it said."""
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a user's error is."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# What goes wrong

RESPOND = "respond --model /nowhere --output out --problems"


@pytest.mark.parametrize(
    ("command", "rows", "told"),
    [
        (f"{RESPOND} nope.jsonl", None, ["nope.jsonl", "--problems"]),
        (f"{RESPOND} p.jsonl", [GOOD, '{"question": "2 + 2?", "ans'], ["Line 2 of p.jsonl is not JSON"]),
        (f"{RESPOND} p.jsonl", [GOOD, '{"question": "2 + 2?"}'], ["Line 2 of p.jsonl", "answer"]),
        (f"{RESPOND} p.jsonl", [], ["p.jsonl", "holds no problems"]),
        (
            f"{RESPOND} p.jsonl --field question=prompt",
            [GOOD],
            ["'prompt'", "--field question=prompt", "question, answer"],
        ),
        (f"{RESPOND} p.jsonl --field question", [GOOD], ["--field question: write it as NAME=VALUE"]),
        (
            f"{RESPOND} p.jsonl --kind exact",
            [GOOD, '{"question": "q", "answer": "two\\nlines", "id": "odd"}'],
            ["rejects the gold answer of 1 of 2 problems, first odd", "--skip-bad"],
        ),
        (f"{RESPOND} p.jsonl", [GOOD], ["--model /nowhere does not exist"]),
        (f"{RESPOND} gym:no_such_task", None, ["no_such_task", "--problems"]),
        (f"{RESPOND} p.jsonl --max-tokens 5", [GOOD], ["No such option: --max-tokens"]),
        (f"{RESPOND} p.jsonl --max-new-tokens many", [GOOD], ["--max-new-tokens", "integer"]),
        (f"{RESPOND} p.jsonl --max-new-tokens 0 --dtype int8", [GOOD], ["--max-new-tokens: ", "--dtype: ", "'int8'"]),
        ("respond", None, ["--problems: is required", "--model: is required", "--output: is required"]),
        ("compare --output out", None, ["name at least one --evaluation NAME=DIR, or --cells"]),
        ("annotate --responses nowhere --output out", None, ["--responses nowhere does not exist", "cruxtune respond"]),
        (
            "annotate --responses r --output out --joint-budget 9",
            None,
            ["--joint-budget bounds the rollouts of --joint, which is not given"],
        ),
        ("annotate --responses r --output out --temperature 0.7", None, ["--rollouts-per-alternative"]),
        ("annotate --responses r --output out --joint lines", None, ["--joint: Input should be 'pairs' or 'spans'"]),
        (f"{RESPOND} p.jsonl --samples 2 --worked-solutions", [GOOD], ["leave out --samples"]),
        (
            "train --method dpo --output out",
            None,
            ["--method: is none of cft, sft, gold", "(critical, all, ", "intersection)", "(got 'dpo')"],
        ),
        ("train --method entropy --output out", None, ["--method: this is a method of `cruxtune select`"]),
        (
            "select --method entropi --annotations a --output out",
            None,
            ["--method: Input should be 'critical', 'all'", "'entropy'", "'intersection' (got 'entropi')"],
        ),
        (
            "train --method cft --annotations a --output out --strict-answers --max-new-tokens 9",
            None,
            ["--strict-answers, --max-new-tokens: say how --validation answers", "leave them out"],
        ),
        ("train --method cft --output out", None, ["needs --annotations"]),
        (
            "train --method cft --annotations a --output out --trainer packing=true",
            None,
            ["--trainer packing is refused"],
        ),
        (f"{RESPOND} benchmark:mmlu_medical", None, ["no train split", "for evaluation only"]),
        (f"{RESPOND} p.jsonl --decontaminate gsm8", [GOOD], ["--decontaminate: ", "Did you mean 'gsm8k'"]),
        ("evaluate --model m --output out", None, ["--benchmarks: either this or --problems"]),
        ("evaluate --model m --output out --benchmarks svmap", None, ["'svmap'", "Did you mean 'svamp'"]),
        (
            "evaluate --model m --output out --benchmarks gsm8k --benchmarks-dir .",
            None,
            ["--benchmarks-dir . has no gsm8k/test.jsonl", "leave out --benchmarks-dir"],
        ),
        ("benchmarks --benchmarks-dir nowhere", None, ["--benchmarks-dir nowhere is no directory"]),
        (
            "train --method sft --annotations a --output out --decontaminate paper",
            None,
            ["--decontaminate", "cruxtune respond"],
        ),
        ("export --to trl --annotations nowhere --output out", None, ["--annotations nowhere does not exist"]),
        (
            "export --to megatron --annotations a --output out",
            None,
            ["--to: Input should be 'trl', 'axolotl'", "(got 'megatron')"],
        ),
        (
            "export --to verl --assistant-masks --annotations a --output out",
            None,
            ["assistant_masks is a column of TRL's; leave it out with --to verl"],
        ),
        ("inspect", None, ["rows come from --annotations, --selection or --exported; give one of them"]),
        ("inspect --exported nowhere", None, ["--exported nowhere does not exist", "cruxtune export"]),
        ("run nope.yaml", None, ["the recipe nope.yaml does not exist"]),
        ("run", None, ["Missing", "recipe"]),
        ("answer", None, ["No such command 'answer'"]),
    ],
)
def test_a_users_error_is_one_line_that_names_what_is_wrong(
    tmp_path: Path, command: str, rows: list[str] | None, told: list[str]
) -> None:
    """Exit code 2, one line on stderr, nothing on stdout, no traceback, nothing written."""
    if rows is not None:
        (tmp_path / "p.jsonl").write_text("".join(f"{row}\n" for row in rows))
    line = complaint(cruxtune(*shlex.split(command), cwd=tmp_path))
    for part in told:
        assert part in line
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_made_is_a_users_error(tmp_path: Path) -> None:
    """So is a file in the way, found before the model is loaded."""
    (tmp_path / "p.jsonl").write_text(GOOD)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    command = ["respond", "--model", "model", "--problems", "p.jsonl", "--output"]
    assert "is a file; name a directory" in complaint(cruxtune(*command, "p.jsonl", cwd=tmp_path))
    assert "cannot be written (Not a directory)" in complaint(cruxtune(*command, "p.jsonl/out", cwd=tmp_path))


def test_without_a_command_help_is_shown_and_nothing_else(tmp_path: Path) -> None:
    """`cruxtune` alone is a question, which the help answers."""
    result = cruxtune(cwd=tmp_path)
    assert "Usage: cruxtune" in result.stdout + result.stderr
    assert "error:" not in result.stderr


# What is asked for


@pytest.mark.parametrize("name", [*STAGES, "export", "inspect", "grade", "run", "demo"])
def test_help_has_an_example_that_works(tmp_path: Path, name: str) -> None:
    """--help of every command shows a command line of it; that line, with --dry-run, runs and writes nothing."""
    shown = cruxtune(name, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (example,) = re.findall(rf"cruxtune ({name} [^│[]*?)(?: is an example\.)? *$", shown.stdout, re.MULTILINE)
    result = cruxtune(*shlex.split(example), "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    heads = re.findall(r"^# (.*)$", result.stdout, re.MULTILINE)
    assert {"respond", "annotate", "compare"} <= set(heads) if name in ("run", "demo") else heads == [name]
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipes"]


def test_dry_run_shows_what_would_be_used(tmp_path: Path) -> None:
    """The settings printed are YAML with the values given and the defaults."""
    import yaml

    result = cruxtune(
        *shlex.split("evaluate --model nowhere --problems p.jsonl --output out --samples 3 --no-loop-stop --dry-run"),
        cwd=tmp_path,
    )
    settings = yaml.safe_load(result.stdout)
    assert (settings["samples"], settings["temperature"]) == (3, 1.0)
    assert settings["decoding"] == {"max_new_tokens": 512, "loop_stop": False}
    # What is measured by default is not shown.
    assert not settings["engine"]
    assert settings["output"]["output"] == "out"


def test_benchmarks_are_listed_with_and_without_files(tmp_path: Path) -> None:
    """The table has a row for each; with a directory, what is there and what is missing."""
    from cruxtune.benchmarks import BENCHMARKS

    table = cruxtune("benchmarks", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    for name, benchmark in BENCHMARKS.items():
        (row,) = re.findall(rf"^{name} .*$", table.stdout, re.MULTILINE)
        assert f"{benchmark.splits['test'].rows:,}" in row
        assert benchmark.licence in row
    assert "never trained on" in table.stderr
    (tmp_path / "files" / "medqa").mkdir(parents=True)
    (tmp_path / "files" / "medqa" / "test.jsonl").write_text("{}\n{}\n")
    table = cruxtune("benchmarks", "--benchmarks-dir", "files", cwd=tmp_path)
    assert re.search(r"^medqa +2 +test +choice +MIT +none here, 10,178 at the source ", table.stdout, re.MULTILINE)
    assert re.search(r"^gsm8k +no file ", table.stdout, re.MULTILINE)


def test_contamination_is_listed(tmp_path: Path) -> None:
    """A JSON object for each finding on stdout, or in a file; the numbers on stderr."""
    (tmp_path / "files" / "svamp").mkdir(parents=True)
    (tmp_path / "files" / "svamp" / "test.jsonl").write_text('{"question": "1  + 1", "answer": "2"}')
    (tmp_path / "p.jsonl").write_text(f'{GOOD}\n{{"question": "1 + 2?", "answer": "3"}}\n')
    command = shlex.split("contamination --problems p.jsonl --benchmarks svamp --benchmarks-dir files")
    found = cruxtune(*command, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {
        "id": "p.jsonl/0",
        "benchmark": "svamp",
        "like": "svamp/test/0",
        "overlap": 1.0,
        "shared": "1 1",
    }
    assert "1 of 2 problems occur in these benchmarks; leave them out with --decontaminate svamp" in found.stderr
    written = cruxtune(*command, "--output", "found.jsonl", cwd=tmp_path)
    assert written.stdout == "found.jsonl\n"
    assert (tmp_path / "found.jsonl").read_text() == found.stdout


def test_a_recipe_never_trains_on_a_test_split(tmp_path: Path) -> None:
    """It stops before anything is done; the training split of the same benchmark may be named."""
    (tmp_path / "gsm8k").mkdir()
    rows = [{"id": f"gsm8k/test/{n}", "question": f"{n} + 1?", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        "{output: out, model: m, benchmarks_dir: ., problems: {problems: 'benchmark:gsm8k', split: test},"
        " splits: {heldout: 1}, train: {cft: {method: cft}}}"
    )
    told = complaint_after(cruxtune("run", "r.yaml", cwd=tmp_path))
    assert "4 of the problems are of the test split of GSM8K, first gsm8k/test/0" in told
    told = complaint_after(cruxtune("run", "r.yaml", "--set", "problems.split=train", cwd=tmp_path))
    assert "has no training split in --benchmarks-dir ." in told


def complaint_after(result: subprocess.CompletedProcess[str]) -> str:
    """Return the last line on stderr of a run that a user's error ended."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_dry_run_of_every_command_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """What only prints a plan is there in an instant."""
    code = (
        "import sys; from cruxtune import cli\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    sys.argv = ['cruxtune', *line.split()]\n"
        "    cli.main()\n"
        "assert not {'torch', 'transformers', 'datasets', 'trl'} & sys.modules.keys()\n"
    )
    lines = [
        f"{RESPOND} p.jsonl --dry-run",
        "annotate --responses r --output out --dry-run",
        "select --method entropy --annotations a --output out --dry-run",
        "train --method sft --annotations a --output out --dry-run",
        "evaluate --model m --problems gym:chain_sum --output out --dry-run",
        "evaluate --model m --benchmarks paper --output out --dry-run",
        "export --to dpo --annotations a --output out --dry-run",
        "inspect --annotations a --dry-run",
        "compare --evaluation a=x --output out --dry-run",
        "contamination --problems p.jsonl --dry-run",
        "benchmarks",
        "demo --dry-run",
    ]
    result = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(lines), cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_is_changed_by_options(tmp_path: Path) -> None:
    """--output, --seed and --set replace values of the recipe in every step of the plan."""
    arguments = "run demo.yaml --output elsewhere --seed 7 --set decoding.max_new_tokens=9 --dry-run"
    (tmp_path / "demo.yaml").write_bytes((ROOT / "src" / "cruxtune" / "demo.yaml").read_bytes())
    plan = cruxtune(*shlex.split(arguments), cwd=tmp_path).stdout
    assert "  output: elsewhere/responses\n" in plan
    assert "output: demo" not in plan
    assert set(re.findall(r"^ *seed: (\d+)$", plan, re.MULTILINE)) == {"7"}
    assert set(re.findall(r"max_new_tokens: (\d+)", plan)) == {"9"}


def test_grade_shows_what_it_came_to(tmp_path: Path) -> None:
    """Verdicts go to the file that stdout names, counts to stderr; a bad row ends with 2, or well with --skip-bad."""
    rows = ['{"gold": "4", "prediction": "#### 4"}', '{"gold": "1/2", "prediction": "It is 0.6"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    result = cruxtune("grade", "a.jsonl", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "a.graded.jsonl\n")
    assert re.search(r"correct +1 of 2 \(50\.0 %\)", result.stderr)
    assert re.search(r"hash +1 of 1 .*\n +last-number +0 of 1", result.stderr)
    assert len((tmp_path / "a.graded.jsonl").read_text().splitlines()) == 2
    (tmp_path / "b.jsonl").write_text("\n".join([*rows, "{"]))
    result = cruxtune("grade", "b.jsonl", cwd=tmp_path)
    assert result.returncode == 2
    assert "error: 1 of 3 rows could not be graded" in result.stderr
    assert "Line 3 of b.jsonl is not JSON" in result.stderr
    assert cruxtune("grade", "b.jsonl", "--overwrite", "--skip-bad", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_samples_sets_and_grades_from_the_command_line(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    """Samples of one model are annotated by another, with pairs and draws; the tables say what came out."""
    for name, seed in (("one", 0), ("other", 4)):
        tiny_checkpoint(tmp_path / name, seed=seed)
    (tmp_path / "judge.py").write_text("def even(text, problem):\n    return sum(text.encode()) % 2 == 0\n")
    problems = [json.dumps({"id": f"p{n}", "question": f"{n} + {n}?", "answer": str(2 * n)}) for n in range(5)]
    (tmp_path / "p.jsonl").write_text("\n".join(problems))
    tiny = "--dtype float64 --device cpu --batch-size 8 --draft-length 2"
    told = cruxtune(
        *shlex.split(f"respond --model one {tiny} --problems p.jsonl --kind custom --verifier judge:even --samples 2 "),
        *shlex.split("--max-new-tokens 12 --output r"),
        cwd=tmp_path,
    )
    assert told.returncode == 0, told.stderr
    assert re.search(r"correct responses +\d+ of 15 .*\n *problems with one +\d of 5 ", told.stderr)
    more = "--joint pairs --joint-budget 300 --rollouts-per-alternative 2 --temperature 1.5 --positions 0.8"
    told = cruxtune(*shlex.split(f"annotate --model other {tiny} --responses r --output a {more}"), cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout == "a\n"
    for shown in (
        r"not the model's own +\d+, their tokens kept first",
        r"undecided tokens +\d+ of \d+",
        r"sampled rollouts +\d+",
        r"pairs critical together +(0|\d+ of \d+)",
    ):
        assert re.search(shown, told.stderr), (shown, told.stderr)
    done = read_manifest(tmp_path / "a")["accounting"]
    assert done["rollouts_sampled"] == len(list(read_rows(tmp_path / "a", "sampled_rollouts"))) > 0
    assert done["joint_sets_asked"] == len(list(read_rows(tmp_path / "a", "joint")))
    estimated = cruxtune(
        *shlex.split(f"estimate --model other {tiny} --responses r {more} --trial-seconds 1"), cwd=tmp_path
    )
    assert estimated.returncode == 0, estimated.stderr
    assert json.loads(estimated.stdout)["sampled"] == done["rollouts_sampled"]


# What an interruption leaves


def test_ctrl_c_loses_at_most_a_group_and_the_same_command_resumes(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    """SIGINT ends a run with 130 and says how to go on; the same command does the rest and prints where it is."""
    model = tiny_checkpoint(tmp_path / "model")
    problems = [json.dumps({"id": f"p{n}", "question": f"{n} + {n}?", "answer": str(2 * n)}) for n in range(100)]
    (tmp_path / "p.jsonl").write_text("\n".join(problems))
    command = shlex.split(
        f"respond --model {model} --dtype float64 --device cpu --problems p.jsonl --output out --group-size 1 "
        "--batch-size 1 --draft-length 0 --max-new-tokens 20"
    )
    first = tmp_path / "out" / "data" / "part-00000.parquet"
    process = subprocess.Popen(
        [PROGRAM, *command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in its background with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted: what is finished is kept; the same command resumes" in said
    assert "Traceback" not in said
    done = {shard.name: shard.stat().st_mtime_ns for shard in first.parent.iterdir()}
    assert first.name in done
    assert len(done) < 100
    assert read_manifest(tmp_path / "out")["complete"] is False

    result = cruxtune(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "out\n"
    assert read_manifest(tmp_path / "out")["rows"] == 100
    assert [row["id"] for row in read_rows(tmp_path / "out")] == [f"p{n}" for n in range(100)]
    after = {shard.name: shard.stat().st_mtime_ns for shard in first.parent.iterdir()}
    assert done.items() <= after.items()
