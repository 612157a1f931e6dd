from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cruxtune.engines.base import Branches, Decoding, Fork, Generation, LoopRule, roll_out
from cruxtune.engines.logits import _most_probable_others
from cruxtune.engines.plain import PlainEngine
from cruxtune.engines.sampling import seed_of
from cruxtune.engines.scripted import ScriptedEngine
from cruxtune.engines.transformers import TransformersEngine
from cruxtune.errors import ModelError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "olmo2")
PROMPTS = [[10, 20, 30], [40], [50, 60, 70, 80, 90, 100], [65, 66], [120, 121, 122, 123]] + [
    [n, n + 7] for n in range(60, 90)
]


@pytest.fixture(params=[PlainEngine, TransformersEngine])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each engine on transformers models: what a test says of one holds for both."""
    return request.param


def engine_of(kind: Any, model: Any, batch_size: int = 32, **options: Any) -> Any:
    """An engine on a tiny model, by default with that model's own end-of-sequence ids and context; fixed settings."""
    options = {
        "eos_ids": model.generation_config.eos_token_id,
        "context_length": getattr(model.config, "max_position_embeddings", None),
        "batch_size": batch_size,
        **({} if kind is PlainEngine else {"draft_length": 4}),
        **options,
    }
    return kind(model, **options)


def by_generate(model: Any, prompt: list[int], limit: int) -> list[int]:
    """What transformers itself generates greedily, one prompt at a time, with a clean GenerationConfig."""
    import torch
    from transformers import GenerationConfig

    eos = model.generation_config.eos_token_id
    config = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=eos, pad_token_id=0)
    output = model.generate(torch.tensor([prompt]), generation_config=config, attention_mask=torch.ones(1, len(prompt)))
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate_token_for_token(kind: Any, architecture: str, tiny_model: Callable[..., Any]) -> None:
    """In float64, batches of ragged prompts give what one-by-one `generate` gives; lengths and ends differ."""
    model = tiny_model(architecture)
    expected = [by_generate(model, prompt, 40) for prompt in PROMPTS]
    found = engine_of(kind, model, batch_size=8).generate(PROMPTS, max_new_tokens=40, decoding=Decoding())
    assert [generation.ids for generation in found] == expected
    assert len({len(generation.ids) for generation in found}) > 5
    assert {generation.finish_reason for generation in found} == {"stop", "length"}


OTHERS: dict[str, dict[str, Any]] = {
    # learned positions; ALiBi without position ids; no cache at all; a recurrent state; soft caps and sliding windows
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.5},
    "gemma2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "sliding_window": 8,
        "initializer_range": 0.6,
    },
}


@pytest.mark.parametrize("architecture", sorted(OTHERS))
def test_unusual_architectures_decode_as_generate_does(kind: Any, architecture: str) -> None:
    """Whatever a model calls its cache and positions, or if it has none: greedy decoding is that of `generate`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = [*range(0, 120, 5)]
    config = AutoConfig.for_model(
        architecture, vocab_size=120, eos_token_id=ends, bos_token_id=None, pad_token_id=None, **OTHERS[architecture]
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    model.generation_config.eos_token_id = ends
    prompts = [[3, 6, 7, 9, 11, 13, 16, 17, 19, 21], [4], [6, 8], [11, 14, 18], [21, 22, 23, 24, 26]]
    prompts += [[n, n + 1] for n in range(31, 91, 10)]
    expected = [by_generate(model, prompt, 24) for prompt in prompts]
    engine = engine_of(kind, model, batch_size=4, context_length=128)
    found = engine.generate(prompts, max_new_tokens=24, decoding=Decoding())
    assert [generation.ids for generation in found] == expected
    assert len({len(generation.ids) for generation in found}) > 1
    assert len(engine.score(prompts[0], [1, 2, 3], alternatives=2).alternatives) == 3


def test_logits_that_are_no_numbers_are_an_error(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """A model that overflows stops with a message; its arg-max would be some token all the same."""
    model = tiny_model()
    model.lm_head.weight.data[7] = math.nan
    with pytest.raises(ModelError, match=r"not numbers.*--dtype"):
        engine_of(kind, model).generate([[1, 2, 3], [4]], max_new_tokens=2, decoding=Decoding())


def test_generation_config_does_not_apply(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """A repetition penalty in the model's generation_config changes nothing."""
    model = tiny_model("llama")
    before = engine_of(kind, model).generate(PROMPTS[:4], max_new_tokens=20, decoding=Decoding())
    model.generation_config.repetition_penalty = 1.8
    model.generation_config.max_new_tokens = 3
    assert engine_of(kind, model).generate(PROMPTS[:4], max_new_tokens=20, decoding=Decoding()) == before


