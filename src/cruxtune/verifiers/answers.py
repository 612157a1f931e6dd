r"""Are two answers the same? The forms that answers have: lists, tuples, units, per cent, equations, words, tolerances.

Each form is taken apart until values are left, and whether two values are equal is not decided here: `same` says so.
docs/verification.md has the rules in words, with the reason for each; `Rules` has what users may decide otherwise.
Numbers are compared as fractions, never as floats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from cruxtune.verifiers.extract import clean, lone_number, normalised
from cruxtune.verifiers.notation import tidy
from cruxtune.verifiers.units import Unit, converted, is_sum, split_unit, unit_named


class Rules(NamedTuple):
    """Conventions on which users differ; `VerifierSettings` describes them."""

    list_order: Literal["any", "same"] = "any"
    percent: Literal["either", "value"] = "either"
    units: Literal["checked", "ignored"] = "checked"
    relative_tolerance: float = 0.0


USUAL = Rules()


class Terms(NamedTuple):
    """What every comparison needs: the rules, what the problem says, and how values are compared."""

    rules: Rules
    metadata: Mapping[str, Any]
    same: Callable[[str, str], bool]
    decimal: Callable[[str], Fraction | None]


_LONGEST = 4000
"""Characters up to which an answer is taken apart; longer ones are compared as they are."""
_MOST_ITEMS = 40

_PLAIN = re.compile(r"[-+]?\d{1,200}(?:\.\d{1,200})?")
_THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(
    r"(-?)\s*(?:\\frac\s*\{\s*(-?\d{1,200})\s*\}\s*\{\s*(\d{1,200})\s*\}|(\d{1,200})\s*/\s*(\d{1,200}))"
)
_SCIENTIFIC = re.compile(
    r"([-+]?\d{1,200}(?:\.\d{1,200})?)\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|(-?\d))"
)
_NAME = re.compile(
    r"""(?:\\(?:bar|vec|hat|overline|mathbf|text|mathrm)\s*\{[^{}]*\}|\\[a-zA-Z]+|[a-zA-Z])(?:\s*'+)?
    (?:\s*[_^]\s*(?:\{[^{}]*\}|\w))*(?:\s*'+)?(?:\s*\([^()=]*\))?""",
    re.VERBOSE,
)
_ITEM_NAME = re.compile(r"\(?\s*([a-zA-Z]|\\[a-zA-Z]+)\b")
_CHAIN = re.compile(r"(?<![<>!:\\])=|\\approx(?![a-zA-Z])")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|lt|gt|approx|in|equiv|subset)(?![a-zA-Z])")
_VARIABLE = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])")
_COMMAND = re.compile(r"\\(?:begin|end|operatorname)\s*\{[^{}]*\}(?:\{[^{}]*\})?|\\[a-zA-Z]+")
_SEPARATOR = re.compile(r"\s*[,;]\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+")
_BASE = re.compile(r"\(?([0-9A-Fa-f]+(?:\.\d+)?)\)?_\{?\s*(\d+|\\?[a-z]+)\s*\}?")
_CLOCK = re.compile(r"(\d{1,2}:\d{2}(?::\d{2})?)\s*([ap])?\.?\s*(?:m\.?)?", re.IGNORECASE)
_ORDINAL = re.compile(r"(\d+)\s*(?:st|nd|rd|th)")
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]*(?:\s+.*)?", re.DOTALL)
_WORDS_BEHIND = re.compile(r"(.*[\d})\]])\s+(?:[A-Za-z]{3,}[\s,.]*)+", re.DOTALL)
_FUNCTION_WORDS = re.compile(r"(?:sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|lcm|mod|and|or|if)\b")


