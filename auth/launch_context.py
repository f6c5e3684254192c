"""What the EHR says of the circumstances of a launch, beside the patient.

Spec: SMART App Launch 2.2.0, "Launch context arrives with your access_token", "fhirContext"
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from rayhook.fhir.errors import InvalidRequest
from rayhook.fhir.references import (
    DICOM_UID_SYSTEM,
    Reference,
    is_fhir_id,
    is_uid,
    parse_reference,
    uid_from_oid,
)

LAUNCH_ROLE = "launch"
_MAX_ITEMS = 50
_MAX_TEXT = 2048


class ContextIdentifier(msgspec.Struct, frozen=True):
    system: str | None = None
    value: str | None = None


class ContextItem(msgspec.Struct, frozen=True):
    """One item of `fhirContext`: it names a resource by reference, canonical or identifier.

    An absent role is "launch": what the user was looking at when the app was opened.
    """

    reference: str | None = None
    canonical: str | None = None
    identifier: ContextIdentifier | None = None
    type: str | None = None
    role: str = LAUNCH_ROLE

    @property
    def target(self) -> Reference | None:
        try:
            return None if self.reference is None else parse_reference(self.reference)
        except InvalidRequest:
            return None


class LaunchContext(msgspec.Struct, frozen=True, kw_only=True):
    """`style_url` is as the EHR gave it: it may be relative, and nobody has checked where it leads."""

    encounter_id: str | None = None
    items: tuple[ContextItem, ...] = ()
    intent: str | None = None
    tenant: str | None = None
    style_url: str | None = None

    def __repr__(self) -> str:
        """References tell of a patient."""
        return "LaunchContext(...)"

    def study_ids(self, fhir_base_url: str) -> frozenset[str]:
        """Return the ids of the ImagingStudy resources on the EHR's own base that were being looked at."""
        return frozenset(
            target.id
            for item in self._looked_at()
            if (target := item.target) and target.type == "ImagingStudy" and target.is_at(fhir_base_url)
        )

    def study_instance_uids(self) -> frozenset[str]:
        """Return the Study Instance UIDs of the studies that were named by identifier."""
        return frozenset(uid for item in self._looked_at() for uid in _study_uids(item))

    def _looked_at(self) -> Iterator[ContextItem]:
        return (item for item in self.items if item.role == LAUNCH_ROLE)


def read_context(answer: Any) -> LaunchContext:
    """Read a token response's context; what is malformed is left out, for a launch does not hang on it."""
    encounter = _text(answer.get("encounter"))
    return LaunchContext(
        encounter_id=encounter if encounter is not None and is_fhir_id(encounter) else None,
        items=tuple(_items(answer.get("fhirContext"))),
        intent=_text(answer.get("intent")),
        tenant=_text(answer.get("tenant")),
        style_url=_text(answer.get("smart_style_url")),
    )


def _items(value: object) -> Iterator[ContextItem]:
    for item in value[:_MAX_ITEMS] if isinstance(value, list) else ():
        try:
            read = msgspec.convert(item, ContextItem)
        except msgspec.ValidationError:
            continue
        if any((read.reference, read.canonical, read.identifier)):
            yield read


def _study_uids(item: ContextItem) -> Iterable[str]:
    identifier = item.identifier
    if identifier is None or item.type not in {None, "ImagingStudy"} or identifier.system != DICOM_UID_SYSTEM:
        return ()
    uid = uid_from_oid(identifier.value or "")
    return (uid,) if uid is not None and is_uid(uid) else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_TEXT else None
