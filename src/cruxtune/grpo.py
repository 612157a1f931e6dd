"""TRL's GRPOTrainer on our prompts, under our verifier: what is set, what it counts, when it gives up.

TRL tokenises a prompt again where that is a text, which doubles the token that begins it for tokenizers that add one.
Here a prompt is the id of its problem, and the trainer looks up the token ids that `Renderer` made of it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from cruxtune.errors import ConfigError
from cruxtune.examination import examined, weights_cast_once
from cruxtune.models import locate, pick_device, quiet_libraries
from cruxtune.processes import share_batch
from cruxtune.rewards import Reward
from cruxtune.rl_settings import RlSettings
from cruxtune.trainer import STATE, common_options, lora_config, make_config, refuse_virtual_tokens

LOGGED = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "correct": "correct",
    "formed": "formed",
    "equal_rewards": "equal_rewards",
    "group_std": "group_std",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped",
    "cispo_clip_ratio": "clipped",
    "left_out": "left_out",
    "kl": "kl",
    "tokens_computed": "tokens_computed",
}
"""Names of TRL's log and of ours; docs/rl.md defines them."""

_EQUAL = 1e-6
"""Rewards of a group that differ by less are equal: they are sums of few numbers, in float32."""
_LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    # The bound of the ratio itself, and not of what it has above 1. TRL's help recommends 5, and its default (epsilon,
    # 0.2) would cut off every ratio.
    "cispo": {"epsilon_high": 5.0},
    # TRL refuses its own default with vLLM.
    "vespo": {"vllm_importance_sampling_mode": "token_truncate"},
}
"""Fields of which TRL's default does not fit a loss."""
_COUNTED = ("tokens_generated", "rollouts", "steps_without_variance")


