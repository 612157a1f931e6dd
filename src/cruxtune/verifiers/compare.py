"""Judging one text in this process: extraction and comparison. This is what the worker processes run.

Model output is hostile: symbolic comparison of it can run for ever or fill the memory. Nothing here guards against that
(Math-Verify's own limits are signals, which do not interrupt arithmetic on huge integers): `cruxtune.verifiers.pool`
sets the limits. That no name in a text is evaluated as Python is the business of `cruxtune.verifiers.guard`.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from cruxtune.errors import VerifierError
from cruxtune.records import Problem, Verdict
from cruxtune.verifiers.answers import USUAL, Rules, answers_equal
from cruxtune.verifiers.choice import extract_choice
from cruxtune.verifiers.extract import (
    TEXT_MACRO,
    clean,
    explicit_math,
    extract_exact,
    extract_gym,
    extract_math,
    lone_number,
    normalised,
    states_only,
)
from cruxtune.verifiers.guard import math_verify
from cruxtune.verifiers.options import options

BeforeAlgebra = Callable[[str, str], None]
"""Hears of a gold answer and an extracted one right before symbolic algebra, which can take for ever, compares them."""

TOLERANCE = Decimal("1e-6")
"""Two decimals are equal within this, relative below 1 and absolute above: Math-Verify rounds to six decimals."""

_LONGEST = 2000
"""Characters up to which an answer is read as a number or a formula; a longer one is compared as a string."""

_DECIMAL = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?(?:e[-+]?\d{1,3})?)(%?)", re.IGNORECASE)
# A number whose exponent is beyond _DECIMAL's: it equals nothing but itself as written. No format has such answers, and
# symbolic algebra would write all its digits out.
_HUGE = re.compile(r"[-+]?[\d.,]+e[-+]?\d{4,}%?", re.IGNORECASE)
_SCIENTIFIC = re.compile(r"^(-?\d+(?:\.\d+)?)e([-+]?\d{1,3})$", re.IGNORECASE)
_SPACING = re.compile(r"\s|\\[,;:! ]|\\(?:left|right)(?![a-z])|\{,\}(?=\d{3})|~")


def judge(
    text: str,
    problem: Problem,
    strict: bool = False,
    function: str | None = None,
    rules: Rules = USUAL,
    before_algebra: BeforeAlgebra | None = None,
) -> Verdict:
    r"""Return the verdict on a text, without any limit of time or memory.

    Args:
        text: the response's text.
        problem: the problem that it answers; its `kind` decides how.
        strict: take explicit forms only (`--strict-answers`).
        function: `module:function` of the user's verifier, for problems of kind custom (`--verifier`).
        rules: conventions for mathematical answers on which users differ.
        before_algebra: hears of the answers that are about to be compared symbolically; what it raises ends judging.

    Raises:
        VerifierError: the user's function cannot be imported, or a gym problem has no usable entry.
        MemoryError: the memory that the process may take does not suffice.

    >>> judge("2 * 21 = 42\n#### 42", Problem(id="p", question="?", answer="42.0"))
    Verdict(correct=True, extracted='42', reason='hash')
    """
    if problem.kind == "math":
        if states_only(text, problem.answer):
            return Verdict(True, clean(problem.answer), "bare")
        found = explicit_math(text) or extract_math(text, strict)
        if found.answer is None:
            return Verdict(False, *found)
        # Once for each text, and with the whole answers: what a limit cuts off is all that was compared for them.
        before = (
            functools.cache(functools.partial(before_algebra, problem.answer, found.answer)) if before_algebra else None
        )
        right = answers_equal(
            problem.answer,
            found.answer,
            rules,
            problem.metadata,
            functools.partial(math_equal, before_algebra=before),
            functools.partial(decimal_value, before_algebra=before),
        )
        return Verdict(right, lone_number(found.answer) or found.answer, found.form)
    if problem.kind == "choice":
        known = options(problem.answer, problem.choices)
        found = extract_choice(text, known, strict)
        return Verdict(found.answer is not None and normalised(found.answer) == normalised(known.gold), *found)
    if problem.kind == "exact":
        if states_only(text, problem.answer):
            return Verdict(True, clean(problem.answer), "bare")
        found = extract_exact(text, strict)
        return Verdict(found.answer is not None and normalised(found.answer) == normalised(problem.answer), *found)
    if problem.kind == "gym":
        return _judge_gym(text, problem, strict)
    if problem.kind == "custom":
        return _judge_custom(text, problem, function)
    raise VerifierError(
        f"Problem {problem.id!r} has kind {problem.kind!r}, which no verifier knows. "
        "Set `kind` to math, choice, exact, custom or gym."
    )


def preparation(problem: Problem) -> str:
    """Return what `prepare` must have been called for once, in a process, before it judges this problem quickly."""
    if problem.kind == "gym":
        return f"gym {problem.metadata.get('dataset')} {json.dumps(problem.metadata.get('config'), sort_keys=True)}"
    return problem.kind


def prepare(problem: Problem, function: str | None = None) -> None:
    """Import and build, once, what judging this problem needs: seconds that are no fault of the text's."""
    if problem.kind == "math":
        _math_verify_equal("x+1", r"\frac{1}{2}")
    elif problem.kind == "gym":
        _scorer(*_gym_task(problem))
    elif problem.kind == "custom":
        load_function(function)


