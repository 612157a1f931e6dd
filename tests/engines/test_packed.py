"""The packed engine is exact: in float64 it gives token for token what one-by-one `generate` gives."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.engines import packing
from cruxtune.engines.base import Decoding, Fork, Generation, LoopRule, Usage, roll_out
from cruxtune.engines.cache import Feed
from cruxtune.engines.drafts import Draft, Sources
from cruxtune.engines.packing import IMPLEMENTATION, Pack
from cruxtune.engines.passes import Passes
from cruxtune.engines.plain import PlainEngine
from cruxtune.engines.plan import Plan
from cruxtune.engines.transformers import TransformersEngine

VOCABULARY = 64
ENDS = (3, 40)
CONTEXT = 96

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    # Wide weights: as usually initialised, a model would repeat one token.
    "initializer_range": 0.8,
    "tie_word_embeddings": False,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.6}
GEMMA2 = {**BASE, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}

PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", BASE),
    "llama-multi-head": ("llama", {**BASE, "num_key_value_heads": 4}),
    "llama-multi-query": ("llama", {**BASE, "num_key_value_heads": 1}),
    "llama-tied": ("llama", {**BASE, "tie_word_embeddings": True, "initializer_range": 0.6}),
    "qwen2": ("qwen2", BASE),
    "qwen3": ("qwen3", {**BASE, "head_dim": 8}),
    "olmo2": ("olmo2", BASE),
    "mistral": ("mistral", {**BASE, "sliding_window": 6}),
    "gemma": ("gemma", {**BASE, "head_dim": 8}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2-tight-caps": ("gemma2", {**GEMMA2, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", {**GEMMA2, "num_hidden_layers": 6}),
    "phi3": ("phi3", BASE),
    "gpt2": ("gpt2", GPT2),
    "cohere": ("cohere", BASE),
    "granite": ("granite", {**BASE, "logits_scaling": 3.0, "attention_multiplier": 0.3}),
    "gpt-neox": ("gpt_neox", BASE),
    "starcoder2": ("starcoder2", BASE),
    "mixtral": ("mixtral", {**BASE, "num_local_experts": 4}),
}
PLAIN: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.6}, "bypasses"),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.5}, ""),
    "gpt-oss": ("gpt_oss", {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}, "s_aux"),
}
FLOAT32 = {"mixtral", "gpt-oss"}


def made(architecture: str, sizes: dict[str, Any], dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model whose continuations differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture, vocab_size=VOCABULARY, eos_token_id=list(ENDS), bos_token_id=None, pad_token_id=None, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        # Biases and the like start at zero, where nothing would notice that they are left out.
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "sinks" in name:
                parameter.data.normal_(0, 0.3)
    return model.to(dtype).eval()


@cache
def reference_of(name: str) -> Any:
    """A model that no packed engine touches: those get copies."""
    architecture, sizes, *_ = (PACKED | PLAIN)[name]
    return made(architecture, sizes, torch.float32 if name in FLOAT32 else torch.float64)


def engine_of(model: Any, *, branches: int = 7, width: int = 40, draft: int = 5, **options: Any) -> TransformersEngine:
    """A packed engine of fixed settings, in which a pass costs so much that every draft is worth its while."""
    engine = TransformersEngine(
        model,
        batch_size=branches,
        draft_length=draft,
        **{"eos_ids": ENDS, "context_length": CONTEXT, **options},
    )
    plan = Plan(
        branches=branches,
        width=width,
        draft_length=draft,
        longest_draft=draft,
        fixed=1e3,
        per_token=1e-3,
        per_branch=0.0,
    )
    engine.tune(asdict(plan))
    return engine


def packed(name: str, **options: Any) -> TransformersEngine:
    """The engine on a model that must be served packed."""
    engine = engine_of(copy.deepcopy(reference_of(name)), **options)
    assert engine._passes is not None
    return engine


def plain_of(name: str) -> PlainEngine:
    """The plain engine on the untouched model, in small batches."""
    return PlainEngine(reference_of(name), eos_ids=ENDS, context_length=CONTEXT, batch_size=16)


def by_generate(model: Any, prompt: list[int], limit: int) -> list[int]:
    """What transformers itself generates greedily with a clean GenerationConfig."""
    from transformers import GenerationConfig

    if limit <= 0:
        return []
    config = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=list(ENDS), pad_token_id=0)
    output = model.generate(torch.tensor([prompt]), generation_config=config, attention_mask=torch.ones(1, len(prompt)))
    return output[0, len(prompt) :].tolist()


@dataclass
class Tally:
    """Tokens compared with one-by-one decoding, and mismatches at which the two best logits are as good as equal."""

    tokens: int = 0
    ties: int = 0


TALLY = Tally()
TIE = 1e-6


def compare(model: Any, prompt: list[int], found: list[int], expected: list[int]) -> None:
    """Fail where the ids differ, unless by a tie, which counts."""
    TALLY.tokens += len(expected)
    if found == expected:
        return
    place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
    if place is None:
        pytest.fail(f"lengths differ: {found} instead of {expected} behind {prompt}")
    with torch.no_grad():
        best = model(torch.tensor([[*prompt, *expected[:place]]])).logits[0, -1].topk(2)
    gap = float(best.values[0] - best.values[1])
    message = f"token {place} is {found[place]}, not {expected[place]}, behind {prompt}; top-2 logit gap {gap:.3g}"
    if gap >= TIE:
        pytest.fail(f"{message}: {found} instead of {expected}")
    TALLY.ties += 1


Case = tuple[list[tuple[list[int], list[int]]], list[Fork]]
tokens = st.integers(0, VOCABULARY - 1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One to three contexts and their forks, at the first and the last position, to ends of sequence, anywhere.

    An empty response stands for the model's own continuation.
    """
    contexts, forks = [], []
    for number in range(draw(st.integers(1, 3))):
        prompt = draw(st.lists(tokens, min_size=1, max_size=14))
        response = draw(st.one_of(st.just([]), st.lists(tokens, min_size=1, max_size=16)))
        contexts.append((prompt, response))
        places = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))
        chosen = draw(st.lists(st.tuples(places, st.one_of(tokens, st.sampled_from(ENDS))), min_size=1, max_size=4))
        # Positions are shares until the responses are known.
        forks.extend((number, share, token) for share, token in chosen)
    return contexts, forks  # type: ignore[return-value]


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=5, deadline=None)
@given(
    case=cases(),
    branches=st.integers(1, 6),
    width=st.integers(1, 64),
    draft=st.integers(0, 8),
    limit=st.integers(1, 30),
)
def test_rollouts_equal_one_by_one_generate(
    name: str, case: Any, branches: int, width: int, draft: int, limit: int
) -> None:
    """Whatever is asked of whatever context, in batches of any shape: each rollout is that of `generate` alone."""
    reference = reference_of(name)
    engine = packed(name, branches=branches, width=width, draft=draft)
    contexts = [(prompt, response or by_generate(reference, prompt, 12)) for prompt, response in case[0]]
    shares = [(number, round(share * (len(contexts[number][1]) - 1)), token) for number, share, token in case[1]]
    forks = [Fork(*fork) for fork in dict.fromkeys(shares)]
    found = roll_out(engine, contexts, forks, max_tokens=limit, decoding=Decoding())
    for fork, rollout in zip(forks, found, strict=True):
        prompt, response = contexts[fork.context]
        head = [*response[: fork.position], fork.token]
        rest = [] if fork.token in ENDS else by_generate(reference, [*prompt, *head], limit - len(head))
        assert rollout.ids[: len(head)] == head
        compare(reference, [*prompt, *head], rollout.ids[len(head) :], rest)
        assert rollout.finish_reason == ("stop" if rollout.ids[-1] in ENDS else "length")


