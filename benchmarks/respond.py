"""How close `generate` on many prompts comes to the bare model's decoding rate, and to the first engine's.

The bare rate is that of a loop that feeds 128 equally long sequences one token a pass and reads the arg-max: no
prompts to read, nothing that ends early, nothing to verify. The engine's rate counts everything from 300 ragged prompts
to their ends. Both, and the plain engine, run on the same model in one process, one after the other.

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


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="model to decode with")
    parser.add_argument("--dtype", default="auto", help="precision; float32 also checks that responses agree")
    parser.add_argument("--prompts", type=int, default=300, help="number of prompts")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="tokens a response")
    parser.add_argument("--quick", action="store_true", help="64 prompts, 32 tokens")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    prompts_wanted, limit = (64, 32) if options.quick else (options.prompts, options.max_new_tokens)
    model, tokenizer = load_model(ModelSettings(model=options.model, dtype=options.dtype))
    renderer = Renderer(tokenizer, PromptSettings(template="plain"))
    mixed = [("gym:gsm_symbolic", prompts_wanted // 2), ("gym:chain_sum", prompts_wanted - prompts_wanted // 2)]
    prompts = [
        renderer.render(problem)
        for source, size in mixed
        for problem in load_problems(ProblemSource(problems=source, size=size), seed=1, limit=None)
    ]
    lengths = sorted(map(len, prompts))
    bare = bare_rate(model, lengths[len(lengths) // 2], 8 if options.quick else 24)
    common = {"eos_ids": end_of_sequence_ids(model, tokenizer), "context_length": context_length(model.config)}
    decoding = Decoding(loop=LoopRule())
    rates, ids = {}, {}
    engines = {
        "plain": PlainEngine(model, batch_size=BATCH, **common),
        "packed": TransformersEngine(model, **common),
    }
    engines["packed"].tune()
    for name, engine in engines.items():
        started = time.perf_counter()
        found = engine.generate(prompts, max_new_tokens=limit, decoding=decoding)
        rates[name] = sum(len(generation.ids) for generation in found) / (time.perf_counter() - started)
        ids[name] = [generation.ids for generation in found]
    same = sum(a == b for a, b in zip(ids["plain"], ids["packed"], strict=True)) / len(prompts)
    result = {
        "prompts": len(prompts),
        "prompt_tokens": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "bare_tokens_per_second": bare,
        "packed_tokens_per_second": rates["packed"],
        "plain_tokens_per_second": rates["plain"],
        "share_of_bare": rates["packed"] / bare,
        "ratio_first_engine": rates["packed"] / rates["plain"],
        "same_responses": same,
        "dtype": str(model.dtype).removeprefix("torch."),
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
