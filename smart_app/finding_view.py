"""One finding on the page: the model's value with what is known of values like it, and what people answered."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rayhook.fhir.text import translatable
from rayhook.inference.held_out import AtPrevalence, HeldOut
from rayhook.inference.registry import Estimate
from rayhook.inference.study import Finding
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.i18n import ngettext
from rayhook.smart_app.numbers import counted_share, percent

_METER_WIDTH = 400
_UNITS: Mapping[str, str] = {
    "crop": translatable("nodule cross-sections"),
    "film": translatable("films"),
    "image": translatable("images"),
    "nodule": translatable("nodules"),
    "patient": translatable("patients"),
    "series": translatable("series"),
    "slice": translatable("slices"),
}


@dataclass(frozen=True, slots=True)
class Interval:
    """Which share of held-out cases of like value had the finding; low, high: places on the meter."""

    low: float
    high: float
    text: str

    @property
    def width(self) -> float:
        return round(max(self.high - self.low, 2.0), 1)


@dataclass(frozen=True, slots=True)
class FindingView:
    """A finding as it is shown.

    meaning: what the value says of this study.  frequencies: what an answer like it is worth, as natural
    frequencies, one for each prevalence that was evaluated.  unit_note: what the figures count.
    """

    code: str
    display: str
    answer: str
    tone: str
    probability: str
    threshold: str
    meaning: tuple[str, ...]
    frequencies: tuple[str, ...]
    unit_note: str
    interval: Interval | None
    meter_width: float
    meter_threshold: float

    @property
    def label_anchor(self) -> str:
        return "start" if self.meter_threshold < _METER_WIDTH / 2 else "end"

    @property
    def label_x(self) -> float:
        return self.meter_threshold


def finding_view(
    finding: Finding, held_out: HeldOut | None, *, unit: str | None, is_aggregated: bool
) -> FindingView:
    """Return the view.

    unit: what the model was calibrated on, None where that is not known.  is_aggregated: whether the value is
    of several images, and not of one.
    """
    return FindingView(
        code=finding.code,
        display=finding.display,
        answer=_("above threshold") if finding.positive else _("below threshold"),
        tone="positive" if finding.positive else "negative",
        probability=percent(finding.probability),
        threshold=percent(finding.threshold),
        meaning=tuple(_meaning(finding, unit)),
        frequencies=tuple(_frequencies(finding, held_out)),
        unit_note=_unit_note(held_out, is_aggregated=is_aggregated),
        interval=_interval(finding, held_out),
        meter_width=_place(finding.probability),
        meter_threshold=_place(finding.threshold),
    )


def units_text(unit: str) -> str:
    """Return what an evaluation counts, in the plural and the reader's language."""
    return _(_UNITS.get(unit, unit))


def _meaning(finding: Finding, unit: str | None) -> Iterator[str]:
    if unit is not None:
        yield _(
            "By the model's calibration, %(share)s of 100 %(units)s with this value show the finding.",
            share=_of_a_hundred(finding.probability),
            units=units_text(unit),
        )
    threshold = percent(finding.threshold)
    if finding.positive:
        yield _(
            "From %(threshold)s the model marks the finding. It may be wrong: look at the images.",
            threshold=threshold,
        )
    else:
        yield _(
            "Below %(threshold)s the model does not mark the finding. That does not rule it out, nor anything "
            "else the model was not made to see.",
            threshold=threshold,
        )


def _of_a_hundred(probability: float) -> str:
    if probability * 100 < 1:
        return _("fewer than 1")
    if probability * 100 > 99:  # noqa: PLR2004 - of a hundred
        return _("more than 99")
    return _("about %(share)s", share=round(probability * 100))


def _interval(finding: Finding, held_out: HeldOut | None) -> Interval | None:
    """Return the observed share among held-out cases near the value: the one interval that was measured."""
    near = None if held_out is None else held_out.bin_of(finding.probability)
    if near is None or held_out is None:
        return None
    seen = near.observed
    text = _(
        "Of the %(count)s held-out %(units)s that the model gave %(low)s to %(high)s, %(seen)s had the finding: "
        "%(share)s (95%% Wilson interval %(from)s to %(to)s).",
        count=near.count,
        units=units_text(held_out.unit),
        low=percent(near.low),
        high=percent(near.high),
        seen=round(seen.value * near.count),
        share=counted_share(seen.value),
        **{"from": percent(seen.low), "to": percent(seen.high)},
    )
    return Interval(_place(seen.low), _place(seen.high), text)


def _frequencies(finding: Finding, held_out: HeldOut | None) -> Iterator[str]:
    if held_out is None:
        return
    for row in held_out.prevalence_table:
        yield _frequency(finding, held_out, row)


def _frequency(finding: Finding, held_out: HeldOut, row: AtPrevalence) -> str:
    """Return a predictive value as a count out of a hundred, as people reckon best."""
    units, estimate = units_text(held_out.unit), row.ppv if finding.positive else row.npv
    values = {
        "units": units,
        "prevalence": _hundredths(row.prevalence),
        "share": _of_a_hundred(estimate.value),
        "range": _range(estimate),
    }
    if finding.positive:
        return _(
            "Where %(prevalence)s of 100 %(units)s have the finding, %(share)s of 100 that the model marks "
            "have it (95%% interval %(range)s).",
            **values,
        )
    return _(
        "Where %(prevalence)s of 100 %(units)s have the finding, %(share)s of 100 that the model does not mark "
        "do not have it (95%% interval %(range)s).",
        **values,
    )


def _hundredths(share: float) -> str:
    return f"{share * 100:g}"


def _range(estimate: Estimate) -> str:
    return _("%(low)s to %(high)s", low=_bound(estimate.low), high=_bound(estimate.high))


def _bound(share: float) -> str:
    """Return a bound out of a hundred; neither end is rounded to certainty."""
    if share * 100 < 1:
        return _("fewer than 1")
    return _("more than 99") if share * 100 > 99 else str(round(share * 100))  # noqa: PLR2004 - of a hundred


def _unit_note(held_out: HeldOut | None, *, is_aggregated: bool) -> str:
    if held_out is None:
        return _("No evaluation of exactly these weights is installed: what an answer is worth is not known.")
    note = ngettext(
        "Evaluated on %(number)s patient held out",
        "Evaluated on %(number)s patients held out",
        held_out.patients,
        number=held_out.patients,
    )
    counted = _("%(note)s; the figures count %(units)s.", note=note, units=units_text(held_out.unit))
    if is_aggregated and held_out.unit not in {"patient", "series"}:
        return f"{counted} {_('The value above is of the whole series, for which no such figures exist.')}"
    return counted


def _place(probability: float) -> float:
    return round(probability * _METER_WIDTH, 1)
