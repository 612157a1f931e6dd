"""Command-line options from settings classes: one description serves the reader, `--help` and the recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cruxtune.errors import ConfigError
from cruxtune.settings import SINGULAR, flag, inner_settings

_KEYWORD = inspect.Parameter.KEYWORD_ONLY

DRY_RUN = "Print the resolved settings and the plan; load no model, write nothing."


def with_options(
    kind: type[BaseModel], handler: Callable[[dict[str, Any], bool], None], *, argument: str | None = None
) -> Callable[..., None]:
    """Return a typer command whose options are the leaf fields of `kind`, and `--dry-run`.

    `argument` is a field that is given without a flag.

    `handler` gets the fields that were given on the command line (nothing else: defaults are the settings' own).
    """
    leaves = leaf_fields(kind)
    mappings = {name: field.annotation for name, field, _ in leaves if _is_mapping(field.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, field, required in leaves:
        if name == argument:
            place = typer.Argument(help=field.description, show_default=False)
            kind_of = _cli_type(field.annotation)
            parameters.insert(0, inspect.Parameter(name, _KEYWORD, default=place, annotation=kind_of))
            continue
        option = typer.Option(
            None,
            *_flags(name, field),
            help=_help(field, required),
            show_default=False,
            metavar=_metavar(field.annotation),
        )
        kind_of = _cli_type(field.annotation) | None
        parameters.append(inspect.Parameter(name, _KEYWORD, default=option, annotation=kind_of))
    dry_run = typer.Option(False, "--dry-run", help=DRY_RUN)
    parameters.append(inspect.Parameter("dry_run", _KEYWORD, default=dry_run, annotation=bool))

    def command(**values: Any) -> None:
        dry = values.pop("dry_run")
        given = {
            name: parse_pairs(value, name, several=_holds_lists(mappings[name])) if name in mappings else value
            for name, value in values.items()
            if value is not None and value != []
        }
        handler(given, dry)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def leaf_fields(kind: type[BaseModel], *, needed: bool = True) -> list[tuple[str, Any, bool]]:
    """Return (name, field, whether it must be given) of every leaf, in the order of the class."""
    leaves: list[tuple[str, Any, bool]] = []
    for name, field in kind.model_fields.items():
        required = needed and field.is_required()
        if inner := inner_settings(field.annotation):
            leaves.extend(leaf_fields(inner, needed=required))
        else:
            leaves.append((name, field, required))
    return leaves


def parse_pairs(pairs: list[str], name: str, *, several: bool = False) -> dict[str, Any]:
    """Return name=value pairs as a mapping, values read as YAML scalars or lists.

    Where a name may have `several` values, they are a list.

    >>> parse_pairs(["a=1", "b=[x, y]", "c=text"], "gym")
    {'a': 1, 'b': ['x', 'y'], 'c': 'text'}
    >>> parse_pairs(["a=x", "b=y", "a=z"], "evaluations", several=True)
    {'a': ['x', 'z'], 'b': ['y']}
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"{flag(name)} {pair}: write it as NAME=VALUE")
        try:
            read = value if name in SINGULAR else yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "it cannot be read"
            raise ConfigError(f"{flag(name)} {pair}: the value is no valid YAML ({problem}); quote it") from error
        if several:
            parsed.setdefault(key, []).append(read)
        else:
            parsed[key] = read
    return parsed


def nested_values(overrides: list[str]) -> dict[str, Any]:
    """Return dotted overrides as a nested mapping.

    >>> nested_values(["train.cft.learning_rate=1.0e-5", "seed=3"])
    {'train': {'cft': {'learning_rate': 1e-05}}, 'seed': 3}
    """
    nested: dict[str, Any] = {}
    for key, value in parse_pairs(overrides, "set").items():
        *path, last = key.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {part} is given a value of its own too; leave one of them out")
        inner[last] = value
    return nested


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` put in, mappings merged.

    >>> merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _flags(name: str, field: Any) -> tuple[str, ...]:
    spelled = flag(name)
    # What is off by default needs no flag that turns it off.
    return (f"{spelled}/--no-{spelled[2:]}",) if field.annotation is bool and field.default else (spelled,)


def _help(field: Any, required: bool) -> str:
    choices = _literal(field.annotation)
    text = (field.description or "") + (f" ({', '.join(choices)})" if choices else "")
    default = field.default
    if required:
        return f"{text} [required]"
    if default in (None, PydanticUndefined) or field.default_factory:
        return text
    return f"{text} [default: {('off', 'on')[default] if isinstance(default, bool) else default}]"


def _cli_type(annotation: Any) -> Any:
    if _is_mapping(annotation):
        return list[str]
    if get_origin(annotation) is list:
        return annotation
    if _literal(annotation):
        return str
    if get_origin(annotation) is list:
        return annotation
    plain = [part for part in get_args(annotation) if part is not type(None)]
    return plain[0] if plain else annotation


def _literal(annotation: Any) -> tuple[str, ...]:
    optional = (annotation, *get_args(annotation))
    return next((get_args(part) for part in optional if get_origin(part) is Literal), ())


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _holds_lists(annotation: Any) -> bool:
    return get_origin(get_args(annotation)[1]) is list


def _metavar(annotation: Any) -> str | None:
    if _is_mapping(annotation):
        return "NAME=VALUE"
    if _literal(annotation):
        return "NAME"
    return "PATH" if _cli_type(annotation) in (Path, list[Path]) else None
