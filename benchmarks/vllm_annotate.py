"""The child of `annotate.py` that runs in vLLM's own environment: prompts of token ids in, continuations out.

It speaks JSON, a line at a time. On stdin first {"model", "dtype", "block_size", "longest", "threads", "eos_ids"}, then
any number of {"prompts": [[id, ...], ...], "limits": [most new tokens, ...], "forget"} (forget: empty the prefix cache
first). On stdout first {"version", "startup"},
then for each request {"ids": [[id, ...], ...], "queries", "hits"}: the continuations with the token that ended them,
and how many prompt tokens were looked up and found in the prefix cache. It ends with its stdin. What vLLM prints goes
to stderr.

vLLM runs in this one process, with a thread on every core. Left to itself it keeps a core for its scheduler, which
polls; on two cores that would be half of the machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_CACHE_BYTES = 4 << 30
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer requests until stdin ends."""
    _preload()
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    os.environ.update(
        OMP_NUM_THREADS=str(settings["threads"]),
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    started = time.perf_counter()
    import vllm

    engine = vllm.LLM(
        model=settings["model"],
        dtype=settings["dtype"],
        max_model_len=settings["longest"],
        block_size=settings["block_size"],
        enable_prefix_caching=True,
        kv_cache_memory_bytes=_CACHE_BYTES,
        disable_log_stats=False,
    )
    _answer(answers, {"version": vllm.__version__, "startup": time.perf_counter() - started})
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("forget"):
            engine.reset_prefix_cache()
        before = _counters(engine)
        ids = _generate(engine, request, settings["eos_ids"])
        after = _counters(engine)
        _answer(answers, {"ids": ids, **{name: after[name] - before[name] for name in after}})


def _generate(engine: Any, request: dict[str, Any], eos_ids: list[int]) -> list[list[int]]:
    from vllm import SamplingParams

    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
        [
            SamplingParams(temperature=0.0, max_tokens=limit, stop_token_ids=eos_ids, detokenize=False)
            for limit in request["limits"]
        ],
        use_tqdm=False,
    )
    # generate() returns its outputs in the order of the prompts.
    return [list(output.outputs[0].token_ids) for output in outputs]


def _counters(engine: Any) -> dict[str, int]:
    values = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    return {name: int(values.get(f"vllm:prefix_cache_{name}", 0)) for name in ("queries", "hits")}


def _answer(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent has died: it may be stopped then, and would stay for ever."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _preload() -> None:
    """Start again with Intel's OpenMP, which vLLM's manual recommends, where its package has brought it along."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if library.exists() and "LD_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = str(library)
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    main()
