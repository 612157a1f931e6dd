"""A model examined while it trains: accuracy on held-out problems, loss on their rows, and a fixed probe.

Accuracy is that of our own greedy decoding under the verifier, as `cruxtune evaluate` has it. Losses and entropies are
read teacher-forced, row by row, in evaluation mode: the loss is Σ w ℓ ÷ Σ w over the whole set, so that no batch size
has a part in it.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from cruxtune.chosen import Entry
from cruxtune.engines.base import Decoding
from cruxtune.engines.plain import PlainEngine
from cruxtune.masks import TrainingRow
from cruxtune.progress import stderr
from cruxtune.prompts import Renderer
from cruxtune.records import Problem
from cruxtune.verifiers import Verifier

ACCURACY, LOSS = "eval_accuracy", "eval_loss"
_BEST = "best-"


class Examination:
    """What is asked of the model, the same each time.

    `problems` are answered and judged; `rows` give the loss ("nll" or "dft"); `probe` the loss and entropy on critical
    and on other tokens (those whose criticality is unknown are neither). Each part may be empty.
    """

    def __init__(
        self,
        *,
        problems: Sequence[Problem] = (),
        rows: Sequence[TrainingRow] = (),
        probe: Sequence[Entry] = (),
        loss: str = "nll",
        eos_ids: Sequence[int] = (),
        context_length: int | None = None,
        renderer: Renderer | None = None,
        verifier: Verifier | None = None,
        decoding: Decoding | None = None,
        max_new_tokens: int = 0,
    ) -> None:
        self._problems = list(problems)
        self._prompts = [renderer.render(problem) for problem in problems] if renderer else []
        # The first token is predicted from nothing, so it has no loss.
        self._rows = [row for row in rows if any(row.weights[1:])]
        self._probe = list(probe)
        self._dft = loss == "dft"
        self._eos_ids = sorted({*eos_ids, *(renderer.end_ids() if renderer else ())})
        self._context_length = context_length
        self._renderer = renderer
        self._verifier = verifier
        self._decoding = decoding
        self._max_new_tokens = max_new_tokens

    def tallies(self, model: Any, part: slice = slice(None)) -> dict[str, float]:
        """Return sums over a part of the problems, rows and responses; the model is in evaluation mode."""
        # Nothing of the plain engine stays in the model, which goes on training.
        engine = PlainEngine(model, eos_ids=self._eos_ids, context_length=self._context_length)
        sums: dict[str, float] = {}
        if self._problems:
            assert self._renderer
            assert self._verifier
            assert self._decoding
            answers = engine.generate(self._prompts[part], max_new_tokens=self._max_new_tokens, decoding=self._decoding)
            texts = [self._renderer.decode(answer.ids) for answer in answers]
            verdicts = self._verifier.verify_many(list(zip(texts, self._problems[part], strict=True)))
            sums |= {"problems": len(verdicts), "correct": sum(verdict.correct for verdict in verdicts)}
        if self._rows:
            losses = [self._loss(engine, row) for row in self._rows[part]]
            sums |= {"loss": sum(loss for loss, _ in losses), "weight": sum(weight for _, weight in losses)}
        if self._probe:
            sums |= _read_probe(engine, self._probe[part])
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return what the sums over all parts come to, by the names that logs have."""
        found: dict[str, float] = {}
        if self._problems:
            found[ACCURACY] = sums["correct"] / sums["problems"]
        if self._rows:
            found[LOSS] = sums["loss"] / sums["weight"]
        for kind in ("critical", "other"):
            if sums.get(f"{kind}_tokens"):
                for measure in ("loss", "entropy"):
                    found[f"eval_{measure}_{kind}"] = sums[f"{kind}_{measure}"] / sums[f"{kind}_tokens"]
        return found

    def _loss(self, engine: PlainEngine, row: TrainingRow) -> tuple[float, float]:
        """Return (Σ w ℓ, Σ w) of a row."""
        weighted = [place for place, weight in enumerate(row.weights) if weight and place]
        start, end = weighted[0], weighted[-1] + 1
        logprobs = engine.score(row.input_ids[:start], row.input_ids[start:end], alternatives=1).logprobs
        weights = row.weights[start:end]
        losses = [-logprob * (math.exp(logprob) if self._dft else 1.0) for logprob in logprobs]
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)), sum(weights)


def examined(trainer: Any) -> dict[str, float]:
    """Examine a trainer's model as it is, log what was found, and return it; the processes share the work."""
    training, args = trainer.model.training, trainer.args
    trainer.model.eval()
    try:
        with weights_cast_once(trainer):
            sums = trainer.examination.tallies(trainer.model, slice(args.process_index, None, args.world_size))
        if args.world_size > 1:
            values = torch.tensor(list(sums.values()), dtype=torch.float64, device=args.device)
            sums = dict(zip(sums, trainer.accelerator.reduce(values, "sum").tolist(), strict=True))
        metrics: dict[str, float] = trainer.examination.metrics(sums)
        trainer.log(dict(metrics))
    finally:
        trainer.model.train(training)
    trainer.control = trainer.callback_handler.on_evaluate(args, trainer.state, trainer.control, metrics)
    return metrics


