"""Stage 1: the policy's greedy response to every problem, and samples if asked for, verified (DESIGN §2.1).

Wrong responses are kept in the file too; `annotate` takes the correct ones. The greedy response to a problem is sample
0, sampled ones count from 1; their random numbers are keyed by (seed, problem, sample). Worked solutions may take the
place of responses.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cruxtune.accounting import Meter
from cruxtune.benchmark_rows import test_problems
from cruxtune.benchmarks import BENCHMARKS
from cruxtune.contamination import training_problems
from cruxtune.engines.base import Decoding, Generation, Progress
from cruxtune.engines.sampling import seed_of
from cruxtune.models import Policy, fingerprint, load_policy, load_renderer
from cruxtune.problems import fingerprint as problems_fingerprint
from cruxtune.records import RESPONSE_SCHEMA, Problem, Response
from cruxtune.runner import greedy, open_verifier, run_groups
from cruxtune.settings import identity_of
from cruxtune.stage_settings import RespondSettings
from cruxtune.store import Rows, groups_of
from cruxtune.verifiers.gold import usable

_log = logging.getLogger("cruxtune")


def respond(settings: RespondSettings, *, policy: Policy | None = None) -> dict[str, Any]:
    """Generate and verify responses; return the manifest of the dataset written.

    `policy` takes the place of loading the model that the settings name (which still identifies the rows).

    Raises:
        DataError: problems that cannot be read, a gold answer that the verifier rejects, or no worked solution.
        ModelError: the model cannot be loaded.
        StoreError: the output belongs to other settings, or is being written.
    """
    output = settings.output
    problems, notes = training_problems(
        settings.problems, settings.training, seed=output.seed, limit=output.limit, skip_bad=settings.skip_bad
    )
    _warn_of_tests(problems)
    each = 1 + settings.samples
    with open_verifier(settings.verifier) as verifier:
        problems = usable(problems, verifier, skip_bad=settings.skip_bad)

        def work(policy: Policy, part: range, meter: Meter, progress: Progress) -> Mapping[str, Rows]:
            batch = [problems[index] for index in part]
            prompts = [policy.renderer.render(problem) for problem in batch]
            if settings.worked_solutions:
                answers = [
                    _Answer(place, 0, "solution", Generation(policy.renderer.solution_ids(problem), "stop"))
                    for place, problem in enumerate(batch)
                ]
                progress(len(answers))
            else:
                answers = _generate(settings, policy, batch, prompts, progress)
            texts = [policy.renderer.decode(answer.generation.ids) for answer in answers]
            verdicts = verifier.verify_many(
                [(text, batch[answer.place]) for text, answer in zip(texts, answers, strict=True)]
            )
            meter.count(verdicts)
            reasons = Counter(answer.generation.finish_reason for answer in answers)
            meter.add(
                problems=len(batch),
                responses=len(answers),
                correct=sum(verdict.correct for verdict in verdicts),
                solved=len({answer.place for answer, one in zip(answers, verdicts, strict=True) if one.correct}),
                truncated=reasons["length"],
                looped=reasons["loop"],
            )
            rows = [
                Response(
                    problem=batch[answer.place],
                    prompt_ids=prompts[answer.place],
                    response_ids=answer.generation.ids,
                    text=text,
                    finish_reason=answer.generation.finish_reason,
                    verdict=verdict,
                    sample=answer.sample,
                    origin=answer.origin,
                ).to_row()
                for answer, text, verdict in zip(answers, texts, verdicts, strict=True)
            ]
            return {"data": rows}

        return run_groups(
            stage="respond",
            settings=settings,
            output=output,
            identity=identity_of(settings, model=fingerprint(settings.model), problems=problems_fingerprint(problems)),
            tables={"data": RESPONSE_SCHEMA},
            groups=groups_of(len(problems), max(1, settings.group_size // each)),
            steps=lambda part: len(part) * each,
            unit="responses",
            load=lambda: policy or _load(settings),
            work=work,
            notes=notes,
        )


def _load(settings: RespondSettings) -> Policy:
    """Return the policy; of its files only the tokenizer and the configs where nothing is generated."""
    if settings.worked_solutions:
        return load_renderer(settings.model, settings.prompt)
    return load_policy(settings.model, settings.prompt, settings.engine)


@dataclass(frozen=True)
class _Answer:
    """An answer to the problem at a place of its group."""

    place: int
    sample: int
    origin: str
    generation: Generation


def _generate(
    settings: RespondSettings,
    policy: Policy,
    batch: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    progress: Progress,
) -> list[_Answer]:
    """Return the greedy answer to each problem and its samples, problem by problem."""
    decoding = settings.decoding
    first = policy.engine.generate(
        prompts,
        max_new_tokens=decoding.max_new_tokens,
        decoding=greedy(decoding.loop_stop),
        progress=progress,
    )
    answers = [_Answer(place, 0, "greedy", generation) for place, generation in enumerate(first)]
    if settings.samples:
        cases = [(place, sample) for place in range(len(batch)) for sample in range(1, settings.samples + 1)]
        more = policy.engine.generate(
            [prompts[place] for place, _ in cases],
            max_new_tokens=decoding.max_new_tokens,
            decoding=Decoding(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p),
            seeds=[seed_of(settings.output.seed, "respond", batch[place].id, sample) for place, sample in cases],
            progress=progress,
        )
        answers += [
            _Answer(place, sample, "sampled", generation)
            for (place, sample), generation in zip(cases, more, strict=True)
        ]
    return sorted(answers, key=lambda answer: (answer.place, answer.sample))


def _warn_of_tests(problems: Sequence[Problem]) -> None:
    for name, ids in test_problems(problems).items():
        _log.warning(
            "%d problems are of the test split of %s: their responses can be studied, but train will refuse them",
            len(ids),
            BENCHMARKS[name].title,
        )