@pytest.mark.parametrize("name", PACKED)
def test_many_rollouts_equal_plain_ones(name: str) -> None:
    """All alternatives of several responses in one batch, with drafts and without, are those of the plain engine."""
    plain = plain_of(name)
    prompts = [[20], [5, 6, 7, 8, 9, 10, 11, 12]]
    contexts = [
        (prompt, generation.ids)
        for prompt, generation in zip(
            prompts, plain.generate(prompts, max_new_tokens=12, decoding=Decoding()), strict=True
        )
    ]
    forks = []
    for number, context in enumerate(contexts):
        mine, theirs = (engine.score(*context, alternatives=2) for engine in (packed(name), plain))
        assert mine.alternatives == theirs.alternatives
        precision = 1e-3 if name in FLOAT32 else 1e-6
        assert mine.logprobs == pytest.approx(theirs.logprobs, rel=precision, abs=precision)
        assert mine.entropies == pytest.approx(theirs.entropies, rel=precision, abs=precision)
        for one, other in zip(mine.alternative_logprobs, theirs.alternative_logprobs, strict=True):
            assert one == pytest.approx(other, rel=precision, abs=precision)
        forks += [Fork(number, place, token) for place, row in enumerate(mine.alternatives) for token in row]
    decoding = Decoding(loop=LoopRule(max_period=5, min_repeats=2, min_tokens=6))
    expected = roll_out(plain, contexts, forks, max_tokens=20, decoding=decoding)
    engines = {draft: packed(name, draft=draft) for draft in (0, 5)}
    for engine in engines.values():
        found = roll_out(engine, contexts, forks, max_tokens=20, decoding=decoding)
        for fork, mine, theirs in zip(forks, found, expected, strict=True):
            compare(reference_of(name), contexts[fork.context][0], mine.ids, theirs.ids)
            assert mine.finish_reason == theirs.finish_reason
    assert len({tuple(rollout.ids) for rollout in expected}) > len(expected) / 2
    assert engines[0].usage.tokens_drafted == engines[0].usage.tokens_accepted == 0
    assert engines[5].usage.tokens_accepted > 0
    assert engines[5].usage.tokens_emitted == engines[0].usage.tokens_emitted
    assert engines[5].usage.model_calls < engines[0].usage.model_calls


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=4, deadline=None)
@given(
    case=cases(),
    avoided=st.lists(st.one_of(tokens, st.sampled_from(ENDS), st.none()), min_size=1, max_size=4),
    branches=st.integers(1, 6),
    draft=st.integers(0, 8),
    limit=st.integers(1, 24),
)
def test_tokens_to_avoid_are_avoided_one_each(
    name: str, case: Any, avoided: list[int | None], branches: int, draft: int, limit: int
) -> None:
    """Behind the alternative come the best tokens other than these, by one-by-one logits; then decoding is free."""
    model = reference_of(name)
    contexts = [(prompt, response or by_generate(model, prompt, 12)) for prompt, response in case[0]]
    forks = []
    for number, share, token in case[1]:
        prompt, response = contexts[number]
        place = round(share * (len(response) - 1))
        # What the policy would say is what a set replaces, so it is avoided wherever nothing else is given.
        head, avoid = [*prompt, *response[:place], token], []
        for wanted in avoided:
            logits = model(torch.tensor([head])).logits[0, -1].tolist()
            best = max(range(VOCABULARY), key=lambda t: (logits[t], -t))
            avoid.append(best if wanted is None else wanted)
            head.append(max((t for t in range(VOCABULARY) if t != avoid[-1]), key=lambda t: (logits[t], -t)))
        forks.append(Fork(number, place, token, tuple(avoid)))
    forks = list(dict.fromkeys(forks))
    expected = roll_out(plain_of(name), contexts, forks, max_tokens=limit, decoding=Decoding())
    engine = packed(name, branches=branches, draft=draft)
    found = roll_out(engine, contexts, forks, max_tokens=limit, decoding=Decoding())
    for fork, mine, theirs in zip(forks, found, expected, strict=True):
        prompt, response = contexts[fork.context]
        compare(model, prompt, mine.ids, theirs.ids)
        assert mine.finish_reason == theirs.finish_reason
        behind = mine.ids[fork.position + 1 :][: len(fork.avoid)]
        assert all(token != other for token, other in zip(behind, fork.avoid, strict=False))
        if len(mine.ids) < fork.position + 1 + len(fork.avoid):
            assert mine.ids[-1] in ENDS or len(mine.ids) >= min(limit, CONTEXT - len(prompt))
    assert engine.usage.tokens_emitted == sum(
        len(one.ids) - fork.position - 1 for fork, one in zip(forks, found, strict=True)
    )


