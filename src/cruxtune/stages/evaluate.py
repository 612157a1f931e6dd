"""Stage 5: greedy and sampled responses to held-out problems, verified.

Each problem gets one greedy response (temperature 0, sample 0), and the first `sampled_problems` (by default all) get
`samples` sampled ones. A sample's random numbers are keyed by (seed, problem, sample, position, token id), so that
neither order nor batch decides them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cruxtune.accounting import Meter
from cruxtune.engines.base import Decoding, Generation, Progress
from cruxtune.engines.sampling import seed_of
from cruxtune.errors import ConfigError
from cruxtune.models import Policy, fingerprint, load_policy
from cruxtune.problems import fingerprint as problems_fingerprint
from cruxtune.problems import load_problems
from cruxtune.records import EVALUATION_SCHEMA, Evaluation
from cruxtune.runner import greedy, open_verifier, run_groups
from cruxtune.settings import identity_of
from cruxtune.stage_settings import EvaluateSettings
from cruxtune.store import Rows, groups_of


def evaluate(settings: EvaluateSettings, *, policy: Policy | None = None) -> dict[str, Any]:
    """Answer every problem greedily and by samples, and verify; return the manifest of the dataset written.

    A gold answer that the verifier rejects is kept and counts against the model: scores stay comparable.

    Benchmarks are `cruxtune.suite`'s business, which calls this for each of them.

    Raises:
        ConfigError: the settings name benchmarks instead of problems.
        DataError: problems that cannot be read.
        ModelError: the model cannot be loaded.
        StoreError: the output belongs to other settings, or is being written.
    """
    output, decoding = settings.output, settings.decoding
    if settings.problems is None:
        raise ConfigError(
            f"--benchmarks {settings.benchmarks}: call evaluate_benchmarks, which evaluates on each of them"
        )
    problems = load_problems(
        settings.problems,
        seed=output.seed,
        limit=output.limit,
        benchmarks_dir=settings.files.benchmarks_dir,
    )
    asked = min(len(problems), settings.sampled_problems or len(problems)) if settings.samples else 0
    sampled = Decoding(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    with open_verifier(settings.verifier) as verifier:

        def work(policy: Policy, part: range, meter: Meter, progress: Progress) -> Mapping[str, Rows]:
            batch = [problems[index] for index in part]
            prompts = [policy.renderer.render(problem) for problem in batch]
            first = policy.engine.generate(
                prompts,
                max_new_tokens=decoding.max_new_tokens,
                decoding=greedy(decoding.loop_stop),
                statistics=True,
                progress=progress,
            )
            cases = [
                (place, sample)
                for place, index in enumerate(part)
                if index < asked
                for sample in range(settings.samples)
            ]
            more = policy.engine.generate(
                [prompts[place] for place, _ in cases],
                max_new_tokens=decoding.max_new_tokens,
                decoding=sampled,
                seeds=[seed_of(output.seed, batch[place].id, sample) for place, sample in cases],
                statistics=True,
                progress=progress,
            )
            answers = [(place, 0, 0.0, generation) for place, generation in enumerate(first)] + [
                (place, sample, settings.temperature, generation)
                for (place, sample), generation in zip(cases, more, strict=True)
            ]
            answers.sort(key=lambda answer: (answer[0], answer[2] > 0, answer[1]))
            texts = [policy.renderer.decode(generation.ids) for *_, generation in answers]
            verdicts = verifier.verify_many(
                [(text, batch[place]) for text, (place, *_) in zip(texts, answers, strict=True)]
            )
            meter.count(verdicts)
            right = [verdict.correct for verdict in verdicts]
            greedy_right = sum(ok for ok, answer in zip(right, answers, strict=True) if answer[2] == 0)
            meter.add(
                problems=len(batch),
                responses=len(answers),
                samples=len(cases),
                correct_greedy=greedy_right,
                correct_samples=sum(right) - greedy_right,
                truncated=sum(generation.finish_reason == "length" for *_, generation in answers),
            )
            return {
                "data": [
                    Evaluation(
                        id=batch[place].id,
                        sample=sample,
                        temperature=temperature,
                        response_ids=generation.ids,
                        text=text,
                        finish_reason=generation.finish_reason,
                        verdict=verdict,
                        logprob=sum(generation.logprobs or []),
                        entropy=_mean(generation),
                        length=len(generation.ids),
                    ).to_row()
                    for (place, sample, temperature, generation), text, verdict in zip(
                        answers, texts, verdicts, strict=True
                    )
                ]
            }

        return run_groups(
            stage="evaluate",
            settings=settings,
            output=output,
            identity=identity_of(settings, model=fingerprint(settings.model), problems=problems_fingerprint(problems)),
            tables={"data": EVALUATION_SCHEMA},
            groups=_groups(len(problems), asked, settings),
            steps=lambda part: len(part) + settings.samples * len(range(part.start, min(part.stop, asked))),
            unit="responses",
            load=lambda: policy or load_policy(settings.model, settings.prompt, settings.engine),
            work=work,
        )


def _groups(total: int, asked: int, settings: EvaluateSettings) -> list[range]:
    """Return slices of the problems, `asked` of which are sampled: about as many responses in each."""
    rest = groups_of(total - asked, settings.group_size)
    return [
        *groups_of(asked, max(1, settings.group_size // (1 + settings.samples))),
        *(range(asked + group.start, asked + group.stop) for group in rest),
    ]


def _mean(generation: Generation) -> float:
    entropies = generation.entropies or []
    return sum(entropies) / len(entropies) if entropies else 0.0
