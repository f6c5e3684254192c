"""A stored result in the words and numbers that the page shows; nothing here decides anything."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote

from rayhook.fhir.text import translatable
from rayhook.inference.held_out import HeldOut
from rayhook.inference.jobs import DeliveryState, StoredResult
from rayhook.inference.registry import Manifest
from rayhook.inference.statement import (
    EXPERIMENTAL,
    NOTHING_TO_RATE,
    aggregation_text,
    is_experimental,
    limit_sentences,
    marked,
)
from rayhook.inference.study import AnalysisStatus, ModelIdentity, StudyResult
from rayhook.inference.verdict import NOT_SURE
from rayhook.smart_app.chart import SliceChart, slice_chart
from rayhook.smart_app.figures import ModelView, model_view, unit_of
from rayhook.smart_app.finding_view import FindingView, finding_view
from rayhook.smart_app.i18n import day_text, decimal_text, moment_text, tell
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.marks import MarkTable, mark_table
from rayhook.smart_app.reason_texts import reason_text


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
    unanswered: what the model was asked and gave no answer to.  card: the path of the model's card.
    """

    title: str
    subtitle: str
    state: str
    tone: str
    headline: str
    caution: str
    sentences: tuple[str, ...]
    findings: tuple[FindingView, ...]
    unanswered: tuple[str, ...]
    card: str
    limits: tuple[str, ...]
    image: ImageView | None
    chart: SliceChart | None
    marks: MarkTable | None
    model: ModelView | None
    facts: tuple[Fact, ...]
    files: tuple[Fact, ...]


def present_result(
    stored: StoredResult,
    manifests: Iterable[Manifest],
    held_out: Mapping[str, HeldOut] = MappingProxyType({}),
) -> ResultView:
    """Return the view. held_out: evaluations by the SHA-256 of their weights."""
    result, reference = stored.result, stored.reference
    manifest = manifest_of(result.model, manifests)
    evaluation = None if result.model is None else held_out.get(result.model.weights_sha256)
    unit = evaluation.unit if evaluation is not None else unit_of(manifest)
    aggregated = len(result.slice_probabilities) > 1
    state = state_of(result)
    return ResultView(
        title=reference.description or _("Imaging study"),
        subtitle=" · ".join(filter(None, [", ".join(reference.modalities), day_text(reference.started)])),
        state=state.name,
        tone=state.tone,
        headline=state.headline,
        caution=tell(EXPERIMENTAL) if is_experimental(result.model) else "",
        sentences=_sentences(result),
        findings=tuple(
            finding_view(one, evaluation, unit=unit, is_aggregated=aggregated) for one in result.findings
        ),
        unanswered=_unanswered(result, manifest),
        card="" if result.model is None else card_path(result.model.id, result.model.version),
        limits=tuple(map(tell, limit_sentences(result))),
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
        translatable("No answer"),
        "neutral",
        translatable("The model abstained: it gives no answer for this study"),
    ),
    AnalysisStatus.OUT_OF_SCOPE: State(
        translatable("Out of scope"),
        "neutral",
        translatable("Not analysed: no model is meant for these images"),
    ),
    AnalysisStatus.REFUSED: State(
        translatable("Not analysed"),
        "failed",
        translatable("Not analysed: the images could not be read faithfully"),
    ),
}
_NOT_SURE = State(
    translatable("Not sure"),
    "neutral",
    translatable("The model is not sure: the probability is too near to its threshold to be an answer"),
)
_ABOVE = State(
    translatable("Finding above threshold"),
    "positive",
    translatable("The model marks a finding. A radiologist has to confirm it."),
)
_BELOW = State(
    translatable("No finding above threshold"),
    "negative",
    translatable("The model marks no finding. This does not rule one out."),
)
_NOTHING = State(
    translatable("Nothing to rate"),
    "neutral",
    translatable("The model found nothing to rate in these images"),
)
_NOT_ANALYSED = translatable(
    "This is not a negative result. Read the study as if Rayhook had not been asked."
)


def state_of(result: StudyResult) -> State:
    """Return the state in the reader's language."""
    state = _state(result)
    return State(_(state.name), state.tone, _(state.headline))


def _state(result: StudyResult) -> State:
    if result.status is AnalysisStatus.ABSTAINED and result.reason == NOT_SURE:
        return _NOT_SURE
    if result.status is not AnalysisStatus.ANALYSED:
        return _STATES[result.status]
    if result.found_nothing_to_rate:
        return _NOTHING
    return _ABOVE if any(finding.positive for finding in result.findings) else _BELOW


def day(instant: str | None) -> str:
    return (instant or "")[:10]


def card_path(model_id: str, version: str) -> str:
    """Return the path of a model's card."""
    return f"/models/{quote(model_id, safe='')}/{quote(version, safe='')}"