@pytest.mark.parametrize("name", PACKED)
def test_sampled_forks_equal_plain_ones(name: str) -> None:
    """A fork's seed decides its continuation: not the engine, the batch, the order or what else is drawn."""
    contexts = [([5, 6, 7, 8], [9, 10, 11, 12, 13]), ([20, 21], [30, 31, 32])]
    forks = [
        Fork(number, place, token, seed=97 * place + token + draw)
        for number, (_, response) in enumerate(contexts)
        for place in range(len(response))
        for token in (response[place], 50, ENDS[0])
        for draw in range(2)
    ]
    for decoding in (Decoding(temperature=1.0), Decoding(temperature=0.7, top_k=9, top_p=0.9)):
        expected = roll_out(plain_of(name), contexts, forks, max_tokens=16, decoding=decoding)
        for branches, order in ((3, forks), (50, forks[::-1])):
            found = roll_out(packed(name, branches=branches), contexts, order, max_tokens=16, decoding=decoding)
            by_fork = dict(zip(order, found, strict=True))
            assert [by_fork[fork].ids for fork in forks] == [one.ids for one in expected]
        assert len({tuple(one.ids) for one in expected}) > len(forks) / 2


@pytest.mark.parametrize("name", PACKED)
def test_generation_equals_plain_generation(name: str) -> None:
    """Greedy and sampled continuations, some of one prompt (whose prefix is shared from four on), with statistics."""
    plain, engine = plain_of(name), packed(name)
    often, once, twice = [5, 6, 7, 8, 9, 10, 11], [20], [30, 31, 32]
    prompts = [often, once, twice, often, often, [12, 13], twice, often, often, [44] * 9]
    seeds = list(range(len(prompts)))
    for decoding in (Decoding(), Decoding(temperature=1.0), Decoding(temperature=0.7, top_k=9, top_p=0.9)):
        mine, theirs = (
            one.generate(prompts, max_new_tokens=12, decoding=decoding, seeds=seeds, statistics=True)
            for one in (engine, plain)
        )
        assert [(g.ids, g.finish_reason) for g in mine] == [(g.ids, g.finish_reason) for g in theirs]
        precision = 1e-3 if name in FLOAT32 else 1e-6
        for one, other in zip(mine, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, rel=precision, abs=precision)
            assert one.entropies == pytest.approx(other.entropies, rel=precision, abs=precision)
    assert len({tuple(generation.ids) for generation in mine}) > 5


