"""Settings of `cruxtune export` and `cruxtune inspect`; what `cruxtune.settings` says of its fields holds here too."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cruxtune.settings import Settings


class ExportSettings(Settings):
    """The chosen tokens in the form that another trainer takes."""

    to: Literal["trl", "axolotl", "llamafactory", "torchtune", "unsloth", "verl", "ms-swift", "tinker", "dpo"] = Field(
        description="The trainer; dpo writes preference pairs at critical positions, for TRL's DPOTrainer."
    )
    annotations: Path = Field(description="Output of `cruxtune annotate`.")
    output: Path = Field(description="Directory to write; an unfinished one is written again.")
    unknown: Literal["leave-out", "train"] = Field(
        "leave-out", description="What to do with tokens that annotation did not ask about."
    )
    assistant_masks: bool = Field(
        False, description="trl: add the column assistant_masks, which TRL 0.20 to 1.6 reads under packing or Liger."
    )
    limit: int | None = Field(None, gt=0, description="Use only the first N annotated responses.")
    overwrite: bool = Field(False, description="Delete what --output holds and start again.")

    @model_validator(mode="after")
    def _check(self) -> ExportSettings:
        if self.assistant_masks and self.to != "trl":
            raise ValueError(f"assistant_masks is a column of TRL's; leave it out with --to {self.to}")
        return self


class InspectSettings(Settings):
    """Rows as text, with what is trained in them marked."""

    annotations: Path | None = Field(None, description="Output of `cruxtune annotate`: rows as `train` makes them.")
    exported: Path | None = Field(None, description="Output of `cruxtune export`: rows as they are in its files.")
    unknown: Literal["leave-out", "train"] = Field(
        "leave-out", description="What to do with tokens that annotation did not ask about."
    )
    limit: int = Field(3, gt=0, description="Show only the first N rows.")

    @model_validator(mode="after")
    def _check(self) -> InspectSettings:
        if (self.annotations is None) == (self.exported is None):
            raise ValueError("rows come from --annotations or from --exported; give one of them")
        return self
