"""What the images of a study come to together."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from rayhook.inference.aggregate import too_few_usable
from rayhook.inference.registry import Manifest
from rayhook.inference.series import SeriesAnalysis, Slice, analyse_series
from rayhook.inference.study import AnalysisStatus, InstanceResult, ModelIdentity, StudyResult

_REASONS_TOLD = 3

NOT_SURE_CODE = "not_sure"
NOT_SURE = "not sure: the probability is too near to the model's threshold to be an answer"


def conclude(
    instances: Sequence[InstanceResult],
    slices: Sequence[Slice],
    *,
    study_instance_uid: str | None,
    elapsed_ms: float,
) -> StudyResult:
    """Return the study's result: that of its highest series, or why there is none.

    slices: those images that the model has seen.  study_instance_uid: None to take it from the images.
    """
    analyses = analyse_series(slices)
    status, reason = _judge(instances, analyses)
    top = analyses[0] if status is AnalysisStatus.ANALYSED else None
    tried = analyses[0].manifest if analyses else next((one.manifest for one in slices), None)
    named = (i.study_instance_uid for i in instances if i.study_instance_uid is not None)
    return StudyResult(
        study_instance_uid=study_instance_uid or next(named, ""),
        series_instance_uid=top.series_instance_uid if top else None,
        status=status,
        reason=reason,
        findings=top.findings if top else (),
        model=_identity(instances, tried) if tried else None,
        aggregation=top.aggregation if top else None,
        instances=tuple(instances),
        slice_probabilities=top.slice_probabilities if top else (),
        key_image=top.key_image if top else None,
        analysed_at=datetime.now(UTC),
        elapsed_ms=elapsed_ms,
        source_header=_source_header(top, slices),
        slice_uids=tuple(one.attributes.sop_instance_uid for one in top.slices) if top else (),
    )


def _source_header(top: SeriesAnalysis | None, slices: Sequence[Slice]) -> bytes:
    """Return the header of the image shown, else of the first one that the model saw."""
    shown = () if top is None or top.shown is None else (top.shown[0],)
    seen = () if top is None else top.slices
    return next((one.source_header for one in (*shown, *seen, *slices)), b"")


def _identity(instances: Sequence[InstanceResult], manifest: Manifest) -> ModelIdentity | None:
    """Return the identity under which a model answered, or declined to answer, one of the images."""
    return next((i.model for i in instances if i.model is not None and i.model.id == manifest.id), None)


def _judge(
    instances: Sequence[InstanceResult], analyses: Sequence[SeriesAnalysis]
) -> tuple[AnalysisStatus, str | None]:
    """Return the study's status, and the reason for any but `analysed` with findings.

    A positive answer stands on the images that were read; a negative one needs nearly all of them.
    """
    counts = Counter(instance.status for instance in instances)
    refused, abstained = counts[AnalysisStatus.REFUSED], counts[AnalysisStatus.ABSTAINED]
    if not analyses and abstained:
        return AnalysisStatus.ABSTAINED, _reasons(instances)
    if not analyses:
        is_scope = counts[AnalysisStatus.OUT_OF_SCOPE] > 0 and refused == 0
        return AnalysisStatus.OUT_OF_SCOPE if is_scope else AnalysisStatus.REFUSED, _reasons(instances)
    if not analyses[0].findings and abstained:
        # Points were found on those images: that none could be rated is not that there were none.
        return AnalysisStatus.ABSTAINED, _reasons(instances)
    if analyses[0].is_unsure:
        return AnalysisStatus.ABSTAINED, NOT_SURE
    is_positive = any(finding.positive for finding in analyses[0].findings)
    # An image that is not sure by itself was read, and its probability is part of the series' answer.
    unsure = sum(instance.error_code == NOT_SURE_CODE for instance in instances)
    usable = counts[AnalysisStatus.ANALYSED] + unsure
    if not is_positive and too_few_usable(usable=usable, unusable=refused + abstained - unsure):
        return AnalysisStatus.ABSTAINED, f"too few images could be used: {_reasons(instances)}"
    return AnalysisStatus.ANALYSED, analyses[0].reason


def _reasons(instances: Sequence[InstanceResult]) -> str:
    """Return the commonest reasons why images have no answer, with their counts."""
    counts = Counter(i.reason for i in instances if i.reason is not None)
    commonest = counts.most_common(_REASONS_TOLD)
    told = [f"{reason} ({count} of {len(instances)} images)" for reason, count in commonest]
    return "; ".join(told) or "the study holds no images"
