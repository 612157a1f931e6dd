"""Settings of `cruxtune rl`, and the fields of TRL's GRPOConfig that users may not set."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cruxtune.contamination import TrainingProblemsSettings
from cruxtune.problems import ProblemSource
from cruxtune.settings import (
    DecodingSettings,
    ModelSettings,
    OutputSettings,
    PromptSettings,
    Settings,
    VerifierSettings,
)
from cruxtune.stage_settings import HubSettings, LoraSettings, ValidationSettings
from cruxtune.trainer_fields import REFUSED_TRAINER_FIELDS, check_fields, check_micro_batch

_BATCHES = "use --batch-size, --micro-batch-size and --rollout-steps"
_MEASURED = "use --validation and --evaluate-every"
_CASTS = "it casts the weights that are trained to bfloat16, in which most updates round to nothing; use vLLM"
_AS_IN_TRAIN = (
    "data_seed",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "learning_rate",
    "load_best_model_at_end",
    "logging_nan_inf_filter",
    "logging_steps",
    "logging_strategy",
    "loss_type",
    "model_init_kwargs",
    "num_train_epochs",
    "output_dir",
    "push_to_hub",
    "resume_from_checkpoint",
    "save_only_model",
    "seed",
    "trust_remote_code",
    "use_cpu",
)

REFUSED_RL_FIELDS = {
    **{name: REFUSED_TRAINER_FIELDS[name] for name in _AS_IN_TRAIN},
    "accelerator_config": "groups would no longer lie where TRL looks for them",
    "auto_find_batch_size": "a smaller batch would cut groups apart; use --micro-batch-size",
    "chat_template_kwargs": "prompts are rendered with --template, the same in every stage",
    "dataloader_drop_last": "an epoch has whole batches of rollouts already",
    "eval_delay": _MEASURED,
    "eval_on_start": _MEASURED,
    "eval_steps": _MEASURED,
    "eval_strategy": _MEASURED,
    "generation_batch_size": _BATCHES,
    "gradient_accumulation_steps": _BATCHES,
    "gradient_checkpointing": "use activation_checkpointing, its new name",
    "greater_is_better": _MEASURED,
    "ignore_data_skip": "a resumed run would see other problems",
    "load_best_model_at_end": "the last weights are kept: what a validation chose would need another one to be judged",
    "max_completion_length": "use --max-new-tokens",
    "max_steps": "use --steps",
    "metric_for_best_model": _MEASURED,
    "num_generations": "use --generations",
    "num_generations_eval": _MEASURED,
    "num_iterations": "use --iterations",
    "parallelism_config": "it cuts sequences into pieces, which GRPO cannot generate",
    "per_device_train_batch_size": _BATCHES,
    "remove_unused_columns": "the one column there is names the problem",
    "restore_callback_states_from_checkpoint": "counts are carried through checkpoints already",
    "reward_weights": "use --format-reward",
    "steps_per_generation": _BATCHES,
    "temperature": "use --temperature",
    "train_sampling_strategy": "the problems of a batch of rollouts are drawn by TRL's own sampler",
    "use_transformers_continuous_batching": _CASTS,
    "use_transformers_paged": _CASTS,
}
"""GRPOConfig fields that a recipe may not set in `trainer`: they have a flag of their own, or break what we promise."""


class RlSettings(Settings):
    """Reinforcement learning from verdicts: GRPO from any checkpoint or adapter."""

    method: Literal["grpo"] = Field(description="grpo: group relative policy optimisation (arXiv 2402.03300), by TRL.")
    problems: ProblemSource
    model: ModelSettings
    prompt: PromptSettings = PromptSettings()
    verifier: VerifierSettings = VerifierSettings()
    decoding: DecodingSettings = DecodingSettings()
    output: OutputSettings
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"] = Field(
        "grpo",
        description="How token losses become one: grpo, the mean over each response and then over responses; dapo "
        "(TRL's own default), over all tokens of a step; the others as in TRL's documentation of loss_type.",
    )
    learning_rate: float = Field(1e-6, gt=0, description="Peak learning rate.")
    steps: int | None = Field(None, gt=0, description="Optimizer steps; by default what --epochs come to.")
    epochs: float = Field(1.0, gt=0, description="Passes over the problems, where --steps is not given.")
    generations: int = Field(8, description="Responses to each problem, whose rewards are compared; 2 or more.")
    batch_size: int = Field(64, gt=0, description="Responses per optimizer step, over all devices.")
    micro_batch_size: int | None = Field(
        None,
        gt=0,
        description="Responses per forward pass of a device; smaller ones are accumulated (by default its whole "
        "share).",
    )
    rollout_steps: int = Field(1, gt=0, description="Optimizer steps that one batch of rollouts is cut into.")
    iterations: int = Field(
        2, gt=0, description="Times that each rollout is trained on; from the second step on a batch, ratios can clip."
    )
    temperature: float = Field(1.0, gt=0, description="Temperature of the rollouts.")
    format_reward: float = Field(
        0.0,
        ge=0,
        description="Reward for form, besides 1 for a correct answer: the response ends by itself, and says in an "
        "explicit form (\\boxed{}, ####, 'the answer is', …) what its answer is.",
    )
    no_variance_steps: int = Field(
        20, gt=0, description="Stop after so many steps in a row on groups whose rewards are all equal."
    )
    validation: str = Field(
        "0.1",
        description="Validate on problems that are kept out of training: a share (0.1) or a number (50) of --problems, "
        "or a source, as for --problems.",
    )
    validation_source: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of a source in --validation, as config=main or split=validation: those of --problems.",
    )
    validation_samples: int = Field(
        0,
        ge=0,
        description="Samples of each validation problem at temperature 1, besides its greedy answer, for "
        "pass@k with k = 2, 4, 8 and so on up to this number.",
    )
    evaluate_every: int = Field(10, gt=0, description="Steps between validations.")
    low_rank: LoraSettings = LoraSettings()
    training: TrainingProblemsSettings = TrainingProblemsSettings()
    hub: HubSettings = HubSettings()
    trainer: dict[str, Any] = Field(
        default_factory=dict,
        description="Any other GRPOConfig field as name=value, e.g. epsilon_high=0.28; some are refused by name.",
    )

    @field_validator("validation", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @property
    def measured(self) -> ValidationSettings:
        """What is validated on, and when, as `cruxtune train` has it."""
        return ValidationSettings(
            validation=self.validation, validation_source=self.validation_source, evaluate_every=self.evaluate_every
        )

    @property
    def steps_per_rollouts(self) -> int:
        """Optimizer steps from one generation of rollouts to the next."""
        return self.rollout_steps * self.iterations

    @property
    def problems_per_rollouts(self) -> int:
        """Problems that one generation of rollouts answers."""
        return self.batch_size * self.rollout_steps // self.generations

    @model_validator(mode="after")
    def _check(self) -> RlSettings:
        self.measured  # noqa: B018  it raises for a validation that is neither share, number nor source
        if self.generations < 2:
            raise ValueError(
                f"--generations {self.generations}: a response is compared with the others of its group, and alone it "
                "always equals their mean, so that nothing would be learned; use 2 or more"
            )
        if self.batch_size * self.rollout_steps % self.generations:
            raise ValueError(
                f"--batch-size {self.batch_size} times --rollout-steps {self.rollout_steps} is no multiple of "
                f"--generations {self.generations}: groups would be cut apart; change one of them"
            )
        check_micro_batch(self.batch_size, self.micro_batch_size)
        if self.format_reward and self.verifier.verifier:
            raise ValueError(
                "--format-reward goes by the form in which the verifier found the answer, and --verifier names no "
                "form; leave out one of them"
            )
        check_fields(self.trainer, REFUSED_RL_FIELDS)
        return self
