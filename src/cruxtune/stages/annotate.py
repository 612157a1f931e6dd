"""Stage 2: which tokens of the correct responses are critical (DESIGN §2.2–2.4; the paper's method section).

Beside the annotations, every rollout made is kept, so that other selections need no new ones. Tokens replaced together
(`--joint`) and sampled rollouts (`--rollouts-per-alternative`) have tables of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from cruxtune.accounting import Meter
from cruxtune.budget import allowance, choose_positions, expected_tokens, groups_by_work
from cruxtune.counterfactuals import Counterfactuals, Questions, Span, annotated, joint_sets
from cruxtune.criticality import KEPT, Inquiry, Sampling, open_sets
from cruxtune.engines.base import Decoding, Progress
from cruxtune.engines.sampling import seed_of
from cruxtune.joint import choose, sets_of
from cruxtune.models import Policy, fingerprint, load_policy
from cruxtune.records import ANNOTATION_SCHEMA, JOINT_SCHEMA, ROLLOUT_SCHEMA, Rollout
from cruxtune.responses import Annotatable, annotatable
from cruxtune.runner import greedy, open_verifier, run_groups
from cruxtune.settings import identity_of
from cruxtune.stage_settings import AnnotateSettings
from cruxtune.store import Rows
from cruxtune.verifiers import Verifier


def annotate(settings: AnnotateSettings, *, policy: Policy | None = None) -> dict[str, Any]:
    """Find the critical tokens of every correct response; return the manifest of the dataset written.

    Verifier, token limit and (unless another is named) model are those of the responses.

    Raises:
        DataError: no response is correct, or none can be annotated by this model.
        ConfigError: the tokenizer is no longer the one of the responses.
        StoreError: the responses are unfinished, or the output belongs to other settings.
    """
    source = annotatable(settings.responses, settings.model, settings.output.limit, policy=policy)
    model, past = source.model, source.past
    settings = settings.model_copy(update={"model": model})
    lengths = [len(response.response_ids) for response in source.responses]
    tables = {"data": ANNOTATION_SCHEMA, "rollouts": ROLLOUT_SCHEMA}
    if settings.rollouts_per_alternative:
        tables["sampled_rollouts"] = ROLLOUT_SCHEMA
    if settings.joint:
        tables |= {"joint": JOINT_SCHEMA, "joint_rollouts": ROLLOUT_SCHEMA}
    task: list[_Task] = []
    settled = Counter[str]()

    def load() -> Policy:
        loaded = source.check(policy or load_policy(model, past.prompt, settings.engine))
        task.append(_Task(settings, source, loaded))
        return loaded

    with open_verifier(past.verifier) as verifier:

        def work(policy: Policy, part: range, meter: Meter, progress: Progress) -> Mapping[str, Rows]:
            rows = task[0].annotate(part, verifier, meter, progress)
            settled.update(steps=steps(part), made=sum(map(len, rows.values())) - len(rows["data"]))
            return {name: rows[name] for name in tables}

        def steps(part: range) -> int:
            return sum(map(task[0].most, part))

        return run_groups(
            stage="annotate",
            settings=settings,
            output=settings.output,
            identity=identity_of(
                settings,
                model=fingerprint(model),
                responses=source.manifest["fingerprint"],
                max_new_tokens=past.decoding.max_new_tokens,
                loop_stop=past.decoding.loop_stop,
                **past.verifier.model_dump(exclude={"verify_timeout", "verifier"}),
            ),
            tables=tables,
            groups=groups_by_work(lengths, settings.alternatives, most=settings.group_size),
            steps=steps,
            unit="rollouts",
            load=load,
            work=work,
            saved=lambda: settled["steps"] - settled["made"],
            notes={
                "responses_left_out": dict(source.left_out),
                "responses_tokenizer": source.manifest["facts"]["tokenizer"],
            },
        )


class _Task:
    """What a run of the stage knows of its responses once the policy is loaded."""

    def __init__(self, settings: AnnotateSettings, source: Annotatable, policy: Policy) -> None:
        self._settings = settings
        self._policy = policy
        self._responses = source.responses
        self._lengths = [len(response.response_ids) for response in source.responses]
        self._limit = source.past.decoding.max_new_tokens
        self._greedy = greedy(source.past.decoding.loop_stop)
        self._keep = source.keep(policy)

    def most(self, index: int) -> int:
        """Return how many rollouts a response may take."""
        settings, length = self._settings, self._lengths[index]
        most = length * (settings.alternatives + self._keep[index])
        most += length * (settings.alternatives + 1) * (settings.rollouts_per_alternative or 0)
        return most + settings.alternatives * len(self._sets[index])

    def annotate(
        self, part: range, verifier: Verifier, meter: Meter, progress: Progress
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of every table for some responses, and count what they took."""
        settings = self._settings
        group = [self._responses[index] for index in part]
        ranks = settings.alternatives + any(self._keep)
        positions = self._positions(part, ranks, meter.before)
        inquiries = [
            Inquiry(
                self._lengths[index],
                settings.alternatives,
                every=settings.every_alternative,
                positions=some,
                keep=self._keep[index],
            )
            for index, some in zip(part, positions, strict=True)
        ]
        work = self._ask(part, inquiries, self._greedy, verifier, meter, progress)
        samplings: list[Sampling] | None = None
        rows: dict[str, list[dict[str, Any]]] = {"rollouts": _rows(work.rollouts)}
        if settings.rollouts_per_alternative:
            draws = settings.rollouts_per_alternative
            samplings = [
                Sampling(self._lengths[index], settings.alternatives, draws=draws, positions=some)
                for index, some in zip(part, positions, strict=True)
            ]
            sampled = Decoding(temperature=settings.temperature or 1.0)
            more = self._ask(part, samplings, sampled, verifier, meter, progress, name="sampled")
            rows["sampled_rollouts"] = _rows(more.rollouts)
        if settings.joint:
            rows |= self._joint(part, inquiries, verifier, meter, progress)
        found = annotated(group, work.scores, inquiries, samplings)
        known = [mask for annotation in found for mask in annotation.critical if mask is not None]
        wanted = sum(
            len(some) * (settings.alternatives + self._keep[index]) for index, some in zip(part, positions, strict=True)
        )
        meter.add(
            responses=len(group),
            responses_not_own=sum(self._keep[index] for index in part),
            response_tokens=sum(self._lengths[index] for index in part),
            known_tokens=len(known),
            critical_tokens=sum(known),
            undecided_tokens=sum(sum(annotation.undecided) for annotation in found),
            tokens_expected=sum(
                expected_tokens(self._lengths[index], some, ranks) for index, some in zip(part, positions, strict=True)
            ),
            rollouts_wanted=wanted,
            rollouts_made=len(work.rollouts),
            rollouts_kept=sum(rollout.rank == KEPT for rollout in work.rollouts),
            rollouts_skipped=wanted - len(work.rollouts),
            rollouts_looped=sum(rollout.finish_reason == "loop" for rollout in work.rollouts),
            rollouts_truncated=sum(rollout.finish_reason == "length" for rollout in work.rollouts),
        )
        return {"data": [annotation.to_row() for annotation in found], **rows}

    def _positions(self, part: range, ranks: int, before: Mapping[str, float]) -> list[list[int]]:
        # The budget is that of single tokens; joint sets have their own, and sampled rollouts are asked for by number.
        apart = before.get("tokens_emitted_joint", 0) + before.get("tokens_emitted_sampled", 0)
        return choose_positions(
            self._lengths,
            part,
            alternatives=ranks,
            seed=self._settings.output.seed,
            positions=self._settings.positions,
            token_budget=self._settings.token_budget,
            before={**before, "tokens_emitted": before.get("tokens_emitted", 0) - apart},
        )

    def _joint(
        self, part: range, singles: Sequence[Inquiry], verifier: Verifier, meter: Meter, progress: Progress
    ) -> dict[str, list[dict[str, Any]]]:
        """Ask about the sets of some responses that are open, as far as the budget goes."""
        settings, group = self._settings, [self._responses[index] for index in part]
        lengths = [self._lengths[index] for index in part]
        all_sets = [self._sets[index] for index in part]
        candidates = [
            open_sets(list(some), inquiry.critical()) for some, inquiry in zip(all_sets, singles, strict=True)
        ]
        allowed = None
        if settings.joint_budget is not None:
            spent, expected = (meter.before.get(name, 0) for name in ("tokens_emitted_joint", "tokens_expected_joint"))
            allowed = allowance(settings.joint_budget, self._lengths, part, spent=spent, expected=expected)
        asked = choose(
            candidates,
            lengths,
            alternatives=settings.alternatives,
            allowed=allowed,
            seed=seed_of(settings.output.seed, "joint", part.start),
        )
        kinds = [{span: some[span] for span in chosen} for some, chosen in zip(all_sets, asked, strict=True)]
        inquiries = [Inquiry(len(some), settings.alternatives, every=settings.every_alternative) for some in asked]
        progress(settings.alternatives * (sum(map(len, all_sets)) - sum(map(len, asked))))
        work = self._ask(part, inquiries, self._greedy, verifier, meter, progress, name="joint", sets=asked)
        found = joint_sets(group, kinds, inquiries, work.rollouts)
        meter.add(
            joint_sets=sum(map(len, all_sets)),
            joint_sets_open=sum(map(len, candidates)),
            joint_sets_asked=len(found),
            joint_sets_critical=sum(one.critical for one in found),
            tokens_expected_joint=sum(
                expected_tokens(length, [start for start, _ in some], settings.alternatives)
                for length, some in zip(lengths, asked, strict=True)
            ),
        )
        return {"joint": [one.to_row() for one in found], "joint_rollouts": _rows(work.rollouts)}

    def _ask(
        self,
        part: range,
        inquiries: Sequence[Questions],
        decoding: Decoding,
        verifier: Verifier,
        meter: Meter,
        progress: Progress,
        *,
        name: str | None = None,
        sets: Sequence[Sequence[Span]] | None = None,
    ) -> Counterfactuals:
        """Ask some inquiries, and count their rollouts and tokens apart if they have a name."""
        work = Counterfactuals(
            [self._responses[index] for index in part],
            inquiries,
            alternatives=self._settings.alternatives,
            sets=sets,
            seed=self._settings.output.seed,
        )
        emitted = self._policy.engine.usage.tokens_emitted
        work.run(self._policy, verifier, decoding, self._limit, progress=progress)
        meter.count(rollout.verdict for rollout in work.rollouts)
        if name:
            tokens = self._policy.engine.usage.tokens_emitted - emitted
            meter.add(**{f"rollouts_{name}": len(work.rollouts), f"tokens_emitted_{name}": tokens})
        return work

    @cached_property
    def _sets(self) -> list[dict[Span, str]]:
        """The sets of neighbouring tokens of each response, whether they are open or not."""
        if self._settings.joint is None:
            return [{} for _ in self._responses]
        return sets_of(self._settings.joint, self._responses, self._policy.renderer.tokenizer)


def _rows(rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
    return [rollout.to_row() for rollout in rollouts]
