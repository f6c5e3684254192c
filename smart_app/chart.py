"""Geometry of the slice chart; the template draws it as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

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
        ticks=tuple(Tick(_y(value), f"{value:.0%}") for value in _TICKS),
        threshold_y=_y(threshold),
        alternative=(
            f"Calibrated probability of {len(probabilities)} slices: {above} at or above the threshold of "
            f"{threshold:.0%}, the highest in the chart {max(probabilities):.0%}, "
            f"the slice shown is number {key_index + 1}."
        ),
        legend=(
            f"{above} of {len(probabilities)} slices at or above the threshold (dashed). "
            f"The outlined bar is slice {key_index + 1}, the one shown."
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
        label=f"Slice {index + 1}: {probability:.1%}",
    )