class PolicyTrainer(GRPOTrainer):
    """GRPOTrainer on a dataset whose one column `prompt` has ids of problems; `prompts` has their token ids."""

    def __init__(self, *args: Any, prompts: Mapping[str, Sequence[int]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._prompts = prompts
        self.tokens_trained = 0
        """Response tokens in the loss of all steps so far, each time counted; a checkpoint's callbacks carry it."""
        self.tokens_computed = 0
        """Tokens put through the model to generate, for the rollouts' own log-probabilities and in the passes of all
        steps so far, over all devices, padding included and validation not; carried likewise."""
        self.tokens_generated = 0
        """Response tokens of all rollouts so far, over all devices; carried likewise, as are the next two."""
        self.rollouts = 0
        self.steps_without_variance = 0
        """Steps in a row, up to the last one, on groups whose rewards are all equal."""
        self.stuck = False
        """Whether such steps ended the run."""
        self.equal_rewards = 0.0
        """Share of the groups of the latest rollouts whose rewards are all equal."""
        self.examination: Any = None
        """What `evaluate` asks of the model; see `cruxtune.drift`."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Examine the model as it is, log what was found, and return it."""
        return examined(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the compute so far, so that runs compare at equal compute."""
        super().log({**logs, "tokens_computed": self.tokens_computed}, start_time)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self._prompts[name]) for name in prompts], None, {}

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        with weights_cast_once(self):
            return super()._generate_single_turn(*args, **options)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        groups = rewards.sum(dim=1).view(-1, self.num_generations)
        spread = groups.max(dim=1).values - groups.min(dim=1).values
        self.equal_rewards = (spread < _EQUAL).float().mean().item()
        self._metrics["train"]["equal_rewards"].append(self.equal_rewards)
        self._metrics["train"]["group_std"].append(groups.std(dim=1).mean().item())
        generated = sum(len(ids) for ids in completion_ids_list)
        self.tokens_generated += self._over_devices(generated)
        self.rollouts += rewards.size(0)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollouts: dict[str, Any] = super()._generate_and_score_completions(inputs)
        # TRL has the second where policies may have moved on, the third with a penalty (beta).
        passes = 1 + ("old_per_token_logps" in rollouts) + ("ref_per_token_logps" in rollouts)
        self.tokens_computed += self._over_devices(passes * _size(rollouts))
        ratio = rollouts.get("importance_sampling_ratio")
        if ratio is not None and self.vllm_importance_sampling_mode.endswith("mask"):
            # TRL sets those to 0 on which vLLM and the model are too far apart, and counts none of them. There is a
            # ratio for each token or for each rollout.
            counted = rollouts["completion_mask"] if ratio.shape[1] > 1 else torch.ones_like(ratio)
            share = ((ratio == 0) * counted).sum() / counted.sum()
            self._metrics["train"]["left_out"].append(self.accelerator.gather(share).mean().item())
        return rollouts

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        self.tokens_trained += self._over_devices(int(inputs["completion_mask"].sum()))
        self.tokens_computed += self._over_devices(_size(inputs))
        return loss

    def _over_devices(self, number: int) -> int:
        return int(self.accelerator.reduce(torch.tensor(number, device=self.args.device), "sum"))

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return _EpochSampler(super()._get_train_sampler(dataset), self.args.seed)


def steps_waited(checkpoint: Path) -> tuple[int, int]:
    """Return for how many steps in a row the rewards of every group had been equal at a checkpoint, and its step."""
    state = json.loads((checkpoint / STATE).read_text())
    return state["stateful_callbacks"][_Rollouts.__name__]["attributes"]["steps_without_variance"], state["global_step"]


def _size(batch: Mapping[str, torch.Tensor]) -> int:
    return batch["prompt_ids"].numel() + batch["completion_ids"].numel()


class _EpochSampler(RepeatSampler):
    """TRL's sampler, whose order in an epoch depends on its number alone: a resumed run has the order it would have."""

    def __init__(self, sampler: RepeatSampler, seed: int) -> None:
        self.__dict__.update(sampler.__dict__)
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.generator.manual_seed(self._seed * 1000 + epoch)


class _Rollouts(TrainerCallback, ExportableState):
    """Carries the trainer's counts through checkpoints, keeps rollouts in step, and stops a run that learns nothing."""

    def __init__(self, trainer: PolicyTrainer, reward: Reward, patience: int) -> None:
        self._trainer = trainer
        self._reward = reward
        self._patience = patience

    def state(self) -> dict[str, Any]:
        counts = {name: getattr(self._trainer, name) for name in _COUNTED}
        return {"args": {}, "attributes": {**counts, "verdicts": dict(self._reward.verdicts)}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        carried = state.stateful_callbacks[type(self).__name__]["attributes"]
        for name in _COUNTED:
            setattr(self._trainer, name, carried[name])
        self._reward.verdicts.clear()
        self._reward.verdicts.update(carried["verdicts"])
        # TRL counts its passes from 0 in every process, so that a resumed run would generate at other steps.
        self._trainer._step = state.global_step * args.gradient_accumulation_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        trainer.steps_without_variance = trainer.steps_without_variance + 1 if trainer.equal_rewards == 1.0 else 0
        if trainer.steps_without_variance >= self._patience:
            trainer.stuck = True
            control.should_save = control.should_training_stop = True


def build_grpo(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[int]],
    reward: Reward,
    settings: RlSettings,
    eos_ids: Sequence[int],
    work: Path,
) -> PolicyTrainer:
    """Return the trainer for these prompts (token ids by the id of their problem); checkpoints go to `work`.

    `eos_ids` end a rollout, and no others. Of the model's own generation config nothing else applies: rollouts are
    samples of the policy, as in every other stage.

    Raises:
        ConfigError: GRPOConfig refuses a field of `settings.trainer`, the model has a prompt-tuning adapter, or the
            processes cannot share the batch.
    """
    refuse_virtual_tokens(model, settings.model)
    device = pick_device(settings.model.device)
    if settings.trainer.get("beta") and not settings.low_rank.lora and not hasattr(model, "get_base_model"):
        _refuse_reference(settings)
    micro, accumulated = share_batch(settings)
    uses_vllm = settings.trainer.get("use_vllm", can_use_vllm(settings, device))
    options = {
        **common_options(settings, settings.model, work, micro, accumulated),
        "max_steps": settings.steps or -1,
        "loss_type": settings.loss,
        "num_generations": settings.generations,
        "num_iterations": settings.iterations,
        "steps_per_generation": accumulated * settings.rollout_steps,
        "max_completion_length": settings.decoding.max_new_tokens,
        "temperature": settings.temperature,
        "activation_checkpointing": device.startswith("cuda"),
        "use_vllm": uses_vllm,
        # Models are loaded before they reach the trainer; it is vLLM that asks.
        "trust_remote_code": settings.model.trust_remote_code,
        **_LOSS_OPTIONS.get(settings.loss, {}),
        **settings.trainer,
    }
    if uses_vllm:
        if settings.model.revision is not None:
            raise ConfigError(
                f"--revision {settings.model.revision}: vLLM would load {settings.model.model} by its name, without "
                "it; save that revision as a directory and name it as --model, or give --trainer use_vllm=false"
            )
        # vLLM reads the checkpoint's own ids, which need not be all.
        given = options.get("generation_kwargs") or {}
        options["generation_kwargs"] = {"stop_token_ids": sorted(eos_ids), **given}
        # Room for the whole context of the model may be more than there is.
        longest = max(map(len, prompts.values())) + settings.decoding.max_new_tokens
        options.setdefault("vllm_max_model_length", longest)
    config = make_config(GRPOConfig, options, settings.trainer)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.generation_config = GenerationConfig(eos_token_id=sorted(eos_ids))
    with quiet_libraries():
        try:
            trainer = PolicyTrainer(
                prompts=prompts,
                model=model,
                reward_funcs=[reward],
                args=config,
                train_dataset=Dataset.from_list([{"prompt": name} for name in prompts]),
                processing_class=tokenizer,
                peft_config=lora_config(settings.low_rank) if settings.low_rank.lora else None,
            )
        except (ImportError, NotImplementedError, TypeError, ValueError) as error:
            raise ConfigError(f"--trainer: GRPOTrainer refuses these settings: {error}") from error
    trainer.add_callback(_Rollouts(trainer, reward, settings.no_variance_steps))
    return trainer


def _refuse_reference(settings: RlSettings) -> None:
    """Refuse a penalty for which TRL would load another reference than the model, or none.

    It loads by the name in the model's config, of which it knows no revision, and from no GGUF file.
    """
    start, revision = settings.model.model, settings.model.revision
    if locate(settings.model).gguf is not None or revision is not None:
        what = f"--revision {revision} of {start}" if revision is not None else f"{start}, which is a GGUF file"
        raise ConfigError(
            f"--trainer beta={settings.trainer['beta']}: GRPOTrainer would not compare with {what}, since it loads its "
            "reference by name; save the model as a directory first, or use --lora, where the reference is the model "
            "without the adapter"
        )


def can_use_vllm(settings: RlSettings, device: str) -> bool:
    """Return whether vLLM generates: on a GPU of CUDA, where it is installed and can read the model's files."""
    installed = importlib.util.find_spec("vllm") is not None
    return device.startswith("cuda") and installed and locate(settings.model).gguf is None


def advice(settings: RlSettings) -> str:
    """Return what to change where all rewards of every group are equal."""
    hint = "" if settings.format_reward or settings.verifier.verifier else ", a --format-reward"
    return (
        f"use problems that the model solves sometimes, more --generations than {settings.generations}, a higher "
        f"--temperature than {settings.temperature:g}, a longer --max-new-tokens than "
        f"{settings.decoding.max_new_tokens} if responses are truncated{hint}, or a start that solves some"
    )