def _sentences(result: StudyResult) -> tuple[str, ...]:
    if result.status is AnalysisStatus.ANALYSED:
        return (tell(NOTHING_TO_RATE),) if result.found_nothing_to_rate else ()
    reason = (_("Reason: %(reason)s", reason=reason_text(result.reason)),) if result.reason else ()
    return (*reason, _(_NOT_ANALYSED))


def _unanswered(result: StudyResult, manifest: Manifest | None) -> tuple[str, ...]:
    if result.status is not AnalysisStatus.ABSTAINED or manifest is None:
        return ()
    return tuple(label.finding.display for label in manifest.labels)


def _image_view(stored: StoredResult) -> ImageView | None:
    image = stored.result.key_image
    if image is None:
        return None
    position = _key_index(stored.result)
    count = len(stored.result.slice_probabilities)
    where = (
        _("Slice %(number)s of %(count)s", number=position + 1, count=count)
        if count > 1
        else _("The image analysed")
    )
    return ImageView(
        url=f"/results/{stored.id}/image.png",
        overlay_url=f"/results/{stored.id}/overlay.png",
        rows=image.rows,
        columns=image.columns,
        caption=_("%(where)s: the one that weighed most in the answer", where=where),
        alternative=_(
            "%(where)s of %(study)s", where=where, study=stored.reference.description or _("the study")
        ),
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


def manifest_of(model: ModelIdentity | None, manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the manifest of exactly the weights that gave the result; another version's would mislead."""
    if model is None:
        return None
    return next((m for m in manifests if (m.id, m.weights_sha256) == (model.id, model.weights_sha256)), None)


def _facts(stored: StoredResult, manifest: Manifest | None) -> Iterator[Fact]:
    result = stored.result
    yield Fact(_("Analysed"), moment_text(result.analysed_at))
    yield Fact(_("Time taken"), f"{decimal_text(result.elapsed_ms / 1000, 1)} s")
    yield Fact(_("Images"), _counts(result))
    if result.aggregation:
        yield Fact(_("Study value from"), tell(aggregation_text(result.aggregation)))
    yield Fact(_("Model's report in the EHR"), _delivery(stored))
    if result.model is not None:
        yield Fact(_("Model"), marked(manifest.title if manifest else result.model.id, result.model))
        yield from _model_facts(result.model)
    yield Fact("Study Instance UID", result.study_instance_uid, code=True)
    if result.series_instance_uid:
        yield Fact("Series Instance UID", result.series_instance_uid, code=True)


def _model_facts(model: ModelIdentity) -> Iterator[Fact]:
    """Yield which files answered; the finder's after those of the model that rates what it finds."""
    yield Fact(_("Model id and version"), f"{model.id} {model.version}", code=True)
    yield Fact(_("Weights SHA-256"), model.weights_sha256, code=True)
    if model.manifest_sha256:
        yield Fact(_("Manifest SHA-256"), model.manifest_sha256, code=True)
    if model.finder is not None:
        yield Fact(_("Finder id and version"), f"{model.finder.id} {model.finder.version}", code=True)
        yield Fact(_("Finder's weights SHA-256"), model.finder.weights_sha256, code=True)
        if model.finder.manifest_sha256:
            yield Fact(_("Finder's manifest SHA-256"), model.finder.manifest_sha256, code=True)


def _files(result: StudyResult) -> Iterator[Fact]:
    for instance in result.instances:
        if instance.sha256 is not None:
            yield Fact(instance.sop_instance_uid or _("unreadable file"), instance.sha256, code=True)


_DELIVERIES = {
    DeliveryState.CONFLICT: translatable("not written: the EHR changed its copy"),
    DeliveryState.DELIVERED: translatable("written, as preliminary"),
    DeliveryState.FAILED: translatable("not written: the EHR did not take it"),
    DeliveryState.NOT_PERMITTED: translatable("not written: not permitted by your EHR"),
    DeliveryState.PENDING: translatable("not written yet"),
}
_COUNTED = {
    AnalysisStatus.ABSTAINED: translatable("%(count)s abstained"),
    AnalysisStatus.ANALYSED: translatable("%(count)s analysed"),
    AnalysisStatus.OUT_OF_SCOPE: translatable("%(count)s out of scope"),
    AnalysisStatus.REFUSED: translatable("%(count)s refused"),
}


def _delivery(stored: StoredResult) -> str:
    is_analysed = stored.result.status is AnalysisStatus.ANALYSED
    if stored.delivery is DeliveryState.NOT_PERMITTED and not is_analysed:
        return _("not written: there is no result to report")
    return _(_DELIVERIES[stored.delivery])


def _counts(result: StudyResult) -> str:
    by_status = [(status, sum(i.status is status for i in result.instances)) for status in AnalysisStatus]
    told = ", ".join(_(_COUNTED[status], count=count) for status, count in by_status if count)
    return told or _("none")