@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=9), st.integers(1, 6)), min_size=1, max_size=4),
    branches=st.integers(1, 6),
    width=st.integers(1, 30),
    decoding=st.sampled_from([Decoding(), Decoding(1.0), Decoding(0.7, top_k=9, top_p=0.9)]),
    data=st.data(),
)
def test_repeated_prompts_in_any_order(
    groups: list[tuple[list[int], int]], branches: int, width: int, decoding: Decoding, data: st.DataObject
) -> None:
    """However often and in which order prompts occur, each with a limit and a seed: it is continued as if alone."""
    prompts = data.draw(st.permutations([prompt for prompt, times in groups for _ in range(times)]))
    limits = data.draw(st.lists(st.integers(0, 9), min_size=len(prompts), max_size=len(prompts)))
    seeds = list(range(len(prompts)))
    seen: list[int] = []
    mine = packed("qwen3", branches=branches, width=width).generate(
        prompts, max_new_tokens=limits, decoding=decoding, seeds=seeds, progress=seen.append
    )
    order = data.draw(st.permutations(range(len(prompts))))
    plain = PlainEngine(
        reference_of("qwen3"), eos_ids=ENDS, context_length=CONTEXT, batch_size=data.draw(st.integers(1, 16))
    )
    theirs = plain.generate(
        [prompts[index] for index in order],
        max_new_tokens=[limits[index] for index in order],
        decoding=decoding,
        seeds=[seeds[index] for index in order],
    )
    assert [mine[index] for index in order] == theirs
    assert sum(seen) == len(prompts)


def test_samples_of_a_prompt_share_its_prefix() -> None:
    """Sixteen samples read their prompt once, then what each of them chose; the plain engine reads it every time."""
    prompt = list(range(4, 36))
    for count, engine, read in ((16, packed("llama", branches=16), 1), (16, plain_of("llama"), 16)):
        before = engine.usage.tokens_computed
        found = engine.generate(
            [prompt] * count, max_new_tokens=8, decoding=Decoding(1.0), seeds=list(range(count)), statistics=True
        )
        emitted = sum(len(one.ids) for one in found)
        assert engine.usage.tokens_computed - before == read * (len(prompt) - 1) + emitted


