"""What each of several processes does in the tests: the trainings of a file, and what goes wrong in one of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


class Interrupted(BaseException):
    """What ends a training in the middle."""


def main(asked: list[dict[str, Any]]) -> None:
    """Train each of them; `fails` says what goes wrong first."""
    from cruxtune.errors import CruxtuneError
    from cruxtune.processes import index, leave
    from cruxtune.settings import build
    from cruxtune.stage_settings import TrainSettings
    from cruxtune.stages.train import train

    for leaves in asked:
        fails = leaves.pop("fails", None)
        settings = build(TrainSettings, leaves)
        if fails:
            try:
                with_failure(fails, lambda settings=settings: train(settings))
            except (Interrupted, CruxtuneError, OSError) as error:
                note = Path(f"{leaves['output']}.{index()}.txt")
                note.write_text(f"{type(error).__name__}: {error}")
            if fails != "save":
                continue
        train(settings)
    leave()
    threads = sorted(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm"))
    Path(f"threads.{index()}.json").write_text(json.dumps(threads))


def with_failure(fails: str, run: Any) -> None:
    """Run with an interruption after the third step's checkpoint, or with an error in the second process alone.

    After "save" the training goes on, after "stop" it does not.
    """
    import pytest
    from transformers import Trainer

    import cruxtune.stages.train as stage
    from cruxtune.processes import index

    def interrupted(self: Any, *args: Any, save: Any = Trainer._save_checkpoint) -> None:
        save(self, *args)
        if self.state.global_step == 3:
            raise Interrupted

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no room on this disk")

    def killed(self: Any, *args: Any, step: Any = Trainer.training_step) -> Any:
        if self.state.global_step == 1:
            os._exit(7)
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        if fails in ("save", "stop"):
            patch.setattr(Trainer, "_save_checkpoint", interrupted)
        elif fails == "load" and index() == 1:
            patch.setattr(stage, "load_model", broken)
        elif fails == "step" and index() == 1:
            patch.setattr(Trainer, "training_step", killed)
        run()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
