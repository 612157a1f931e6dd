"""Settings of each stage; what they have in common is in `cruxtune.settings`, and so is what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cruxtune.benchmarks import BenchmarkList, BenchmarkSettings
from cruxtune.contamination import TrainingProblemsSettings
from cruxtune.problems import ProblemSource
from cruxtune.settings import (
    DecodingSettings,
    EngineSettings,
    ModelSettings,
    OutputSettings,
    PromptSettings,
    Settings,
    VerifierSettings,
    flag,
)
from cruxtune.trainer_fields import REFUSED_TRAINER_FIELDS, check_fields, check_micro_batch


class RespondSettings(Settings):
    """Stage 1: the policy's greedy responses, verified."""

    problems: ProblemSource
    model: ModelSettings
    prompt: PromptSettings = PromptSettings()
    verifier: VerifierSettings = VerifierSettings()
    decoding: DecodingSettings = DecodingSettings()
    engine: EngineSettings = EngineSettings()
    output: OutputSettings
    group_size: int = Field(256, gt=0, description="Responses decoded as one continuous batch and saved at once.")
    samples: int = Field(0, ge=0, description="Sampled responses to each problem, besides the greedy one.")
    temperature: float = Field(1.0, gt=0, description="Temperature of the samples.")
    top_k: int = Field(0, ge=0, description="Sample among the K most probable tokens only; 0 for all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample within this share of the probability only.")
    worked_solutions: bool = Field(
        False, description="Take the problems' worked solutions as responses, and generate none."
    )
    skip_bad: bool = Field(
        False, description="Leave out problems without a usable gold answer instead of stopping at the first."
    )
    training: TrainingProblemsSettings = TrainingProblemsSettings()

    @model_validator(mode="after")
    def _check(self) -> RespondSettings:
        if self.worked_solutions and self.samples:
            raise ValueError("--worked-solutions generates no response; leave out --samples")
        return self


class CounterfactualSettings(Settings):
    """Which counterfactuals are asked, and with what."""

    alternatives: int = Field(2, gt=0, description="Alternatives per position, k; the paper uses 2.")
    every_alternative: bool = Field(
        False, description="Roll out every alternative, also where an earlier one settled the position."
    )
    positions: float | None = Field(
        None,
        gt=0,
        description="Ask about a seeded sample of positions only: a number per response, or a share below 1. The "
        "others stay unknown.",
    )
    token_budget: int | None = Field(
        None, gt=0, description="Ask about as many positions as rollouts of about this many tokens in all allow."
    )
    model: ModelSettings | None = Field(
        None, description="Annotate with another model than the one that responded, in that model's own tokens."
    )
    joint: Literal["pairs", "spans"] | None = Field(
        None,
        description="Replace neighbouring tokens together, too, none of which is critical alone: pairs, or spans (the "
        "tokens of a number or of a line).",
    )
    joint_budget: int | None = Field(
        None, gt=0, description="Ask about as many of them as rollouts of about this many tokens in all allow."
    )
    rollouts_per_alternative: int | None = Field(
        None,
        gt=0,
        description="Sample so many rollouts of every token, kept and replaced, besides the greedy ones: for graded "
        "criticality.",
    )
    temperature: float | None = Field(None, gt=0, description="Temperature of these samples, by default 1.")
    engine: EngineSettings = EngineSettings()
    group_size: int = Field(
        16, gt=0, description="Most responses whose counterfactuals are one continuous batch and saved at once."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.joint_budget is not None and self.joint is None:
            raise ValueError("--joint-budget bounds the rollouts of --joint, which is not given")
        if self.temperature is not None and self.rollouts_per_alternative is None:
            raise ValueError("--temperature is that of --rollouts-per-alternative, which is not given")
        return self


class AnnotateSettings(CounterfactualSettings):
    """Stage 2: which tokens of the correct responses are critical."""

    responses: Path = Field(description="Output of `cruxtune respond`; its verifier, token limit and model are used.")
    output: OutputSettings


class EstimateSettings(CounterfactualSettings):
    """What stage 2 will cost on this machine, before it is run."""

    responses: Path = Field(description="Output of `cruxtune respond`.")
    trial_seconds: float = Field(45.0, gt=0, description="About how long to try, in seconds.")
    seed: int = Field(0, ge=0, description="Seed of the sample that is tried.")
    limit: int | None = Field(None, gt=0, description="Count only the first N correct responses.")


Selector = Literal[
    "critical", "all", "non-critical", "random", "numeric", "entropy", "attention", "rho1", "criticality"
]
SelectMethod = Literal[Selector, "union", "intersection"]
SELECT_METHODS: tuple[str, ...] = get_args(SelectMethod)
_WITH_SHARE = {"random", "entropy", "attention", "rho1"}


class SelectSettings(Settings):
    """Stage 3: a weight for every token of the annotated responses."""

    method: SelectMethod = Field(
        description="critical: CFT; all: SFT; non-critical: the complement; random: as many as critical; numeric: "
        "tokens with a digit; entropy, attention, rho1: highest first; criticality: graded weights; union, "
        "intersection: of --first and --second."
    )
    annotations: Path = Field(description="Output of `cruxtune annotate`.")
    onto: Path | None = Field(
        None,
        description="Output of `cruxtune respond` that was annotated by a model of another tokenizer: weigh its tokens "
        "instead, by characters.",
    )
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="random, entropy, attention, rho1: share of each response's tokens to keep; by default as many as "
        "are critical in it.",
    )
    first: Selector | None = Field(None, description="union, intersection: the one method.")
    second: Selector | None = Field(None, description="union, intersection: the other method.")
    reference: str | None = Field(
        None, description="rho1: reference model of the same tokenizer (Hub id, directory, adapter or .gguf file)."
    )
    unknown: Literal["leave-out", "train"] = Field(
        "leave-out",
        description="critical, non-critical, criticality: what to do with tokens that annotation did not ask about.",
    )
    output: OutputSettings

    @property
    def methods(self) -> set[str]:
        """The methods whose weights are needed, without union and intersection."""
        return {str(name) for name in (self.method, self.first, self.second) if name in get_args(Selector)}

    @model_validator(mode="after")
    def _check(self) -> SelectSettings:
        joins = self.method in ("union", "intersection")
        if joins and not (self.first and self.second):
            raise ValueError(f"method {self.method} joins two methods; name them with --first and --second")
        if not joins and (self.first or self.second):
            raise ValueError(f"--first and --second belong to union and intersection, not to method {self.method}")
        if "rho1" in self.methods and self.reference is None:
            raise ValueError("method rho1 compares with a reference model; name it with --reference")
        if "rho1" not in self.methods and self.reference is not None:
            raise ValueError(f"--reference belongs to rho1, not to method {self.method}")
        if self.share is not None and not self.methods & _WITH_SHARE:
            raise ValueError(f"--share belongs to {', '.join(sorted(_WITH_SHARE))}, not to method {self.method}")
        return self


