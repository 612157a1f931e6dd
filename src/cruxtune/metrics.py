"""Metrics of one problem's responses, with the formula and the source of each; means over problems are the caller's.

Intervals and tests are in `cruxtune.statistics`, and docs/evaluation.md says how to read both.

Answers are given as labels, one per response: 0 is the right answer, 1, 2 … are the wrong ones, and −1 is a response
without an answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, DecimalException
from typing import Any

import numpy as np

RIGHT, NO_ANSWER = 0, -1
"""Labels of the right answer, and of none."""

_COMMANDS = [
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])|[×·∙]"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    # Markdown: what is bold, and the marks of a list, which would read as a sign.
    (re.compile(r"\*\*|__"), ""),
    (re.compile(r"^\s*[-*•]\s+", re.MULTILINE), ""),
    (re.compile(r"\\boxed\s*\{([^{}]*)\}"), r"\1"),
    # Delimiters of formulas, which end what is before them.
    (re.compile(r"\\[()\[\]]"), " ; "),
    (re.compile(r"\\left|\\right|\\[,;!\s]|[$€£\\%]"), ""),
    (re.compile(r"(?<=\d),(?=\d{3})"), ""),
    # What is counted is no part of the sum: "3 apples + 4 apples = 7 apples".
    (re.compile(r"(?<=\d)\s+[^\W\d_]{2,}(?=\s*[-+*/=])"), ""),
    (re.compile(r"[ \t]*([-+*/^=])[ \t]*|(?<=\()[ \t]+|[ \t]+(?=\))"), r"\1"),
]
_EQUATION = re.compile(r"[\w.()*/+^-]+(?:=[\w.()*/+^-]+)+")


def pass_at_k(n: int, c: int, k: int) -> float:
    r"""Return the unbiased estimate of the chance that one of k samples is correct, from n samples of which c are.

    1 - C(n-c, k) / C(n, k), in the product form 1 - prod_{i=n-c+1..n} (1 - k/i), which has no large numbers
    (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, eq. 1 and fig. 3).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=1, k=2), pass_at_k(n=4, c=3, k=2), pass_at_k(n=8, c=0, k=8)
    (0.5, 1.0, 0.0)
    """
    _check(n, c, k)
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of the chance that all of k samples are correct, pass^k, from c correct ones of n.

    C(c, k) / C(n, k), as the product of (c - i) / (n - i) for i < k (Yao et al. 2024, "tau-bench", arXiv 2406.12045,
    section 4).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_hat_k(n=4, c=2, k=1), pass_hat_k(n=4, c=3, k=2), pass_hat_k(n=4, c=1, k=2)
    (0.5, 0.5, 0.0)
    """
    _check(n, c, k)
    steps = np.arange(k)
    return float(np.prod(np.maximum(c - steps, 0) / (n - steps)))