def test_samples_have_drafts_which_change_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses of what will be drawn are kept where they are right, each with the noise of its position."""
    prompts = [[5, 6, 7, 8], [9, 10, 9], [20]]
    options: dict[str, Any] = {"max_new_tokens": 24, "decoding": Decoding(temperature=1.0), "seeds": [1, 2, 3]}
    expected = plain_of("llama").generate(prompts, **options)
    drawn = {tuple(prompt): one.ids for prompt, one in zip(prompts, expected, strict=True)}

    class Oracle(Draft):
        """Knows what will be drawn, and is wrong in every seventh token."""

        def __init__(self, sources: Sources, ids: list[int], fork: int) -> None:
            super().__init__(sources, ids, fork)
            self._drawn = drawn[tuple(sources.text(1))]

        def propose(self, most: int) -> list[int]:
            start = len(self._ids)
            return [
                (token + 1) % 20 if place % 7 == 3 else token
                for place, token in enumerate(self._drawn[start : start + most], start=start)
            ]

    monkeypatch.setattr("cruxtune.engines.transformers.Draft", Oracle)
    engine = packed("llama", draft=4)
    assert engine.generate(prompts, **options) == expected
    assert engine.usage.tokens_accepted > 10
    assert engine.usage.tokens_drafted > engine.usage.tokens_accepted


def test_long_prompts_are_read_in_pieces_beside_what_others_decode() -> None:
    """No pass is wider than planned, prompts longer than a pass included, and each token is read once."""
    prompts = [[3 + (7 * place) % 50 for place in range(length)] for length in (90, 41, 7, 2)]
    engine = packed("llama", branches=4, width=16, draft=0)
    assert engine._passes is not None
    run, widths = engine._passes.run, []

    def watched(slots: Any, feeds: Any, ids: Any, keep: Any) -> Any:
        widths.append(len(ids))
        return run(slots, feeds, ids, keep)

    engine._passes.run = watched  # type: ignore[method-assign]
    before = engine.usage.tokens_computed
    found = engine.generate(prompts, max_new_tokens=9, decoding=Decoding())
    assert found == plain_of("llama").generate(prompts, max_new_tokens=9, decoding=Decoding())
    assert max(widths) == 16
    # What is chosen last is not read.
    assert sum(widths) == engine.usage.tokens_computed - before
    assert sum(widths) == sum(len(prompt) + len(one.ids) - 1 for prompt, one in zip(prompts, found, strict=True))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=9))
def test_own_keys_are_multiplied_together_in_the_cheapest_way(sizes: list[tuple[int, int]]) -> None:
    """Neighbours in order, within the bounds, and no way to cut costs less (all are tried)."""
    feeds = [Feed(slot, length, count) for slot, (length, count) in enumerate(sizes)]

    def cost(part: Sequence[int]) -> float:
        width = max(feeds[place].count for place in part)
        span = max(feeds[place].length + feeds[place].count for place in part)
        if len(part) > packing.CHUNK or (len(part) > 1 and len(part) * width > packing._AREA):
            return float("inf")
        return packing._PRODUCT + len(part) * span * (packing._KEY + width)

    order = range(len(feeds))
    parts = packing._rectangles(order, feeds)
    assert [place for part in parts for place in part] == list(order)
    ways = (
        [order[low:high] for low, high in itertools.pairwise([0, *cuts, len(order)])]
        for number in range(len(order))
        for cuts in itertools.combinations(range(1, len(order)), number)
    )
    assert sum(map(cost, parts)) == min(sum(map(cost, way)) for way in ways)


def test_ties_are_rare() -> None:
    """Of the tokens compared above, fewer than one in ten thousand are ties between the two best."""
    assert TALLY.ties * 10_000 <= TALLY.tokens


def test_prompts_of_one_token_and_responses_of_one_token() -> None:
    """The shortest contexts there are: nothing is before the prompt's last token, or before the fork."""
    contexts = [([5], [9]), ([5], [9, 3])]
    forks = [Fork(c, t, token) for c, (_, ids) in enumerate(contexts) for t in range(len(ids)) for token in range(64)]
    mine, theirs = (
        roll_out(engine, contexts, forks, max_tokens=6, decoding=Decoding())
        for engine in (packed("llama", branches=50), plain_of("llama"))
    )
    assert mine == theirs
    prompts = [[token] for token in range(64)] + [[5]] * 5
    assert packed("llama").generate(prompts, max_new_tokens=5, decoding=Decoding()) == plain_of("llama").generate(
        prompts, max_new_tokens=5, decoding=Decoding()
    )


