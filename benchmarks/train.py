"""Critical-token fine-tuning beside TRL, step by step on the same rows: seconds, peak memory, loss, gradients.

  sft     TRL's SFTTrainer on all response tokens
  labels  TRL's SFTTrainer with -100 at all but the critical tokens, and nothing else
  cft     the same tokens through `cruxtune train`

Each is a process of its own with SmolLM2-135M (embedded). They make one step after the other in turns, so that they
meet the same machine, and ratios are medians over steps. Rows, batches and the trainers' settings are the same, which
is checked for every field but those of where and when to save; nobody checkpoints activations. The first step is not
timed: it allocates the optimizer's state. Memory is the peak of the process less what it held with the model loaded;
both are in the JSON.

Rows are prompts and worked solutions of GSM8K-style problems (`gym:gsm_symbolic`). Which of their tokens are critical
is drawn at random, the same share of each response: 12 % is what the paper reports, 30 % what a small model has on
short answers. Where in a response tokens are critical matters only for its tail, which cft leaves out.

Configurations are called PARAMETERS-PRECISION-SHARE: parameters full or lora; precision float32 or bfloat16 (as
`cruxtune train` has it: float32 weights and autocast, frozen weights in bfloat16); share in per cent. The ratios at the
top of the JSON are the worst of all configurations that were run.

Run it on a machine that does nothing else, with memory for three trainers:

  python benchmarks/train.py --quick --json out.json
  python benchmarks/train.py --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import train_exactness
from limits import machine
from rich.console import Console
from train_rows import checkpoint, full_rows, masked
from train_worker import VARIANTS, Work

from cruxtune.models import quiet_libraries

_FULL = tuple(
    f"{parameters}-{precision}-{share}"
    for share in (12, 30)
    for parameters in ("full", "lora")
    for precision in ("float32", "bfloat16")
)
_QUICK = ("full-float32-12",)
_BARS = {
    "time_ratio_sft": 0.92,
    "memory_ratio_sft": 0.92,
    "time_ratio_same_labels": 1.03,
    "memory_ratio_same_labels": 1.03,
    "max_gradient_difference_float64": 1e-6,
}


def main() -> None:
    """Run the configurations, print a table, and write everything."""
    options = _options()
    console = Console(highlight=False)
    started = time.perf_counter()
    with quiet_libraries():
        path = checkpoint(options.cache)
        rows = full_rows(path, options.batch_size * (options.steps + 1))
        exact = train_exactness.difference(path, masked(rows, 0.12)[: options.batch_size])
    found = []
    for name in options.configurations:
        console.print(f"[dim]{time.perf_counter() - started:6.0f} s[/]  {name}", soft_wrap=True)
        found.append(_configuration(name, path, options))
    results = {
        **{key: max(row[key] for row in found) for key in _BARS if key in found[0]},
        "max_gradient_difference": max(
            (row["gradient_difference"] for row in found if "float32" in row["configuration"]), default=None
        ),
        "max_gradient_difference_float64": exact,
        "quick": options.quick,
        "settings": {"batch_size": options.batch_size, "steps": options.steps},
        "row_tokens": [len(row.input_ids) for row in rows],
        "response_tokens": [row.trained for row in rows],
        "machine": machine(),
        "rows": found,
        "seconds": time.perf_counter() - started,
    }
    print(_markdown(results))
    for key, bar in _BARS.items():
        if results[key] > bar:
            print(f"{key} is {results[key]:.3g}, above {bar:g}.")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")
        print(f"Written to {options.json}")


def _configuration(name: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what one configuration came to."""
    parameters, precision, share = name.split("-")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        trainers = {}
        for variant in VARIANTS:
            work = Work(
                variant=variant,
                model=str(path),
                lora=parameters == "lora",
                precision=precision,
                share=int(share) / 100,
                batch_size=options.batch_size,
                steps=options.steps + 1,
                directory=directory,
            )
            trainers[variant] = stack.enter_context(_Trainer(work))
        settings = [trainer.wait_until_ready()["settings"] for trainer in trainers.values()]
        if differ := {key for key, value in settings[0].items() for one in settings if one[key] != value}:
            raise SystemExit(f"the trainers differ in {sorted(differ)}: the comparison means nothing")
        for step in range(options.steps + 1):
            # Whoever is first in one step is last in the next but one: the machine's speed drifts.
            for place in range(len(VARIANTS)):
                trainers[VARIANTS[(step + place) % len(VARIANTS)]].step()
        facts = {variant: trainer.finish() for variant, trainer in trainers.items()}
        difference = train_exactness.of_files(Path(directory, "labels.pt"), Path(directory, "cft.pt"))
    if facts["sft"]["positions"] != facts["labels"]["positions"]:
        raise SystemExit("the two trainers of TRL did not see the same batches: the comparison means nothing")
    ours = facts["cft"]
    losses = [abs(a - b) / b for a, b in zip(ours["losses"], facts["labels"]["losses"], strict=True)]
    row: dict[str, Any] = {"configuration": name, "gradient_difference": difference, "loss_difference": max(losses)}
    for key, other in (("sft", facts["sft"]), ("same_labels", facts["labels"])):
        pairs = zip(ours["seconds"], other["seconds"], strict=True)
        row[f"time_ratio_{key}"] = median(mine / theirs for mine, theirs in pairs)
        row[f"memory_ratio_{key}"] = ours["memory_gib"] / other["memory_gib"]
    return {**row, **facts}


