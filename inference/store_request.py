"""One STOW-RS transaction as it comes in: each instance judged and kept by itself, all of them counting at once.

Spec: DICOM PS3.18 10.5 (Store Transaction), I.2 (Store Instances Response Module), PS3.3 C.14.1.1 (Failure Reason)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import ImageRefused, ServiceUnavailable
from rayhook.fhir.references import is_uid, oid_uri
from rayhook.inference.arrival import Arrival, ArrivalWay, announce
from rayhook.inference.decode_limits import DecodeLimits
from rayhook.inference.dicom_header import Header, read_header
from rayhook.inference.instance_names import is_own_result
from rayhook.inference.multipart import Part
from rayhook.inference.received import InstanceName, ReceivedImages, Reception, SpooledFile

_DICOM: Final = "application/dicom"
_SOP_CLASS_UID: Final = 0x00080016
_SOP_INSTANCE_UID: Final = 0x00080018
_STUDY_INSTANCE_UID: Final = 0x0020000D
_DOES_NOT_MATCH: Final = 0xA900
_CANNOT_UNDERSTAND: Final = 0xC000
_DUPLICATE: Final = 0x0111
_OUT_OF_RESOURCES: Final = 0xA700
_KEEP_EVERY_S: Final = 60.0
_OK, _ACCEPTED, _CONFLICT = 200, 202, 409

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sender:
    """Who stores: `name` is a registered sender's id, or the client id of a token of the EHR."""

    ehr: EHR
    name: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one instance was not stored; without a name it could not even be told which."""

    reason: int
    name: InstanceName | None = None


@dataclass(slots=True, kw_only=True)
class StoreRequest:
    """Takes the parts one by one; `finish` makes them count, and says what became of each.

    study_instance_uid: that of the address, which all instances then have to be of.
    settle_s: how long a study has to be quiet before it is looked at.
    """

    received: ReceivedImages
    audit: AuditLog
    sender: Sender
    study_instance_uid: str | None
    settle_s: float
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    clock: Callable[[], float] = time.time
    _files: list[SpooledFile] = field(default_factory=list)
    _failures: list[Failure] = field(default_factory=list)
    _kept_at: float = 0.0

    def take(self, part: Part) -> None:
        """Raise ServiceUnavailable where the spool has no room: then nothing of the request may count."""
        if self.clock() - self._kept_at >= _KEEP_EVERY_S:
            self.received.keep(self._files)
            self._kept_at = self.clock()
        if part.is_too_long:
            self._failures.append(Failure(_OUT_OF_RESOURCES))
            return
        if part.media_type != _DICOM:
            self._failures.append(Failure(_CANNOT_UNDERSTAND))
            return
        try:
            name = _name(read_header(part.data, self.limits))
        except ImageRefused as error:
            log.info("received_instance_refused", code=error.code)
            self._failures.append(Failure(_CANNOT_UNDERSTAND))
            return
        if self.study_instance_uid not in (None, name.study_instance_uid):
            self._failures.append(Failure(_DOES_NOT_MATCH, name))
            return
        is_image = not is_own_result(part.data, self.limits)
        self._files.append(self.received.put(name, part.data, is_image=is_image))

    def finish(self) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer's data set, once all is committed.

        Raises ServiceUnavailable where a file is gone that was taken: the sender paused for too long.
        """
        done: list[SpooledFile] = []
        surplus: list[SpooledFile] = []
        failures = list(self._failures)
        with self.received.sessions() as session:
            # In one order, whoever sends: two that waited for each other would wait for ever.
            for file in sorted(self._files, key=lambda one: one.name.sop_instance_uid):
                reception = self.received.admit(session, self.sender.ehr.id, file)
                if reception is not Reception.STORED:
                    surplus.append(file)
                if reception is Reception.DIFFERS:
                    failures.append(Failure(_DUPLICATE, file.name))
                else:
                    done.append(file)
            studies = sorted({file.name.study_instance_uid for file in done if file.is_image})
            for study_instance_uid in studies:
                arrival = Arrival(
                    ehr_id=self.sender.ehr.id, way=ArrivalWay.STOW, study_instance_uid=study_instance_uid
                )
                announce(session, self.received.keyring, arrival, settle_s=self.settle_s, clock=self.clock)
            self.audit.record(session, self._entry(done, failures))
            if self.received.has_lost(self._files):
                raise ServiceUnavailable(
                    "what was sent first is not here any more", code="received_image_lost"
                )
            session.commit()
        # They count from now on, whatever happens to the request.
        self._files.clear()
        self.received.discard(surplus)
        log.info("instances_received", sender=self.sender.name, stored=len(done), refused=len(failures))
        return _status(done, failures), _answer(done, failures)

    def abandon(self) -> None:
        """Forget what was taken: the sender has to send all of it again."""
        self.received.discard(self._files)
        self._files.clear()

    def _entry(self, done: list[SpooledFile], failures: list[Failure]) -> AuditEntry:
        names = [*(file.name for file in done), *(one.name for one in failures if one.name is not None)]
        reasons = sorted({f"{failure.reason:04X}" for failure in failures})
        return AuditEntry(
            AuditKind.DICOMWEB_INSTANCES_RECEIVED if done else AuditKind.DICOMWEB_INSTANCES_REFUSED,
            Outcome.SUCCESS if not failures else Outcome.MINOR_FAILURE,
            ehr_id=self.sender.ehr.id,
            agent=self.sender.name,
            client_id=self.sender.name,
            entities=tuple(oid_uri(uid) for uid in sorted({name.study_instance_uid for name in names})),
            detail={"instances": str(len(done)), "refused": str(len(failures)), "reasons": " ".join(reasons)},
        )


def _name(header: Header) -> InstanceName:
    """Raise ImageRefused for a file that does not say which instance it is."""
    tags = (_STUDY_INSTANCE_UID, _SOP_CLASS_UID, _SOP_INSTANCE_UID)
    elements = header.walk.elements
    uids = [
        elements[tag].value(header.body).rstrip(b"\0 ").decode("latin-1") if tag in elements else ""
        for tag in tags
    ]
    if not all(map(is_uid, uids)):
        raise ImageRefused("a UID of the instance is missing or malformed", code="missing_attribute")
    return InstanceName(*uids)


def _status(done: list[SpooledFile], failures: list[Failure]) -> int:
    """Spec: DICOM PS3.18 table 10.5.3-1."""
    if not failures:
        return _OK
    return _ACCEPTED if done else _CONFLICT


def _answer(done: list[SpooledFile], failures: list[Failure]) -> dict[str, Any]:
    """Return the Store Instances Response in DICOM JSON; nothing can be retrieved here, so no URL says from where."""
    answer: dict[str, Any] = {"00081190": {"vr": "UR"}}
    if done:
        answer["00081199"] = {"vr": "SQ", "Value": [_reference(file.name) for file in done]}
    named = [_reference(one.name) | _reason(one) for one in failures if one.name is not None]
    if named:
        answer["00081198"] = {"vr": "SQ", "Value": named}
    nameless = [_reason(one) for one in failures if one.name is None]
    if nameless:
        answer["0008119A"] = {"vr": "SQ", "Value": nameless}
    return answer


def _reference(name: InstanceName) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [name.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [name.sop_instance_uid]},
    }


def _reason(failure: Failure) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [failure.reason]}}
