"""Probabilities and counts as they are read."""

from rayhook.smart_app.i18n import percent_text

_PERCENT_FROM, _PERCENT_TO = 0.001, 0.999
_UNITS = {"crop": "nodule cross-section"}


def percent(probability: float) -> str:
    """Return a probability for reading; the ends are never rounded to certainty."""
    if probability < _PERCENT_FROM:
        return f"<\N{NO-BREAK SPACE}{percent_text(_PERCENT_FROM)}"
    if probability > _PERCENT_TO:
        return f">\N{NO-BREAK SPACE}{percent_text(_PERCENT_TO)}"
    return percent_text(probability)


def counted_share(share: float) -> str:
    """Return a share that was counted: all, or none, of what was counted is certain, and nothing else is."""
    return percent_text(share) if share in (0.0, 1.0) else percent(share)


def unit_name(unit: str) -> str:
    """Return what an evaluation's unit is called on the page."""
    return _UNITS.get(unit, unit)


def plural(unit: str, count: int) -> str:
    """Return what so many of a unit are called; a series is one or many."""
    name = unit_name(unit)
    return name if count == 1 or name.endswith("s") else f"{name}s"
