"""The model card of what `train` made: method, data, settings, numbers of the manifest. The licence is the user's."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cruxtune.models import ADAPTER_CONFIG
from cruxtune.settings import EMBEDDED, ModelSettings
from cruxtune.store import CARD, MANIFEST, read_manifest, write_atomic

_EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_METHODS = {
    "cft": "loss on critical tokens alone, those whose every likely replacement makes the answer wrong",
    "sft": "loss on every token of the same responses that critical tokens were searched in",
    "gold": "loss on worked solutions (a cold start)",
    "grpo": "reinforcement learning from the verdicts on sampled responses, compared within groups",
}
_SETTINGS = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "epochs": "epochs",
    "steps": "steps at most",
    "batch_size": "batch size",
    "generations": "responses to a problem",
    "rollout_steps": "steps that a batch of rollouts is cut into",
    "iterations": "times that a rollout is trained on",
    "temperature": "temperature of rollouts",
    "format_reward": "reward for form",
    "packing": "packing",
    "unknown": "tokens not asked about",
}

_CURVES = {
    "reward": "mean reward of the rollouts",
    "eval_accuracy": "validation accuracy (greedy)",
    "eval_entropy": "entropy of validation responses, nats a token",
    "eval_kl": "KL to the start, nats a token",
}
"""Curves of reinforcement learning that the card has."""


def write_card(path: Path, manifest: Mapping[str, Any], model: ModelSettings, data: str) -> None:
    """Write README.md into a directory of trained weights.

    `manifest` is that of the finished training; `data` names what was trained on.
    """
    from huggingface_hub import ModelCard, ModelCardData

    settings, method = manifest["settings"], manifest["facts"]["method"]
    adapter = (path / ADAPTER_CONFIG).is_file()
    names, origin = lineage(model)
    card = ModelCard.from_template(
        ModelCardData(
            base_model=origin,
            library_name="peft" if adapter else "transformers",
            pipeline_tag="text-generation",
            tags=["cruxtune", "trl", method, *(["lora"] if adapter else [])],
        ),
        template_str=resources.files("cruxtune").joinpath("modelcard.md.jinja").read_text(encoding="utf-8"),
        name=path.name,
        base=" on top of ".join(names),
        method=method,
        what=_METHODS.get(method, "a selection of the tokens of annotated responses"),
        usage=_usage(settings["hub"]["push_to_hub"] or path.name, adapter, own_base=(path / "base").is_dir()),
        data=_data(manifest, data),
        settings=_settings(settings),
        numbers=_numbers(manifest),
        validated="validation" in manifest,
    )
    write_atomic(path / CARD, str(card).encode())


def lineage(model: ModelSettings) -> tuple[list[str], str | None]:
    """Return the names of a model and of those it was trained from, and the Hub's id of the last, if it has one."""
    names: list[str] = []
    name: str = model.model
    while True:
        path = Path(name).expanduser()
        if name == EMBEDDED:
            return [*names, _EMBEDDED_NAME], _EMBEDDED_NAME
        local = path.exists()
        names.append(path.name if local else name)
        below = read_manifest(path).get("base_model") if (path / MANIFEST).is_file() else None
        if below is None:
            return names, None if local else name
        name = below


def _usage(name: str, adapter: bool, *, own_base: bool) -> str:
    if adapter and own_base:
        return (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{name}", subfolder="base")\n'
            f'model = PeftModel.from_pretrained(base, "{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
        )
    module, kind = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    first = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if adapter:
        first = f"from {module} import {kind}\nfrom transformers import AutoTokenizer"
    return f'{first}\n\nmodel = {kind}.from_pretrained("{name}")\ntokenizer = AutoTokenizer.from_pretrained("{name}")'


def _data(manifest: Mapping[str, Any], data: str) -> list[tuple[str, str]]:
    facts, identity = manifest["facts"], manifest["identity"]
    kind = next(kind for kind in ("annotations", "selection", "problems") if identity.get(kind))
    rows = [(kind, f"`{data}`"), ("fingerprint", f"`{identity[kind]}`")]
    unit = "rows" if "rows" in facts else "problems"
    dropped = facts[f"{unit}_dropped"]
    rows.append((f"{unit} trained on", f"{facts[unit]:,}" + (f", {dropped:,} too long" if dropped else "")))
    if "tokens_per_epoch" in facts:
        trained, tokens = facts["tokens_per_epoch"], facts["response_tokens_per_epoch"]
        share = f"{trained:,} of {tokens:,} response tokens ({100 * trained / tokens:.1f} %)"
        rows.append(("tokens with loss", share))
    if "validation_problems" in facts:
        rows.append(("held back for validation", f"{facts['validation_problems']:,} problems"))
        rows.append(("their fingerprint", f"`{identity['validation']}`"))
    return rows


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(label, f"{settings[name]}") for name, label in _SETTINGS.items() if settings.get(name) is not None]
    lora = settings["low_rank"]
    if lora["lora"]:
        rows.append(("LoRA", f"rank {lora['lora_rank']}, alpha {lora['lora_alpha']}, dropout {lora['lora_dropout']}"))
    rows.append(("seed", str(settings["output"]["seed"])))
    rows += [(f"trainer: {name}", str(value)) for name, value in settings["trainer"].items()]
    return rows


def _numbers(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    done = manifest["accounting"]
    rows = [("steps", f"{done['steps']:,}")]
    if "rollouts" in done:
        rows.append(("rollouts", f"{done['rollouts']:,}, {done['tokens_generated']:,} tokens"))
    rows.append(("tokens trained, over all epochs", f"{done['tokens_trained']:,}"))
    if loss := manifest.get("loss"):
        rows.append(("loss", f"{loss['first']:.4f} in the first step, {loss['last']:.4f} in the last"))
    for name, label in _CURVES.items():
        if ends := manifest.get("curves", {}).get(name):
            steps = f"step {ends['first_step']} and {ends['last_step']}"
            rows.append((label, f"{ends['first']:.4f} → {ends['last']:.4f} ({steps})"))
    if found := manifest.get("validation"):
        rows.append(
            (
                "validation accuracy (greedy)",
                f"{100 * found['accuracy']:.1f} % at step {found['step']}, "
                f"{100 * found['accuracy_at_start']:.1f} % before training",
            )
        )
        if found["loss"] is not None:
            rows.append(("validation loss (Σ loss ÷ Σ weight)", f"{found['loss']:.4f}"))
        if found["stopped_early"]:
            rows.append(("stopped early", f"after step {done['steps']:,}"))
    return rows
