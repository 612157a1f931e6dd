"""How much memory decoding may take: what is free, what is allowed, what is held."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch

from cruxtune.errors import ModelError

GIB = 1 << 30
_MARGIN = 0.8
"""Share of the free memory that is taken where no limit is given."""
_SLACK = 0.8
"""Share of what a limit leaves that is taken: allocators hold a little more than they are asked for."""
_LIBRARIES = 32 << 20
"""What libraries take besides, when they are first used."""


def budget(device: Any, limit: float | None) -> int:
    """Return the bytes that may be taken besides what is held now.

    `limit` (GiB) bounds the whole process, or what torch holds of a GPU.

    Raises:
        ModelError: more than the limit is held already.
    """
    free = free_bytes(device)
    if limit is None:
        return int(free * _MARGIN)
    held = held_bytes(device)
    if limit * GIB <= held:
        raise ModelError(
            f"--memory-limit {limit:g} GiB, but the model and the libraries hold {held / GIB:.2f} GiB already; "
            "give more, or take a smaller model or --dtype bfloat16"
        )
    return min(int(_SLACK * (limit * GIB - held)) - _LIBRARIES, free)


def give_back(device: Any) -> None:
    """Hand memory that was freed back to the system, which allocators put off."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    # glibc keeps freed blocks of up to 32 MiB in its heap; elsewhere there is no such function, and no need.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def held_bytes(device: Any) -> int:
    """Return what this process holds now, or what torch holds of a GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_reserved(device)
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_bytes(device: Any) -> int:
    """Return what could be taken: on a GPU what its driver calls free, else free memory within every cgroup's limit."""
    if torch.device(device).type == "cuda":
        # What torch has reserved and does not use can be taken too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = [_meminfo(), *_cgroups()]
    known = [value for value in found if value is not None]
    # Without /proc (macOS) half of the memory is a guess that leaves room for others.
    return max(0, min(known)) if known else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _meminfo(path: Path = Path("/proc/meminfo")) -> int | None:
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return limit − use of every memory cgroup (version 2 or 1) that this process is in."""
    if not own.exists():
        return []
    found = []
    for line in own.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            base, limit_name, use_name = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_name, use_name = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / name.lstrip("/")
        # Every level may be limited; inside a container the own name may not be visible below the root.
        for place in (folder, *folder.parents):
            limit, use = place / limit_name, place / use_name
            if limit.exists() and use.exists() and (text := limit.read_text().strip()) != "max":
                found.append(int(text) - int(use.read_text()) + _reclaimable(place))
            if place == base:
                break
    return found


def _reclaimable(place: Path) -> int:
    """Return the file cache that counts as used but gives way."""
    stat = place / "memory.stat"
    if not stat.exists():
        return 0
    for line in stat.read_text().splitlines():
        if line.split()[0] in ("inactive_file", "total_inactive_file"):
            return int(line.split()[1])
    return 0
