"""The words of a report that people answered and signed."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from rayhook.fhir.codes import DiagnosticReportStatus as Report
from rayhook.inference.answers import (
    AnswerAction,
    Answers,
    FindingAnswer,
    FindingValue,
    Person,
)
from rayhook.inference.registry import Manifest
from rayhook.inference.report_text import report_title
from rayhook.inference.signature import Act, SignAct
from rayhook.inference.statement import (
    NOTHING_TO_RATE,
    cautions,
    limits,
    marked,
    model_words,
    probability_text,
)
from rayhook.inference.study import Finding, StudyResult

_DONE = {
    SignAct.AMEND: "Amended and signed",
    SignAct.CORRECT: "Corrected and signed",
    SignAct.SIGN: "Reviewed and signed",
    SignAct.WITHDRAW: "Withdrawn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedResult:
    """A result with what people said of it, and the act that it is signed by. `at`: seconds since the epoch."""

    result: StudyResult
    answers: Answers
    act: Act
    at: float
    manifest: Manifest | None


def review_sentences(reviewed: ReviewedResult) -> tuple[str, ...]:
    """Return the conclusion: who signed, what counts of each finding and whose word it is, with which limits."""
    return tuple(_sentences(reviewed))


def review_page(reviewed: ReviewedResult) -> bytes:
    """Return the report as one HTML page that needs nothing else."""
    title = report_title(reviewed.result.model)
    head = "<tr><th>Finding</th><th>Answer</th><th>By</th><th>Model's probability</th><th>Threshold</th></tr>"
    body = "".join(_rows(reviewed))
    table = f"<table>{head}{body}</table>" if body else ""
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in _sentences(reviewed))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Reviewed AI analysis</title></head>'
        f"<body><h1>{escape(title)}, reviewed</h1><p>Status: {reviewed.act.status}</p>"
        f"{table}{paragraphs}</body></html>"
    ).encode()


def answered_sentence(finding: Finding | None, answer: FindingAnswer, *, model: str = "model") -> str:
    """Return what counts of one finding, and whose word it is."""
    name = answer.draft.display if finding is None else finding.display
    who, why = person_text(answer.by), _why(answer)
    value = answer.value_of(finding)
    if finding is None:
        if value is None:
            return f"{name}: added and taken back by {who}."
        return f"{name}: {value_text(value)}{_place(answer)}, added by {who}{why}. The {model} did not report it."
    said = _said(finding, model)
    if answer.action is AnswerAction.REJECTED or value is None:
        return f"{name}: no statement. {who} rejected the {model}'s answer{why}."
    if answer.action is AnswerAction.ACCEPTED:
        return f"{name}: {value_text(value)}. {said}, which {who} accepted."
    return f"{name}: {value_text(value)}{_place(answer)}, as edited by {who}{why}. {said}."


def value_text(value: FindingValue) -> str:
    """Return the value in the words of a report."""
    return {FindingValue.ABSENT: "not seen", FindingValue.PRESENT: "present"}.get(value, "uncertain")


def person_text(person: Person) -> str:
    """Return the name of who acted, or the reference where no name is known."""
    return person.name or person.fhir_user


def day_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _sentences(reviewed: ReviewedResult) -> Iterator[str]:
    act, result = reviewed.act, reviewed.result
    why = f": {act.reason}" if act.reason else ""
    yield f"{_DONE[act.act]} by {person_text(act.by)} on {day_of(reviewed.at)}{why}."
    if act.act is SignAct.WITHDRAW:
        yield "This report does not stand: disregard what it said of any finding."
        return
    if act.status is Report.CANCELLED:
        yield "Nothing of the model's answer was accepted: this report makes no statement of its findings."
    words = model_words(result.model)
    latest = reviewed.answers.latest
    for finding in result.findings:
        if (answer := latest.get(finding.code)) is not None:
            yield answered_sentence(finding, answer, model=words)
    for answer in reviewed.answers.added:
        yield answered_sentence(None, answer, model=words)
    if result.found_nothing_to_rate:
        yield NOTHING_TO_RATE
    yield from _comments(reviewed)
    yield from limits(result)
    if reviewed.manifest is not None:
        manifest = reviewed.manifest
        title = marked(manifest.title, result.model)
        yield f"Model: {title}, version {manifest.version}. Intended use: {manifest.intended_use}"
        yield from manifest.limits
    yield from cautions(result.model)


def _comments(reviewed: ReviewedResult) -> Iterator[str]:
    for answer in reviewed.answers.latest.values():
        if answer.draft.comment and answer.action is not AnswerAction.WITHDRAWN:
            yield f"{person_text(answer.by)}: {answer.draft.comment}"


def _said(finding: Finding, model: str) -> str:
    side = "at or above" if finding.positive else "below"
    return (
        f"The {model} gave a probability of {probability_text(finding.probability)}, "
        f"{side} its threshold of {finding.threshold:.3f}"
    )


def _why(answer: FindingAnswer) -> str:
    reason = "" if answer.draft.reason is None else answer.draft.reason.value.replace("-", " ")
    told = ": ".join(filter(None, (reason, answer.draft.text.strip())))
    return f" ({told})" if told else ""


def _place(answer: FindingAnswer) -> str:
    draft = answer.draft
    side = "" if draft.laterality is None else draft.laterality.value
    size = "" if draft.size_mm is None else f"{draft.size_mm:g} mm"
    told = ", ".join(filter(None, (draft.site.strip(), side, size)))
    return f" ({told})" if told else ""


def _rows(reviewed: ReviewedResult) -> Iterator[str]:
    latest = reviewed.answers.latest
    for finding in reviewed.result.findings:
        if (answer := latest.get(finding.code)) is not None:
            figures = (probability_text(finding.probability), f"{finding.threshold:.3f}")
            yield _row(finding.display, answer, answer.value_of(finding), *figures)
    for answer in reviewed.answers.added:
        yield _row(answer.draft.display, answer, answer.value_of(None), "none", "none")


def _row(name: str, answer: FindingAnswer, value: FindingValue | None, *figures: str) -> str:
    said = "rejected" if value is None else f"{value_text(value)} ({answer.action})"
    cells = (name, said, person_text(answer.by), *figures)
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
