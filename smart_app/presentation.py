"""A stored result in the words and numbers that the page shows; nothing here decides anything."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rayhook.inference.jobs import DeliveryState, StoredResult
from rayhook.inference.registry import Manifest
from rayhook.inference.statement import (
    EXPERIMENTAL,
    NOTHING_TO_RATE,
    aggregation_text,
    is_experimental,
    limits,
    marked,
)
from rayhook.inference.study import AnalysisStatus, Finding, ModelIdentity, StudyResult
from rayhook.smart_app.chart import SliceChart, slice_chart
from rayhook.smart_app.figures import ModelView, model_view, unit_of
from rayhook.smart_app.marks import MarkTable, mark_table
from rayhook.smart_app.numbers import percent

_METER_WIDTH = 400


@dataclass(frozen=True, slots=True)
class FindingView:
    display: str
    answer: str
    tone: str
    probability: str
    threshold: str
    meaning: str
    meter_width: float
    meter_threshold: float

    @property
    def label_anchor(self) -> str:
        return "start" if self.meter_threshold < _METER_WIDTH / 2 else "end"

    @property
    def label_x(self) -> float:
        return self.meter_threshold


@dataclass(frozen=True, slots=True)
class ImageView:
    url: str
    overlay_url: str
    rows: int
    columns: int
    caption: str
    alternative: str


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: str
    code: bool = False


@dataclass(frozen=True, slots=True)
class ResultView:
    """All that result.html shows. `tone` is the CSS class of the state's colour.

    caution: what is said of an experimental model, empty for another.  files: the images and their digests.
    """

    title: str
    subtitle: str
    state: str
    tone: str
    headline: str
    caution: str
    sentences: tuple[str, ...]
    findings: tuple[FindingView, ...]
    limits: tuple[str, ...]
    image: ImageView | None
    chart: SliceChart | None
    marks: MarkTable | None
    model: ModelView | None
    facts: tuple[Fact, ...]
    files: tuple[Fact, ...]


def present_result(stored: StoredResult, manifests: Iterable[Manifest]) -> ResultView:
    result, reference = stored.result, stored.reference
    manifest = _manifest_of(result.model, manifests)
    state = state_of(result)
    return ResultView(
        title=reference.description or "Imaging study",
        subtitle=" · ".join(filter(None, [", ".join(reference.modalities), day(reference.started)])),
        state=state.name,
        tone=state.tone,
        headline=state.headline,
        caution=EXPERIMENTAL if is_experimental(result.model) else "",
        sentences=_sentences(result),
        findings=tuple(_finding_view(finding, manifest) for finding in result.findings),
        limits=limits(result),
        image=_image_view(stored),
        chart=_chart(result),
        marks=mark_table(result),
        model=None if manifest is None else model_view(manifest),
        facts=tuple(_facts(stored, manifest)),
        files=tuple(_files(result)),
    )


@dataclass(frozen=True, slots=True)
class State:
    """How one outcome is named and coloured, here and in the list of studies."""

    name: str
    tone: str
    headline: str


_STATES = {
    AnalysisStatus.ABSTAINED: State(
        "No answer", "neutral", "The model abstained: it gives no answer for this study"
    ),
    AnalysisStatus.OUT_OF_SCOPE: State(
        "Out of scope", "neutral", "Not analysed: no model is meant for these images"
    ),
    AnalysisStatus.REFUSED: State(
        "Not analysed", "failed", "Not analysed: the images could not be read faithfully"
    ),
}
_ABOVE = State(
    "Finding above threshold", "positive", "The model marks a finding. A radiologist has to confirm it."
)
_BELOW = State(
    "No finding above threshold", "negative", "The model marks no finding. This does not rule one out."
)
_NOTHING = State("Nothing to rate", "neutral", "The model found nothing to rate in these images")
_NOT_ANALYSED = ("This is not a negative result. Read the study as if Rayhook had not been asked.",)


def state_of(result: StudyResult) -> State:
    if result.status is not AnalysisStatus.ANALYSED:
        return _STATES[result.status]
    if result.found_nothing_to_rate:
        return _NOTHING
    return _ABOVE if any(finding.positive for finding in result.findings) else _BELOW


def day(instant: str | None) -> str:
    return (instant or "")[:10]


def _sentences(result: StudyResult) -> tuple[str, ...]:
    if result.status is AnalysisStatus.ANALYSED:
        return (NOTHING_TO_RATE,) if result.found_nothing_to_rate else ()
    reason = (f"Reason: {result.reason}",) if result.reason else ()
    return reason + _NOT_ANALYSED


def _finding_view(finding: Finding, manifest: Manifest | None) -> FindingView:
    return FindingView(
        display=finding.display,
        answer="above threshold" if finding.positive else "below threshold",
        tone="positive" if finding.positive else "negative",
        probability=percent(finding.probability),
        threshold=percent(finding.threshold),
        meaning=_meaning(finding, manifest),
        meter_width=round(finding.probability * _METER_WIDTH, 1),
        meter_threshold=round(finding.threshold * _METER_WIDTH, 1),
    )


def _meaning(finding: Finding, manifest: Manifest | None) -> str:
    threshold = percent(finding.threshold)
    share = (
        f"{_of_a_hundred(finding.probability)} of 100 {unit_of(manifest)} with this value show the finding. "
    )
    start = "" if manifest is None else f"By the model's calibration, {share}"
    if finding.positive:
        return f"{start}From {threshold} the model marks the finding. It may be wrong: look at the images."
    return (
        f"{start}Below {threshold} the model does not mark the finding. "
        "That does not rule it out, nor anything else the model was not made to see."
    )


def _of_a_hundred(probability: float) -> str:
    share = round(probability * 100)
    if share < 1:
        return "fewer than 1"
    return f"about {share}" if share <= 99 else "more than 99"  # noqa: PLR2004 - of a hundred


def _image_view(stored: StoredResult) -> ImageView | None:
    image = stored.result.key_image
    if image is None:
        return None
    position = _key_index(stored.result)
    count = len(stored.result.slice_probabilities)
    where = f"Slice {position + 1} of {count}" if count > 1 else "The image analysed"
    return ImageView(
        url=f"/results/{stored.id}/image.png",
        overlay_url=f"/results/{stored.id}/overlay.png",
        rows=image.rows,
        columns=image.columns,
        caption=f"{where}: the one that weighed most in the answer",
        alternative=f"{where} of {stored.reference.description or 'the study'}",
    )


def _chart(result: StudyResult) -> SliceChart | None:
    if len(result.slice_probabilities) < 2 or not result.findings:  # noqa: PLR2004 - one bar is no chart
        return None
    return slice_chart(
        result.slice_probabilities, threshold=result.findings[0].threshold, key_index=_key_index(result)
    )


def _key_index(result: StudyResult) -> int:
    """Return the position of the key image in slice order.

    Older results do not have the UIDs in that order: the image is then found by its own probability.
    """
    if result.key_image is not None and result.key_image.sop_instance_uid in result.slice_uids:
        return result.slice_uids.index(result.key_image.sop_instance_uid)
    probabilities = result.slice_probabilities
    if not probabilities:
        return 0
    wanted = max(probabilities)
    if result.key_image is not None:
        for instance in result.instances:
            if instance.sop_instance_uid == result.key_image.sop_instance_uid and instance.findings:
                wanted = instance.findings[0].probability
    return min(range(len(probabilities)), key=lambda index: abs(probabilities[index] - wanted))


def _manifest_of(model: ModelIdentity | None, manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the manifest of exactly the weights that gave the result; another version's would mislead."""
    if model is None:
        return None
    return next((m for m in manifests if (m.id, m.weights_sha256) == (model.id, model.weights_sha256)), None)


