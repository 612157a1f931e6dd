"""Math-Verify behind a guard: nothing but arithmetic on numbers reaches sympy's expression parser.

That parser (`parse_expr`, and so `sympify` and `Number` of a string) hands its text to Python's `eval`. Math-Verify
calls it for plain expressions, and its LaTeX converter for every number that it reads. So it is replaced, in the
process that compares answers, by one that looks at the text first.
"""

from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any

# One character a step, so that no text takes more than linear time. The e is that of a number such as 4.5e33.
_ARITHMETIC = re.compile(r"(?:[-+*/^%!<>=,.\s()\[\]{}0-9]|(?<=[0-9.])[eE](?=[-+]?[0-9]))*")


def is_arithmetic(text: str) -> bool:
    """Whether a text is digits, operators and brackets only: no name, no attribute, no string.

    >>> is_arithmetic("2*(3 - 4.5e33)^2"), is_arithmetic("().__class__"), is_arithmetic("1e5.real"), is_arithmetic("x")
    (True, False, False, False)
    """
    return _ARITHMETIC.fullmatch(text) is not None


@functools.cache
def math_verify() -> ModuleType:
    """Return Math-Verify, imported once per process, with sympy's expression parser behind the guard."""
    # What sympy imports late parses names of its own, such as those of units: it does so before the guard is up.
    import latex2sympy2_extended.latex2sympy2 as converter
    import math_verify as library
    import sympy.parsing
    import sympy.parsing.sympy_parser as parser
    import sympy.physics.units
    from math_verify import parser as answers

    unguarded = parser.parse_expr

    @functools.wraps(unguarded)
    def parse_expr(s: str, *args: Any, **kwargs: Any) -> Any:
        if not (isinstance(s, str) and is_arithmetic(s)):
            raise ValueError(f"not evaluated, since it is more than numbers: {s!r:.80}")
        return unguarded(s, *args, **kwargs)

    for module in (parser, sympy.parsing, sympy, answers, converter):
        vars(module)["parse_expr"] = parse_expr
    return library
