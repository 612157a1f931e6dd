"""Problems that no response could solve: the verifier rejects their own gold answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cruxtune.errors import DataError
from cruxtune.records import Problem
from cruxtune.verifiers.pool import Verifier

_log = logging.getLogger("cruxtune")


def usable(problems: Sequence[Problem], verifier: Verifier, *, skip_bad: bool) -> list[Problem]:
    """Return the problems whose gold answer the verifier accepts when a response states it.

    Two kinds of problem are not checked: custom ones, since only their function knows what a response looks like, and
    reasoning-gym's puzzles that have no gold answer, since their scorer judges by the rules.

    Raises:
        DataError: a gold answer is rejected and `skip_bad` is off, or all are.
    """
    checked = [problem for problem in problems if problem.kind != "custom" and problem.answer]
    verdicts = verifier.verify_many([(f"#### {problem.answer}", problem) for problem in checked])
    bad = {
        problem.id: verdict.reason for problem, verdict in zip(checked, verdicts, strict=True) if not verdict.correct
    }
    if not bad:
        return list(problems)
    first = next(problem for problem in checked if problem.id in bad)
    what = (
        f"the verifier rejects the gold answer of {len(bad)} of {len(problems)} problems, first {first.id}: "
        f"{first.answer!r} of kind {first.kind} ({bad[first.id]})"
    )
    if not skip_bad:
        raise DataError(
            f"{what}; no response to it could count as correct: mend the answer, choose another --kind, "
            "or leave such problems out with --skip-bad"
        )
    if len(bad) == len(problems):
        raise DataError(
            f"{what}; none is left with --skip-bad: choose another --kind, or map another --field answer=COLUMN"
        )
    _log.warning("%s; left out (--skip-bad)", what)
    return [problem for problem in problems if problem.id not in bad]