def _facts(stored: StoredResult, manifest: Manifest | None) -> Iterator[Fact]:
    result = stored.result
    yield Fact("Analysed", result.analysed_at.strftime("%Y-%m-%d %H:%M UTC"))
    yield Fact("Time taken", f"{result.elapsed_ms / 1000:.1f} s")
    yield Fact("Images", _counts(result))
    if result.aggregation:
        yield Fact("Study value from", aggregation_text(result.aggregation))
    yield Fact("Report in EHR", _delivery(stored))
    if result.model is not None:
        yield Fact("Model", marked(manifest.title if manifest else result.model.id, result.model))
        yield from _model_facts(result.model)
    yield Fact("Study Instance UID", result.study_instance_uid, code=True)
    if result.series_instance_uid:
        yield Fact("Series Instance UID", result.series_instance_uid, code=True)


def _model_facts(model: ModelIdentity, kind: str = "Model") -> Iterator[Fact]:
    """Yield which files answered; the finder's after those of the model that rates what it finds."""
    yield Fact(f"{kind} id and version", f"{model.id} {model.version}", code=True)
    yield Fact("Weights SHA-256", model.weights_sha256, code=True)
    if model.manifest_sha256:
        yield Fact("Manifest SHA-256", model.manifest_sha256, code=True)
    if model.finder is not None:
        yield from _model_facts(model.finder, "Finder")


def _files(result: StudyResult) -> Iterator[Fact]:
    for instance in result.instances:
        if instance.sha256 is not None:
            yield Fact(instance.sop_instance_uid or "unreadable file", instance.sha256, code=True)


_DELIVERIES = {
    DeliveryState.CONFLICT: "not written: the EHR changed its copy",
    DeliveryState.DELIVERED: "written, as preliminary",
    DeliveryState.FAILED: "not written: the EHR did not take it",
    DeliveryState.NOT_PERMITTED: "not written: not permitted by your EHR",
    DeliveryState.PENDING: "not written yet",
}


def _delivery(stored: StoredResult) -> str:
    is_analysed = stored.result.status is AnalysisStatus.ANALYSED
    if stored.delivery is DeliveryState.NOT_PERMITTED and not is_analysed:
        return "not written: there is no result to report"
    return _DELIVERIES[stored.delivery]


def _counts(result: StudyResult) -> str:
    by_status = [(status, sum(i.status is status for i in result.instances)) for status in AnalysisStatus]
    return ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in by_status if count) or "none"