def test_ends_are_what_they_are_in_plain_decoding() -> None:
    """Ends of sequence, token limits, what the context leaves, loops: rollouts end where plain ones do, and why."""
    loop = LoopRule(max_period=4, min_repeats=2, min_tokens=4)
    contexts = [([5] * 80, list(range(10, 24))), ([6, 7], list(range(10, 30))), ([8], [9, 9, 9, 9, 9, 9, 9, 9])]
    forks = [
        Fork(c, t, token)
        for c, (_, ids) in enumerate(contexts)
        for t in range(len(ids))
        for token in (3, 9, 50)
        if token != ids[t]
    ]
    reasons: Counter[str] = Counter()
    for limit in (1, 9, 60):
        for rule in (None, loop):
            decoding = Decoding(loop=rule)
            mine, theirs = (
                roll_out(engine, contexts, forks, max_tokens=limit, decoding=decoding)
                for engine in (packed("gpt2"), plain_of("gpt2"))
            )
            assert mine == theirs
            reasons.update(rollout.finish_reason for rollout in mine)
            for fork, rollout in zip(forks, mine, strict=True):
                if fork.token in ENDS:
                    assert rollout == Generation([*contexts[fork.context][1][: fork.position], fork.token], "stop")
                assert len(contexts[fork.context][0]) + len(rollout.ids) <= CONTEXT or len(rollout.ids) == fork.position
    assert min(reasons[reason] for reason in ("stop", "length", "loop")) > 20


@pytest.mark.parametrize("drafted", [0, 1, 6])
def test_a_loop_ends_at_the_token_that_closes_it(drafted: int) -> None:
    """A draft that runs beyond the end of a loop, or beyond an end of sequence, adds nothing to the rollout."""
    rule = LoopRule(max_period=2, min_repeats=2, min_tokens=3)
    plain, engine = plain_of("llama-tied"), packed("llama-tied", draft=drafted)
    prompts = [[token, token + 1] for token in range(4, 34, 3)]
    for decoding in (Decoding(), Decoding(loop=rule)):
        responses = [g.ids for g in plain.generate(prompts, max_new_tokens=20, decoding=Decoding())]
        contexts = list(zip(prompts, responses, strict=True))
        forks = [Fork(c, 1, token) for c in range(len(contexts)) for token in (12, 13)]
        mine, theirs = (roll_out(one, contexts, forks, max_tokens=20, decoding=decoding) for one in (engine, plain))
        assert mine == theirs


def test_long_sequences_outgrow_their_slots() -> None:
    """Branches longer than a slot at first: what they said stays, also when they move into another slot."""
    contexts = [([5, 6, 7], list(range(10, 14))), ([9], list(range(20, 26)))]
    forks = [Fork(c, t, token) for c in range(2) for t in range(4) for token in range(50, 60)]
    reference = reference_of("gpt-neox")
    without_ends = {"eos_ids": [], "context_length": CONTEXT}
    mine, theirs = (
        roll_out(engine, contexts, forks, max_tokens=80, decoding=Decoding())
        for engine in (
            engine_of(copy.deepcopy(reference_of("gpt-neox")), branches=9, **without_ends),
            PlainEngine(reference, batch_size=40, **without_ends),
        )
    )
    assert mine == theirs
    assert all(len(rollout.ids) == 80 for rollout in mine)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2-tight-caps", "gpt2"])