def answers_equal(
    gold: str,
    answer: str,
    rules: Rules,
    metadata: Mapping[str, Any],
    same: Callable[[str, str], bool],
    decimal: Callable[[str], Fraction | None],
) -> bool:
    r"""Whether an answer is the gold one, whatever form the two have.

    Args:
        gold: the gold answer, as its source has it.
        answer: what was found in the response.
        rules: conventions that users may change.
        metadata: the problem's `unit`, `tolerance` (absolute) and `relative_tolerance`, where it has them.
        same: whether two values without any such form are equal.
        decimal: the decimal value of one, None where it has none.

    >>> equal = lambda gold, answer: answers_equal(gold, answer, Rules(), {}, str.__eq__, lambda value: None)
    >>> equal("$48$, $384$", "384 and 48"), equal("(1, 2)", "(2, 1)"), equal("x=3", "3"), equal("5 m", "500 cm")
    (True, False, True, True)
    """
    terms = Terms(rules, metadata, same, decimal)
    gold, answer = clean(gold), clean(answer)
    if _PLAIN.fullmatch(gold) and _PLAIN.fullmatch(answer):
        return same(gold, answer) or _near(gold, answer, terms)
    if gold and "".join(gold.split()) == "".join(answer.split()):
        return True
    if max(len(gold), len(answer)) > _LONGEST:
        return same(gold, answer)
    tidy_gold, tidy_answer = tidy(gold), tidy(answer)
    if not tidy_gold or not tidy_answer:
        return False
    if is_text(tidy_gold):
        return _texts_equal(tidy_gold, tidy_answer, rules.list_order == "any")
    return _equal(tidy_gold, tidy_answer, terms)


def is_text(tidy_answer: str) -> bool:
    r"""Return whether an answer is words, not mathematics: it is compared as words then.

    >>> is_text("Mrs. Doyle's class"), is_text("even"), is_text("C"), is_text("xy"), is_text(r"x^2 and \pi")
    (True, True, True, False, False)
    """
    if re.fullmatch(r"\(?[A-H]\)?", tidy_answer):
        return True
    if re.search(r"[\d\\^=<>{}|+*/]|(?<!\w)-", tidy_answer):
        return bool(re.search(r"(?:[A-Za-z]{2,}[ ,.]+){4}", _COMMAND.sub("", tidy_answer)))
    words = [word for word in re.findall(r"[^\W\d_]+", tidy_answer) if not _FUNCTION_WORDS.fullmatch(word)]
    if len(words) == 1:
        word = words[0]
        return len(word) >= 4 or word.casefold() in ("yes", "no", "dne") or (len(word) == 3 and word.istitle())
    return any(len(word) >= 2 for word in words)


def number(value: str) -> Fraction | None:
    r"""Return the exact value of a plain number, fraction or number in scientific notation, else None.

    >>> number("1.60"), number(r"-\frac{3}{4}"), number(r"4.5\times 10^{-2}"), number("2x")
    (Fraction(8, 5), Fraction(-3, 4), Fraction(9, 200), None)
    """
    value = value.strip()
    if _THOUSANDS.fullmatch(value):
        value = value.replace(",", "")
    if _PLAIN.fullmatch(value):
        return Fraction(value)
    if match := _FRACTION.fullmatch(value):
        top, bottom = match[2] or match[4], match[3] or match[5]
        return Fraction(int(top), int(bottom)) * (-1 if match[1] else 1) if int(bottom) else None
    if match := _SCIENTIFIC.fullmatch(value):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3])
    return None


def _texts_equal(gold: str, answer: str, any_order: bool) -> bool:
    """Whether words agree: as they are, as lists, by the letter of an option, or by a leading yes or no."""
    one, other = _words(gold), _words(answer)
    if one == other:
        return True
    if "," in one and any_order:
        return sorted(map(str.strip, one.split(","))) == sorted(map(str.strip, _SEPARATOR.split(other)))
    if len(one) == 1:
        match = _LETTER.fullmatch(answer)
        # "a patient" is no option A.
        return match is not None and match[1].casefold() == one and (len(answer) < 4 or match[1].isupper())
    if one in ("yes", "no"):
        return re.split(r"[\s,.;:]", other, maxsplit=1)[0] == one
    return False