class LoraSettings(Settings):
    """Low-rank adapters by PEFT, on all linear layers."""

    lora: bool = Field(False, description="Train a LoRA adapter instead of all parameters.")
    lora_rank: int = Field(16, gt=0, description="Rank of the adapter.")
    lora_alpha: int = Field(32, gt=0, description="Scale of the adapter (alpha / rank multiplies its output).")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")


class ValidationSettings(Settings):
    """What is measured while a model trains, and what follows from it. All of it is off by default."""

    validation: str | None = Field(
        None,
        description="Validate on problems that are kept out of training: a share (0.1) or a number (50) of those that "
        "were responded to, right or wrong; a source, as for --problems; or annotations (or a selection).",
    )
    validation_source: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of a source in --validation, as config=main or split=validation: those of --problems.",
    )
    patience: int | None = Field(
        None, gt=0, description="Stop after so many validations in a row without a better accuracy."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="With --validation: the weights of the best accuracy (the first of several), or the last."
    )
    probe: int | None = Field(
        None,
        gt=0,
        description="Log loss and entropy on critical and on other tokens of so many responses, the same for all "
        "methods.",
    )
    evaluate_every: int | None = Field(
        None, gt=0, description="Steps between validations (and readings of the probe); by default once an epoch."
    )

    @field_validator("validation", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @property
    def drawn(self) -> float | None:
        """How many problems are drawn: a share below 1, or a number; None for a source, or without validation."""
        try:
            return float(self.validation) if self.validation is not None else None
        except ValueError:
            return None

    @model_validator(mode="after")
    def _check(self) -> ValidationSettings:
        drawn = self.drawn
        if drawn is not None and not (0 < drawn < 1 or (drawn >= 1 and drawn.is_integer())):
            raise ValueError(
                f"--validation {self.validation} is neither a share between 0 and 1 nor a number of problems"
            )
        if self.validation_source and (self.validation is None or drawn is not None):
            raise ValueError("--validation-source belongs to a --validation that is a source of problems")
        if self.validation is None and (self.patience or self.keep != "best"):
            raise ValueError("--patience and --keep go by the accuracy of --validation, which is missing")
        if self.evaluate_every and self.validation is None and self.probe is None:
            raise ValueError("--evaluate-every has nothing to measure; add --validation or --probe")
        return self


class HubSettings(Settings):
    """Where the result is published, if at all."""

    push_to_hub: str | None = Field(
        None, description="Push the finished model to this repository of the Hub, NAME or OWNER/NAME; private if new."
    )
    public: bool = Field(False, description="Make the repository public if --push-to-hub has to create it.")


TrainMethod = Literal["cft", "sft", "gold"]
TRAIN_METHODS: tuple[str, ...] = get_args(TrainMethod)


class TrainSettings(Settings):
    """Stage 4: fine-tune on the chosen tokens."""

    method: TrainMethod | None = Field(
        None,
        description="cft: critical tokens only; sft: every token of the same responses; gold: the problems' worked "
        "solutions (a cold start). Not with --selection, which has a method of its own.",
    )
    annotations: Path | None = Field(None, description="Output of `cruxtune annotate` (cft and sft).")
    selection: Path | None = Field(None, description="Output of `cruxtune select`: any other method.")
    problems: ProblemSource | None = None
    model: ModelSettings | None = Field(
        None, description="Model to start from; by default the one that made the annotations (gold needs it)."
    )
    prompt: PromptSettings = PromptSettings()
    verifier: VerifierSettings | None = Field(
        None, description="How --validation judges; by default as the annotated responses were judged."
    )
    decoding: DecodingSettings | None = Field(
        None, description="How --validation decodes; by default as the annotated responses were."
    )
    output: OutputSettings
    loss: Literal["nll", "dft"] = Field(
        "nll", description="nll: negative log-likelihood; dft: the same times the probability of the token, held fixed."
    )
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    unknown: Literal["leave-out", "train"] = Field(
        "leave-out",
        description="cft: what to do with tokens that annotation did not ask about (--positions, --token-budget).",
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the rows; the paper uses 3.")
    batch_size: int = Field(16, gt=0, description="Rows per optimizer step, over all devices.")
    micro_batch_size: int | None = Field(
        None,
        gt=0,
        description="Rows per forward pass of a device; smaller ones are accumulated (by default its whole share).",
    )
    packing: int | None = Field(
        None,
        gt=0,
        description="Pack whole rows into sequences of at most this many tokens, which are then the rows of a batch.",
    )
    padding_free: bool = Field(False, description="Put the rows of a forward pass one behind the other, unpadded.")
    low_rank: LoraSettings = LoraSettings()
    training: TrainingProblemsSettings = TrainingProblemsSettings()
    validation: ValidationSettings = ValidationSettings()
    hub: HubSettings = HubSettings()
    trainer: dict[str, Any] = Field(
        default_factory=dict,
        description="Any other SFTConfig field as name=value, e.g. weight_decay=0.1; some are refused by name.",
    )

    @field_validator("method", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value in SELECT_METHODS:
            raise ValueError("this is a method of `cruxtune select`, whose output goes to --selection")
        if value not in (None, *TRAIN_METHODS):
            raise ValueError(
                f"is none of {', '.join(TRAIN_METHODS)}, nor of the methods of `cruxtune select` "
                f"({', '.join(SELECT_METHODS)}), which recipes may name here and whose output goes to --selection"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.selection is not None and (self.method or self.annotations):
            raise ValueError("--selection says what is trained; leave out --method and --annotations")
        if self.selection is None and self.method is None:
            raise ValueError("name what is trained: --method and --annotations, or --selection")
        if self.method == "gold" and (self.problems is None or self.model is None):
            raise ValueError("method gold trains on worked solutions, so it needs --problems and --model")
        if self.method in ("cft", "sft") and self.annotations is None:
            raise ValueError(f"method {self.method} trains on annotated responses, so it needs --annotations")
        if self.method != "gold" and self.training != TrainingProblemsSettings():
            raise ValueError(
                f"method {self.method} trains on annotated responses; --decontaminate and --benchmarks-dir belong to "
                "the `cruxtune respond` that chose their problems"
            )
        answering = [part for part in (self.verifier, self.decoding) if part]
        if self.validation.validation is None and answering:
            given = ", ".join(flag(name) for part in answering for name in sorted(part.model_fields_set))
            raise ValueError(f"{given}: say how --validation answers and judges, which is missing; leave them out")
        if self.method == "gold" and self.validation.probe:
            raise ValueError("--probe reads annotated responses, which method gold has none of")
        check_micro_batch(self.batch_size, self.micro_batch_size)
        if self.model and self.model.dtype in ("bfloat16", "float16") and not self.low_rank.lora:
            raise ValueError(
                f"dtype {self.model.dtype} keeps no exact copy of the weights, so that most updates would round to "
                "nothing; leave dtype at auto (float32 weights, bfloat16 arithmetic), or train with lora"
            )
        check_fields(self.trainer, REFUSED_TRAINER_FIELDS)
        return self


class EvaluateSettings(Settings):
    """Stage 5: greedy and sampled responses to held-out problems or to benchmarks, verified."""

    problems: ProblemSource | None = None
    benchmarks: BenchmarkList = Field(
        None,
        validate_default=True,
        description="Benchmarks to evaluate on instead of --problems, e.g. gsm8k,math500, or paper for the eleven of "
        "the paper; each gets a directory in --output.",
    )
    files: BenchmarkSettings = BenchmarkSettings()
    model: ModelSettings
    prompt: PromptSettings = PromptSettings()
    verifier: VerifierSettings = VerifierSettings()
    decoding: DecodingSettings = DecodingSettings()
    engine: EngineSettings = EngineSettings()
    output: OutputSettings
    group_size: int = Field(512, gt=0, description="Responses decoded as one continuous batch and saved at once.")
    samples: int = Field(0, ge=0, description="Sampled responses per problem, besides the greedy one.")
    sampled_problems: int | None = Field(
        None, gt=0, description="Sample for the first N problems only; all of them are answered greedily."
    )
    temperature: float = Field(1.0, gt=0, description="Temperature of the samples.")
    top_k: int = Field(0, ge=0, description="Sample among the K most probable tokens only; 0 for all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample within this share of the probability only.")

    @model_validator(mode="after")
    def _has_samples(self) -> Self:
        if self.sampled_problems and not self.samples:
            raise ValueError("--sampled-problems says which problems are sampled; give --samples too")
        return self

    @field_validator("benchmarks")
    @classmethod
    def _one_of_two(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "problems" in info.data and (value is None) == (info.data["problems"] is None):
            raise ValueError("either this or --problems is needed, to say what to evaluate on, and not both")
        return value


class CompareSettings(Settings):
    """Stage 6: any number of evaluations, side by side."""

    evaluations: dict[str, list[Path]] = Field(
        default_factory=dict,
        description="name=DIR for each evaluation, the first of which is the baseline. Several of one name are its "
        "training seeds, or benchmarks; the directory of several benchmarks counts as all of them.",
    )
    cells: list[Path] = Field(
        default_factory=list, description="Cells of a study: files, or directories of them; after the evaluations."
    )
    against: str | None = Field(
        None,
        description="Compare every method with these alone, e.g. start,sft; by default each with each. The fewer, the "
        "more is significant: say it before you look.",
    )
    output: Path = Field(description="Directory for comparison.md, comparison.json and comparison.svg.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    limit: int | None = Field(None, gt=0, description="Use only the first N problems.")

    @field_validator("evaluations", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        named = value if isinstance(value, dict) else {}
        return {name: paths if isinstance(paths, list) else [paths] for name, paths in named.items()} or value

    @model_validator(mode="after")
    def _check(self) -> CompareSettings:
        if not self.evaluations and not self.cells:
            raise ValueError("nothing to compare; name at least one --evaluation NAME=DIR, or --cells")
        return self


class GradeSettings(Settings):
    """Verdicts on the answers of a file."""

    file: Path = Field(description="JSON Lines (also .gz) of gold and prediction: a bare answer or a whole response.")
    output: Path | None = Field(None, description="JSON Lines to write, rows with verdicts; by default beside FILE.")
    kind: Literal["auto", "math", "choice", "exact", "custom"] = Field(
        "auto",
        description="How answers are compared where a row does not say; auto is choice for rows whose gold answer is "
        "one of their choices, else math.",
    )
    fields: dict[str, str] = Field(
        default_factory=dict, description="Column of a field, where it differs: gold=answer."
    )
    verifier: VerifierSettings = VerifierSettings()
    limit: int | None = Field(None, gt=0, description="Grade only the first N rows.")
    skip_bad: bool = Field(False, description="End well although some rows could not be graded.")
    overwrite: bool = Field(False, description="Replace --output.")