def test_the_model_works_as_before(name: str) -> None:
    """Without a pass the registered attention is transformers' own: forward, padding and generate are unchanged."""
    from transformers import GenerationConfig

    reference = reference_of(name)
    model = copy.deepcopy(reference)
    engine = engine_of(model)
    assert engine._passes is not None
    ids = torch.tensor([[0, 0, 0, 7, 9, 11, 13, 15], [4, 8, 12, 16, 20, 24, 28, 32]])
    mask = (ids > 0).long()
    config = GenerationConfig(do_sample=False, max_new_tokens=9, eos_token_id=list(ENDS), pad_token_id=0)

    def outputs(one: Any) -> list[Any]:
        with torch.no_grad():
            return [
                one(input_ids=ids).logits,
                one(input_ids=ids, attention_mask=mask).logits[:, 3:],
                one.generate(ids, attention_mask=mask, generation_config=config),
            ]

    before = outputs(reference)
    for mine, theirs in zip(outputs(model), before, strict=True):
        # Padding alone in a window is NaN in some models' own attention.
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    roll_out(engine, [([5], [9, 8])], [Fork(0, 1, 7)], max_tokens=6, decoding=Decoding())
    for mine, theirs in zip(outputs(model), before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["llama", "gemma2-tight-caps"])
def test_a_model_may_have_several_engines(name: str) -> None:
    """A second engine on a model is as good as the first, and so is the plain one."""
    model = copy.deepcopy(reference_of(name))
    engines = [engine_of(model), engine_of(model)]
    assert all(engine._passes is not None for engine in engines)
    plain = PlainEngine(model, eos_ids=ENDS, context_length=CONTEXT)
    found = [one.generate([[5, 6, 7]], max_new_tokens=12, decoding=Decoding())[0].ids for one in (*engines, plain)]
    assert found == [by_generate(reference_of(name), [5, 6, 7], 12)] * 3


def test_training_works_as_before() -> None:
    """A model that an engine was made on gives the gradients that it gave before."""
    reference = copy.deepcopy(reference_of("qwen2"))
    model = copy.deepcopy(reference)
    engine_of(model)
    ids = torch.tensor([[4, 8, 12, 16, 20, 24]])
    for one in (model, reference):
        one(input_ids=ids, labels=ids).loss.backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def plainly(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log lines of the engine."""
    return [record.getMessage() for record in caplog.records if record.name == "cruxtune.engines.transformers"]


@pytest.mark.parametrize("name", PLAIN)
def test_other_attention_takes_the_plain_path(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """ALiBi, recurrent states and attention sinks are not packed: one log line says so, and results are right."""
    reference = reference_of(name)
    model = copy.deepcopy(reference)
    with caplog.at_level(logging.INFO, "cruxtune"):
        engine = engine_of(model, branches=1)
        prompts = [[5, 6, 7], [8], [9, 10]]
        found = engine.generate(prompts, max_new_tokens=10, decoding=Decoding())
        forks = [Fork(0, 0, 12), Fork(1, 1, 13), Fork(1, 2, 3)]
        contexts = [([5, 6, 7], [20, 21]), ([8], [22, 23, 24])]
        rollouts = roll_out(engine, contexts, forks, max_tokens=10, decoding=Decoding())
        engine.score([5], [6, 7], alternatives=2)
    (line,) = plainly(caplog)
    assert line.startswith(f"{type(model).__name__} is decoded plainly: ")
    assert PLAIN[name][2] in line
    assert [generation.ids for generation in found] == [by_generate(reference, prompt, 10) for prompt in prompts]
    heads = [[*contexts[fork.context][1][: fork.position], fork.token] for fork in forks]
    assert [rollout.ids for rollout in rollouts] == [
        head if head[-1] in ENDS else head + by_generate(reference, contexts[fork.context][0] + head, 10 - len(head))
        for fork, head in zip(forks, heads, strict=True)
    ]
    assert getattr(model.config, "_attn_implementation", None) != IMPLEMENTATION


LONG_ROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0, "rope_theta": 1e4}
STRETCHED = {
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}),
    "longrope": (
        "phi3",
        {
            "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 24, **LONG_ROPE},
            "original_max_position_embeddings": 24,
        },
    ),
}


@pytest.mark.parametrize("rope", STRETCHED)
@pytest.mark.parametrize("limit", [8, 30])
def test_stretched_positions_take_the_plain_path_where_they_are(
    rope: str, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """RoPE that depends on the longest sequence is packed up to the original length, and decoded plainly beyond it."""
    architecture, extra = STRETCHED[rope]
    original = 24
    length = {"max_position_embeddings": original if rope == "dynamic" else CONTEXT}
    reference = made(architecture, {**BASE, **length, **extra})
    # Dynamic RoPE remembers the longest sequence in the model: each side has its own.
    model, other = copy.deepcopy(reference), copy.deepcopy(reference)
    with caplog.at_level(logging.INFO, "cruxtune"):
        engine = engine_of(model, branches=1)
        assert engine._passes is not None
        assert engine._passes.longest == original
        prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
        found = engine.generate(prompts, max_new_tokens=limit, decoding=Decoding())
        contexts = [([5, 6, 7], [20, 21, 22]), ([8, 9], [23, 24, 25, 26])]
        forks = [Fork(c, t, token) for c in range(2) for t in range(3) for token in (30, 31)]
        rollouts = roll_out(engine, contexts, forks, max_tokens=limit, decoding=Decoding())
    plain = PlainEngine(other, eos_ids=ENDS, context_length=CONTEXT, batch_size=1)
    assert found == plain.generate(prompts, max_new_tokens=limit, decoding=Decoding())
    assert rollouts == roll_out(plain, contexts, forks, max_tokens=limit, decoding=Decoding())
    assert len(plainly(caplog)) == 1 or (4 + limit <= original and not plainly(caplog))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_catches_wrong_logits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pass that shows branches too much or too little is found at load, and the model is left as it was."""
    wrong = {
        "_shared_mask": lambda *_: None,
        "_own_mask": lambda _, own, window, groups, like: like.new_zeros(1, 1, groups * own.width, own.span),
        "_merge": lambda *_: None,
    }
    for method, broken in wrong.items():
        caplog.clear()
        reference = copy.deepcopy(reference_of("llama")).to(dtype)
        model = copy.deepcopy(reference)
        before = model.config._attn_implementation
        with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "cruxtune"):
            patch.setattr(Pack, method, broken)
            engine = engine_of(model)
        (line,) = plainly(caplog)
        assert "its packed logits differ from plain ones by" in line
        assert engine._passes is None
        assert model.config._attn_implementation == before
        found = engine.generate([[5, 6, 7]], max_new_tokens=12, decoding=Decoding())
        assert found[0].ids == by_generate(reference, [5, 6, 7], 12)


