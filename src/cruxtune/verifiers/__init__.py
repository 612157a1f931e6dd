r"""Is a text a correct answer? One contract: `verify(text, problem) -> Verdict(correct, extracted, reason)`.

`extract` and `choice` find the answer in the text, `compare` compares it with the gold one, `worker` does both in a
process of its own, `pool` runs such processes with limits of time and memory for each text, and `guard` keeps names out
of the parser that evaluates Python. What `reason` can be is listed here in full:

    boxed, hash, tag, phrase   the explicit form that held the answer: \boxed{x}, #### x, <answer>x</answer>,
                            "the answer is x"
    bare                    the text is nothing but an answer
    line                    choice: a last line that is nothing but an option
    last-number             math and gym, without a form: the last number          (FALLBACK_REASONS)
    last-maths              math, without a form: the last formula                 (FALLBACK_REASONS)
    last-letter             choice, without a form: the last option letter         (FALLBACK_REASONS)
    last-option             choice, without these: the last option that is named   (FALLBACK_REASONS)
    last-line               exact and gym, without a form: the last line or lines  (FALLBACK_REASONS)
    no-answer               there is none
    custom, custom-error    the user's function decided, or raised
    gym-error               the task's scorer raised
    time-out, memory        judging exceeded the limit
    crash                   judging ended the worker process
"""

from __future__ import annotations

import os
import threading

from cruxtune.records import Problem, Verdict
from cruxtune.verifiers.answers import USUAL, Rules
from cruxtune.verifiers.extract import FALLBACK_REASONS
from cruxtune.verifiers.pool import Verifier

__all__ = ["FALLBACK_REASONS", "Rules", "Verifier", "verify"]

_verifiers: dict[tuple[bool, float, str | None, float, Rules], Verifier] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it, and that thread is not here


os.register_at_fork(after_in_child=_after_fork)


def verify(
    response_text: str,
    problem: Problem,
    *,
    strict: bool = False,
    timeout: float = 5.0,
    function: str | None = None,
    memory: float = 1.0,
    rules: Rules = USUAL,
) -> Verdict:
    r"""Return the verdict on one text, by a worker process that is kept until this process ends.

    For many texts use a `Verifier` and its `verify_many`: it spreads them over several workers.

    Args:
        response_text: the response.
        problem: the problem that it answers.
        strict: take explicit forms of an answer only.
        timeout: limit in seconds for judging the text; a text that exceeds it is wrong, with reason "time-out".
        function: `module:function` that judges problems of kind custom.
        memory: limit in GiB above what a worker holds after its imports, with reason "memory"; 0 for none.
        rules: conventions for mathematical answers on which users differ.

    Raises:
        VerifierError: the worker cannot start, or the function cannot be imported.

    >>> from cruxtune.records import Problem
    >>> verify("Half of 84 is 42.\n#### 42", Problem(id="p", question="What is half of 84?", answer="42"))
    Verdict(correct=True, extracted='42', reason='hash')
    """
    with _lock:
        key = (strict, timeout, function, memory, rules)
        if key not in _verifiers:
            _verifiers[key] = Verifier(
                strict=strict, timeout=timeout, workers=1, function=function, memory=memory, rules=rules
            )
    return _verifiers[key].verify(response_text, problem)
