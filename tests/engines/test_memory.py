from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.engines import memory
from cruxtune.engines.base import Decoding, Fork, Generation, roll_out
from cruxtune.engines.batch import Batch
from cruxtune.engines.cache import Slots
from cruxtune.engines.plan import Plan
from cruxtune.engines.transformers import TransformersEngine
from cruxtune.errors import ModelError

PROMPT = [10, 20, 30, 40]


def work_of(engine: TransformersEngine) -> tuple[Any, list[Fork]]:
    """A context with a response of the model's own, and forks at all its positions."""
    response = engine.generate([PROMPT], max_new_tokens=24, decoding=Decoding())[0].ids
    forks = [Fork(0, position, token) for position in range(len(response)) for token in (61, 62, 63)]
    return [(PROMPT, response)], [fork for fork in forks if response[fork.position] != fork.token]


def rollouts_of(engine: TransformersEngine, contexts: Any, forks: list[Fork]) -> list[Generation]:
    """All rollouts, up to 60 tokens."""
    return roll_out(engine, contexts, forks, max_tokens=60, decoding=Decoding())


def engine_of(model: Any, **options: Any) -> TransformersEngine:
    """An engine without an end of sequence, so that every branch grows to its limit."""
    return TransformersEngine(model, eos_ids=[], context_length=256, **options)