def weights_cast_once(trainer: Any) -> AbstractContextManager[Any]:
    """Return a context in which mixed precision casts every weight once, for passes between which none changes.

    By itself it casts them at every pass, which on a CPU takes as long as a pass of decoding; elsewhere that is
    quick, and the copies would take memory.
    """
    inside: AbstractContextManager[Any] = trainer.accelerator.autocast()
    return inside if trainer.args.device.type == "cpu" else nullcontext()


def draw_probe(entries: Sequence[Entry], number: int, seed: int) -> list[Entry]:
    """Return so many of the responses (all where there are fewer), drawn by seed, in their order."""
    places = random.Random(f"probe {seed}").sample(range(len(entries)), min(number, len(entries)))
    return [entries[place] for place in sorted(places)]


def _read_probe(engine: PlainEngine, probe: Sequence[Entry]) -> dict[str, float]:
    sums = {f"{kind}_{what}": 0.0 for kind in ("critical", "other") for what in ("tokens", "loss", "entropy")}
    for entry in probe:
        start = len(entry.row.input_ids) - entry.response_length
        scores = engine.score(entry.row.input_ids[:start], entry.row.input_ids[start:], alternatives=1)
        for critical, logprob, entropy in zip(entry.critical, scores.logprobs, scores.entropies, strict=True):
            if critical is not None:
                kind = "critical" if critical else "other"
                sums[f"{kind}_tokens"] += 1
                sums[f"{kind}_loss"] -= logprob
                sums[f"{kind}_entropy"] += entropy
    return sums


def best_validation(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the entry of the trainer's log with the best accuracy, the first of several; the start is no candidate.

    >>> log = [{"step": step, "eval_accuracy": share} for step, share in ((0, 0.9), (2, 0.5), (4, 0.5))]
    >>> best_validation(log)["step"]
    2
    """
    scored = [entry for entry in history if ACCURACY in entry and entry["step"]]
    return max(scored, key=lambda entry: (entry[ACCURACY], -entry["step"]), default=None)


def without_gain(history: Sequence[Mapping[str, Any]]) -> int:
    """Return how many validations in a row, up to the last one, were not better than the best before them."""
    best = best_validation(history)
    return sum(ACCURACY in entry and entry["step"] > best["step"] for entry in history) if best else 0


def best_weights(work: Path, history: Sequence[Mapping[str, Any]]) -> Path | None:
    """Return where the weights of the best validation are, None where none are kept."""
    best = best_validation(history)
    path = work / f"{_BEST}{best['step']}" if best else None
    return path if path is not None and path.is_dir() else None


def examiner(
    trainer: Any, *, every: int, patience: int | None = None, save: Callable[[Path], None] | None = None
) -> Any:
    """Return the callback that has a trainer examined at its start, every so many steps, and at its end.

    What is best and when to stop follow from the trainer's log alone, which checkpoints carry: a resumed run decides
    as one that was never interrupted. `save` writes the weights of a new best validation into a directory.
    """
    from transformers import TrainerCallback

    work = Path(trainer.args.output_dir)

    class Examiner(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                trainer.evaluate()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % every == 0 or state.global_step >= state.max_steps:
                control.should_evaluate = True

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
            best = best_validation(state.log_history)
            is_best = best is not None and best["step"] == state.global_step
            if state.is_world_process_zero:
                _announce(state.global_step, metrics, is_best)
                if is_best and save is not None:
                    _save_whole(work / f"{_BEST}{state.global_step}", save)
            if patience and without_gain(state.log_history) >= patience:
                control.should_training_stop = True
                # A run that resumed from here would train on.
                control.should_save = False

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Not before: a run that resumes from an older checkpoint may still need what was best then.
            if state.is_world_process_zero:
                kept = best_weights(work, state.log_history)
                for path in work.glob(f"{_BEST}*"):
                    if path != kept:
                        shutil.rmtree(path)

    return Examiner()


def _save_whole(path: Path, save: Callable[[Path], None]) -> None:
    """Save into a directory that appears when it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    for stray in (temporary, path):
        if stray.exists():
            shutil.rmtree(stray)
    save(temporary)
    temporary.rename(path)


def _announce(step: int, metrics: Mapping[str, float], is_best: bool) -> None:
    parts = []
    if ACCURACY in metrics:
        parts.append(f"validation accuracy {100 * metrics[ACCURACY]:.1f} %")
    if LOSS in metrics:
        parts.append(f"loss {metrics[LOSS]:.4f}")
    if "eval_loss_critical" in metrics:
        parts.append(f"probe loss {metrics['eval_loss_critical']:.4f} on critical tokens")
    if "eval_loss_other" in metrics:
        parts.append(f"{metrics['eval_loss_other']:.4f} on others")
    stderr.print(f"step {step}: {', '.join(parts)}{' (best so far)' if is_best else ''}", style="dim")