def _words(answer: str) -> str:
    """Return the words of an answer without case, articles, quotes and brackets around the whole."""
    words = normalised(re.sub(r"[$\\{}]", " ", answer))
    return " ".join(re.sub(r"^(?:the|an?)\s+|^\((.*)\)$", r"\1", words).split())


def _equal(gold: str, answer: str, terms: Terms) -> bool:
    golds, answers = _items(gold), _items(answer)
    # "1,234" is a number unless the other one is a list.
    if len(golds) == 1 and (len(answers) > 1 or _inner(answer)):
        golds = _items(gold, thousands=False)
    if len(answers) == 1 and (len(golds) > 1 or _inner(gold)):
        answers = _items(answer, thousands=False)
    if len(golds) == len(answers) == 1:
        if r"\cup" in gold + answer:
            return _unions_equal(gold, answer, terms)
        return _bracketed(gold, answer, terms)
    if r"\cup" in gold + answer and _unions_equal(gold, answer, terms):
        return True
    if len(golds) == 1 and (inner := _inner(golds[0])):
        # One side leaves the brackets out: a tuple keeps its order, a set has none.
        return _lists_equal(inner[1], answers, inner[0] != "(", terms)
    if len(answers) == 1 and (inner := _inner(answers[0])):
        return _lists_equal(golds, inner[1], inner[0] != "(" and terms.rules.list_order == "any", terms)
    return _lists_equal(golds, answers, terms.rules.list_order == "any", terms)


def _unions_equal(gold: str, answer: str, terms: Terms) -> bool:
    """Whether two unions of intervals are equal, part by part or, where both are one formula, as a whole."""
    golds, answers = (
        [part.strip() for item in _items(side) for part in re.split(r"\\cup(?![a-zA-Z])", item)]
        for side in (gold, answer)
    )
    return _lists_equal(golds, answers, True, terms) or terms.same(gold, answer)


def _lists_equal(golds: list[str], answers: list[str], any_order: bool, terms: Terms) -> bool:
    if len(golds) != len(answers) or len(golds) > _MOST_ITEMS:
        return False

    def agree(gold: str, answer: str) -> bool:
        names = [_ITEM_NAME.match(item) if "=" in item else None for item in (gold, answer)]
        if names[0] and names[1] and names[0][1] != names[1][1]:
            return False
        return _bracketed(gold, answer, terms)

    if not any_order:
        return all(map(agree, golds, answers))
    left = list(answers)
    for gold in golds:
        match = next((place for place, answer in enumerate(left) if agree(gold, answer)), None)
        if match is None:
            return False
        del left[match]
    return True


def _bracketed(gold: str, answer: str, terms: Terms) -> bool:
    """Whether two items are equal that may be tuples, intervals or sets."""
    if gold == answer:
        return True
    one, other = _inner(gold), _inner(answer)
    if one and other:
        if one[0] + one[2] != other[0] + other[2]:
            return False
        return _lists_equal(one[1], other[1], one[0] == r"\{", terms)
    if one and (value := _assigned(answer)) and _inner(value):
        return _bracketed(gold, value, terms)
    if other and (value := _assigned(gold)) and _inner(value):
        return _bracketed(value, answer, terms)
    if other and other[0] == r"\{" and len(other[1]) == 1:
        return _bracketed(gold, other[1][0], terms)
    if one and one[0] == r"\{" and len(one[1]) == 1:
        return _bracketed(one[1][0], answer, terms)
    return _values_equal(gold, answer, terms)


def _values_equal(gold: str, answer: str, terms: Terms) -> bool:
    """Whether two answers are equal that are one value each: with a name, a unit, a per cent sign, or none of these."""
    gold_value, answer_value = _assigned(gold), _assigned(answer)
    if gold_value and answer_value:
        return _plain_equal(gold, answer, terms) or (
            _NAME.fullmatch(_CHAIN.split(gold)[0].strip()) is not None
            and _quantities_equal(gold_value, answer_value, terms)
        )
    if gold_value and not _RELATION.search(answer):
        left = _CHAIN.split(gold)[0].strip()
        if _NAME.fullmatch(left) or not _VARIABLE.search(_COMMAND.sub("", left)):
            return _quantities_equal(gold_value, answer, terms)
        return False
    if answer_value and not _RELATION.search(gold):
        return _quantities_equal(gold, answer_value, terms)
    return _quantities_equal(gold, answer, terms)


