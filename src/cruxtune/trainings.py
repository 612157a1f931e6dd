"""What the training of a model took, from the start on: steps, tokens of every stage, seconds, curves."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cruxtune.errors import StoreError
from cruxtune.store import finished_manifest, read_manifest

_NO_ANNOTATION = ("sft", "gold", "all", "numeric")
"""Methods whose weights need no annotation; random and attention are others where the share is given."""
_SETTINGS = ("loss", "learning_rate", "epochs", "batch_size", "packing", "unknown", "trainer")


class Training(BaseModel):
    """What training a model took, and how it went. Of a start there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    steps: int = Field(description="Optimizer steps.")
    tokens_trained: int = Field(description="Tokens with loss, over all steps.")
    share_trained: float = Field(description="Tokens with loss ÷ tokens of the responses trained on.")
    tokens_computed: int | None = Field(description="Tokens put through the model in training, if they were counted.")
    respond_tokens: int | None = Field(description="Tokens put through the model to make the responses, if known.")
    annotate_tokens: int | None = Field(
        description="Tokens put through the model to annotate them, if known; 0 where the method needs no annotation."
    )
    seconds: float = Field(description="Wall-clock seconds of training.")
    curves: dict[str, list[tuple[int, float]]] = Field(
        default_factory=dict,
        description="(step, value) of what was measured while it trained: eval_accuracy, eval_loss_critical, "
        "eval_loss_other, eval_entropy_critical, eval_entropy_other, eval_loss.",
    )

    @property
    def annotation_tokens(self) -> int | None:
        """Tokens put through the model before training: responses and, where the method needs it, annotation."""
        if self.respond_tokens is None or self.annotate_tokens is None:
            return None
        return self.respond_tokens + self.annotate_tokens

    @property
    def compute(self) -> int | None:
        """All tokens put through the model, annotation and training, so that methods compare at equal compute."""
        before = self.annotation_tokens
        return None if before is None or self.tokens_computed is None else before + self.tokens_computed


def training_of(
    path: Path | None, annotations: Path | None = None, *, starts: Container[Path] = ()
) -> tuple[Training | None, dict[str, Any], dict[str, float]]:
    """Return what training took, its settings, and the seconds of it and of the stages before it.

    Args:
        path: output of `cruxtune train` or `cruxtune rl`; None for a model that is given, of which there is nothing.
        annotations: output of `cruxtune annotate` that it was trained on; by default where the manifest says.
        starts: resolved paths of models that training is counted from: what made them is not.

    Raises:
        StoreError: `path` is missing, of another stage or unfinished.
    """
    if path is None:
        return None, {}, {}
    if manifest := _below(path, "rl"):
        return _reinforced(path, manifest, starts)
    manifest = finished_manifest(path, "train", "the training")
    given, done, facts = manifest["settings"], manifest["accounting"], manifest["facts"]
    settings = {
        "method": facts["method"],
        **{name: given[name] for name in _SETTINGS if given.get(name) is not None},
        **given["low_rank"],
    }
    selection = _below(given.get("selection"), "select")
    if selection:
        known = ("method", "budget", "share")
        settings |= {f"select_{name}": selection["settings"][name] for name in known if name in selection["settings"]}
    above = selection["settings"] if selection else given
    annotated = _below(annotations or above.get("annotations"), "annotate")
    responded = _below(annotated["settings"].get("responses"), "respond") if annotated else None
    budgeted = facts["method"] in ("random", "attention") and settings.get("select_share") is not None
    needed = facts["method"] not in _NO_ANNOTATION and not budgeted
    seconds = {"train": done["seconds"]}
    for name, stage in (("respond", responded), ("annotate", annotated if needed else None)):
        if stage:
            seconds[name] = stage["accounting"]["seconds"]
    training = Training(
        steps=done["steps"],
        tokens_trained=done["tokens_trained"],
        share_trained=round(facts["tokens_per_epoch"] / max(1, facts["response_tokens_per_epoch"]), 6),
        tokens_computed=done.get("tokens_computed"),
        respond_tokens=0 if facts["method"] == "gold" else _tokens(responded),
        annotate_tokens=_tokens(annotated) if needed else 0,
        seconds=done["seconds"],
        curves=_curves(path / "training_log.jsonl"),
    )
    return training, settings, seconds


def _reinforced(
    path: Path, manifest: Mapping[str, Any], starts: Container[Path]
) -> tuple[Training, dict[str, Any], dict[str, float]]:
    """Return the same of GRPO, with that of the model that it went on from, where we trained it."""
    given = manifest["settings"]
    start = Path(given["model"]["adapter"] or given["model"]["model"])
    ours = start.resolve() not in starts and _below(start, "train", "rl")
    before, _, seconds = training_of(start if ours else None, starts=starts)
    settings = {"method": given["method"], "loss": given["loss"], "learning_rate": given["learning_rate"]}
    training = reinforced(manifest["accounting"], before, _curves(path / "training_log.jsonl"))
    return training, settings | given["low_rank"], seconds | {"rl": manifest["accounting"]["seconds"]}


def reinforced(
    done: Mapping[str, Any], before: Training | None, curves: Mapping[str, list[tuple[int, float]]]
) -> Training:
    """Return what GRPO took together with the training of the model that it went on from.

    Args:
        done: the accounting in the manifest of `cruxtune rl`.
        before: that training; None where it began with a model that is given.
        curves: those of GRPO, which the result has alone.
    """
    # Every token of a rollout is trained on.
    seen = done["tokens_trained"] + (
        before.tokens_trained / before.share_trained if before and before.share_trained else 0
    )
    tokens_trained = done["tokens_trained"] + (before.tokens_trained if before else 0)
    computed = before.tokens_computed if before else 0
    return Training(
        steps=done["steps"] + (before.steps if before else 0),
        tokens_trained=tokens_trained,
        share_trained=round(tokens_trained / max(1, seen), 6),
        tokens_computed=None if computed is None else done["tokens_computed"] + computed,
        respond_tokens=before.respond_tokens if before else 0,
        annotate_tokens=before.annotate_tokens if before else 0,
        seconds=round(done["seconds"] + (before.seconds if before else 0.0), 3),
        curves=dict(curves),
    )


def _below(path: Any, *stages: str) -> dict[str, Any] | None:
    """Return the manifest of what was made before, None where it is gone: it only says what that took."""
    if path is None or not Path(path).is_dir():
        return None
    try:
        manifest = read_manifest(Path(path))
    except StoreError:
        return None
    return manifest if manifest["stage"] in stages and manifest["complete"] else None


def _tokens(manifest: Mapping[str, Any] | None) -> int | None:
    return int(manifest["accounting"]["tokens_computed"]) if manifest else None


def _curves(log: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        for name, value in entry.items():
            if name.startswith("eval_"):
                curves.setdefault(name, []).append((entry["step"], round(value, 6)))
    return curves
