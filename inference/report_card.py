"""The model card that goes with a Device: what the manifest says of the model, as Markdown.

Spec: HL7 AI Transparency 1.0.0-ballot, AI-ModelCard
"""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

from rayhook.fhir import codes
from rayhook.fhir.codes import DocumentReferenceStatus
from rayhook.inference.registry import Evaluation, Manifest
from rayhook.inference.statement import INVESTIGATIONAL

CARD_ID = "model-card"

_PROFILE = "http://hl7.org/fhir/uv/aitransparency/StructureDefinition/AI-ModelCard"


def build_model_card(manifest: Manifest) -> dict[str, Any]:
    """Return the card as a DocumentReference that a Device contains: it then needs no right of its own to be written.

    Spec: FHIR R4 references.html#contained
    """
    text = model_card_text(manifest).encode()
    digest = hashlib.sha1(text, usedforsecurity=False).digest()  # R4 says SHA-1; not for security
    return {
        "resourceType": "DocumentReference",
        "id": CARD_ID,
        "meta": {"profile": [_PROFILE]},
        "status": DocumentReferenceStatus.CURRENT.value,
        "type": codes.AI_MODEL_CARD.fixed(),
        "category": [codes.AI_MODEL_CARD_MARKDOWN.concept()],
        "description": f"Model card of {manifest.title}, version {manifest.version}",
        "content": [
            {
                "attachment": {
                    "contentType": "text/markdown",
                    "language": "en",
                    "data": base64.b64encode(text).decode("ascii"),
                    "size": len(text),
                    "hash": base64.b64encode(digest).decode("ascii"),
                    "title": f"{manifest.id}-{manifest.version}.md",
                }
            }
        ],
    }


def name_model_card(manifest: Manifest, device: str) -> dict[str, Any]:
    """Return the card without its text, which the Device `device` holds: its title, size and hash tell which it is."""
    card = build_model_card(manifest)
    (content,) = card["content"]
    attachment = {key: value for key, value in content["attachment"].items() if key != "data"}
    return {**card, "content": [{"attachment": attachment}], "context": {"related": [{"reference": device}]}}


def model_card_text(manifest: Manifest) -> str:
    """Return the card; every figure in it is the manifest's."""
    return "\n".join(_lines(manifest))


def _lines(manifest: Manifest) -> Iterator[str]:
    yield f"# {manifest.title}"
    yield ""
    yield f"{manifest.id}, version {manifest.version}, {manifest.status.value}. {INVESTIGATIONAL}"
    yield from _section("Intended use", [manifest.intended_use])
    yield from _section("Limits", [f"- {limit}" for limit in manifest.limits])
    yield from _section("Looks for", [f"- {label.finding.display}" for label in manifest.labels])
    for evaluation in manifest.evaluations:
        yield from _section(f"Measured on {evaluation.dataset}, {evaluation.subset}", _figures(evaluation))
    yield from _section("Training data", [manifest.training_data])
    yield from _section(
        "Source attributes, 45 CFR 170.315(b)(11)(iv)(B)",
        [f"{one.number}. {one.title}: {one.value}" for one in manifest.card],
    )
    yield from _section(
        "Files", [f"- weights SHA-256: {manifest.weights_sha256}", f"- licence: {manifest.licence}"]
    )


def _section(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield from ("", f"## {title}", "", *lines)


def _figures(evaluation: Evaluation) -> list[str]:
    counted = (
        f"{evaluation.count} {evaluation.unit}s of {evaluation.patients} patients, "
        f"{evaluation.positives} positive. {evaluation.limits}"
    )
    head = ["| figure | value | 95 % interval |", "| --- | --- | --- |"]
    rows = [
        f"| {name} | {one.value:.3f} | {one.low:.3f} to {one.high:.3f} |"
        for name, one in evaluation.estimates.items()
    ]
    return [counted.strip(), "", *head, *rows]
