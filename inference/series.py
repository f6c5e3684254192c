"""One model's answers over one series, and the one of several series that speaks for the study."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rayhook.inference.aggregate import SeriesPeak, max_of_median3, slice_order
from rayhook.inference.explain import heatmap, render_overlay_png, render_png
from rayhook.inference.predict import Prediction
from rayhook.inference.preprocess import Geometry
from rayhook.inference.registry import Label, Manifest
from rayhook.inference.study import Finding, InstanceAttributes, KeyImage


@dataclass(frozen=True, slots=True)
class Slice:
    """One image in scope with the model's answers, one per label of the manifest.

    display: (rows, columns), uint8, what a person would see.
    """

    attributes: InstanceAttributes
    display: NDArray[np.uint8]
    geometry: Geometry
    manifest: Manifest
    predictions: tuple[Prediction, ...]

    @property
    def is_answered(self) -> bool:
        """Return whether the model gave an answer on every label."""
        return not any(prediction.abstained for prediction in self.predictions)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the answers, none where the model abstained."""
        if not self.is_answered:
            return ()
        pairs = zip(self.manifest.labels, self.predictions, strict=True)
        return tuple(to_finding(label, prediction.probability) for label, prediction in pairs)


@dataclass(frozen=True, slots=True)
class SeriesAnalysis:
    """The answered slices of one series in anatomical order, and the peak of each label over them."""

    series_instance_uid: str
    manifest: Manifest
    slices: tuple[Slice, ...]
    peaks: tuple[SeriesPeak, ...]

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> Self:
        """Return the analysis of answered slices that are of one series and one model."""
        ordered = tuple(slices[i] for i in slice_order([s.attributes for s in slices]))
        labels = range(len(ordered[0].manifest.labels))
        return cls(
            series_instance_uid=ordered[0].attributes.series_instance_uid,
            manifest=ordered[0].manifest,
            slices=ordered,
            peaks=tuple(max_of_median3([s.predictions[k].probability for s in ordered]) for k in labels),
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the series-level answer of each label."""
        pairs = zip(self.manifest.labels, self.peaks, strict=True)
        return tuple(to_finding(label, peak.probability) for label, peak in pairs)

    @property
    def rank(self) -> tuple[bool, float]:
        """Return what orders series: a positive one first, then the more probable one."""
        return max((finding.positive, finding.probability) for finding in self.findings)

    @property
    def slice_probabilities(self) -> tuple[float, ...]:
        """Return the leading label's probabilities in slice order."""
        return tuple(s.predictions[self._leading].probability for s in self.slices)

    @property
    def key_image(self) -> KeyImage:
        """Return the slice that shows the leading label best, with the model's evidence over it."""
        index = self._leading
        shown = self.slices[self.peaks[index].index]
        heat = heatmap(
            shown.predictions[index].cam, shown.geometry, scale=self.manifest.labels[index].cam_scale
        )
        rows, columns = shown.display.shape
        return KeyImage(
            sop_instance_uid=shown.attributes.sop_instance_uid,
            series_instance_uid=self.series_instance_uid,
            rows=rows,
            columns=columns,
            image_png=render_png(shown.display),
            overlay_png=render_overlay_png(shown.display, heat),
        )

    @property
    def _leading(self) -> int:
        findings = self.findings
        return max(range(len(findings)), key=lambda k: (findings[k].positive, findings[k].probability))


def analyse_series(slices: Iterable[Slice]) -> tuple[SeriesAnalysis, ...]:
    """Return the analysis of each series and model that has answered slices, the highest first."""

    def key(one: Slice) -> tuple[str, str]:
        return one.attributes.series_instance_uid, one.manifest.id

    answered = sorted((s for s in slices if s.is_answered), key=key)
    analyses = (SeriesAnalysis.of(tuple(group)) for _, group in groupby(answered, key=key))
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
