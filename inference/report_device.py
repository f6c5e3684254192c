"""Who made a result: the Device that the model is, and the Provenance that binds results to it."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from rayhook.fhir import codes
from rayhook.fhir.codes import DeviceNameType, DeviceStatus, ProvenanceEntityRole
from rayhook.fhir.references import DICOM_UID_SYSTEM, oid_uri
from rayhook.inference.registry import Manifest
from rayhook.inference.report_card import CARD_ID, build_model_card, name_model_card
from rayhook.inference.report_key import model_key
from rayhook.inference.report_observation import Subject, tag_of
from rayhook.inference.report_text import narrative
from rayhook.inference.statement import cautions, is_experimental, marked
from rayhook.inference.study import AnalysisStatus, ModelIdentity

Resource = dict[str, Any]

_PROFILES = "http://hl7.org/fhir/uv/aitransparency/StructureDefinition"
_SEEN = frozenset({AnalysisStatus.ABSTAINED, AnalysisStatus.ANALYSED})


def build_device(model: ModelIdentity, manifest: Manifest | None, *, organization: str) -> Resource:
    """Return the model as a Device; other weights are another Device.

    Spec: HL7 AI Transparency 1.0.0-ballot, AI-Device
    """
    key = model_key(model)
    title = marked(manifest.title if manifest else model.id, model)
    safety = ["Investigational", *(["Experimental"] if is_experimental(model) else [])]
    return {
        "resourceType": "Device",
        "id": key.id,
        "meta": {"profile": [f"{_PROFILES}/AI-Device"], "tag": [tag_of(key)]},
        "text": narrative(f"{title}, version {model.version}", *cautions(model)),
        **({"contained": [build_model_card(manifest)]} if manifest else {}),
        "extension": list(_extensions(manifest)),
        "identifier": [key.identifier],
        "status": DeviceStatus.ACTIVE.value,
        "manufacturer": "The Rayhook authors",
        "deviceName": [{"name": title, "type": DeviceNameType.MODEL_NAME.value}],
        "modelNumber": model.id,
        "type": codes.ARTIFICIAL_INTELLIGENCE.fixed(),
        "version": list(_versions(model)),
        "owner": {"type": "Organization", "display": organization},
        "note": [{"text": caution} for caution in cautions(model)],
        "safety": [{"text": said} for said in safety],
    }


def build_provenance(
    subject: Subject,
    model: ModelIdentity,
    targets: Sequence[Resource],
    *,
    manifest: Manifest | None,
    organization: str,
) -> Resource:
    """Return what made `targets`, from which images, and the card of what made them.

    Spec: HL7 AI Transparency 1.0.0-ballot, AI-Provenance
    """
    key = subject.key("provenance")
    device = f"Device/{model_key(model).id}"
    return {
        "resourceType": "Provenance",
        "id": key.id,
        "meta": {
            "profile": [f"{_PROFILES}/AI-Provenance"],
            "security": [codes.AI_ASSERTED.json()],
            "tag": [tag_of(key)],
        },
        "text": narrative("Made by a neural network from the images named here.", *cautions(model)),
        **({"contained": [name_model_card(manifest, device)]} if manifest else {}),
        "target": [{"reference": f"{target['resourceType']}/{target['id']}"} for target in targets],
        "occurredDateTime": subject.issued,
        "recorded": subject.issued,
        "reason": [codes.AI_ASSERTED.concept(), codes.TREATMENT.concept()],
        "activity": codes.CREATE.concept(),
        "agent": [
            {
                "type": codes.AUTHOR.concept(),
                "role": [codes.ARTIFICIAL_INTELLIGENCE.fixed()],
                "who": {"reference": device},
                "onBehalfOf": {"type": "Organization", "display": organization},
            }
        ],
        "entity": [*_sources(subject), *_cards(manifest)],
    }


def _extensions(manifest: Manifest | None) -> Iterator[Resource]:
    yield {"url": codes.AI_KIND_EXTENSION, "valueCodeableConcept": codes.DEEP_LEARNING_MODEL.concept()}
    if manifest is not None:
        yield {"url": codes.AI_MODEL_CARD_EXTENSION, "valueReference": {"reference": f"#{CARD_ID}"}}


def _versions(model: ModelIdentity) -> Iterator[Resource]:
    yield {"type": {"text": "model"}, "value": model.version}
    yield {"type": {"text": "weights SHA-256"}, "value": model.weights_sha256}
    if model.manifest_sha256:
        yield {"type": {"text": "manifest SHA-256"}, "value": model.manifest_sha256}
    if model.finder is not None:
        yield {"type": {"text": f"{model.finder.id} weights SHA-256"}, "value": model.finder.weights_sha256}
    yield {"type": {"text": "Rayhook"}, "value": version("rayhook")}


def _cards(manifest: Manifest | None) -> Iterator[Resource]:
    if manifest is not None:
        yield {"role": ProvenanceEntityRole.DERIVATION.value, "what": {"reference": f"#{CARD_ID}"}}


def _sources(subject: Subject) -> Iterator[Resource]:
    """Yield the study, then each image that the model saw."""
    role = ProvenanceEntityRole.SOURCE.value
    yield {"role": role, "what": {"reference": f"ImagingStudy/{subject.reference.imaging_study_id}"}}
    for instance in subject.result.instances:
        if instance.status in _SEEN and instance.sop_instance_uid is not None:
            identifier = {"system": DICOM_UID_SYSTEM, "value": oid_uri(instance.sop_instance_uid)}
            yield {"role": role, "what": {"identifier": identifier}}
