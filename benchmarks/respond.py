"""How close `generate` on many prompts comes to the bare model's decoding rate, and to the first engine's.

The bare rate is that of a loop that feeds 128 equally long sequences one token a pass and reads the arg-max: no
prompts to read, nothing that ends early, nothing to verify. The engine's rate counts everything from 300 ragged prompts
to their ends. All run on the same model in one process, in turn, and the ratios are medians of such rounds.

The model is the cold-started SmolLM2 of benchmarks/annotate.py (made here, once, in about 7 minutes), whose responses
are worked solutions; what reading the prompts takes at the best prefill rate is in the result, too, as the share of the
bare rate that an engine without any other cost would reach. --model embedded takes the model as it comes, which
hardly answers: 15 tokens a prompt of 60.

    .venv/bin/python benchmarks/respond.py --json benchmarks/results/respond.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from case import prepare
from limits import prefill_rate
from rich.console import Console

from cruxtune.engines.base import Decoding, LoopRule
from cruxtune.engines.plain import PlainEngine
from cruxtune.engines.transformers import TransformersEngine
from cruxtune.models import context_length, end_of_sequence_ids, load_model
from cruxtune.problems import ProblemSource, load_problems
from cruxtune.prompts import Renderer
from cruxtune.settings import ModelSettings, PromptSettings

BATCH = 128


def bare_rate(model: Any, prompt_length: int, steps: int) -> float:
    """Return tokens a second of decoding 128 sequences together, after reading their prompts (not counted)."""
    ids = torch.randint(5, 1000, (BATCH, prompt_length))
    with torch.inference_mode():
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        times = []
        for _ in range(steps):
            token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            started = time.perf_counter()
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
            times.append(time.perf_counter() - started)
    return BATCH / median(times)


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return model and tokenizer; the cold-started one is made where it is not there yet."""
    if options.model is None:
        prepare(options.cache, Console())
    return load_model(ModelSettings(model=options.model or str(options.cache / "cold"), dtype=options.dtype))


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to decode with (default: the cold-started SmolLM2 of --cache)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(__file__).parent / ".cache",
        help="folder of benchmarks/annotate.py's checkpoint",
    )
    parser.add_argument("--dtype", default="auto", help="precision; float32 also checks that responses agree")
    parser.add_argument("--prompts", type=int, default=300, help="number of prompts")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="most tokens a response")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turn")
    parser.add_argument("--quick", action="store_true", help="96 prompts, one round")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    wanted, rounds = (96, 1) if options.quick else (options.prompts, options.rounds)
    model, tokenizer = load(options)
    renderer = Renderer(tokenizer, PromptSettings(template="plain"))
    source = ProblemSource(problems="gym:gsm_symbolic", size=wanted)
    prompts = [renderer.render(problem) for problem in load_problems(source, seed=1, limit=None)]
    lengths = sorted(map(len, prompts))
    common = {"eos_ids": end_of_sequence_ids(model, tokenizer), "context_length": context_length(model.config)}
    decoding = Decoding(loop=LoopRule())
    engines = {
        "packed": TransformersEngine(model, **common),
        "plain": PlainEngine(model, batch_size=BATCH, **common),
    }
    engines["packed"].tune()
    rows = []
    ids = {}
    for _ in range(rounds):
        bare = bare_rate(model, lengths[len(lengths) // 2], 8 if options.quick else 24)
        row = {
            "bare_tokens_per_second": bare,
            "prefill_seconds": sum(lengths) / prefill_rate(model, (512,), keep=1)["512"],
        }
        for name, engine in engines.items():
            started = time.perf_counter()
            found = engine.generate(prompts, max_new_tokens=options.max_new_tokens, decoding=decoding)
            row[f"{name}_seconds"] = time.perf_counter() - started
            ids[name] = [generation.ids for generation in found]
            row[f"{name}_tokens_per_second"] = sum(map(len, ids[name])) / row[f"{name}_seconds"]
        emitted = sum(map(len, ids["packed"]))
        row["share_of_bare"] = row["packed_tokens_per_second"] / bare
        row["share_within_reach"] = emitted / (row["prefill_seconds"] + emitted / bare) / bare
        row["ratio_first_engine"] = row["packed_tokens_per_second"] / row["plain_tokens_per_second"]
        rows.append(row)
    same = sum(a == b for a, b in zip(ids["plain"], ids["packed"], strict=True)) / len(prompts)
    responses = sorted(map(len, ids["packed"]))
    result = {
        "prompts": len(prompts),
        "prompt_tokens": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "response_tokens": [responses[0], responses[len(responses) // 2], responses[-1]],
        **{name: median(row[name] for row in rows) for name in rows[0]},
        "same_responses": same,
        "dtype": str(model.dtype).removeprefix("torch."),
        "rounds": rows,
    }
    # In low precision two ways of batching part at every near-tie: plain batches and one-by-one decoding do so, too.
    if same < 0.98 and model.dtype in (torch.float32, torch.float64):
        raise SystemExit(f"the engines agree on {100 * same:.0f} % of responses only: something is wrong")
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
