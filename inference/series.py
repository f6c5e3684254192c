"""One model's answers over one series, and the one of several series that speaks for the study."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.aggregate import MAX_OF_MEDIAN3, MEAN_OF_CENTRAL, max_of_median3, slice_order
from rayhook.inference.explain import (
    heatmap,
    pack_heat,
    render_marked_png,
    render_overlay_png,
    render_png,
)
from rayhook.inference.nodule import chains, rate
from rayhook.inference.reading import Reading
from rayhook.inference.registry import Label, Manifest
from rayhook.inference.study import Finding, InstanceAttributes, KeyImage, Mark

_NO_CANDIDATE = "no point of these images was like what the model rates"


@dataclass(frozen=True, slots=True)
class Slice:
    """One image in scope with what the model judged in it.

    display: (rows, columns), uint8, what a person would see.
    """

    attributes: InstanceAttributes
    display: NDArray[np.uint8]
    manifest: Manifest
    readings: tuple[Reading, ...]
    source_header: bytes = field(default=b"", repr=False)

    @property
    def is_answered(self) -> bool:
        """Return whether the model gave an answer: to have found no point to rate is one."""
        return not self.readings or any(reading.is_answered for reading in self.readings)

    @property
    def reason(self) -> str | None:
        """Return why an answered image has no findings."""
        return None if self.readings else _NO_CANDIDATE

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the highest answer on each label, none where the model abstained or found no point."""
        if not any(reading.is_answered for reading in self.readings):
            return ()
        return tuple(
            to_finding(label, self.highest(index)) for index, label in enumerate(self.manifest.labels)
        )

    @property
    def is_unsure(self) -> bool:
        """Return whether the answer, read by itself, is too near to the threshold to be one."""
        return bool(self.findings) and _all_unsure(self.manifest, self.findings)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Return the points that were rated."""
        return tuple(_mark(reading) for reading in self.readings if reading.candidate is not None)

    def highest(self, label: int) -> float:
        """Return the highest probability of a label over what was answered, 0 without any."""
        answered = (r.predictions[label].probability for r in self.readings if r.is_answered)
        return max(answered, default=0.0)


@dataclass(frozen=True, slots=True)
class SeriesAnalysis:
    """The answered slices of one series in anatomical order, and what they come to together.

    findings: one a label, or none where no point was found to rate; reason then says so.
    shown: the slice, the reading and the label that carry the answer.
    """

    series_instance_uid: str
    manifest: Manifest
    slices: tuple[Slice, ...]
    findings: tuple[Finding, ...]
    aggregation: str
    shown: tuple[Slice, Reading, int] | None
    reason: str | None = None

    @property
    def is_unsure(self) -> bool:
        """Return whether the answer is too near to the threshold to be one."""
        return bool(self.findings) and _all_unsure(self.manifest, self.findings)

    @property
    def rank(self) -> tuple[bool, float]:
        """Return what orders series: one that is surely positive first, then the more probable one."""
        sure = not self.is_unsure
        return max(((f.positive and sure, f.probability) for f in self.findings), default=(False, 0.0))

    @property
    def slice_probabilities(self) -> tuple[float, ...]:
        """Return the leading label's probabilities in slice order, 0 where no point was found to rate."""
        leading = 0 if self.shown is None else self.shown[2]
        return tuple(one.highest(leading) for one in self.slices)

    @property
    def key_image(self) -> KeyImage | None:
        """Return the slice that shows the leading label best, with the model's evidence over it."""
        if self.shown is None:
            return None
        one, reading, label = self.shown
        heat = heatmap(
            reading.predictions[label].cam, reading.geometry, scale=self.manifest.labels[label].cam_scale
        )
        overlay = render_overlay_png(one.display, heat)
        if reading.candidate is not None:
            point = (reading.candidate.row, reading.candidate.column)
            spacing = one.attributes.pixel_spacing_mm or (1.0, 1.0)
            overlay = render_marked_png(one.display, heat, point, pixel_spacing_mm=spacing)
        rows, columns = one.display.shape
        return KeyImage(
            sop_instance_uid=one.attributes.sop_instance_uid,
            series_instance_uid=self.series_instance_uid,
            rows=rows,
            columns=columns,
            image_png=render_png(one.display),
            overlay_png=overlay,
            heat=pack_heat(heat),
        )


