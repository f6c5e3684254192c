"""The words of a report: its conclusion, its narratives and the page in `presentedForm`."""

from collections.abc import Iterator
from html import escape

from rayhook.inference.registry import Manifest
from rayhook.inference.statement import (
    NOTHING_TO_RATE,
    cautions,
    limits,
    marked,
    model_words,
    probability_text,
)
from rayhook.inference.study import AnalysisStatus, Finding, ModelIdentity, StudyResult

_NOT_ANALYSED = {
    AnalysisStatus.ABSTAINED: "No answer: the model declined to judge these images",
    AnalysisStatus.OUT_OF_SCOPE: "Not analysed: no model is meant for these images",
    AnalysisStatus.REFUSED: "Not analysed: the images could not be read",
}


def conclusion(result: StudyResult, manifest: Manifest | None) -> str:
    """Return the conclusion: what was found or why nothing can be said, for what, with which limits."""
    return "\n".join(_sentences(result, manifest))


def answer_sentence(finding: Finding, model: ModelIdentity | None) -> str:
    """Return one finding's answer; below the threshold is never worded as absence of disease."""
    side = "at or above" if finding.positive else "below"
    return (
        f"{finding.display}: probability {probability_text(finding.probability)}, "
        f"{side} the {model_words(model)}'s threshold of {finding.threshold:.3f}."
    )


def narrative(*sentences: str) -> dict[str, str]:
    """Return a Narrative of plain sentences.

    Spec: FHIR R4 narrative.html
    """
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{paragraphs}</div>'}


def report_title(model: ModelIdentity | None) -> str:
    """Return what the report is called."""
    return marked("AI analysis of imaging", model)


def report_page(result: StudyResult, manifest: Manifest | None) -> bytes:
    """Return the report as one HTML page that needs nothing else."""
    rows = "".join(_row(finding) for finding in result.findings)
    head = "<tr><th>Finding</th><th>Probability</th><th>Threshold</th><th>Answer</th></tr>"
    table = f"<table>{head}{rows}</table>" if rows else ""
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in _sentences(result, manifest))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>AI analysis</title></head>'
        f"<body><h1>{report_title(result.model)}</h1>{table}{paragraphs}</body></html>"
    ).encode()


def _sentences(result: StudyResult, manifest: Manifest | None) -> Iterator[str]:
    yield from _answers(result)
    yield from limits(result)
    if manifest is not None:
        title = marked(manifest.title, result.model)
        yield f"Model: {title}, version {manifest.version}. Intended use: {manifest.intended_use}"
        yield from manifest.limits
    yield from cautions(result.model)


def _answers(result: StudyResult) -> Iterator[str]:
    if result.status is not AnalysisStatus.ANALYSED:
        yield f"{_NOT_ANALYSED[result.status]} ({result.reason}). This says nothing about any finding."
        return
    if result.found_nothing_to_rate:
        yield NOTHING_TO_RATE
        return
    yield from (answer_sentence(finding, result.model) for finding in result.findings)
    if not any(finding.positive for finding in result.findings):
        yield "This does not exclude disease; the model looks for nothing else."
    if result.key_image is not None:
        yield (
            f"Shown best on the image with SOP Instance UID {result.key_image.sop_instance_uid} "
            f"of series {result.key_image.series_instance_uid}."
        )


def _row(finding: Finding) -> str:
    answer = "positive" if finding.positive else "below threshold"
    cells = (finding.display, probability_text(finding.probability), f"{finding.threshold:.3f}", answer)
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