def test_what_plain_passes_differ_by_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In low precision, where shapes round otherwise: four times as much, and never more than a standard deviation."""
    model = copy.deepcopy(reference_of("llama")).to(torch.bfloat16)
    passes = Passes(model, Usage())
    ids = list(range(12))
    plain = passes._plain_logits(ids)
    for among, accepted in ((0.0, 0.25), (0.1, 0.4), (0.2, 0.8), (3.0, 1.0), (math.nan, 0.25)):
        moved = plain + 0
        moved[0, 0] += among * plain.std()
        monkeypatch.setattr(passes, "_plain_logits", lambda *_, moved=moved: moved)
        assert passes._low_precision_tolerance(ids, plain) == pytest.approx(accepted)


def test_a_pass_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a model's own code trips over in a packed pass, the plain path serves it, and the log line says why."""

    def trip(*_: Any) -> None:
        raise RuntimeError("no such shape")

    model = copy.deepcopy(reference_of("llama"))
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "cruxtune"):
        patch.setattr(Pack, "attend", trip)
        engine = engine_of(model)
    assert plainly(caplog) == [
        "LlamaForCausalLM is decoded plainly: a packed pass fails in it (RuntimeError: no such shape)"
    ]
    assert engine.generate([[5]], max_new_tokens=3, decoding=Decoding())[0].ids == by_generate(model, [5], 3)


def test_settings_are_chosen_once_and_remembered() -> None:
    """Given batch size and draft length nothing is measured; what was settled is what a resumed run is given again."""
    engine = TransformersEngine(
        copy.deepcopy(reference_of("llama")), eos_ids=ENDS, context_length=CONTEXT, batch_size=3, draft_length=2
    )
    calls = engine.usage.model_calls
    settled = engine.tune()
    assert engine.usage.model_calls == calls
    assert (settled["branches"], settled["draft_length"]) == (3, 2)
    other = packed("llama", branches=5)
    assert other.tune(settled) == settled == other.tune()
