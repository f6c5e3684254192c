"""What can be said of one study at the time of a call."""

from dataclasses import dataclass
from enum import StrEnum

from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.review import SignedReview
from rayhook.inference.study import AnalysisStatus, StudyResult


class Topic(StrEnum):
    """What a card is about; its code in `source.topic`, by which a client can sort or hide cards."""

    ABSTAINED = "abstained"
    CANCELLED = "cancelled"
    DUPLICATE_IMAGING = "duplicate-imaging"
    FAILED = "failed"
    FINDING = "finding"
    FOLLOW_UP_DUE = "follow-up-due"
    GIVEN_UP = "given-up"
    IN_PROGRESS = "in-progress"
    INCOMPLETE = "incomplete"
    MODALITY = "modality"
    NO_FINDING = "no-finding"
    NOT_BEGUN = "not-begun"
    NOTHING_TO_RATE = "nothing-to-rate"
    OUT_OF_SCOPE = "out-of-scope"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAnswer:
    """One study with its finished result, or with why there is none (`code`, a stable snake_case word).

    review: what a radiologist signed; the result's findings are then positive by their word, not the model's.
    """

    study: ImagingStudySummary
    topic: Topic
    result_id: str | None = None
    result: StudyResult | None = None
    review: SignedReview | None = None
    code: str | None = None


def topic_of(result: StudyResult, review: SignedReview | None = None) -> Topic:
    if review is not None:
        if not review.is_issued:
            return Topic.WITHDRAWN
        return Topic.FINDING if review.is_open else Topic.NO_FINDING
    if result.found_nothing_to_rate:
        return Topic.NOTHING_TO_RATE
    if result.status is AnalysisStatus.ANALYSED:
        return Topic.FINDING if any(finding.positive for finding in result.findings) else Topic.NO_FINDING
    return _TOPICS[result.status]


_TOPICS = {
    AnalysisStatus.ABSTAINED: Topic.ABSTAINED,
    AnalysisStatus.OUT_OF_SCOPE: Topic.OUT_OF_SCOPE,
    AnalysisStatus.REFUSED: Topic.REFUSED,
}
