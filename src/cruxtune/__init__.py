r"""Critical Token Fine-tuning: find the tokens that decide a model's reasoning, and train on those alone.

One function per stage, named like its command. Importing this package imports neither torch nor transformers.

>>> import cruxtune
>>> cruxtune.verify("Two and two: \boxed{4}", cruxtune.Problem("p", "2 + 2?", "4")).correct
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cruxtune.errors import CruxtuneError
    from cruxtune.exporters.settings import ExportSettings, InspectSettings
    from cruxtune.pipeline import run
    from cruxtune.problems import ProblemSource, load_problems, split_problems
    from cruxtune.recipe import Recipe, read_recipe
    from cruxtune.records import Annotation, Evaluation, Problem, Response, Rollout, Verdict
    from cruxtune.settings import (
        AnnotateSettings,
        CompareSettings,
        EvaluateSettings,
        RespondSettings,
        TrainSettings,
        build,
    )
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.compare import compare
    from cruxtune.stages.evaluate import evaluate
    from cruxtune.stages.export import export
    from cruxtune.stages.inspect import inspect
    from cruxtune.stages.respond import respond
    from cruxtune.stages.train import train
    from cruxtune.verifiers import Verifier, verify

_HOMES = {
    "cruxtune.errors": ("CruxtuneError",),
    "cruxtune.exporters.settings": ("ExportSettings", "InspectSettings"),
    "cruxtune.pipeline": ("run",),
    "cruxtune.problems": ("ProblemSource", "load_problems", "split_problems"),
    "cruxtune.recipe": ("Recipe", "read_recipe"),
    "cruxtune.records": ("Annotation", "Evaluation", "Problem", "Response", "Rollout", "Verdict"),
    "cruxtune.settings": (
        "AnnotateSettings",
        "CompareSettings",
        "EvaluateSettings",
        "RespondSettings",
        "TrainSettings",
        "build",
    ),
    "cruxtune.stages.annotate": ("annotate",),
    "cruxtune.stages.compare": ("compare",),
    "cruxtune.stages.evaluate": ("evaluate",),
    "cruxtune.stages.export": ("export",),
    "cruxtune.stages.inspect": ("inspect",),
    "cruxtune.stages.respond": ("respond",),
    "cruxtune.stages.train": ("train",),
    "cruxtune.verifiers": ("Verifier", "verify"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AnnotateSettings",
    "Annotation",
    "CompareSettings",
    "CruxtuneError",
    "EvaluateSettings",
    "Evaluation",
    "ExportSettings",
    "InspectSettings",
    "Problem",
    "ProblemSource",
    "Recipe",
    "RespondSettings",
    "Response",
    "Rollout",
    "TrainSettings",
    "Verdict",
    "Verifier",
    "annotate",
    "build",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "load_problems",
    "read_recipe",
    "respond",
    "run",
    "split_problems",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
