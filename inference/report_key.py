"""The identifiers of a result's resources: the same for the same images under the same model, anywhere."""

import hashlib
import uuid
from dataclasses import dataclass

import rfc8785

from rayhook.inference.study import ModelIdentity, StudyReference, StudyResult

MODEL_SYSTEM = "urn:rayhook:model"
RESULT_SYSTEM = "urn:rayhook:result"

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:rayhook:resource")


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """An identifier of ours, and the id that the resource has at our own FHIR endpoint."""

    system: str
    value: str

    @property
    def id(self) -> str:
        """Return the logical id, which is a UUID."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.system}|{self.value}"))

    @property
    def identifier(self) -> dict[str, str]:
        """Return the FHIR Identifier."""
        return {"system": self.system, "value": self.value}


def model_key(model: ModelIdentity) -> ResourceKey:
    """Return the key of the Device: other weights, another manifest or another finder are another device."""
    files = [model.weights_sha256, model.manifest_sha256]
    if model.finder is not None:
        files += [model.finder.weights_sha256, model.finder.manifest_sha256]
    return ResourceKey(MODEL_SYSTEM, ":".join([model.id, model.version, *filter(None, files)]))


def result_key(reference: StudyReference, result: StudyResult, part: str) -> ResourceKey:
    """Return the key of one part of a result.

    The images stand for themselves by their UIDs and by what they came to: other pixels under a known
    UID give another result, and so another key.
    """
    content = {
        "fhir_base_url": reference.fhir_base_url,
        "imaging_study_id": reference.imaging_study_id,
        "patient_id": reference.patient_id,
        "study_instance_uid": result.study_instance_uid,
        "model": None if result.model is None else model_key(result.model).value,
        "instances": sorted([i.sop_instance_uid or "", i.status.value] for i in result.instances),
        "findings": [[f.code, f"{f.probability:.3f}"] for f in result.findings],
    }
    return ResourceKey(RESULT_SYSTEM, f"{hashlib.sha256(rfc8785.dumps(content)).hexdigest()}.{part}")
