"""Geometry of the slice chart; the template draws it as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.i18n import percent_text

_WIDTH, _HEIGHT = 640, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 632, 8, 124
_TICKS = (0.0, 0.5, 1.0)
_GAP_SHARE = 0.18


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    above: bool
    key: bool
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class SliceChart:
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    threshold_y: float
    alternative: str
    legend: str
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT


def slice_chart(probabilities: Sequence[float], *, threshold: float, key_index: int) -> SliceChart:
    """Return the chart of calibrated probabilities (0..1) in slice order."""
    step = (_RIGHT - _LEFT) / len(probabilities)
    above = sum(p >= threshold for p in probabilities)
    return SliceChart(
        bars=tuple(
            _bar(index, p, step=step, above=p >= threshold, key=index == key_index)
            for index, p in enumerate(probabilities)
        ),
        ticks=tuple(Tick(_y(value), percent_text(value, 0)) for value in _TICKS),
        threshold_y=_y(threshold),
        alternative=_(
            "Calibrated probability of %(slices)s slices: %(above)s at or above the threshold of %(threshold)s, "
            "the highest in the chart %(highest)s, the slice shown is number %(shown)s.",
            slices=len(probabilities),
            above=above,
            threshold=percent_text(threshold, 0),
            highest=percent_text(max(probabilities), 0),
            shown=key_index + 1,
        ),
        legend=_(
            "%(above)s of %(slices)s slices at or above the threshold (dashed). "
            "The outlined bar is slice %(shown)s, the one shown.",
            above=above,
            slices=len(probabilities),
            shown=key_index + 1,
        ),
    )


def _y(probability: float) -> float:
    return round(_BOTTOM - probability * (_BOTTOM - _TOP), 2)


def _bar(index: int, probability: float, *, step: float, above: bool, key: bool) -> Bar:
    top = min(_y(probability), _BOTTOM - 1)
    return Bar(
        x=round(_LEFT + index * step + step * _GAP_SHARE / 2, 2),
        y=top,
        width=round(step * (1 - _GAP_SHARE), 2),
        height=round(_BOTTOM - top, 2),
        above=above,
        key=key,
        label=_("Slice %(number)s: %(probability)s", number=index + 1, probability=percent_text(probability)),
    )
