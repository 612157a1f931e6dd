"""Settings of `cruxtune stats`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from cruxtune.settings import Settings


class StatsSettings(Settings):
    """Which tokens are critical: what is counted, and where it is written."""

    annotations: list[Path] = Field(
        min_length=1,
        description="Outputs of `cruxtune annotate`. Of several, those of the same responses are compared.",
    )
    json_file: Path | None = Field(None, description="JSON file to write the numbers to.")
    page: Path | None = Field(
        None, description="Markdown file to write, with an SVG figure for each of the annotations beside it."
    )
    bins: int = Field(5, gt=1, description="Bins of entropy and of rank gap, with about as many tokens in each.")
    top: int = Field(20, gt=0, description="How many of the tokens that are critical most often are listed.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    limit: int | None = Field(None, gt=0, description="Use only the first N responses of each.")

    @field_validator("annotations")
    @classmethod
    def _distinct(cls, value: list[Path]) -> list[Path]:
        if len(set(value)) < len(value):
            raise ValueError("the same directory is given twice; name each of them once")
        return value
