"""What a card says of a result that a radiologist signed: their word first, then what the model had said."""

from collections.abc import Iterator

from rayhook.cds_hooks.markdown import escape, one_line
from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.inference.answers import FindingValue
from rayhook.inference.review import SignedReview
from rayhook.inference.statement import probability_text
from rayhook.inference.study import StudyResult

_VALUES = {
    FindingValue.ABSENT: "not seen",
    FindingValue.PRESENT: "present",
    FindingValue.UNCERTAIN: "uncertain",
}
_DONE = {
    DiagnosticReportStatus.AMENDED: "Amended and signed",
    DiagnosticReportStatus.CORRECTED: "Corrected and signed",
    DiagnosticReportStatus.FINAL: "Signed",
}


def review_summary(review: SignedReview, result: StudyResult, study: str) -> str:
    """Return the card's summary: who said what, on which day."""
    if not review.is_issued:
        return fitted("The AI report was withdrawn by a radiologist on ", review.day, f": {study}")
    said = _named(review, result, FindingValue.PRESENT)
    start = f"Signed by a radiologist on {review.day}: "
    if said:
        return fitted(start, in_sentence(said[0]), f" present, on {study}")
    unsure = _named(review, result, FindingValue.UNCERTAIN)
    if unsure:
        return fitted(start, in_sentence(unsure[0]), f" uncertain, on {study}")
    return fitted(start, "no finding confirmed", f" on {study}; this does not exclude disease")


def review_detail(review: SignedReview, result: StudyResult) -> Iterator[str]:
    """Yield who signed, and each finding as they left it."""
    if not review.is_issued:
        yield (
            f"A radiologist ({escape(review.by)}) took the report back on {review.day}: disregard what the AI said "
            "of any finding. This says nothing about whether a finding is present."
        )
        return
    yield f"{_DONE[review.status]} by {escape(review.by)}, a radiologist, on {review.day}. Their word counts:"
    yield "\n".join(_rows(review, result))


def fitted(start: str, middle: str, end: str) -> str:
    """Return the three in at most 139 characters; the middle gives way."""
    room = 139 - len(start) - len(end)
    return start + (middle if len(middle) <= room else middle[: room - 1] + "…") + end


def in_sentence(display: str) -> str:
    """Return "neoplasm of brain" for "Neoplasm of brain", and "MRI finding" as it is; on one line, as a summary is."""
    line = one_line(display)
    return line[0].lower() + line[1:] if line[1:2].islower() else line


def _named(review: SignedReview, result: StudyResult, wanted: FindingValue) -> list[str]:
    found = [one.display for one in result.findings if review.values.get(one.code) is wanted]
    return found + [name for name, value in review.added if value is wanted]


def _rows(review: SignedReview, result: StudyResult) -> Iterator[str]:
    yield "| Finding | Radiologist | AI's calibrated probability |"
    yield "| --- | --- | --- |"
    for one in result.findings:
        value = review.values.get(one.code)
        said = "the AI's answer was rejected" if value is None else _VALUES[value]
        yield f"| {escape(one.display)} | {said} | {probability_text(one.probability)} |"
    for name, value in review.added:
        yield f"| {escape(name)} | {_VALUES[value]}, added | none |"
