"""Tiny models shaped like those that people tune, with tokenizers that have the habits of theirs.

Nothing is downloaded: weights are random, vocabularies trained on the spot. What is imitated is what trips software up:
which token ends a text and which one a turn, whether there are tokens for beginnings and for padding, who writes them,
what a chat template adds of its own, what the generation config asks for, and rows of the vocabulary that no token has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Without a system message, one of the model's own.
QWEN25 = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + CHATML
# Answers in earlier turns are shown without what was thought; thinking is left out on request only.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# The beginning is the template's, the end of a turn is the end of a text, and what a model says is marked.
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# A system turn with the date whether or not there is a system message.
LLAMA31 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content']|trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


@dataclass(frozen=True)
class Family:
    """A model and its tokenizer, by habits.

    `ends` are the tokens that its generation config says end a text, `stops` those at which responses have to end.
    `stopping` is what their logits are multiplied by, so that some responses of random weights end before the limit.
    `begins` is true where the tokenizer itself begins every text with `bos`. `kind` is the class of the tokenizer in
    transformers.
    """

    architecture: str
    specials: tuple[str, ...]
    eos: str
    ends: tuple[str, ...]
    stops: tuple[str, ...]
    template: str | None = None
    bos: str | None = None
    pad: str | None = None
    begins: bool = False
    tied: bool = False
    words: tuple[str, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    kind: str = "PreTrainedTokenizerFast"
    stopping: float = 1.6


_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_OLMO = ("<|endoftext|>", "<|pad|>")
_LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
_LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}

FAMILIES = {
    # A base model with a chat template, whose turns end with a token that neither tokenizer nor config name as an end.
    "qwen2.5": Family(
        "qwen2",
        _QWEN,
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        ends=("<|endoftext|>",),
        stops=("<|endoftext|>", "<|im_end|>"),
        template=QWEN25,
        tied=True,
        generation={"do_sample": False, "max_new_tokens": 2048},
        kind="Qwen2Tokenizer",
    ),
    "qwen2.5-instruct": Family(
        "qwen2",
        _QWEN,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        ends=("<|im_end|>", "<|endoftext|>"),
        stops=("<|im_end|>", "<|endoftext|>"),
        template=QWEN25,
        generation={**SAMPLING, "top_k": 20, "repetition_penalty": 1.05},
        kind="Qwen2Tokenizer",
        stopping=1.0,
    ),
    "qwen3": Family(
        "qwen3",
        _QWEN,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        ends=("<|im_end|>", "<|endoftext|>"),
        stops=("<|im_end|>", "<|endoftext|>"),
        template=QWEN3,
        words=("<think>", "</think>"),
        generation={**SAMPLING, "top_k": 20},
        kind="Qwen2Tokenizer",
        stopping=1.15,
    ),
    # One token begins and ends a text, and no tokenizer writes it by itself.
    "olmo2": Family(
        "olmo2",
        _OLMO,
        eos="<|endoftext|>",
        bos="<|endoftext|>",
        pad="<|pad|>",
        ends=("<|endoftext|>",),
        stops=("<|endoftext|>",),
        kind="GPT2Tokenizer",
    ),
    # A generation config as many are published: its temperature has no effect, and transformers will not save it.
    "olmo2-instruct": Family(
        "olmo2",
        _OLMO,
        eos="<|endoftext|>",
        bos="<|endoftext|>",
        pad="<|pad|>",
        ends=("<|endoftext|>",),
        stops=("<|endoftext|>",),
        template=OLMO2,
        generation={"temperature": 0.6, "top_p": 0.9},
        kind="GPT2Tokenizer",
        stopping=2.5,
    ),
    "llama3": Family(
        "llama",
        _LLAMA,
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        ends=("<|end_of_text|>",),
        stops=("<|end_of_text|>",),
        begins=True,
        generation=SAMPLING,
        config={"rope_parameters": _LLAMA_ROPE},
    ),
    "llama3.1-instruct": Family(
        "llama",
        _LLAMA,
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        template=LLAMA31,
        begins=True,
        generation=SAMPLING,
        config={"rope_parameters": _LLAMA_ROPE},
        stopping=1.0,
    ),
}

_BEYOND = 24
"""Rows of the vocabulary that no token has."""
_TEXT = "Question: What is one and two? Answer: The sum of {0} and {1} is {2}. Please reason step by step."


@cache
def _learnt() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of a byte-level BPE, trained on a few sentences."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((_TEXT.format(n, n * 7, n * 8) for n in range(40)), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def make_tokenizer(family: Family) -> Any:
    """Return the tokenizer: ids of ordinary tokens first, then the special ones."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary, merges = _learnt()
    named = {"eos_token": family.eos, "bos_token": family.bos, "pad_token": family.pad}
    if family.kind == "PreTrainedTokenizerFast":
        inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(list(family.specials))
        if family.begins:
            assert family.bos
            inner.post_processor = processors.TemplateProcessing(
                single=f"{family.bos} $A", special_tokens=[(family.bos, inner.token_to_id(family.bos))]
            )
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    else:
        made = getattr(transformers, family.kind)(
            vocab=dict(vocabulary), merges=list(merges), unk_token=family.eos, **named
        )
        made.add_tokens([AddedToken(token, special=True, normalized=False) for token in family.specials])
    if family.words:
        made.add_tokens([AddedToken(word, special=False, normalized=False) for word in family.words])
    made.chat_template = family.template
    return made


def make_checkpoint(family: Family, directory: Path) -> Path:
    """Save model (float64) and tokenizer into a directory, the generation config as it was published; return it."""
    import json

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cruxtune.models import quiet_libraries

    tokenizer = make_tokenizer(family)
    ids = tokenizer.convert_tokens_to_ids(list(family.ends))
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer) + _BEYOND,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Wide weights: as usually initialised, a model would repeat one token.
        "initializer_range": 0.8,
        "tie_word_embeddings": family.tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ids if len(ids) > 1 else ids[0],
        "pad_token_id": tokenizer.pad_token_id if family.architecture == "olmo2" else None,
        **({"head_dim": 16} if family.architecture == "qwen3" else {}),
        **family.config,
    }
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.architecture, **sizes)).double()
        stops = tokenizer.convert_tokens_to_ids(list(family.stops))
        model.get_output_embeddings().weight.data[stops] *= family.stopping
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    published = {"eos_token_id": ids if len(ids) > 1 else ids[0], **family.generation}
    (directory / "generation_config.json").write_text(json.dumps(published))
    return directory