def test_limits(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """The token limit is the smaller of the wish (one each, if given so) and what the context leaves."""
    model = tiny_model("llama", context=12, eos=[258])
    engine = engine_of(kind, model)
    found = engine.generate([[1] * 4, [2] * 10, [3] * 12, [4] * 2], max_new_tokens=[3, 9, 9, 0], decoding=Decoding())
    assert [len(generation.ids) for generation in found] == [3, 2, 0, 0]
    assert {generation.finish_reason for generation in found} == {"length"}


def test_samples_do_not_depend_on_their_batch(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """A sample is decided by its seed alone: order, batch size and neighbours do not matter."""
    model = tiny_model("qwen2")
    decoding = Decoding(temperature=0.8)
    seeds = [seed_of(0, index) for index in range(len(PROMPTS))]
    together = engine_of(kind, model, batch_size=16).generate(
        PROMPTS, max_new_tokens=20, decoding=decoding, seeds=seeds
    )
    order = list(reversed(range(len(PROMPTS))))
    apart = engine_of(kind, model, batch_size=3).generate(
        [PROMPTS[index] for index in order],
        max_new_tokens=20,
        decoding=decoding,
        seeds=[seeds[index] for index in order],
    )
    assert [generation.ids for generation in apart] == [together[index].ids for index in order]
    other = engine_of(kind, model).generate(
        PROMPTS, max_new_tokens=20, decoding=decoding, seeds=[seed + 1 for seed in seeds]
    )
    assert other != together


@pytest.mark.parametrize(
    ("decoding", "allowed"),
    [
        (Decoding(temperature=1.0), range(6)),
        (Decoding(temperature=0.5), range(6)),
        (Decoding(temperature=1.0, top_k=3), (1, 3, 4)),
        (Decoding(temperature=1.0, top_p=0.6), (3, 4)),
    ],
)
def test_samples_follow_the_distribution(decoding: Decoding, allowed: Any) -> None:
    """Draws follow softmax(logits / temperature) within what top-k and top-p leave, in both engines (chi-square)."""
    logits = [0.0, 1.0, -1.0, 2.0, 1.5, -20.0]
    weights = [
        math.exp(value / decoding.temperature) if token in allowed else 0.0 for token, value in enumerate(logits)
    ]
    expected = [weight / sum(weights) for weight in weights]

    class OneStep:
        """The least that the engine needs of a model: the same logits at every position."""

        def __init__(self) -> None:
            import torch

            self.weight = torch.nn.Parameter(torch.zeros(1))

        def eval(self) -> OneStep:
            return self

        def parameters(self) -> Any:
            return iter([self.weight])

        def forward(self, input_ids: Any, attention_mask: Any, past_key_values: Any, use_cache: bool) -> Any:
            import torch
            from transformers.modeling_outputs import CausalLMOutputWithPast

            rows, width = input_ids.shape
            return CausalLMOutputWithPast(logits=torch.tensor(logits, dtype=torch.float64).expand(rows, width, -1))

        __call__ = forward

    count = 4000
    seeds = [seed_of("chi-square", index) for index in range(count)]
    one_step = PlainEngine(OneStep(), eos_ids=[], context_length=None, batch_size=500)
    scripted = ScriptedEngine(lambda ids: logits, eos_ids=set())
    for engine in (one_step, scripted):
        found = engine.generate([[0]] * count, max_new_tokens=1, decoding=decoding, seeds=seeds)
        counts = Counter(generation.ids[0] for generation in found)
        kept = [token for token, share in enumerate(expected) if share * count > 5]
        assert set(counts) <= set(allowed)
        observed = np.array([counts[token] for token in kept], dtype=float)
        wanted = np.array([expected[token] for token in kept])
        assert scipy.stats.chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue > 1e-3


def test_sampling_needs_seeds(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """Sampling without seeds is refused: it could not be repeated."""
    with pytest.raises(ValueError, match="one seed per prompt"):
        engine_of(kind, tiny_model()).generate([[1]], max_new_tokens=1, decoding=Decoding(temperature=1.0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_a_plain_forward_pass(kind: Any, architecture: str, tiny_model: Callable[..., Any]) -> None:
    """Log-probabilities, entropies and alternatives are those of softmax over the whole vocabulary."""
    import torch

    model = tiny_model(architecture)
    prompt, response = [5, 6, 7], [int(value) for value in np.random.default_rng(0).integers(0, 259, 200)]
    scores = engine_of(kind, model).score(prompt, response, alternatives=3)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0, 2:-1], dim=-1)
    rows = logprobs.tolist()
    assert scores.logprobs == pytest.approx([row[token] for row, token in zip(rows, response, strict=True)], rel=1e-9)
    assert scores.entropies == pytest.approx([-sum(math.exp(v) * v for v in row) for row in rows], rel=1e-6)
    for row, token, ids, values in zip(rows, response, scores.alternatives, scores.alternative_logprobs, strict=True):
        assert ids == sorted((i for i in range(len(row)) if i != token), key=lambda i: (-row[i], i))[:3]
        assert values == pytest.approx([row[i] for i in ids], rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6), st.integers(1, 4))
def test_alternatives_break_ties_by_id(k: int, seed: int, levels: int) -> None:
    """However many logits tie (coarse precision ties often), alternatives are ordered by (−logit, id)."""
    import torch

    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.integers(0, levels, size=(4, 90)), dtype=torch.float32)
    tokens = torch.tensor(rng.integers(0, 90, size=4))
    found = _most_probable_others(logits, tokens, k).tolist()
    for row, token, ids in zip(logits.tolist(), tokens.tolist(), found, strict=True):
        assert ids == sorted((i for i in range(90) if i != token), key=lambda i: (-row[i], i))[:k]


def test_rollouts_replace_one_token_and_continue(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """A rollout is the response up to its position, the alternative, and the greedy continuation within the limit."""
    model = tiny_model("qwen3")
    eos = model.generation_config.eos_token_id[1]
    contexts = [([1, 2, 3], [10, 11, 12, 13]), ([4], [20, 21])]
    forks = [Fork(0, 0, 99), Fork(0, 3, 98), Fork(1, 1, 97), Fork(1, 0, eos)]
    expected = []
    for fork in forks[:3]:
        prompt, response = contexts[fork.context]
        head = [*response[: fork.position], fork.token]
        expected.append(head + by_generate(model, [*prompt, *head], 12 - len(head)))
    engine = engine_of(kind, model, batch_size=4)
    found = roll_out(engine, contexts, forks, max_tokens=12, decoding=Decoding())
    assert [generation.ids for generation in found] == [*expected, [eos]]
    assert found[3].finish_reason == "stop"


def run_out(branches: Branches) -> list[tuple[Fork, Generation]]:
    """All that comes out of branches until nothing waits, in its order."""
    done = []
    while branches.waiting:
        done.extend(branches.step())
    return done


def test_branches_take_forks_at_any_time(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """Forks may come while others are decoded, and contexts may be opened and closed; every fork comes out once."""
    model = tiny_model("llama")
    contexts = [([1, 2, 3], [10, 11, 12, 13]), ([4], [20, 21]), ([5, 6], [30, 31, 32])]
    forks = [Fork(c, t, token) for c, (_, ids) in enumerate(contexts) for t in range(len(ids)) for token in (7, 99)]
    engine = engine_of(kind, model, batch_size=5)
    together = roll_out(engine, contexts, forks, max_tokens=20, decoding=Decoding())
    branches = engine.branches(max_tokens=20, decoding=Decoding())
    assert branches.room
    assert branches.waiting == 0
    assert branches.step() == []
    done: dict[Fork, Generation] = {}
    for place, (prompt, response) in enumerate(contexts):
        number, scores = branches.open(prompt, response, alternatives=2)
        assert number == place
        assert scores.alternatives == engine.score(prompt, response, alternatives=2).alternatives
        mine = [fork for fork in forks if fork.context == number]
        branches.add(mine[:1])
        before = len(done)
        done.update(branches.step())
        branches.add(mine[1:])
        assert branches.waiting == sum(fork.context <= number for fork in forks) - len(done)
        assert len(done) >= before
    # Plain batches are filled from one context after another, packed ones from as many as memory holds.
    assert branches.room == (kind is not PlainEngine)
    rest = run_out(branches)
    assert branches.room
    assert not done.keys() & {fork for fork, _ in rest}
    done.update(rest)
    for number in range(3):
        branches.close(number)
    assert [done[fork] for fork in forks] == together


def test_what_comes_out_depends_on_what_went_in(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """The order in which rollouts come out is the same in every run: verdicts are recorded in it."""
    model = tiny_model("olmo2")
    orders = []
    for _ in range(2):
        branches = engine_of(kind, model, batch_size=3).branches(max_tokens=24, decoding=Decoding())
        branches.open([1, 2], [10, 11, 12], alternatives=1)
        branches.add([Fork(0, position, token) for position in (2, 0, 1) for token in range(90, 96)])
        orders.append(run_out(branches))
    assert orders[0] == orders[1]
    assert len(orders[0]) == 18


def test_progress_counts_every_sequence(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """Progress adds up to the number of sequences, those that have no room at all included."""
    model = tiny_model("llama", context=12)
    seen: list[int] = []
    prompts = [[1], [2, 3], [4] * 12, [5] * 30, [6, 7, 8]]
    found = engine_of(kind, model, batch_size=2).generate(
        prompts, max_new_tokens=[5, 0, 9, 9, 9], decoding=Decoding(), progress=seen.append
    )
    assert sum(seen) == len(prompts)
    assert 0 not in seen
    assert [len(generation.ids) for generation in found[1:4]] == [0, 0, 0]


def test_adapters_decode_like_their_merged_model(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """A LoRA adapter on a model decodes as the model with the adapter merged into it does."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = tiny_model("llama")
    plain = engine_of(kind, base).generate(PROMPTS, max_new_tokens=20, decoding=Decoding())
    lora = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, lora, autocast_adapter_dtype=False)
    adapted.double()
    eos, context = base.generation_config.eos_token_id, 256
    engine = engine_of(kind, adapted, eos_ids=eos, context_length=context, batch_size=8)
    found = engine.generate(PROMPTS, max_new_tokens=20, decoding=Decoding())
    merged = engine_of(kind, adapted.merge_and_unload()).generate(PROMPTS, max_new_tokens=20, decoding=Decoding())
    assert [generation.ids for generation in found] == [generation.ids for generation in merged]
    assert found != plain


def test_usage_counts_tokens(kind: Any, tiny_model: Callable[..., Any]) -> None:
    """Every chosen token is counted as emitted, and at least as many went through the model."""
    engine = engine_of(kind, tiny_model(), batch_size=8)
    found = engine.generate(PROMPTS, max_new_tokens=20, decoding=Decoding())
    assert engine.usage.tokens_emitted == sum(len(generation.ids) for generation in found)
    usage = engine.usage
    assert usage.tokens_computed >= usage.tokens_emitted
    # Plain decoding has no drafts; a wrong one went through the model for nothing.
    assert (usage.tokens_drafted > 0) == (kind is TransformersEngine)
    assert 0 <= usage.tokens_accepted <= usage.tokens_drafted <= usage.tokens_computed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scripted_engine_agrees_with_the_real_one(
    kind: Any, temperature: float, tiny_model: Callable[..., Any]
) -> None:
    """Given a model's logits as its script, the scripted engine generates, scores and forks alike."""
    import torch

    model = tiny_model("llama")

    def logits(ids: Any) -> list[float]:
        with torch.no_grad():
            return model(torch.tensor([list(ids)])).logits[0, -1].tolist()

    real = engine_of(kind, model)
    scripted = ScriptedEngine(logits, eos_ids=set(real.eos_ids), context_length=256)
    decoding, prompts, seeds = Decoding(temperature=temperature, loop=LoopRule()), PROMPTS[:6], list(range(6))
    mine = real.generate(prompts, max_new_tokens=12, decoding=decoding, seeds=seeds, statistics=True)
    theirs = scripted.generate(prompts, max_new_tokens=12, decoding=decoding, seeds=seeds, statistics=True)
    assert [generation.ids for generation in mine] == [generation.ids for generation in theirs]
    assert mine[0].logprobs == pytest.approx(theirs[0].logprobs, rel=1e-9)
    assert mine[0].entropies == pytest.approx(theirs[0].entropies, rel=1e-6)
    assert (
        real.score([1], [2, 3], alternatives=2).alternatives == scripted.score([1], [2, 3], alternatives=2).alternatives
    )
    if temperature == 0:
        contexts, forks = [([1], [2, 3])], [Fork(0, 1, 77), Fork(0, 0, 78)]
        assert roll_out(real, contexts, forks, max_tokens=9, decoding=decoding) == roll_out(
            scripted, contexts, forks, max_tokens=9, decoding=decoding
        )


def loops(ids: list[int], rule: LoopRule) -> bool:
    """The loop rule, word by word: a block of at most max_period tokens, repeated often and long enough at the end."""
    for period in range(1, rule.max_period + 1):
        span = 0
        while span < len(ids) - period and ids[-1 - span] == ids[-1 - span - period]:
            span += 1
        covered = span + period
        if covered >= max(period * rule.min_repeats, rule.min_tokens) and span:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.integers(0, 9),
    st.integers(1, 4),
    st.integers(2, 4),
    st.integers(1, 12),
)
def test_loop_rule_is_what_it_says(
    head: list[int], block: list[int], times: int, max_period: int, min_repeats: int, min_tokens: int
) -> None:
    """The quick test agrees with the definition on sequences that end in repeats and on ones that do not."""
    rule = LoopRule(max_period=max_period, min_repeats=min_repeats, min_tokens=min_tokens)
    ids = head + block * times
    assert rule.caught(ids) == loops(ids, rule)


def test_loops_end_greedy_decoding_only() -> None:
    """A greedy continuation in a loop ends with reason "loop"; sampling, and greedy without the rule, go on."""
    engine = ScriptedEngine(lambda ids: [0.0, 5.0 if len(ids) % 2 else 1.0, 3.0], eos_ids=set())
    rule = LoopRule(max_period=4, min_repeats=3, min_tokens=6)
    stopped = engine.generate([[0]], max_new_tokens=50, decoding=Decoding(loop=rule))[0]
    assert (stopped.ids, stopped.finish_reason) == ([1, 2, 1, 2, 1, 2], "loop")
    assert len(engine.generate([[0]], max_new_tokens=50, decoding=Decoding())[0].ids) == 50
    sampled = Decoding(temperature=0.01, loop=rule)
    assert len(engine.generate([[0]], max_new_tokens=50, decoding=sampled, seeds=[1])[0].ids) == 50