@pytest.mark.parametrize("room", [1, 3, 9])
def test_branches_that_outgrow_the_memory_wait_their_turn(
    room: int, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for a few branches only, the batch shrinks and every rollout is what it would have been."""
    model = tiny_model(eos=[258])
    free = engine_of(model, batch_size=16, draft_length=3)
    contexts, forks = work_of(free)
    expected = rollouts_of(free, contexts, forks)
    tight = engine_of(model, batch_size=16, draft_length=3)
    passes = tight._passes
    assert passes is not None
    # The context, and as many branches of full length.
    context = sum(len(part) for part in contexts[0]) * passes.bytes_per_token
    monkeypatch.setattr(tight, "_memory", lambda plan: 2 * context + room * 64 * passes.bytes_per_token)
    seen = []
    original = Batch._make_room

    def watched(batch: Batch, drafts: Any) -> None:
        original(batch, drafts)
        slots = sum(part.nbytes for kept in (batch._slots.keys, batch._slots.values) for part in kept.values())
        seen.append((len(batch._active), slots + batch._held_by_contexts(), batch._memory))

    monkeypatch.setattr(Batch, "_make_room", watched)
    assert rollouts_of(tight, contexts, forks) == expected
    assert max(active for active, *_ in seen) > min(active for active, *_ in seen[:-20])
    assert all(held <= allowed for _, held, allowed in seen)


def test_slots_are_made_for_the_branches_there_are(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three branches of a batch planned for a thousand take the memory of three; more are made as more come."""
    engine = engine_of(tiny_model(eos=[258]), batch_size=1000, draft_length=2)
    contexts, forks = work_of(engine)
    counts = []
    original = Slots.resize

    def watched(slots: Slots, count: int, capacity: int, **kept: Any) -> None:
        counts.append(count)
        original(slots, count, capacity, **kept)

    monkeypatch.setattr(Slots, "resize", watched)
    for number in (3, 20):
        counts.clear()
        assert len(rollouts_of(engine, contexts, forks[:number])) == number
        assert set(counts) == {number}


def test_memory_for_no_branch_is_an_error(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even one branch fits, the message names the flag."""
    engine = engine_of(tiny_model(eos=[258]), batch_size=4, draft_length=0)
    contexts, forks = work_of(engine)
    monkeypatch.setattr(engine, "_memory", lambda plan: 100)
    with pytest.raises(ModelError, match="--memory-limit"):
        rollouts_of(engine, contexts, forks)


def test_running_out_of_memory_halves_the_batch(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that runs out of memory in a pass gets half as many branches, and nothing is lost."""
    import torch

    model = tiny_model(eos=[258])
    engine = engine_of(model, batch_size=12, draft_length=2)
    contexts, forks = work_of(engine)
    expected = rollouts_of(engine, contexts, forks)
    assert engine._passes is not None
    run, sizes, failures = engine._passes.run, [], [5, 11]

    def failing(slots: Any, feeds: Any, ids: Any, keep: Any) -> Any:
        sizes.append(len(feeds))
        if len(sizes) in failures:
            raise torch.OutOfMemoryError("as CUDA says")
        return run(slots, feeds, ids, keep)

    monkeypatch.setattr(engine._passes, "run", failing)
    assert rollouts_of(engine, contexts, forks) == expected
    assert max(sizes[:5]) == 12
    assert max(sizes[5:11]) == 6
    assert max(sizes[11:]) == 3


def test_out_of_memory_with_one_branch_is_an_error(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single branch that does not fit cannot be halved: one clear error."""
    import torch

    engine = engine_of(tiny_model(eos=[258]), batch_size=1, draft_length=0)
    contexts, forks = work_of(engine)

    def failing(*_: Any) -> Any:
        raise torch.OutOfMemoryError("as CUDA says")

    monkeypatch.setattr(engine._passes, "run", failing)
    with pytest.raises(ModelError, match="--memory-limit"):
        rollouts_of(engine, contexts, forks)


LIMITED = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from cruxtune.accounting import peak_memory_gib
from cruxtune.engines.base import Decoding, Fork, roll_out
from cruxtune.engines.memory import held_bytes
from cruxtune.engines.transformers import TransformersEngine

torch.set_num_threads(1)
config = AutoConfig.for_model("llama", vocab_size=64, hidden_size=512, intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=600, eos_token_id=None, bos_token_id=None,
    initializer_range=0.5)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config).eval()
# Once, so that what the libraries take on their first pass is held before the limit is set.
model(torch.tensor([[1, 2, 3]]))
extra = float(sys.argv[1])
limit = held_bytes("cpu") / 2**30 + extra
engine = TransformersEngine(model, eos_ids=[], context_length=600, batch_size=256, draft_length=0, memory_limit=limit)
response = list(range(40))
forks = [Fork(0, t, token) for t in range(40) for token in range(58, 64)]
found = roll_out(engine, [([1, 2], response)], forks, max_tokens=160, decoding=Decoding())
peak = peak_memory_gib()
print(json.dumps({"limit": limit, "peak": peak, "done": len(found)}))
"""


@pytest.mark.slow
def test_peak_memory_keeps_within_the_limit() -> None:
    """In a process of its own the most memory ever held is below --memory-limit, where without one it is above."""

    def measured(extra: float) -> dict[str, float]:
        done = subprocess.run([sys.executable, "-c", LIMITED, str(extra)], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    tight, wide = measured(0.3), measured(4.0)
    assert tight["done"] == wide["done"] == 240
    assert tight["peak"] <= tight["limit"]
    # The limit was what held it: with room the same work takes more.
    assert wide["peak"] > tight["limit"]


def test_a_limit_below_the_model_is_an_error() -> None:
    """A limit under what is held already says so, with both numbers."""
    with pytest.raises(ModelError, match=r"--memory-limit 0\.001 GiB.*hold \d"):
        memory.budget("cpu", 0.001)


def test_the_default_is_a_share_of_what_is_free() -> None:
    """Without a limit a margin of what is free is left."""
    free = memory.free_bytes("cpu")
    assert 0.5 * free < memory.budget("cpu", None) < free


def test_cgroups_of_both_versions_are_respected(tmp_path: Path) -> None:
    """The limit of every level counts, reclaimable file cache does not; no limit is no bound."""
    root, own = tmp_path / "cgroup", tmp_path / "self"
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    own.write_text("0::/outer/inner\n")
    for folder, limit, use in ((root / "outer", "1000", "300"), (inner, "max", "200")):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(use + "\n")
    (root / "outer" / "memory.stat").write_text("anon 250\ninactive_file 50\n")
    assert memory._cgroups(root, own) == [1000 - 300 + 50]
    old = root / "memory" / "job"
    old.mkdir(parents=True)
    own.write_text("3:cpu:/job\n4:memory:/job\n")
    (old / "memory.limit_in_bytes").write_text("500\n")
    (old / "memory.usage_in_bytes").write_text("100\n")
    assert memory._cgroups(root, own) == [400]


def test_free_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    """MemAvailable counts, in KiB; a system without it tells nothing."""
    file = tmp_path / "meminfo"
    assert memory._meminfo(file) is None
    file.write_text("MemTotal: 100 kB\nMemAvailable:   7 kB\n")
    assert memory._meminfo(file) == 7 * 1024


def test_what_is_fixed_is_not_measured(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With batch size and draft length given the plan is the same everywhere; else it is measured, and remembered."""
    from cruxtune.engines import plan as planning

    times = []
    original = planning._time
    monkeypatch.setattr(planning, "_time", lambda *given: times.append(given[1:]) or original(*given))
    model = tiny_model()
    fixed = engine_of(model, batch_size=7, draft_length=2).tune()
    assert (fixed["branches"], fixed["draft_length"], times) == (7, 2, [])
    measured = engine_of(model)
    found = measured.tune()
    assert times
    assert measured.tune() == found
    assert measured.usage.tokens_computed == 0
    count = len(times)
    assert engine_of(model).tune(found) == found
    assert len(times) == count
    assert engine_of(model, batch_size=5).tune()["branches"] == 5
    assert engine_of(model, draft_length=0).tune()["draft_length"] == 0


def test_a_plan_has_the_smallest_batch_that_is_fast_and_drafts_where_passes_cost_more_than_tokens() -> None:
    """Where a pass costs the same whatever its tokens, drafts are long and batches wide; where tokens cost all, not."""
    from cruxtune.engines.plan import _DRAFT_LENGTHS, _choose, _fit

    def chosen(fixed: float, per_token: float, per_branch: float) -> tuple[int, int]:
        plan = _choose(
            [
                Plan(branches, 2 * branches, length, 16, fixed, per_token, per_branch)
                for branches in (1, 16, 48, 96, 192, 384, 768)
                for length in _DRAFT_LENGTHS
            ]
        )
        return plan.branches, plan.draft_length

    assert chosen(0.02, 1e-7, 1e-7) == (768, 16)
    assert chosen(0.0, 1e-3, 0.0) == (1, 0)
    # Fitted on two CPU cores: beyond 192 branches the fixed part is small beside that of the drafts.
    assert chosen(0.041, 0.00092, 0.00029) == (192, 2)
    seen = [(n, b, 0.05 + 0.001 * n + 0.002 * b) for n, b in ((1, 1), (16, 16), (64, 64), (48, 16), (192, 64))]
    assert _fit(seen) == pytest.approx((0.05, 0.001, 0.002))
