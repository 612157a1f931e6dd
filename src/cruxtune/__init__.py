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
    from cruxtune.records import Annotation, Evaluation, JointSet, Problem, Response, Rollout, Selection, Verdict
    from cruxtune.rl_settings import RlSettings
    from cruxtune.settings import build
    from cruxtune.stage_settings import (
        AnnotateSettings,
        CompareSettings,
        EstimateSettings,
        EvaluateSettings,
        GradeSettings,
        RespondSettings,
        SelectSettings,
        TrainSettings,
    )
    from cruxtune.stages.annotate import annotate
    from cruxtune.stages.compare import compare
    from cruxtune.stages.estimate import estimate
    from cruxtune.stages.evaluate import evaluate
    from cruxtune.stages.export import export
    from cruxtune.stages.grade import grade
    from cruxtune.stages.inspect import inspect
    from cruxtune.stages.respond import respond
    from cruxtune.stages.rl import rl
    from cruxtune.stages.select import select
    from cruxtune.stages.stats import stats
    from cruxtune.stages.train import train
    from cruxtune.stats_settings import StatsSettings
    from cruxtune.suite import evaluate_benchmarks
    from cruxtune.verifiers import Verifier, verify

_HOMES = {
    "cruxtune.errors": ("CruxtuneError",),
    "cruxtune.exporters.settings": ("ExportSettings", "InspectSettings"),
    "cruxtune.pipeline": ("run",),
    "cruxtune.problems": ("ProblemSource", "load_problems", "split_problems"),
    "cruxtune.recipe": ("Recipe", "read_recipe"),
    "cruxtune.records": (
        "Annotation",
        "Evaluation",
        "JointSet",
        "Problem",
        "Response",
        "Rollout",
        "Selection",
        "Verdict",
    ),
    "cruxtune.rl_settings": ("RlSettings",),
    "cruxtune.settings": ("build",),
    "cruxtune.stage_settings": (
        "AnnotateSettings",
        "CompareSettings",
        "EstimateSettings",
        "EvaluateSettings",
        "GradeSettings",
        "RespondSettings",
        "SelectSettings",
        "TrainSettings",
    ),
    "cruxtune.stages.annotate": ("annotate",),
    "cruxtune.stages.compare": ("compare",),
    "cruxtune.stages.estimate": ("estimate",),
    "cruxtune.stages.evaluate": ("evaluate",),
    "cruxtune.stages.export": ("export",),
    "cruxtune.stages.grade": ("grade",),
    "cruxtune.stages.inspect": ("inspect",),
    "cruxtune.stages.respond": ("respond",),
    "cruxtune.stages.rl": ("rl",),
    "cruxtune.stages.select": ("select",),
    "cruxtune.stages.stats": ("stats",),
    "cruxtune.stages.train": ("train",),
    "cruxtune.stats_settings": ("StatsSettings",),
    "cruxtune.suite": ("evaluate_benchmarks",),
    "cruxtune.verifiers": ("Verifier", "verify"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AnnotateSettings",
    "Annotation",
    "CompareSettings",
    "CruxtuneError",
    "EstimateSettings",
    "EvaluateSettings",
    "Evaluation",
    "ExportSettings",
    "GradeSettings",
    "InspectSettings",
    "JointSet",
    "Problem",
    "ProblemSource",
    "Recipe",
    "RespondSettings",
    "Response",
    "RlSettings",
    "Rollout",
    "SelectSettings",
    "Selection",
    "StatsSettings",
    "TrainSettings",
    "Verdict",
    "Verifier",
    "annotate",
    "build",
    "compare",
    "estimate",
    "evaluate",
    "evaluate_benchmarks",
    "export",
    "grade",
    "inspect",
    "load_problems",
    "read_recipe",
    "respond",
    "rl",
    "run",
    "select",
    "split_problems",
    "stats",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
