"""What several processes ask before they train, and the files that `accelerate launch` is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cruxtune.errors import ConfigError
from cruxtune.processes import (
    agreed,
    count,
    from_first,
    index,
    refuse_layouts,
    refuse_spreading,
    sharding,
    share_batch,
    speaks,
)
from cruxtune.rl_settings import RlSettings
from cruxtune.settings import build
from cruxtune.stage_settings import TrainSettings

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
SMALL = ROOT / "recipes" / "small.yaml"
LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}


def settings(**leaves: Any) -> TrainSettings:
    """Settings of a training on annotations."""
    return build(TrainSettings, {"method": "cft", "annotations": "a", "output": "out", **leaves})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without a launcher's variables."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_is_the_first_of_one(environment: pytest.MonkeyPatch) -> None:
    """Without a launcher there is nobody to wait for."""
    assert (index(), count(), speaks(), sharding()) == (0, 1, True, None)
    assert from_first("value") == "value"
    with pytest.raises(OSError, match="disk"), agreed():
        raise OSError("disk")


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 4, False)),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, (2, 4, True)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, (1, 2, False)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2, False)),
    ],
    ids=["second-of-machine", "first-of-machine", "open-mpi", "mpich"],
)
def test_launchers_say_which_process_this_is(
    environment: pytest.MonkeyPatch, variables: dict[str, str], found: tuple[int, int, bool]
) -> None:
    """By the variables of torchrun or of MPI; the first process of each machine reports common errors."""
    for name, value in variables.items():
        environment.setenv(name, value)
    assert (index(), count(), speaks()) == found


def test_the_batch_is_shared(environment: pytest.MonkeyPatch) -> None:
    """It is that of all processes; a share is one forward pass unless micro batches are asked for."""
    assert share_batch(settings(batch_size=12)) == (12, 1)
    environment.setenv("WORLD_SIZE", "2")
    assert share_batch(settings(batch_size=12)) == (6, 1)
    assert share_batch(settings(batch_size=12, micro_batch_size=3)) == (3, 2)
    with pytest.raises(ConfigError, match=r"--batch-size 5 is that of a step over all processes, and 2 processes do"):
        share_batch(settings(batch_size=5))
    with pytest.raises(ConfigError, match=r"--batch-size 12 .* 2 processes times --micro-batch-size 4 do not divide"):
        share_batch(settings(batch_size=12, micro_batch_size=4))


@pytest.mark.parametrize(
    ("variables", "device", "leaves", "message"),
    [
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "cuda", {}, r"context parallelism \(parallelism_config_cp_size: 2\)"),
        ({"PARALLELISM_CONFIG_SP_SIZE": "2"}, "cuda", {}, "sequence parallelism .* set it to 1"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "4"}, "cuda", {}, "tensor parallelism"),
        ({"ACCELERATE_USE_FSDP": "true"}, "cpu", {}, "FSDP spreads weights over GPUs, .*/cpu-2.yaml"),
        ({"ACCELERATE_USE_FSDP": "true"}, "cuda", {"probe": 2}, "--validation and --probe .* FSDP does not allow"),
        ({"WORLD_SIZE": "2"}, "cpu", {"trainer": {"train_sampling_strategy": "batch_rebalance"}}, "group_by_length"),
    ],
)
def test_layouts_that_cannot_work_are_refused(
    environment: pytest.MonkeyPatch, variables: dict[str, str], device: str, leaves: dict[str, Any], message: str
) -> None:
    """One line names what was asked for and what to do."""
    refuse_layouts(device, settings(**leaves))
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        refuse_layouts(device, settings(**leaves))


def test_deepspeed_has_to_be_installed(environment: pytest.MonkeyPatch) -> None:
    """Where it is missing, the message says how to get it."""
    environment.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    environment.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="DeepSpeed, which is not installed; run `pip install deepspeed`"):
        refuse_layouts("cuda", settings())


def test_a_users_error_is_told_once(tmp_path: Path) -> None:
    """The first process of a machine tells it; commands of one process are refused in several."""
    for variables, arguments, told in (
        ({**LAUNCHED, "RANK": "0", "LOCAL_RANK": "0"}, "train --selection nowhere --output out", "error: --selection"),
        (LAUNCHED, "train --selection nowhere --output out", ""),
        ({**LAUNCHED, "LOCAL_RANK": "0"}, f"run {SMALL}", "error: 2 processes were started, and respond is"),
        ({**LAUNCHED, "LOCAL_RANK": "0"}, "select --dry-run", "error: cruxtune select is one process, and 2 were"),
    ):
        command = [sys.executable, "-m", "cruxtune", *arguments.split()]
        paths = {"PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **paths, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(told)
        assert len(done.stderr.splitlines()) == bool(told)


def test_reinforcement_takes_whole_models_only(environment: pytest.MonkeyPatch) -> None:
    """Weights that a launcher would spread, and batches that do not share out, are refused."""
    asked = build(RlSettings, {"method": "grpo", "model": "m", "problems": "p.jsonl", "output": "out"})
    refuse_spreading(asked)
    environment.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="--batch-size 64 is that of a step over all processes, and 3 processes"):
        refuse_spreading(asked)
    environment.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"which FSDP does not allow; use recipes/accelerate/ddp\.yaml"):
        refuse_spreading(asked)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path: Path, environment: pytest.MonkeyPatch) -> None:
    """Its launcher takes them for what they are named after, and its plugins are built from what it hands over."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import (
        DeepSpeedPlugin,
        FullyShardedDataParallelPlugin,
        patch_environment,
    )
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    kinds = {"cpu-2": "MULTI_GPU", "ddp": "MULTI_GPU", "fsdp": "FSDP"}
    config = load_config_from_file(str(path))
    assert config.distributed_type == kinds.get(path.stem, "DEEPSPEED")
    assert config.use_cpu is (path.stem == "cpu-2")
    command = ["--config_file", str(path), "-m", "cruxtune", "train"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (arguments.num_processes, arguments.num_machines, arguments.main_process_port) == (2, 1, 0)
    if not arguments.use_deepspeed:
        made = prepare_multi_gpu_env(arguments)
    else:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, made = prepare_deepspeed_cmd_env(arguments)
    assert arguments.nproc_per_node == "2"
    with patch_environment(**made):
        if path.stem == "fsdp":
            plugin = FullyShardedDataParallelPlugin()
            assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
            assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
            assert not plugin.cpu_ram_efficient_loading
            assert sharding() == "FSDP"
        elif arguments.use_deepspeed:
            plugin = DeepSpeedPlugin()
            stage = int(path.stem[-1])
            assert plugin.deepspeed_config["zero_optimization"]["stage"] == stage
            assert plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is (
                stage == 3
            )
            assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
            assert sharding() == "DeepSpeed"
        else:
            assert sharding() is None
