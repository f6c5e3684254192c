"""Probabilities and counts as they are read."""

_PERCENT_FROM, _PERCENT_TO = 0.001, 0.999
_UNITS = {"crop": "nodule cross-section"}
_PERCENT = "\N{NO-BREAK SPACE}%"


def percent(probability: float) -> str:
    """Return a probability for reading; the ends are never rounded to certainty."""
    if probability < _PERCENT_FROM:
        return f"< 0.1{_PERCENT}"
    if probability > _PERCENT_TO:
        return f"> 99.9{_PERCENT}"
    return f"{probability * 100:.1f}{_PERCENT}"


def unit_name(unit: str) -> str:
    """Return what an evaluation's unit is called on the page."""
    return _UNITS.get(unit, unit)


def plural(unit: str, count: int) -> str:
    """Return what so many of a unit are called; a series is one or many."""
    name = unit_name(unit)
    return name if count == 1 or name.endswith("s") else f"{name}s"
