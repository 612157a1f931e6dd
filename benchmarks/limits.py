"""The machine's limit, the growth of cost with the response's length, and facts about the machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from case import Case, stratified, threads

from cruxtune.accounting import peak_memory_gib
from cruxtune.engines.base import Decoding, Fork
from cruxtune.engines.transformers import TransformersEngine

_PREFILL_LENGTHS = (128, 256, 384, 512, 768)
_PROMPT = 100
_BEYOND = 8


@torch.inference_mode()
def prefill_rate(model: Any, lengths: Sequence[int] = _PREFILL_LENGTHS, *, keep: int = 0) -> dict[str, float]:
    """Return tokens/s of a plain forward pass by row length, medians of three; logits at the last `keep` positions.

    0 are all.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    rates = {}
    for length in lengths:
        ids = torch.randint(vocabulary, (1, length), generator=generator)
        model(input_ids=ids, use_cache=False, logits_to_keep=keep)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            model(input_ids=ids, use_cache=False, logits_to_keep=keep)
            times.append(time.perf_counter() - started)
        rates[str(length)] = length / median(times)
    return rates


def growth(case: Case, lengths: list[int], positions: int) -> list[dict[str, Any]]:
    """Return what annotating `positions` positions of one response of each length takes, one alternative each.

    Lengths are scripted: prompt and response are random tokens, nothing ends a sequence, and every rollout runs to the
    token limit, a few tokens behind the response's end. Random responses are drafts that hardly ever help, so this is
    the cost at its worst. Rollouts of T tokens from all T positions cost T ÷ `positions` times as much.
    """
    vocabulary = case.model.get_output_embeddings().weight.shape[0]
    engine = TransformersEngine(case.model, eos_ids=[], context_length=case.context_length)
    engine.tune()
    decoding = Decoding(loop=None)
    rows = []
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        prompt = torch.randint(vocabulary, (_PROMPT,), generator=generator).tolist()
        response = torch.randint(vocabulary, (length,), generator=generator).tolist()
        before = replace(engine.usage)
        exact = reset_peak()
        started = time.perf_counter()
        branches = engine.branches(max_tokens=length + _BEYOND, decoding=decoding)
        context, scores = branches.open(prompt, response, alternatives=1)
        asked = stratified(length, positions, length)
        branches.add([Fork(context, position, scores.alternatives[position][0]) for position in asked])
        while branches.waiting:
            branches.step()
        seconds = time.perf_counter() - started
        used = engine.usage.since(before)
        rows.append(
            {
                "length": length,
                "positions": len(asked),
                "tokens_emitted": used["tokens_emitted"],
                "tokens_computed": used["tokens_computed"],
                "passes": used["model_calls"],
                "seconds": seconds,
                "peak_memory_gib": peak_memory_gib(),
                "peak_memory_is_of_this_row": exact,
            }
        )
    return rows


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "threads": threads(),
        "bfloat16_arithmetic": bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def reset_peak() -> bool:
    """Let the kernel's peak of resident memory start anew; False where it cannot (then peaks only rise)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
