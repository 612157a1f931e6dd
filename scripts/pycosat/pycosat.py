"""What reasoning-gym imports as pycosat where no C compiler could build the real one; only zebra_puzzles use it."""

from typing import NoReturn


def itersolve(*_: object, **__: object) -> NoReturn:
    """Say what is missing.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "this puzzle needs pycosat, which was not built for want of a C compiler; "
        "install one and Python's headers (Debian: apt install gcc python3-dev), then make clean setup"
    )


solve = itersolve