def math_equal(gold: str, answer: str, before_algebra: Callable[[], None] | None = None) -> bool:
    r"""Whether a value of an answer equals one of the gold's: as strings, as decimals, else by Math-Verify.

    Most answers are plain numbers, and none of these is ever a float, whose infinity 4e400 and 9e999 would share.

    >>> math_equal("2,125", r"\\$2125.00"), math_equal("50", "50%"), math_equal("3", "3.0001")
    (True, True, False)
    """
    gold, answer = clean(gold), clean(answer)
    gold, answer = lone_number(gold) or gold, lone_number(answer) or answer
    plain_gold, plain_answer = _plain(gold), _plain(answer)
    if plain_gold == plain_answer and plain_gold:
        return True
    numbers = _decimal(plain_gold), _decimal(plain_answer)
    if numbers[0] is not None and numbers[1] is not None:
        return _decimals_equal(*numbers[0], *numbers[1])
    if max(len(gold), len(answer)) > _LONGEST or _HUGE.fullmatch(plain_gold) or _HUGE.fullmatch(plain_answer):
        return False
    if before_algebra:
        before_algebra()
    return _math_verify_equal(gold, answer)


def decimal_value(answer: str, before_algebra: Callable[[], None] | None = None) -> Fraction | None:
    r"""Return the value of a constant expression to 30 digits, None for anything else.

    >>> decimal_value(r"\frac{\pi}{2}").limit_denominator(100), decimal_value("x+1")
    (Fraction(11, 7), None)
    """
    if before_algebra:
        before_algebra()
    for parsed in _parsed(answer):
        try:
            return Fraction(str(parsed.evalf(30)))
        # Symbols, complex numbers, matrices, relations, what Math-Verify leaves as text: no decimal.
        except (AttributeError, TypeError, ValueError):
            continue
    return None


def load_function(function: str | None) -> Callable[[str, dict[str, Any]], Any]:
    """Return the user's verifier, imported once per process with the working directory on the path.

    Args:
        function: `module:function`, as given to `--verifier`.

    Raises:
        VerifierError: there is no such module or function, or importing it fails.
    """
    if function is None:
        raise VerifierError("A problem has kind 'custom', but no verifier is given. Pass --verifier module:function.")
    return _load(function)