def sizes(n: int) -> list[int]:
    """Return the N for which pass@N is estimated from n samples: 1, 2, 4 … up to n/2.

    Beyond, nearly all subsets are alike: with N = n there is a single one, and what it says is "any of n".

    >>> sizes(16), sizes(12), sizes(1), sizes(0)
    ([1, 2, 4, 8], [1, 2, 4], [1], [])
    """
    return [1] * (n > 0) + [1 << power for power in range(1, n.bit_length()) if 1 << power <= n // 2]


def label_answers(answers: Iterable[tuple[bool, str | None]]) -> list[int]:
    """Return the labels of a problem's responses, given of each whether it is right and the answer extracted from it.

    Right answers are one, however they are written: the verifier found them equal. Wrong ones are the same where they
    are the same number, or the same text but for case and spaces. They are numbered as they come.

    >>> label_answers([(True, "1/2"), (False, "7"), (False, None), (True, "0.5"), (False, "7.0"), (False, "x")])
    [0, 1, -1, 0, 1, 2]
    """
    seen: dict[str, int] = {}
    labels = []
    for right, answer in answers:
        if right:
            labels.append(RIGHT)
        elif answer is None:
            labels.append(NO_ANSWER)
        else:
            labels.append(seen.setdefault(_canonical(answer), len(seen) + 1))
    return labels


def majority(labels: Sequence[int]) -> float:
    """Return whether the most frequent answer is right; a tie of m answers that has the right one counts 1/m.

    That is the expected value of drawing one of them (self-consistency: Wang et al. 2022, arXiv 2203.11171, which
    leaves ties open). Responses without an answer do not vote; where none votes, it is 0.

    >>> majority([0, 0, 1]), majority([0, 1, 2, -1]), majority([-1, -1, 0]), majority([1, 1, 0])
    (1.0, 0.3333333333333333, 1.0, 0.0)
    """
    votes = Counter(label for label in labels if label != NO_ANSWER)
    most = max(votes.values(), default=0)
    winners = [label for label, count in votes.items() if count == most]
    return float(RIGHT in winners) / len(winners) if winners else 0.0


def majority_at_k(labels: Sequence[int], k: int) -> float:
    """Return the mean of `majority` over the disjoint blocks of k responses, in their order; unbiased.

    Raises:
        ValueError: unless 1 <= k <= n.

    >>> majority_at_k([0, 0, 1, 0, 1, 1, 0], k=3)
    0.5
    """
    if not 1 <= k <= len(labels):
        raise ValueError(f"majority@k needs 1 <= k <= n, not n={len(labels)}, k={k}")
    starts = range(0, len(labels) - k + 1, k)
    return sum(majority(labels[start : start + k]) for start in starts) / len(starts)


def answer_entropy(labels: Sequence[int]) -> float:
    """Return the entropy of the answers among the samples, −Σ p log p with p their shares, in nats.

    "No answer" is one of them. (Semantic entropy, Kuhn et al. 2023, arXiv 2302.09664, eq. 5, with equal answers for
    equal meanings; the plug-in estimate, which is too low for few samples.)

    >>> answer_entropy([0, 0, 0]), round(answer_entropy([0, 0, 1, -1]), 4)
    (0.0, 1.0397)
    """
    _, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    return abs(float(-(shares * np.log(shares)).sum()))


def equation_path(text: str) -> tuple[str, ...]:
    r"""Return the equations of a solution in their order, written in one way.

    Solutions of the same path reason alike (Yuan et al. 2023, "Scaling Relationship on Learning Mathematical
    Reasoning", arXiv 2308.01825: equations that differ in form or order make another path). Spaces, signs of
    multiplication and division, thousands separators, currencies and what is counted make no difference.

    >>> equation_path("First 3 apples + 4 apples = 7 apples. Then $2 × 7 = 14$.")
    ('3+4=7', '2*7=14')
    >>> equation_path(r"\frac{1,000}{4} = 250, so x=250") == equation_path("(1000)/(4)=250; x = 250")
    True
    """
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    found = (match.group().strip(".") for match in _EQUATION.finditer(text))
    return tuple(equation for equation in found if any(map(str.isdigit, equation)))


def plain_text(text: str) -> str:
    r"""Return a text with every run of white space as one space: what "distinct by text" tells apart.

    >>> plain_text(" 3 + 4\n= 7 ")
    '3 + 4 = 7'
    """
    return " ".join(text.split())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the distinct n-grams of several texts ÷ all their n-grams, over words and single marks; 0 without any.

    (distinct-n: Li et al. 2016, "A Diversity-Promoting Objective Function", arXiv 1510.03055, section 5.) It falls with
    the number of texts and with their length, so that it compares under equal numbers only.

    >>> distinct_n(["a b a", "a b"], 1), distinct_n(["a b a", "a b"], 2), distinct_n(["a"], 2)
    (0.4, 0.6666666666666666, 0.0)
    """
    ids: dict[str, int] = {}
    parts = [
        np.array([ids.setdefault(word, len(ids)) for word in re.findall(r"\w+|[^\w\s]", text)], dtype=np.int64)
        for text in texts
    ]
    windows = [np.lib.stride_tricks.sliding_window_view(part, n) for part in parts if len(part) >= n]
    if not windows:
        return 0.0
    grams = np.concatenate(windows)
    return len(np.unique(grams, axis=0)) / len(grams)


def calibration_error(
    confidences: Sequence[float] | np.ndarray[Any, Any], right: Sequence[float], *, bins: int = 10
) -> float:
    """Return the expected calibration error: Σ_b (n_b / n) · |accuracy of b − mean confidence of b|.

    The b are bins of equal width in [0, 1]; the right end belongs to the bin (Guo et al. 2017, "On Calibration of
    Modern Neural Networks", arXiv 1706.04599, eq. 3).

    Raises:
        ValueError: there are no values, or not as many of one as of the other.

    >>> round(calibration_error([0.95, 0.95, 0.2, 0.4], [1, 0, 0, 1]), 4)
    0.425
    """
    if not len(confidences) or len(confidences) != len(right):
        raise ValueError(f"calibration needs pairs, but there are {len(confidences)} and {len(right)} values")
    sure, hits = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=hits - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def _check(n: int, c: int, k: int) -> None:
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")


def _canonical(answer: str) -> str:
    plain = "".join(answer.split()).casefold()
    try:
        number = Decimal(re.sub(r"(?<=\d),(?=\d{3})", "", plain))
        # The default context rounds to 28 digits, and ends at exponents that an answer can write down.
        context = Context(prec=len(plain), Emax=MAX_EMAX, Emin=MIN_EMIN)
        return str(number.normalize(context)) if number.is_finite() else plain
    except DecimalException:
        return plain
