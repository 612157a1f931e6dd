"""Several processes that train one model, as `accelerate launch` or `torchrun` start them: who does what alone.

The first process alone writes files, prints and talks to the Hub. What may fail in one process is run under `agreed`,
so that it fails in all of them, and none waits for what never comes.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from cruxtune.errors import ConfigError, ElsewhereError
from cruxtune.rl_settings import RlSettings
from cruxtune.stage_settings import TrainSettings

T = TypeVar("T")

_LAUNCHERS = ("", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")
"""What stands before RANK in the variables of torchrun (and of Accelerate), Open MPI, MPICH and MVAPICH."""

_SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
_PARALLEL = {"CP": "context", "SP": "sequence", "TP": "tensor"}


def index() -> int:
    """Return the number of this process, from 0."""
    return _number({f"{prefix}RANK" for prefix in _LAUNCHERS}, 0)


def count() -> int:
    """Return how many processes there are; 1 without a launcher."""
    return _number({"WORLD_SIZE", *(f"{prefix}SIZE" for prefix in _LAUNCHERS[1:])}, 1)


def speaks() -> bool:
    """Return whether this process reports errors that all processes of a machine have alike."""
    return _number({f"{prefix}LOCAL_RANK" for prefix in _LAUNCHERS}, index()) == 0


def sharding() -> str | None:
    """Return what a launcher asks to spread the weights with: FSDP, DeepSpeed or nothing."""
    asked = (name for variable, name in _SHARDING.items() if os.environ.get(variable, "").lower() == "true")
    return next(asked, None)


def refuse_layouts(device: str, settings: TrainSettings) -> None:
    """Refuse what a launcher asks for and training cannot do on this device.

    Raises:
        ConfigError: rows would be cut into pieces, weights would be spread over CPUs, or where they must be whole, each
            process would choose batches by itself, or the processes cannot share the batch.
    """
    _refuse_parts()
    if (spread := sharding()) and device == "cpu":
        raise ConfigError(
            f"{spread} spreads weights over GPUs, and the device is cpu; use recipes/accelerate/cpu-2.yaml, or another "
            "--device"
        )
    if spread == "DeepSpeed" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("the launcher asks for DeepSpeed, which is not installed; run `pip install deepspeed`")
    if spread and (settings.validation.validation is not None or settings.validation.probe):
        raise ConfigError(
            f"--validation and --probe read the model on every device by itself, which {spread} does not allow; leave "
            "them out, and compare checkpoints with `cruxtune evaluate`"
        )
    strategy = "batch_rebalance"
    if count() > 1 and settings.trainer.get("train_sampling_strategy") == strategy:
        raise ConfigError(
            f"--trainer train_sampling_strategy={strategy} gives {count()} processes other batches than one has; use "
            "group_by_length"
        )
    share_batch(settings)


def refuse_spreading(settings: RlSettings) -> None:
    """Refuse what a launcher asks for and reinforcement learning cannot do.

    Raises:
        ConfigError: rows would be cut into pieces, weights would be spread, or the processes cannot share the batch.
    """
    _refuse_parts()
    if spread := sharding():
        raise ConfigError(
            f"cruxtune rl generates and validates with the whole model on every device, which {spread} does not allow; "
            "use recipes/accelerate/ddp.yaml, with --lora where the model is too large to train whole"
        )
    share_batch(settings)


def _refuse_parts() -> None:
    for short, name in _PARALLEL.items():
        size = os.environ.get(f"PARALLELISM_CONFIG_{short}_SIZE", "1")
        if size.isdigit() and int(size) > 1:
            raise ConfigError(
                f"{name} parallelism (parallelism_config_{short.lower()}_size: {size}) cuts up rows or layers, and the "
                "loss is that of whole ones; set it to 1, and use more data-parallel processes or FSDP"
            )


def share_batch(settings: TrainSettings | RlSettings) -> tuple[int, int]:
    """Return how many rows a process takes in a forward pass, and how many such passes it has in a step.

    Raises:
        ConfigError: the processes cannot share the batch.
    """
    processes, whole = count(), settings.batch_size
    share, rest = divmod(whole, processes)
    micro = settings.micro_batch_size or share
    if rest or share % micro:
        parts = f"{processes} processes" + (f" times --micro-batch-size {micro}" if settings.micro_batch_size else "")
        raise ConfigError(
            f"--batch-size {whole} is that of a step over all processes, and {parts} do not divide it; give a multiple"
        )
    return micro, share // micro


def join(device: str, seconds: float) -> None:
    """Connect the processes, unless there is but one or they are; none waits for another longer than `seconds`."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu", timeout=timedelta(seconds=seconds))


def leave() -> None:
    """Disconnect the processes, if they are connected."""
    if joined():
        import torch

        # A trainer that is unreachable in a cycle still keeps the connection and its threads, and those that are left
        # when the interpreter ends abort the process now and then.
        gc.collect()
        torch.distributed.destroy_process_group()


def joined() -> bool:
    """Return whether the processes are connected."""
    # Nothing was connected by what is not imported.
    if count() == 1 or "torch" not in sys.modules:
        return False
    import torch

    return torch.distributed.is_initialized()


def from_first(value: T) -> T:
    """Return what the first process has; all processes must ask."""
    if not joined():
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_of(value: T) -> list[T]:
    """Return what each process has, in their order; all processes must ask."""
    if not joined():
        return [value]
    import torch

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def agreed() -> Iterator[None]:
    """Run a block that may fail in one process alone; then it fails in all. No process waits for another inside it.

    Raises:
        ElsewhereError: it failed in another process, which raises its own error; of several, the first one.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if joined():
        import torch

        failed: list[bool] = [False] * count()
        torch.distributed.all_gather_object(failed, error is not None)
        if any(failed) and failed.index(True) != index():
            raise ElsewhereError(f"process {failed.index(True)} failed, and says why") from error
    if error is not None:
        raise error


def _number(names: set[str], default: int) -> int:
    return next((int(os.environ[name]) for name in sorted(names) if os.environ.get(name, "").isdigit()), default)
