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
    annotations: Path | None = Field(None, description="Output of `cruxtune annotate`: its critical tokens.")
    selection: Path | None = Field(None, description="Output of `cruxtune select`: its weights; not for dpo.")
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
        if (self.annotations is None) == (self.selection is None):
            raise ValueError("the tokens are those of --annotations or of --selection; give one of them")
        if self.to == "dpo" and self.annotations is None:
            raise ValueError("pairs are made of rollouts, so --to dpo needs --annotations")
        if self.assistant_masks and self.to != "trl":
            raise ValueError(f"assistant_masks is a column of TRL's; leave it out with --to {self.to}")
        return self


class InspectSettings(Settings):
    """Rows as text, with what is trained in them marked."""

    annotations: Path | None = Field(None, description="Output of `cruxtune annotate`: rows as `train` makes them.")
    selection: Path | None = Field(None, description="Output of `cruxtune select`: rows as `train` makes them.")
    exported: Path | None = Field(None, description="Output of `cruxtune export`: rows as they are in its files.")
    unknown: Literal["leave-out", "train"] = Field(
        "leave-out", description="What to do with tokens that annotation did not ask about."
    )
    limit: int = Field(3, gt=0, description="Show only the first N rows.")

    @model_validator(mode="after")
    def _check(self) -> InspectSettings:
        if sum(path is not None for path in (self.annotations, self.selection, self.exported)) != 1:
            raise ValueError("rows come from --annotations, --selection or --exported; give one of them")
        return self
