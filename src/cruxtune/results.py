"""Small JSON files that are kept: what was found, with the settings that it was found with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from cruxtune.errors import StoreError
from cruxtune.store import write_atomic


def read_result(
    path: Path, settings: Mapping[str, Any], *, below: tuple[str, ...] = ("settings",)
) -> dict[str, Any] | None:
    """Return what a file holds, None where there is none; its settings are at the key `below`, a path of keys.

    Raises:
        StoreError: it is damaged, or was found with other settings.
    """
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        before = reduce(getitem, below, found)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is no result of a study; move it away, and the same command makes it anew") from error
    refuse_other_settings(path, before, settings)
    return found


def write_result(path: Path, settings: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a result with the settings that it was found with, and return it."""
    found = json.loads(json.dumps({**content, "settings": settings}))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    return dict(found)


def refuse_other_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise StoreError naming the first setting that differs, if one does."""
    old, new = leaves(before), leaves(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise StoreError(
                f"{path} was found with {name} = {json.dumps(old.get(name))}, and the study has "
                f"{json.dumps(new.get(name))}; results of different settings are not mixed: use the same {name}, "
                "another --results, or move the file away"
            )


def leaves(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values of nested settings by dotted name, as JSON has them.

    >>> leaves({"train": {"epochs": 2, "seeds": (0, 1)}})
    {'train.epochs': 2, 'train.seeds': [0, 1]}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = json.loads(json.dumps(value))
    return found