def _quantities_equal(gold: str, answer: str, terms: Terms) -> bool:
    """Whether two values are equal that may have units, per cent signs, clock times or bases."""
    for special in (_clocks_equal, _bases_equal):
        if (decided := special(gold, answer)) is not None:
            return decided
    gold, answer = (match[1] if (match := _ORDINAL.fullmatch(item)) else item for item in (gold, answer))
    gold_percent, answer_percent = _without_percent(gold), _without_percent(answer)
    if gold_percent or answer_percent:
        gold, answer = gold_percent or gold, answer_percent or answer
        if bool(gold_percent) == bool(answer_percent):
            return _plain_equal(gold, answer, terms)
        hundredth = Fraction(1, 100)
        gold_share = converted(gold, hundredth) if gold_percent else gold
        share = converted(answer, hundredth) if answer_percent else answer
        return _plain_equal(gold_share, share, terms) or (
            terms.rules.percent == "either" and _plain_equal(gold, answer, terms)
        )
    if _plain_equal(gold, answer, terms):
        return terms.rules.units == "ignored" or not _units_differ(gold, answer, terms)
    gold_value, gold_unit = _gold_unit(gold, answer, terms)
    answer_value, unit = split_unit(answer, short=number(gold_value) is not None)
    if unit and gold_unit and terms.rules.units == "checked":
        if unit.dimension != gold_unit.dimension:
            return False
        answer_value = converted(answer_value, unit.size / gold_unit.size)
    gold_value, answer_value = _without_words(gold_value), _without_words(answer_value)
    if (gold_value, answer_value) == (gold, answer):
        return False
    return _plain_equal(gold_value, answer_value, terms)


def _units_differ(gold: str, answer: str, terms: Terms) -> bool:
    """Whether both have a unit that is known, and the units are not the same."""
    gold_value, gold_unit = _gold_unit(gold, answer, terms)
    unit = split_unit(answer, short=number(gold_value) is not None)[1]
    return unit is not None and gold_unit is not None and unit != gold_unit


def _gold_unit(gold: str, answer: str, terms: Terms) -> tuple[str, Unit | None]:
    """Return the value and the unit of a gold answer; the problem may give the unit beside it."""
    value, unit = split_unit(gold, short=number(answer) is not None or split_unit(answer, short=False)[1] is not None)
    return value, unit or (unit_named(str(terms.metadata["unit"])) if terms.metadata.get("unit") else None)


def _plain_equal(gold: str, answer: str, terms: Terms) -> bool:
    if gold == answer:
        return True
    one, other = number(gold), number(answer)
    if one is not None and one == other:
        return True
    return terms.same(gold, answer) or _near(gold, answer, terms)


def _near(gold: str, answer: str, terms: Terms) -> bool:
    """Whether two numbers differ by no more than the problem or the user allows."""
    absolute = _allowed(terms.metadata.get("tolerance"))
    relative = _allowed(terms.rules.relative_tolerance or terms.metadata.get("relative_tolerance"))
    if not absolute and not relative:
        return False
    one, other = number(gold), number(answer)
    one = terms.decimal(gold) if one is None else one
    other = terms.decimal(answer) if other is None else other
    return one is not None and other is not None and abs(one - other) <= max(absolute, relative * abs(one))


def _allowed(tolerance: Any) -> Fraction:
    """Return a tolerance as rows have it, a number or a text such as 1e-1; what is none allows nothing."""
    try:
        value = Decimal(str(tolerance))
    except InvalidOperation:
        return number(str(tolerance)) or Fraction(0)
    return Fraction(value) if value.is_finite() and abs(value.adjusted()) < 400 else Fraction(0)


