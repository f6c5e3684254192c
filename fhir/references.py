"""FHIR references and ids, and the DICOM UIDs that FHIR carries as `urn:oid:`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rayhook.fhir.errors import InvalidRequest

DICOM_UID_SYSTEM = "urn:dicom:uid"
FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_OID_PREFIX = "urn:oid:"
_REFERENCE = re.compile(
    r"(?:(?P<base>https?://[^\s?#\\]+)/)?(?P<type>[A-Z][A-Za-z]{1,63})/(?P<id>[A-Za-z0-9\-.]{1,64})"
    r"(?:/_history/[A-Za-z0-9\-.]{1,64})?",
)
_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")
_UID_MAX_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Reference:
    """A literal reference to one resource; `base` is None for a relative one.

    Spec: FHIR R4, 2.3.0.1 "Literal References"
    """

    type: str
    id: str
    base: str | None = None

    def __str__(self) -> str:
        relative = f"{self.type}/{self.id}"
        return relative if self.base is None else f"{self.base}/{relative}"

    def is_at(self, base_url: str) -> bool:
        """Say whether this names a resource of the server at `base_url`."""
        return self.base is None or self.base == base_url.rstrip("/")


def parse_reference(text: str) -> Reference:
    """Read `Type/id`, or the same under an absolute base; a version is dropped.

    Raises InvalidRequest for anything else: fragments, `urn:uuid:`, queries.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or set(match["id"]) == {"."} or match["id"] == "..":
        raise InvalidRequest("a reference has to be Type/id, alone or under an http(s) base")
    return Reference(type=match["type"], id=match["id"], base=match["base"])


def reference_to(json: object, *types: str) -> Reference | None:
    """Read a Reference element; None where it is absent, unreadable or of a type not among `types`."""
    text = json.get("reference") if isinstance(json, Mapping) else None
    if not isinstance(text, str):
        return None
    try:
        reference = parse_reference(text)
    except InvalidRequest:
        return None
    return reference if not types or reference.type in types else None


def is_fhir_id(text: str) -> bool:
    """Spec: FHIR R4, 2.24.0.1, primitive type id. `.` and `..` are refused: they would change a URL."""
    return FHIR_ID.fullmatch(text) is not None and text not in {".", ".."}


def is_uid(text: str) -> bool:
    """Say whether `text` has the form of a DICOM UID.

    Spec: DICOM PS3.5 section 9.1
    """
    return len(text) <= _UID_MAX_LENGTH and _UID.fullmatch(text) is not None


def oid_uri(uid: str) -> str:
    """Return a DICOM UID as FHIR writes it.

    Spec: FHIR R4 ImagingStudy, "Notes" on identifiers
    """
    return _OID_PREFIX + uid


def uid_from_oid(text: str) -> str | None:
    """Return the UID in `urn:oid:…`, or in a bare value as some servers send it."""
    uid = text.removeprefix(_OID_PREFIX)
    return uid if is_uid(uid) else None


def study_uid_from_identifiers(identifiers: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the one Study Instance UID among `identifiers`, None where there is none.

    Raises InvalidRequest where two differ or one is malformed: which images are meant would be a guess.
    """
    values = [item.get("value") for item in identifiers if item.get("system") == DICOM_UID_SYSTEM]
    uids = {uid_from_oid(value) if isinstance(value, str) else None for value in values}
    if len(uids) > 1 or None in uids:
        raise InvalidRequest(
            "one well-formed Study Instance UID is needed among the identifiers",
            expression="ImagingStudy.identifier",
        )
    return uids.pop() if uids else None
