"""How many branches and drafts go into a pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The shape of passes: at most `branches` branches, `width` tokens, `draft_length` draft tokens a branch.

    A pass takes about `fixed` + tokens · `per_token` + branches · `per_branch` seconds, which decides how many drafts
    are worth their cost.
    """

    branches: int = 128
    width: int = 512
    draft_length: int = 12
    fixed: float = 0.035
    per_token: float = 0.00085
    per_branch: float = 0.0003
