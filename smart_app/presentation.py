"""A stored result in the words and numbers that the page shows; nothing here decides anything."""

from collections.abc import Iterable
from dataclasses import dataclass

from rayhook.inference.jobs import DeliveryState, StoredResult
from rayhook.inference.registry import Estimate, Evaluation, Manifest
from rayhook.inference.statement import limits
from rayhook.inference.study import AnalysisStatus, Finding, ModelIdentity, StudyResult
from rayhook.smart_app.chart import SliceChart, slice_chart

_METER_WIDTH = 400
_PERCENT_FROM, _PERCENT_TO = 0.001, 0.999
_PERCENT = "\N{NO-BREAK SPACE}%"


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
class Figure:
    name: str
    meaning: str
    value: str
    interval: str


@dataclass(frozen=True, slots=True)
class ModelView:
    intended_use: str
    limits: tuple[str, ...]
    evaluated_on: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: str
    code: bool = False


@dataclass(frozen=True, slots=True)
class ResultView:
    """All that result.html shows. `tone` is the CSS class of the state's colour."""

    title: str
    subtitle: str
    state: str
    tone: str
    headline: str
    sentences: tuple[str, ...]
    findings: tuple[FindingView, ...]
    limits: tuple[str, ...]
    image: ImageView | None
    chart: SliceChart | None
    model: ModelView | None
    facts: tuple[Fact, ...]


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
        sentences=_sentences(result),
        findings=tuple(_finding_view(finding, manifest) for finding in result.findings),
        limits=limits(result),
        image=_image_view(stored),
        chart=_chart(result),
        model=None if manifest is None else _model_view(manifest),
        facts=tuple(_facts(stored, manifest)),
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
_UNTOLD = frozenset({"failed", "neutral"})
_NOT_ANALYSED = ("This is not a negative result. Read the study as if Rayhook had not been asked.",)


def state_of(result: StudyResult) -> State:
    if result.status is not AnalysisStatus.ANALYSED:
        return _STATES[result.status]
    return _ABOVE if any(finding.positive for finding in result.findings) else _BELOW


def percent(probability: float) -> str:
    """Return a probability for reading; the ends are never rounded to certainty."""
    if probability < _PERCENT_FROM:
        return f"< 0.1{_PERCENT}"
    if probability > _PERCENT_TO:
        return f"> 99.9{_PERCENT}"
    return f"{probability * 100:.1f}{_PERCENT}"


def day(instant: str | None) -> str:
    return (instant or "")[:10]


def _sentences(result: StudyResult) -> tuple[str, ...]:
    if result.status is AnalysisStatus.ANALYSED:
        return ()
    reason = (f"Reason: {result.reason}",) if result.reason else ()
    return reason + _NOT_ANALYSED


def _finding_view(finding: Finding, manifest: Manifest | None) -> FindingView:
    return FindingView(
        display=finding.display,
        answer="above threshold" if finding.positive else "below threshold",
        tone="positive" if finding.positive else "negative",
        probability=percent(finding.probability),
        threshold=percent(finding.threshold),
        meaning=_meaning(finding, calibrated=manifest is not None),
        meter_width=round(finding.probability * _METER_WIDTH, 1),
        meter_threshold=round(finding.threshold * _METER_WIDTH, 1),
    )


def _meaning(finding: Finding, *, calibrated: bool) -> str:
    threshold = percent(finding.threshold)
    share = f"{_of_a_hundred(finding.probability)} of 100 images with this value show the finding. "
    start = f"By the model's calibration, {share}" if calibrated else ""
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
    """Return the position of the key image in slice order, found by its own probability."""
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


_FIGURES = {
    "auc": ("Area under the ROC curve", "1 is perfect, 0.5 is chance"),
    "sensitivity": ("Sensitivity", "of those with the finding, the share that is marked"),
    "specificity": ("Specificity", "of those without it, the share that is not marked"),
    "ppv": (
        "Positive predictive value",
        "of those marked, the share that has it, at the prevalence of this set",
    ),
    "npv": (
        "Negative predictive value",
        "of those not marked, the share without it, at the prevalence of this set",
    ),
    "brier": ("Brier score", "mean squared error of the probability, 0 is perfect"),
    "ece": ("Calibration error", "mean gap between probability and observed share"),
    "abstention": ("Abstained", "the share that the model declined to judge"),
    "pointing": (
        "Heatmap on the finding",
        "of those rightly marked, the share whose hottest point lies on it",
    ),
}
_RATES = frozenset({"sensitivity", "specificity", "ppv", "npv", "abstention", "pointing"})


def _model_view(manifest: Manifest) -> ModelView:
    evaluation = next(iter(manifest.evaluations), None)
    own = () if evaluation is None or not evaluation.limits else (evaluation.limits,)
    return ModelView(
        intended_use=manifest.intended_use,
        limits=manifest.limits + own,
        evaluated_on="" if evaluation is None else _evaluated_on(evaluation),
        figures=() if evaluation is None else tuple(_figures(evaluation.estimates.items())),
    )


def _evaluated_on(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.dataset}, {evaluation.subset}: {evaluation.patients} patients, {evaluation.count} "
        f"{_plural(evaluation.unit, evaluation.count)}, {evaluation.positives} with the finding. "
        f"Figures are per {evaluation.unit}; intervals are over patients."
    )


def _plural(unit: str, count: int) -> str:
    return unit if count == 1 or unit.endswith("s") else f"{unit}s"


def _figures(estimates: Iterable[tuple[str, Estimate]]) -> Iterable[Figure]:
    for key, estimate in estimates:
        name, meaning = _FIGURES.get(key, (key.replace("_", " "), ""))
        show = percent if key in _RATES else "{:.3f}".format
        yield Figure(name, meaning, show(estimate.value), f"{show(estimate.low)} to {show(estimate.high)}")


def _facts(stored: StoredResult, manifest: Manifest | None) -> Iterable[Fact]:
    result = stored.result
    yield Fact("Analysed", result.analysed_at.strftime("%Y-%m-%d %H:%M UTC"))
    yield Fact("Time taken", f"{result.elapsed_ms / 1000:.1f} s")
    yield Fact("Images", _counts(result))
    if result.aggregation:
        yield Fact("Study value from", _AGGREGATIONS.get(result.aggregation, result.aggregation))
    yield Fact("Report in EHR", _delivery(stored))
    if result.model is not None:
        yield Fact("Model", manifest.title if manifest else result.model.id)
        yield Fact("Model id and version", f"{result.model.id} {result.model.version}", code=True)
        yield Fact("Weights SHA-256", result.model.weights_sha256, code=True)
    yield Fact("Study Instance UID", result.study_instance_uid, code=True)
    if result.series_instance_uid:
        yield Fact("Series Instance UID", result.series_instance_uid, code=True)


_AGGREGATIONS = {"max_of_median3": "the highest median over three neighbouring slices"}
_DELIVERIES = {
    DeliveryState.DELIVERED: "written, as preliminary",
    DeliveryState.FAILED: "not written: the EHR did not take it",
    DeliveryState.NOT_PERMITTED: "not written: not permitted by your EHR",
    DeliveryState.PENDING: "not written yet",
}


def _delivery(stored: StoredResult) -> str:
    if stored.delivery is DeliveryState.NOT_PERMITTED and state_of(stored.result).tone in _UNTOLD:
        return "not written: there is no result to report"
    return _DELIVERIES[stored.delivery]


def _counts(result: StudyResult) -> str:
    by_status = [(status, sum(i.status is status for i in result.instances)) for status in AnalysisStatus]
    return ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in by_status if count) or "none"