def _clocks_equal(gold: str, answer: str) -> bool | None:
    one, other = _CLOCK.fullmatch(gold), _CLOCK.fullmatch(answer)
    if not one or not other:
        return None
    halves = {(match[2] or "").lower() for match in (one, other)} - {""}
    if len(halves) < 2 and one[1].lstrip("0") == other[1].lstrip("0"):
        return True
    # Without a half of the day they may be ratios.
    return False if halves else None


def _bases_equal(gold: str, answer: str) -> bool | None:
    """Whether numerals with the base as an index are the same; the base may be left out in one of them."""
    one, other = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if one and other:
        return one.groups() == other.groups()
    for numeral, plain in ((one, answer), (other, gold)):
        if numeral and numeral[1] == plain.replace(" ", ""):
            return True
    return None


def _without_percent(answer: str) -> str | None:
    match = re.fullmatch(r"(.*?\S)\s*(?:\\?%|per\s?cent)", answer, re.DOTALL)
    return match[1] if match else None


def _without_words(answer: str) -> str:
    match = _WORDS_BEHIND.fullmatch(answer)
    return lone_number(answer) or (match[1] if match else answer)


def _assigned(answer: str) -> str | None:
    """Return what an equation or a chain of them says something to be; None for what is no equation."""
    parts = [part.strip() for part in _CHAIN.split(answer)]
    if len(parts) < 2 or not all(parts):
        return None
    # "5 = x" says of x what "x = 5" does.
    return parts[0] if _NAME.fullmatch(parts[-1]) and number(parts[0]) is not None else parts[-1]


def _items(answer: str, *, thousands: bool = True) -> list[str]:
    r"""Return the items of a list without brackets, ± written out; an answer that is no list is its only item."""
    if is_sum(answer):
        return [answer]
    items: list[str] = []
    for item in _split(answer, thousands):
        if r"\pm" in item or r"\mp" in item:
            for plus, minus in (("+", "-"), ("-", "+")):
                signed = re.sub(r"\\pm(?![a-zA-Z])\s*", plus, re.sub(r"\\mp(?![a-zA-Z])\s*", minus, item))
                items.append(re.sub(r"(^|[=(,])\s*\+", r"\1", signed).strip())
        else:
            items.append(item)
    return items


def _split(answer: str, thousands: bool) -> list[str]:
    """Return the parts of an answer between separators that are in no brackets, commas of thousands aside."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(answer):
        if answer.startswith(r"\begin", place):
            depth += 1
        elif answer.startswith(r"\end", place):
            depth -= 1
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(answer[place], 0)
        match = _SEPARATOR.match(answer, place) if depth == 0 else None
        if match and not (thousands and match[0] == "," and _THOUSANDS.match(answer, _number_start(answer, place))):
            parts.append(answer[start:place])
            start = place = match.end()
        else:
            place += 1
    return [part.strip() for part in (*parts, answer[start:]) if part.strip()] or [answer]


def _number_start(answer: str, place: int) -> int:
    # No further than numbers go: a list of thousands of digits must not take quadratic time.
    first = max(0, place - 60)
    while place > first and answer[place - 1] in "0123456789,":
        place -= 1
    return place


def _inner(answer: str) -> tuple[str, list[str], str] | None:
    """Return the opening bracket, items and closing bracket of a tuple, interval or set of two or more; sets of any."""
    for opening, closings in ((r"\{", (r"\}",)), ("(", (")", "]")), ("[", ("]", ")"))):
        closing = next((end for end in closings if answer.endswith(end)), None)
        if not answer.startswith(opening) or closing is None or answer[-len(closing) - 1 : -len(closing)] == "\\":
            continue
        inside = answer[len(opening) : -len(closing)]
        items = _items(inside, thousands=False) if _balanced(inside) else []
        if len(items) > 1 or (items and opening == r"\{"):
            return opening, items, closing
    return None


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0
