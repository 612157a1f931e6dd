"""Offline fixtures that every test may use: a tiny tokenizer, tiny models of several architectures, checkpoints."""

from __future__ import annotations

import importlib.util
import os

# Before anything of Hugging Face is imported: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Tiny models lose more by waking threads than they gain, most of all where tests share a machine.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DATED = "{{ 'Today is ' + strftime_now('%d %B %Y') + '. ' }}" + CHATML
FAILING = "{{ raise_exception('no users here') }}"
SPECIALS = ("<bos>", "<eos>", "<|end|>")

VOCABULARY = 264
"""Ids of a tiny model: a few more than the tokenizer has, as real models have."""


@pytest.fixture(scope="session")
def benchmark_script() -> Callable[[str], ModuleType]:
    """Import a script of benchmarks/, which is no package, by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """A maker of byte-level tokenizers without merges: ids 0–255 are bytes, then <bos>, <eos> and <|end|>.

    `template`: None for none, "chatml", "dated" (calls strftime_now), "failing" (raises), or a Jinja text.
    `final_eos`: the tokenizer ends every text with its end-of-sequence token, as some do.
    """

    def make(template: str | None = None, *, final_eos: bool = False, eos: str | None = "<|end|>") -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        # Bytes as the characters that byte-level BPE writes for them, in the order of the bytes.
        shown = _byte_characters()
        vocabulary = {character: byte for byte, character in enumerate(shown)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(SPECIALS))
        if final_eos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.token_to_id("<|end|>"))]
            )
        extra: dict[str, Any] = {} if eos is None else {"eos_token": eos}
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", **extra)
        made.chat_template = {"chatml": CHATML, "dated": DATED, "failing": FAILING}.get(template or "", template)
        return made

    return make


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """A maker of tiny random causal models whose greedy continuations differ and end at different lengths.

    Weights are drawn wide (a model as usually initialised repeats one token) and in float64 unless `dtype` says
    otherwise. `architecture` is one of llama, qwen2, qwen3 and olmo2; `eos` gives the ids that end a sequence, by
    default every sixth part of the vocabulary and <|end|>.
    """

    def make(
        architecture: str = "llama",
        vocab_size: int = VOCABULARY,
        *,
        seed: int = 0,
        dtype: Any = None,
        scale: float = 0.8,
        context: int = 256,
        eos: Sequence[int] | None = None,
    ) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        end_of_turn = min(258, vocab_size - 1)
        ends = sorted({*range(0, vocab_size, max(1, vocab_size // 6)), end_of_turn} if eos is None else eos)
        sizes: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": context,
            "initializer_range": scale,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": ends,
            "pad_token_id": None,
        }
        if architecture in ("qwen2", "olmo2"):
            del sizes["head_dim"]
        config = AutoConfig.for_model(architecture, **sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = ends
        return model.to(dtype or torch.float64).eval()

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_tokenizer: Callable[..., Any], tiny_model: Callable[..., Any]) -> Callable[..., Path]:
    """A maker of model directories that `--model DIR` loads: (directory, architecture) → the directory.

    `template` goes to the tokenizer, everything else to the model. Weights are saved in float64; `--dtype float64`
    loads them as they are.
    """

    def make(directory: Path, architecture: str = "llama", *, template: str | None = None, **model: Any) -> Path:
        from cruxtune.models import quiet_libraries

        with quiet_libraries():
            tiny_model(architecture, **model).save_pretrained(directory)
            tiny_tokenizer(template).save_pretrained(directory)
        return directory

    return make


def _byte_characters() -> list[str]:
    """Return the printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = (chr(256 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(extra) for byte in range(256)]


@pytest.fixture
def study_recipe(
    tmp_path: Path, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the recipes of tiny studies share, in a current directory of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge_even.py").write_text("def judge(text, problem):\n    return sum(text.encode()) % 2 == 0\n")
    return {
        "model": {"model": str(tiny_checkpoint(tmp_path / "model")), "dtype": "float64"},
        "prompt": {"template": "plain"},
        "verifier": {"verifier": "judge_even:judge"},
        "engine": {"batch_size": 8, "draft_length": 2},
        "coldstart": {"learning_rate": 1e-6, "epochs": 1, "batch_size": 8},
    }
