"""Reinforcement learning from verdicts (GRPO by TRL), from any checkpoint or adapter: the reward is our verifier.

Problems are asked with the prompt ids of every other stage, and rollouts are sampled from the policy; see
`cruxtune.grpo` for what is trained, `cruxtune.rewards` for the reward, `cruxtune.drift` for what is measured meanwhile.

Several processes may train one model: each comes through here, and the first alone writes.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cruxtune.accounting import WorkClock, count_verdicts, peak_memory_gib
from cruxtune.benchmark_rows import refuse_test_problems
from cruxtune.contamination import training_problems
from cruxtune.errors import ConfigError, DataError
from cruxtune.modelcard import write_card
from cruxtune.models import context_length, end_of_sequence_ids, end_with, fingerprint, load_model, locate, pick_device
from cruxtune.problems import fingerprint as problems_fingerprint
from cruxtune.processes import agreed, count, index, refuse_spreading
from cruxtune.prompts import Renderer, tokenizer_hash
from cruxtune.records import Problem
from cruxtune.rl_settings import RlSettings
from cruxtune.runner import greedy, open_verifier
from cruxtune.settings import identity_of
from cruxtune.stage_settings import HubSettings
from cruxtune.store import Workspace, write_atomic
from cruxtune.trainer import (
    keep_logs,
    last_checkpoint,
    prepare_base,
    run_trainer,
    save_result,
    train_together,
    training_model_settings,
)
from cruxtune.validation import Held, hold_back

_WORK = "trainer"
_NO_CURVES = ("step", "epoch", "learning_rate", "tokens_computed")
"""What the log has besides, which is known without it."""

_log = logging.getLogger("cruxtune")


def rl(settings: RlSettings) -> dict[str, Any]:
    """Train by reinforcement, save the checkpoint (or the adapter) in --output, and return its manifest.

    Raises:
        DataError: too few problems, test problems of a benchmark, or no reward ever differs within a group.
        ConfigError: a trainer field that is refused, a repository of the Hub that cannot be written, or what several
            processes cannot do together.
        StoreError: the output belongs to other settings, or is being written.
    """
    output = settings.output
    problems, notes = training_problems(settings.problems, settings.training, seed=output.seed, limit=output.limit)
    refuse_test_problems(problems, f"--problems {settings.problems.problems}")
    held = hold_back(settings.measured, problems, seed=output.seed, benchmarks_dir=settings.training.benchmarks_dir)
    identity = identity_of(
        settings,
        model=fingerprint(settings.model),
        problems=problems_fingerprint(problems),
        validation=problems_fingerprint(held.problems),
    )
    # Where the result goes besides, and when to give up, are no part of what it is.
    for name in (*HubSettings.model_fields, "validation_source", "no_variance_steps"):
        identity.pop(name)
    problems = [problem for problem in problems if problem.id not in held.left_out]
    device = pick_device(settings.model.device)
    refuse_spreading(settings)
    return train_together("rl", settings, identity, device, partial(_train, settings, problems, held, notes))


@dataclass(frozen=True)
class _Prepared:
    """What is trained, and on which prompts."""

    model: Any
    tokenizer: Any
    renderer: Renderer
    prompts: dict[str, list[int]]
    eos_ids: list[int]
    context: int | None


def _prepare(settings: RlSettings, problems: Sequence[Problem], held: Held, workspace: Workspace) -> _Prepared:
    """Load the model, render the prompts, and describe them in the workspace."""
    adapter = locate(settings.model).adapter
    if adapter and settings.low_rank.lora:
        raise ConfigError(
            f"--lora would put a new adapter on that of --model {settings.model.model}, and nothing could load both; "
            "leave out --lora to train the adapter that is there"
        )
    frozen = settings.low_rank.lora or adapter is not None
    if settings.model.dtype in ("bfloat16", "float16") and not frozen:
        raise ConfigError(
            f"--dtype {settings.model.dtype} keeps no exact copy of the weights, so that most updates would round to "
            "nothing; leave it at auto (float32 weights, bfloat16 arithmetic), or use --lora"
        )
    asked = training_model_settings(settings.model, settings.low_rank.model_copy(update={"lora": frozen}))
    model, tokenizer = load_model(asked)
    if adapter:
        # PEFT loads an adapter frozen.
        model.set_adapter(model.active_adapter)
    renderer = Renderer(tokenizer, settings.prompt)
    context = context_length(model.config)
    longest = None if context is None else context - settings.decoding.max_new_tokens
    prompts = {problem.id: renderer.render(problem) for problem in problems}
    fitting = {name: ids for name, ids in prompts.items() if longest is None or len(ids) <= longest}
    if dropped := len(prompts) - len(fitting):
        _log.warning(
            "%d of %d problems are left out: their prompts and %d new tokens are longer than the model's context of %s",
            dropped,
            len(prompts),
            settings.decoding.max_new_tokens,
            context,
        )
    if len(fitting) < settings.problems_per_rollouts:
        raise DataError(
            f"a step of rollouts takes {settings.problems_per_rollouts} problems (--batch-size {settings.batch_size} "
            f"times --rollout-steps {settings.rollout_steps} by --generations {settings.generations}), and "
            f"{len(fitting)} are left to train on; use more problems, or smaller batches"
        )
    facts = {
        **renderer.facts(),
        "tokenizer": tokenizer_hash(tokenizer),
        "eos_ids": end_of_sequence_ids(model, tokenizer),
        "method": settings.method,
        "loss_type": settings.loss,
        "problems": len(fitting),
        "problems_dropped": dropped,
        "validation_problems": len(held.problems),
        "longest_prompt": max(map(len, fitting.values())),
    }
    workspace.describe(facts)
    if settings.low_rank.lora:
        prepare_base(model, tokenizer, settings.model, settings.output.output)
    eos_ids = sorted({*facts["eos_ids"], *renderer.end_ids()})
    return _Prepared(model, tokenizer, renderer, fitting, eos_ids, context)


def _train(
    settings: RlSettings, problems: Sequence[Problem], held: Held, notes: dict[str, Any], workspace: Workspace
) -> None:
    """Train, and finish the workspace."""
    from cruxtune.drift import Drift
    from cruxtune.grpo import LOGGED, advice, build_grpo, steps_waited
    from cruxtune.rewards import Reward

    output, work = settings.output.output, settings.output.output / _WORK
    clock = WorkClock(workspace)
    with agreed():
        if index() == 0 and (there := last_checkpoint(work)):
            waited, step = steps_waited(there)
            if waited >= settings.no_variance_steps:
                _refuse_equal(settings, there, waited, step)
        found = _prepare(settings, problems, held, workspace)
    inner = found.model.get_base_model() if hasattr(found.model, "get_base_model") else found.model
    published = inner.generation_config
    with ExitStack() as stack:
        with agreed():
            verifier = stack.enter_context(open_verifier(settings.verifier))
        by_id = {problem.id: problem for problem in problems}
        reward = Reward(by_id, found.renderer, verifier, found.eos_ids, settings.format_reward)
        # The trainer gives its tokenizer a padding token; the one that is saved stays as it was.
        trainer = build_grpo(
            found.model, copy.deepcopy(found.tokenizer), found.prompts, reward, settings, found.eos_ids, work
        )
        trainer.examination = Drift(
            held.problems,
            found.renderer,
            verifier,
            greedy(settings.decoding.loop_stop),
            max_new_tokens=settings.decoding.max_new_tokens,
            eos_ids=found.eos_ids,
            context_length=found.context,
            seed=settings.output.seed,
            kept=work / "start.json",
            samples=settings.validation_samples,
        )
        log = run_trainer(
            trainer,
            f"rl {settings.method}",
            on_save=clock.save,
            measured=settings.measured,
            logged=LOGGED,
            # Between them rollouts are in use, which no checkpoint has.
            apart=settings.steps_per_rollouts,
        )
    with agreed():
        if index() == 0:
            if trainer.stuck:
                _refuse_equal(
                    settings, last_checkpoint(work), trainer.steps_without_variance, trainer.state.global_step
                )
            if trainer.steps_without_variance == trainer.state.global_step:
                _log.warning(
                    "the rewards of every group were all equal in all %d steps, so that the model has learned nothing. "
                    "To learn, %s",
                    trainer.state.global_step,
                    advice(settings),
                )
            # What ends a sequence is as it was, and as it is in other stages.
            inner.generation_config = published
            end_with(inner, workspace.manifest["facts"]["eos_ids"])
            keep_logs(work, output)
            save_result(trainer, found.tokenizer, output)
            _finish(settings, notes, workspace, log, trainer, reward, clock)


def _refuse_equal(settings: RlSettings, checkpoint: Path | None, waited: int, step: int) -> NoReturn:
    """Refuse to go on, or to end, after so many steps that had nothing to teach, the last of which was `step`."""
    from cruxtune.grpo import advice

    kept = f"The weights so far are {checkpoint}" if checkpoint else "Nothing is kept"
    raise DataError(
        f"the rewards of every group were all equal in {waited} steps in a row, up to step {step}: such groups teach "
        f"nothing. To learn, {advice(settings)}. {kept}; --no-variance-steps sets how long to wait"
    )


def _finish(
    settings: RlSettings,
    notes: dict[str, Any],
    workspace: Workspace,
    log: Sequence[dict[str, Any]],
    trainer: Any,
    reward: Any,
    clock: WorkClock,
) -> None:
    """Write what there is to say of the weights, and finish the workspace."""
    output = settings.output.output
    write_atomic(output / "training_log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log).encode())
    names = sorted({name for entry in log for name in entry}.difference(_NO_CURVES))
    results = {
        "base_model": settings.model.model,
        "settings": settings.model_dump(mode="json"),
        "generator": "vllm" if trainer.use_vllm else "transformers",
        "accounting": {
            "seconds": clock.read(),
            "steps": trainer.state.global_step,
            "rollouts": trainer.rollouts,
            "tokens_generated": trainer.tokens_generated,
            "tokens_trained": trainer.tokens_trained,
            "tokens_computed": trainer.tokens_computed,
            "processes": count(),
            **count_verdicts(reward.verdicts),
        },
        "curves": {name: ends for name in names if (ends := _ends(log, name))},
        "peak_memory_gib": round(peak_memory_gib(), 2),
        **notes,
    }
    write_card(output, {**workspace.manifest, **results}, settings.model, settings.problems.problems)
    shutil.rmtree(trainer.args.output_dir)
    workspace.finish(**results)


def _ends(log: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Return the first and the last value of a curve, each with its step; None where it has none."""
    points = [(entry["step"], entry[name]) for entry in log if entry.get(name) is not None]
    if not points:
        return None
    (start, first), (end, last) = points[0], points[-1]
    return {"first": first, "first_step": start, "last": last, "last_step": end}