@lru_cache(maxsize=8)
def _load(function: str) -> Callable[[str, dict[str, Any]], Any]:
    module_name, _, name = function.partition(":")
    if not module_name or not name:
        raise VerifierError(f"--verifier {function!r} is not of the form module:function, such as checks:is_right.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        loaded = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing runs the user's code, which can raise anything
        raise VerifierError(
            f"--verifier {function}: cannot import {name!r} from module {module_name!r} "
            f"({type(error).__name__}: {error}). The module must be installed or lie in the working directory."
        ) from error
    if not callable(loaded):
        raise VerifierError(f"--verifier {function}: {name!r} of module {module_name!r} is not a function.")
    return loaded


def _judge_custom(text: str, problem: Problem, function: str | None) -> Verdict:
    check = load_function(function)
    try:
        result = check(text, {**vars(problem), "metadata": dict(problem.metadata)})
        correct, extracted = result if isinstance(result, tuple) else (result, None)
        if correct not in (True, False):
            raise TypeError(f"{function} returned {result!r}; it must return a bool, or a bool and a string")
        return Verdict(bool(correct), None if extracted is None else str(extracted), "custom")
    except MemoryError:
        raise
    except Exception:  # the user's function can raise anything; the parent shows the traceback once
        traceback.print_exc()
        return Verdict(False, None, "custom-error")


def _judge_gym(text: str, problem: Problem, strict: bool) -> Verdict:
    score = _scorer(*_gym_task(problem))
    found = extract_gym(text, problem.answer, strict)
    if found.answer is None:
        return Verdict(False, *found)
    entry = problem.metadata["entry"]
    # An entry that was stored as JSON has lists where it had tuples, and some scorers compare with tuples.
    errors = 0
    for variant in (entry, {**entry, "metadata": _with_tuples(entry.get("metadata"))}):
        try:
            if score(found.answer, variant) >= 1 - 1e-9:
                return Verdict(True, *found)
        except MemoryError:
            raise
        except Exception:  # scorers parse the answer, each in its own way, and some raise on malformed ones
            errors += 1
    return Verdict(False, found.answer, "gym-error" if errors == 2 else found.form)


def _gym_task(problem: Problem) -> tuple[str, str]:
    metadata = problem.metadata
    if not isinstance(metadata.get("dataset"), str) or not isinstance(metadata.get("entry"), dict):
        raise VerifierError(
            f"Problem {problem.id!r} has kind 'gym', but its metadata lacks `dataset` (a reasoning-gym task's name) or "
            "`entry` (the task's question, answer and metadata). Make it with the reasoning-gym source of `problems`."
        )
    return metadata["dataset"], json.dumps(metadata.get("config") or {}, sort_keys=True)


@lru_cache(maxsize=64)
def _scorer(dataset: str, config: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym  # heavy: only workers that judge gym problems load it

    try:
        return reasoning_gym.create_dataset(dataset, **json.loads(config)).score_answer
    except Exception as error:  # each task validates its settings with its own kinds of error
        raise VerifierError(
            f"reasoning-gym cannot make the task {dataset!r} with the settings {config} "
            f"({type(error).__name__}: {error}), which scoring needs. Check `dataset` and `config` in the metadata."
        ) from error


def _with_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return value


def _plain(answer: str) -> str:
    """Return an answer without what does not change its value: spacing, text macros, currency."""
    answer = _SPACING.sub("", TEXT_MACRO.sub(r"\1", answer.replace("−", "-")))
    answer = answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\%", "%")
    return answer.replace(r"\$", "").strip("$€£").rstrip(".")


def _decimal(plain: str) -> tuple[Decimal, bool] | None:
    """Return a plain number's value and whether it is a percentage; None for anything else, and for huge numbers."""
    match = _DECIMAL.fullmatch(plain) if len(plain) <= _LONGEST else None
    if match is None or not any(character.isdigit() for character in match[1].lower().partition("e")[0]):
        return None
    return Decimal(match[1].replace(",", "")), bool(match[2])


def _decimals_equal(gold: Decimal, gold_percent: bool, answer: Decimal, answer_percent: bool) -> bool:
    if gold_percent != answer_percent:
        # "50%" answers both "50" (of a question in per cent) and "0.5", as in Math-Verify.
        return any(_decimals_equal(gold, False, answer * factor, False) for factor in _percent_factors(answer_percent))
    if gold == answer or (gold == gold.to_integral_value() and answer == answer.to_integral_value()):
        return gold == answer
    return abs(gold - answer) <= TOLERANCE * min(Decimal(1), max(abs(gold), abs(answer)))


def _percent_factors(answer_percent: bool) -> tuple[Decimal, Decimal]:
    return Decimal(1), Decimal("0.01") if answer_percent else Decimal(100)


@lru_cache(maxsize=1 << 14)
def _math_verify_equal(gold: str, answer: str) -> bool:
    # Math-Verify takes "(5, oo)" for "x > 5", and would not the other way round without being told.
    return bool(
        math_verify().verify(_parsed(gold), _parsed(answer), timeout_seconds=None, allow_set_relation_comp=True)
    )


@lru_cache(maxsize=4096)
def _parsed(answer: str) -> list[Any]:
    # Without its time-outs (see the module's docstring) Math-Verify warns once; the limit is set elsewhere.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    latex = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", answer)
    # LaTeX only: Math-Verify's search for plain numbers would take the 1 of "1:10 P.M." for the answer.
    config = [math_verify().LatexExtractionConfig()]
    latex = latex if "$" in latex else f"${latex}$"
    return list(math_verify().parse(latex, extraction_config=config, parsing_timeout=None))
