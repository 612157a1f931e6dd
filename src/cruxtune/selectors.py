"""Which tokens of a response are trained, and how much: one small function per method.

Every function returns one weight per response token, aligned with the tokens and unshifted. Weights are 0 or 1 but for
`criticality`, whose weights are fractions. Budgets are per response: a method that ranks tokens keeps as many as are
critical in that response, or a share of its tokens. Knows annotations and numbers only; models and tokenizers are the
business of `cruxtune.stages.select`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cruxtune.errors import DataError
from cruxtune.records import Annotation


def critical(mask: Sequence[bool | None], *, unknown: float = 0.0) -> list[float]:
    """Return CFT's weights: w_t = c_t (Ruan et al. 2025, arXiv 2510.10974).

    `unknown` is the weight of tokens that annotation did not ask about.

    >>> critical([True, False, None])
    [1.0, 0.0, 0.0]
    """
    return [unknown if known is None else float(known) for known in mask]


def every(mask: Sequence[bool | None]) -> list[float]:
    """Return the weights of ordinary fine-tuning on the same responses: w_t = 1.

    >>> every([True, False, None])
    [1.0, 1.0, 1.0]
    """
    return [1.0] * len(mask)


def non_critical(mask: Sequence[bool | None], *, unknown: float = 0.0) -> list[float]:
    """Return the complement of CFT's weights: w_t = 1 − c_t (the ablation of arXiv 2510.10974).

    >>> non_critical([True, False, None])
    [0.0, 1.0, 0.0]
    """
    return [unknown if known is None else float(not known) for known in mask]


def chance(length: int, count: int, key: str) -> list[float]:
    """Return w_t = 1 for `count` tokens drawn without replacement, the others 0 (the control of arXiv 2510.10974).

    What is drawn depends on `key` alone, not on the other responses.

    >>> sum(chance(5, 2, "seed 0, p1")), chance(5, 2, "seed 0, p1") == chance(5, 2, "seed 0, p1")
    (2.0, True)
    """
    chosen = set(random.Random(key).sample(range(length), count))
    return [float(position in chosen) for position in range(length)]


def numeric(text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
    """Return w_t = 1 where token t carries a digit, or part of one (the ablation of arXiv 2510.10974).

    A digit is a character with `str.isdigit`. `spans` are the tokens' character offsets in the decoded response: the
    tokens of a character that takes several all have it in their span.

    >>> numeric("7 + 35", [(0, 1), (1, 4), (4, 6)])
    [1.0, 0.0, 1.0]
    """
    return [float(any(character.isdigit() for character in text[start:end])) for start, end in spans]


def entropy(entropies: Sequence[float], count: int) -> list[float]:
    """Return w_t = 1 for the `count` tokens with the highest H_t = −Σ_v p(v | y_<t) log p(v | y_<t).

    p is the policy that annotated (Wang et al. 2025, "Beyond the 80/20 Rule", arXiv 2506.01939, which keeps 20 %).

    >>> entropy([0.1, 2.0, 0.7], 2)
    [0.0, 1.0, 1.0]
    """
    return _top(entropies, count)


def attention(received: Sequence[float], count: int) -> list[float]:
    """Return w_t = 1 for the `count` tokens with the highest R_t = Σ_{s>t} a_{s,t} ÷ (T − 1 − t), 0 for the last.

    a_{s,t} is the weight with which response token s attends to t, averaged over heads and layers: the future attention
    influence of Li et al. 2025 ("Attention Illuminates LLM Reasoning", arXiv 2510.13554), with all later tokens and all
    heads.

    >>> attention([0.2, 0.05, 0.0], 1)
    [1.0, 0.0, 0.0]
    """
    return _top(received, count)


def rho1(logprobs: Sequence[float], reference_logprobs: Sequence[float], count: int) -> list[float]:
    """Return w_t = 1 for the `count` tokens with the highest E_t = −log p(y_t | y_<t) + log p_ref(y_t | y_<t).

    This is the excess loss of Lin et al. 2024 ("Rho-1", arXiv 2404.07965) under the start policy. Both are static: the
    paper scores again with the current parameters in every batch, which is not done here.

    >>> rho1([-2.0, -0.1, -1.0], [-0.5, -0.1, -0.9], 1)
    [1.0, 0.0, 0.0]
    """
    return _top([theirs - ours for ours, theirs in zip(logprobs, reference_logprobs, strict=True)], count)


def criticality(annotation: Annotation, *, unknown: float = 0.0) -> list[float]:
    """Return graded weights: w_t = success with y_t kept − mean success of the alternatives (after arXiv 2510.10974).

    Success is the share of correct rollouts where several were sampled (`annotate --rollouts-per-alternative`), and no
    weight is below 0. Of greedy rollouts there is one: a correct greedy response is its own with y_t kept, so that
    success is 1 and w_t the share of alternatives that fail. `unknown` is the weight of tokens that annotation did not
    ask about; undecided ones have 0.

    Raises:
        DataError: some alternatives of a token were asked and others left out.
    """
    if annotation.kept_success is not None and annotation.alternative_success is not None:
        return [
            0.0 if undecided else unknown if kept is None else max(0.0, kept - _mean(others))
            for undecided, kept, others in zip(
                annotation.undecided, annotation.kept_success, annotation.alternative_success, strict=True
            )
        ]
    weights = []
    for position, verdicts in enumerate(annotation.alternative_correct):
        if annotation.undecided[position]:
            weights.append(0.0)
            continue
        asked = [verdict for verdict in verdicts if verdict is not None]
        if asked and len(asked) < len(verdicts):
            raise DataError(
                f"--method criticality needs the success of every alternative, but {len(verdicts) - len(asked)} of "
                f"{len(verdicts)} were left out at position {position} of problem {annotation.response.problem.id}, "
                "since an earlier one settled it; annotate with --every-alternative"
            )
        weights.append(1 - sum(asked) / len(asked) if asked else unknown)
    return weights


def union(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return w_t = max(a_t, b_t): what either method trains.

    >>> union([1.0, 0.0, 0.5], [0.0, 0.0, 1.0])
    [1.0, 0.0, 1.0]
    """
    return [max(pair) for pair in zip(first, second, strict=True)]


def intersection(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return w_t = min(a_t, b_t): what both methods train.

    >>> intersection([1.0, 0.0, 0.5], [1.0, 1.0, 1.0])
    [1.0, 0.0, 0.5]
    """
    return [min(pair) for pair in zip(first, second, strict=True)]


def budget(mask: Sequence[bool | None], share: float | None) -> int:
    """Return how many tokens of a response a ranking keeps: a share of all (one at least), or as many as are critical.

    >>> budget([True, False, True, None], None), budget([True, False, True, None], 0.3)
    (2, 1)
    """
    return sum(known is True for known in mask) if share is None else max(1, round(share * len(mask)))


def decided(mask: Sequence[bool | None], undecided: Sequence[bool], value: bool) -> list[bool | None]:
    """Return the mask with undecided positions as given, so that only those not asked about stay unknown.

    >>> decided([True, None, None], [False, True, False], False)
    [True, False, None]
    """
    return [value if open_ else known for known, open_ in zip(mask, undecided, strict=True)]


def _mean(success: Sequence[float | None]) -> float:
    known = [share for share in success if share is not None]
    return sum(known) / len(known)


def _top(scores: Sequence[float], count: int) -> list[float]:
    """Return 1 for the `count` highest scores, of equal ones the earliest."""
    order = sorted(range(len(scores)), key=lambda position: (-scores[position], position))
    chosen = set(order[:count])
    return [float(position in chosen) for position in range(len(scores))]