def analyse_series(slices: Iterable[Slice]) -> tuple[SeriesAnalysis, ...]:
    """Return the analysis of each series and model that has answered slices, the highest first."""

    def key(one: Slice) -> tuple[str, str]:
        return one.attributes.series_instance_uid, one.manifest.id

    answered = sorted((s for s in slices if s.is_answered), key=key)
    analyses = (_analyse(tuple(group)) for _, group in groupby(answered, key=key))
    return tuple(sorted(analyses, key=lambda a: a.rank, reverse=True))


def to_finding(label: Label, probability: float) -> Finding:
    """Return the coded answer of one label."""
    return Finding(
        code=label.finding.code,
        system=label.finding.system,
        display=label.finding.display,
        probability=probability,
        threshold=label.threshold,
        positive=probability >= label.threshold,
        body_site_code=label.body_site.code,
        body_site_display=label.body_site.display,
    )


def _analyse(slices: Sequence[Slice]) -> SeriesAnalysis:
    """Return the analysis of answered slices that are of one series and one model."""
    ordered = tuple(slices[i] for i in slice_order([s.attributes for s in slices]))
    return _by_slice(ordered) if ordered[0].manifest.finder is None else _by_nodule(ordered)


def _by_slice(ordered: tuple[Slice, ...]) -> SeriesAnalysis:
    """Return the answer of a model that judges whole slices: the highest of neighbours that agree."""
    manifest = ordered[0].manifest
    peaks = [max_of_median3([s.highest(k) for s in ordered]) for k in range(len(manifest.labels))]
    findings = tuple(
        to_finding(label, peak.probability) for label, peak in zip(manifest.labels, peaks, strict=True)
    )
    leading = _leading(findings)
    shown = ordered[peaks[leading].index]
    return SeriesAnalysis(
        series_instance_uid=ordered[0].attributes.series_instance_uid,
        manifest=manifest,
        slices=ordered,
        findings=findings,
        aggregation=MAX_OF_MEDIAN3,
        shown=(shown, shown.readings[0], leading),
    )


def _by_nodule(ordered: tuple[Slice, ...]) -> SeriesAnalysis:
    """Return the answer of a model that rates points: that of the nodule rated highest."""
    manifest = ordered[0].manifest
    rated = [rate(chain, manifest.labels) for chain in chains(ordered)]
    findings: tuple[Finding, ...] = ()
    shown = None
    if rated:
        tops = [max(rated, key=lambda n: n.probabilities[k]) for k in range(len(manifest.labels))]
        pairs = zip(manifest.labels, tops, strict=True)
        findings = tuple(to_finding(label, top.probabilities[k]) for k, (label, top) in enumerate(pairs))
        leading = _leading(findings)
        index, reading = tops[leading].shown
        shown = (ordered[index], reading, leading)
    return SeriesAnalysis(
        series_instance_uid=ordered[0].attributes.series_instance_uid,
        manifest=manifest,
        slices=ordered,
        findings=findings,
        aggregation=MEAN_OF_CENTRAL,
        shown=shown,
        reason=None if rated else _NO_CANDIDATE,
    )


def _all_unsure(manifest: Manifest, findings: Sequence[Finding]) -> bool:
    pairs = zip(manifest.labels, findings, strict=True)
    return all(label.is_unsure(finding.probability) for label, finding in pairs)


def _leading(findings: Sequence[Finding]) -> int:
    return max(range(len(findings)), key=lambda k: (findings[k].positive, findings[k].probability))


def _mark(reading: Reading) -> Mark:
    assert reading.candidate is not None
    leading = max(reading.predictions, key=lambda p: p.probability)
    answered = reading.is_answered
    return Mark(
        row=reading.candidate.row,
        column=reading.candidate.column,
        score=reading.candidate.score,
        probability=leading.probability if answered else None,
        positive=answered and leading.positive,
    )
