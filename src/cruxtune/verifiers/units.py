r"""Units of measurement at the end of an answer: found, compared, and converted exactly, as fractions."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """A unit: what it measures, and how many of the basic unit it is."""

    dimension: str
    size: Fraction


def _table() -> dict[str, Unit]:
    known = (
        ("length", "m meter meters metre metres", "1"),
        ("length", "cm centimeter centimeters centimetre centimetres", "1/100"),
        ("length", "mm millimeter millimeters millimetre millimetres", "1/1000"),
        ("length", "km kilometer kilometers kilometre kilometres", "1000"),
        ("length", "nm nanometer nanometers", "1/1000000000"),
        ("length", "in inch inches", "127/5000"),
        ("length", "ft foot feet", "381/1250"),
        ("length", "yd yard yards", "1143/1250"),
        ("length", "mi mile miles", "201168/125"),
        ("mass", "g gram grams", "1"),
        ("mass", "kg kilogram kilograms", "1000"),
        ("mass", "mg milligram milligrams", "1/1000"),
        ("mass", "lb lbs pound pounds", "45359237/100000"),
        ("mass", "oz ounce ounces", "45359237/1600000"),
        ("mass", "ton tons", "907184.74"),
        ("time", "s sec secs second seconds", "1"),
        ("time", "min mins minute minutes", "60"),
        ("time", "h hr hrs hour hours", "3600"),
        ("time", "day days", "86400"),
        ("time", "week weeks", "604800"),
        ("months", "month months", "1"),
        ("months", "yr yrs year years", "12"),
        ("volume", "l L liter liters litre litres", "1"),
        ("volume", "ml mL milliliter milliliters", "1/1000"),
        ("speed", "m/s mps", "1"),
        ("speed", "km/h kmh kph km/hr", "5/18"),
        ("speed", "mph mi/h miles/hour", "1397/3125"),
        ("dollars", "$ dollar dollars usd USD", "1"),
        ("dollars", "cent cents", "1/100"),
        ("euros", "€ euro euros EUR", "1"),
        ("sterling", "£ GBP", "1"),
        ("angle", "degree degrees deg ^circ", "1"),
        ("angle", "arcmin arcminute arcminutes", "1/60"),
        ("angle", "arcsec arcsecond arcseconds", "1/3600"),
        ("radians", "rad radian radians", "1"),
        ("energy", "J joule joules", "1"),
        ("energy", "kJ kilojoule kilojoules", "1000"),
        ("power", "W watt watts", "1"),
        ("power", "kW kilowatt kilowatts", "1000"),
        ("force", "N newton newtons", "1"),
        ("temperature K", "K kelvin kelvins", "1"),
        ("temperature C", "^circC celsius", "1"),
        ("temperature F", "^circF fahrenheit", "1"),
        ("frequency", "Hz hertz", "1"),
        ("volts", "V volt volts", "1"),
        ("amperes", "A ampere amperes amp amps", "1"),
        ("ohms", "ohm ohms", "1"),
    )
    return {name: Unit(dimension, Fraction(size)) for dimension, names, size in known for name in names.split()}


_UNITS = _table()
_LONG = sorted((re.escape(name) for name in _UNITS if len(name) > 1 and name[0] != "^"), key=len, reverse=True)
_SHORT = [re.escape(name) for name in _UNITS if len(name) == 1]
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "": 1}
_TRAILING = re.compile(
    rf"""(?P<value>.*[\d)}}\]]|.*\\pi|.*[\d}}]\s*[a-z])\s*   # what is measured ends as a value does
    (?:(?P<power>square|sq|cubic|cu)\.?\s+)?
    (?P<unit>{"|".join(_LONG)}|(?P<short>{"|".join(_SHORT)})|\^\{{?\\circ\}}?\s*(?P<scale>[CF])?)\.?
    (?:\s*\^\s*\{{?(?P<exponent>[23])\}}?)?""",
    re.VERBOSE | re.DOTALL,
)
_SUM = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join((*_LONG, *_SHORT))})(?![a-zA-Z])(?:\s*,?\s*(?:and\s+)?)")


def split_unit(answer: str, *, short: bool = True) -> tuple[str, Unit | None]:
    r"""Return the value and the unit of a tidy answer; the unit is None where there is none that is known.

    Args:
        answer: in the spelling of `notation.tidy`.
        short: take single letters ("3 m") for units as well; they may be variables.

    >>> split_unit("22.1 cm^{2}")
    ('22.1', Unit(dimension='length^2', size=Fraction(1, 10000)))
    >>> split_unit("5 apples"), split_unit("3 m", short=False), split_unit("5 hours and 20 minutes")[0]
    (('5 apples', None), ('3 m', None), '19200')
    """
    if is_sum(answer):
        parts = _SUM.findall(answer)
        units = [_UNITS[name] for _, name in parts]
        if len({unit.dimension for unit in units}) == 1:
            total = sum(
                (Fraction(number) * unit.size for (number, _), unit in zip(parts, units, strict=True)), Fraction()
            )
            return _written(total), Unit(units[0].dimension, Fraction(1))
    if answer.startswith(("$", r"\$", "€", "£")):
        rest = answer.lstrip("\\").lstrip()
        return rest[1:].strip(), _UNITS["$" if rest[0] == "$" else "€" if rest[0] == "€" else "£"]
    match = _TRAILING.fullmatch(answer)
    if match is None or (match["short"] and not short):
        return answer, None
    name = "^circ" + (match["scale"] or "") if match["unit"].startswith("^") else match["unit"]
    exponent = int(match["exponent"] or _POWERS[match["power"] or ""])
    unit = _UNITS[name]
    return match["value"].strip(), Unit(_power(unit.dimension, exponent), unit.size**exponent)


def is_sum(answer: str) -> bool:
    """Return whether an answer is one quantity in several units.

    >>> is_sum("5 hours and 20 minutes"), is_sum("5 hours"), is_sum("5, 20")
    (True, False, False)
    """
    return len(_SUM.findall(answer)) > 1 and not _SUM.sub("", answer).strip()


def unit_named(name: str) -> Unit | None:
    """Return the unit of a name, None for one that is not known.

    >>> unit_named("kg"), unit_named("apples")
    (Unit(dimension='mass', size=Fraction(1000, 1)), None)
    """
    return split_unit(f"1 {name.strip()}")[1]


def converted(value: str, size: Fraction) -> str:
    r"""Return a value times a factor: a number where it is one, else as LaTeX.

    >>> converted("500", Fraction(1, 100)), converted(r"\sqrt{2}", Fraction(1, 100))
    ('5', '\\frac{1}{100}\\cdot(\\sqrt{2})')
    """
    if size == 1:
        return value
    plain = value.replace(",", "")
    if re.fullmatch(r"-?\d{1,300}(?:\.\d{1,300})?", plain):
        return _written(Fraction(plain) * size)
    return rf"\frac{{{size.numerator}}}{{{size.denominator}}}\cdot({value})"


def _power(dimension: str, exponent: int) -> str:
    return dimension if exponent == 1 else f"{dimension}^{exponent}"


def _written(value: Fraction) -> str:
    """Return a fraction as an integer where it is one, else as LaTeX."""
    sign = "-" if value < 0 else ""
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
