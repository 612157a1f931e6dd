"""Stage 1: the policy's greedy response to every problem, verified (DESIGN §2.1).

Wrong responses are kept in the file too; `annotate` takes the correct ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from cruxtune.accounting import Meter
from cruxtune.benchmark_rows import test_problems
from cruxtune.benchmarks import BENCHMARKS
from cruxtune.contamination import training_problems
from cruxtune.engines.base import Progress
from cruxtune.models import Policy, fingerprint, load_policy
from cruxtune.problems import fingerprint as problems_fingerprint
from cruxtune.records import RESPONSE_SCHEMA, Problem, Response
from cruxtune.runner import greedy, open_verifier, run_groups
from cruxtune.settings import identity_of
from cruxtune.stage_settings import RespondSettings
from cruxtune.store import Rows, groups_of
from cruxtune.verifiers.gold import usable

_log = logging.getLogger("cruxtune")


def respond(settings: RespondSettings, *, policy: Policy | None = None) -> dict[str, Any]:
    """Generate and verify greedy responses; return the manifest of the dataset written.

    `policy` takes the place of loading the model that the settings name (which still identifies the rows).

    Raises:
        DataError: problems that cannot be read, or a gold answer that the verifier rejects.
        ModelError: the model cannot be loaded.
        StoreError: the output belongs to other settings, or is being written.
    """
    output, decoding = settings.output, settings.decoding
    problems, notes = training_problems(
        settings.problems, settings.training, seed=output.seed, limit=output.limit, skip_bad=settings.skip_bad
    )
    _warn_of_tests(problems)
    with open_verifier(settings.verifier) as verifier:
        problems = usable(problems, verifier, skip_bad=settings.skip_bad)

        def work(policy: Policy, part: range, meter: Meter, progress: Progress) -> Mapping[str, Rows]:
            batch = [problems[index] for index in part]
            prompts = [policy.renderer.render(problem) for problem in batch]
            generations = policy.engine.generate(
                prompts,
                max_new_tokens=decoding.max_new_tokens,
                decoding=greedy(decoding.loop_stop),
                progress=progress,
            )
            texts = [policy.renderer.decode(generation.ids) for generation in generations]
            verdicts = verifier.verify_many(list(zip(texts, batch, strict=True)))
            meter.count(verdicts)
            meter.add(
                responses=len(batch),
                correct=sum(verdict.correct for verdict in verdicts),
                truncated=sum(generation.finish_reason == "length" for generation in generations),
                looped=sum(generation.finish_reason == "loop" for generation in generations),
            )
            rows = [
                Response(problem, prompt, generation.ids, text, generation.finish_reason, verdict).to_row()
                for problem, prompt, generation, text, verdict in zip(
                    batch, prompts, generations, texts, verdicts, strict=True
                )
            ]
            return {"data": rows}

        return run_groups(
            stage="respond",
            settings=settings,
            output=output,
            identity=identity_of(settings, model=fingerprint(settings.model), problems=problems_fingerprint(problems)),
            tables={"data": RESPONSE_SCHEMA},
            groups=groups_of(len(problems), settings.group_size),
            steps=len,
            unit="responses",
            load=lambda: policy or load_policy(settings.model, settings.prompt, settings.engine),
            work=work,
            notes=notes,
        )


def _warn_of_tests(problems: Sequence[Problem]) -> None:
    for name, ids in test_problems(problems).items():
        _log.warning(
            "%d problems are of the test split of %s: their responses can be studied, but train will refuse them",
            len(ids),
            BENCHMARKS[name].title,
        )