class _Trainer:
    """A process that makes a step at a time."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._said: list[dict[str, Any]] = []

    def __enter__(self) -> _Trainer:
        command = [sys.executable, str(Path(__file__).with_name("train_worker.py"))]
        self._log = (Path(self._work.directory) / f"{self._work.variant}.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._say(json.dumps(asdict(self._work)))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def wait_until_ready(self) -> dict[str, Any]:
        """Return what it says before the first step."""
        return self._read_until("settings")

    def step(self) -> None:
        """Let it make one step, and wait for its end."""
        self._say("step")
        self._read_until("seconds")

    def finish(self) -> dict[str, Any]:
        """Return seconds by step without the first, losses, memory (GiB) and positions computed."""
        assert self._process.stdout is not None
        self._said.extend(json.loads(line) for line in self._process.stdout)
        ready = self._said[0]
        peak = max(said["peak_gib"] for said in self._said if "peak_gib" in said)
        return {
            "seconds": [said["seconds"] for said in self._said if "seconds" in said][1:],
            "losses": [said["loss"] for said in self._said if "loss" in said],
            "positions": int(max(said["positions"] for said in self._said if "positions" in said)),
            "baseline_gib": ready["baseline_gib"],
            "peak_gib": peak,
            "memory_gib": peak - ready["baseline_gib"],
        }

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read_until(self, key: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(json.loads(line))
            if key in self._said[-1]:
                return self._said[-1]
        self._log.seek(0)
        raise SystemExit(f"{self._work.variant} ended early:\n{self._log.read()[-4000:]}")


def _markdown(results: dict[str, Any]) -> str:
    """Return the table for docs/performance.md."""
    settings, machine_ = results["settings"], results["machine"]
    lines = [
        f"{settings['steps']} steps of {settings['batch_size']} rows of {median(results['row_tokens']):.0f} tokens "
        f"({median(results['response_tokens']):.0f} of them response; medians), {machine_['cpu']}, "
        f"{machine_['threads']} threads, torch {machine_['torch']}.",
        "",
        "| configuration | seconds a step: sft | labels | cft | cft ÷ sft | cft ÷ labels "
        "| GiB: sft | labels | cft | cft ÷ sft | cft ÷ labels | gradients differ by |",
        "| --- |" + " ---: |" * 11,
    ]
    for row in results["rows"]:
        cells = [f"{median(row[variant]['seconds']):.2f}" for variant in VARIANTS]
        cells += [f"{row['time_ratio_sft']:.2f}", f"{row['time_ratio_same_labels']:.2f}"]
        cells += [f"{row[variant]['memory_gib']:.2f}" for variant in VARIANTS]
        cells += [f"{row['memory_ratio_sft']:.2f}", f"{row['memory_ratio_same_labels']:.2f}"]
        cells.append(f"{row['gradient_difference']:.0e}")
        lines.append(f"| {' | '.join([row['configuration'], *cells])} |")
    exact = results["max_gradient_difference_float64"]
    lines += ["", f"In float64, on a tiny model, against the plain masked loss: gradients differ by {exact:.0e}."]
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{' and '.join(_QUICK)}, two steps of two rows",
    )
    parser.add_argument(
        "--configurations", nargs="+", metavar="NAME", choices=_FULL, help=f"some of: {', '.join(_FULL)}"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="timed steps (default: 5, with --quick 2)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows a step (default: 8, with --quick 2)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(__file__).parent / ".cache",
        metavar="DIR",
        help="where the model is, or is put, as a plain checkpoint (default: benchmarks/.cache)",
    )
    options = parser.parse_args()
    options.configurations = options.configurations or (_QUICK if options.quick else _FULL)
    options.steps = options.steps or (2 if options.quick else 5)
    options.batch_size = options.batch_size or (2 if options.quick else 8)
    return options


if __name__ == "__main__":
    main()
