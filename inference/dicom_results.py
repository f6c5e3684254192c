"""A result's DICOM objects: made, and brought to the PACS beside the study's own images."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING

import structlog

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import RayhookError, Unprocessable
from rayhook.fhir.references import oid_uri
from rayhook.fhir.transport import Transport, origin_of
from rayhook.inference.dicom_table import ObjectNames, StoredObject, StoreState, begin, end
from rayhook.inference.dicom_uid import ObjectKind
from rayhook.inference.dicomweb_store import Storable, StoreLimits, StoreOutcome, store_instances
from rayhook.inference.outbox import Errand, begin_errand
from rayhook.inference.registry import Manifest
from rayhook.inference.review_text import person_text
from rayhook.inference.signature import Signature
from rayhook.inference.study import StudyReference, StudyResult

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from rayhook.inference.structured_report import Review

# What highdicom raises for a header that it cannot work with.
_BUILD_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DICOMObject:
    """One object as a file, with what names it."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    data: bytes = field(repr=False)

    def names(self, url: str) -> ObjectNames:
        return ObjectNames(
            self.sop_class_uid, self.sop_instance_uid, self.series_instance_uid, self.study_instance_uid, url
        )


def build_objects(
    header: bytes,
    result: StudyResult,
    manifest: Manifest | None,
    *,
    organization: str,
    kinds: Iterable[str],
) -> list[DICOMObject]:
    """Return the objects of these kinds that the result has.

    There are none where no model saw the study, and map and picture only where an image is shown.
    Raises Unprocessable where the image's header does not allow it.
    """
    # Here, as highdicom takes a second to import, and the service can do without it until a result is stored.
    from rayhook.inference.dicom_identity import open_source
    from rayhook.inference.parametric_map import build_parametric_map
    from rayhook.inference.secondary_capture import build_secondary_capture
    from rayhook.inference.structured_report import build_structured_report

    image = result.key_image
    wanted = frozenset(kinds)
    try:
        source = open_source(header, result, manifest, organization=organization)
        if source is None:
            return []
        made: dict[str, Dataset | None] = {}
        if ObjectKind.SR in wanted:
            made[ObjectKind.SR] = build_structured_report(source)
        if ObjectKind.PARAMETRIC_MAP in wanted and image is not None and image.heat is not None:
            made[ObjectKind.PARAMETRIC_MAP] = build_parametric_map(source, image.heat)
        if ObjectKind.SECONDARY_CAPTURE in wanted and image is not None:
            made[ObjectKind.SECONDARY_CAPTURE] = build_secondary_capture(source, image)
    except _BUILD_ERRORS as error:
        raise _not_made(error) from None
    return [as_object(kind, dataset) for kind, dataset in made.items() if dataset is not None]


def build_verified(
    header: bytes,
    result: StudyResult,
    manifest: Manifest | None,
    *,
    organization: str,
    review: "Review",
    predecessor: ObjectNames,
) -> list[DICOMObject]:
    """Return the report that a person signed, as a new instance. Raises Unprocessable as build_objects does."""
    from rayhook.inference.dicom_identity import open_source
    from rayhook.inference.verified_report import build_verified_report

    try:
        source = open_source(header, result, manifest, organization=organization)
        made = None if source is None else build_verified_report(source, review, predecessor)
    except _BUILD_ERRORS as error:
        raise _not_made(error) from None
    return [] if made is None else [as_object(ObjectKind.VERIFIED_SR, made)]


def build_note(
    header: bytes,
    result: StudyResult,
    manifest: Manifest | None,
    *,
    organization: str,
    withdrawal: Signature,
    objects: Sequence[StoredObject],
) -> list[DICOMObject]:
    """Return the note that rejects objects of a result whose report a person took back, none without objects.

    Raises Unprocessable as build_objects does.
    """
    from rayhook.inference.dicom_identity import open_source
    from rayhook.inference.rejection_note import build_rejection_note

    try:
        source = open_source(header, result, manifest, organization=organization)
        if source is None or not objects:
            return []
        made = build_rejection_note(
            source,
            objects,
            name=person_text(withdrawal.act.by),
            at=datetime.fromtimestamp(withdrawal.at, UTC),
            version=withdrawal.version,
        )
    except _BUILD_ERRORS as error:
        raise _not_made(error) from None
    return [as_object(ObjectKind.REJECTION_NOTE, made)]


def _not_made(error: Exception) -> Unprocessable:
    """The cause is told by its type alone: its words may quote the patient's attributes."""
    return Unprocessable(f"the DICOM objects cannot be made ({type(error).__name__})", code="dicom_not_made")


def as_object(kind: str, dataset: "Dataset") -> DICOMObject:
    """Return a data set as a file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return DICOMObject(
        kind=str(kind),
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        data=buffer.getvalue(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStore:
    """Brings objects to the PACS of an EHR; what comes of it is told in rows and in the audit, never raised.

    Nothing here can lose a result: it is stored before, and what fails is tried again with a later token.
    """

    transport: Transport
    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    agent: str
    limits: StoreLimits = field(default_factory=StoreLimits)
    clock: Callable[[], float] = time.time

    def store(
        self,
        ehr: EHR,
        reference: StudyReference,
        result_id: str,
        objects: Iterable[DICOMObject],
        *,
        access_token: str | None,
        trouble: str | None = None,
    ) -> tuple[ObjectNames, ...]:
        """Store those that the PACS lacks and return the names of those that this call brought there.

        trouble: what keeps a token of our own from us for now, as its error's code.
        """
        url = store_url(ehr, reference)
        token = access_token if _takes_token(reference, url) else None
        lacks_token = _takes_token(reference, url) and token is None
        named = [(one, one.names(url)) for one in objects]
        with self.sessions() as session:
            begun = begin(
                session,
                self.keyring,
                result_id,
                [(one.kind, names) for one, names in named],
                ehr_id=ehr.id,
                counts=not lacks_token or trouble is not None,
                clock=self.clock,
            )
            session.commit()
        sent = [one for one, _ in named if one.sop_instance_uid in begun]
        if not sent:
            return ()
        if lacks_token:
            missing = StoreOutcome(StoreState.FAILED, trouble or "authorization_missing")
            outcomes: Mapping[str, StoreOutcome] = {one.sop_instance_uid: missing for one in sent}
        else:
            outcomes = self._send(ehr, reference, url, sent, token)
        self._record(reference, result_id, sent, outcomes=outcomes, begun=begun, peer=origin_of(url))
        return tuple(
            names
            for one, names in named
            if one.sop_instance_uid in begun and outcomes[one.sop_instance_uid].state is StoreState.STORED
        )

    def told_unmade(self, reference: StudyReference, code: str) -> None:
        """Audit that a result's objects could not be made."""
        with self.sessions() as session:
            self.audit.record(
                session, _entry(reference, AuditKind.DICOMWEB_RESULT_FAILED, self.agent, (), {"code": code})
            )
            session.commit()
        log.warning("dicom_results_not_made", code=code)

    def _send(
        self,
        ehr: EHR,
        reference: StudyReference,
        url: str,
        sent: list[DICOMObject],
        token: str | None,
    ) -> Mapping[str, StoreOutcome]:
        try:
            return store_instances(
                self.transport,
                url,
                reference.study_instance_uid,
                [Storable(one.sop_instance_uid, one.data) for one in sent],
                allowed_origins=ehr.stow_origins,
                access_token=token,
                limits=self.limits,
            )
        except RayhookError as error:
            refused = StoreOutcome(StoreState.REFUSED, error.code)
            return {one.sop_instance_uid: refused for one in sent}

    def _record(
        self,
        reference: StudyReference,
        result_id: str,
        sent: list[DICOMObject],
        *,
        outcomes: Mapping[str, StoreOutcome],
        begun: Mapping[str, str],
        peer: str,
    ) -> None:
        stored = [one for one in sent if outcomes[one.sop_instance_uid].state is StoreState.STORED]
        failed = [one for one in sent if one not in stored]
        with self.sessions() as session:
            for one in sent:
                outcome = outcomes[one.sop_instance_uid]
                end(
                    session,
                    begun[one.sop_instance_uid],
                    outcome.state,
                    outcome.failure,
                    clock=self.clock,
                )
            if stored:
                begin_errand(session, result_id, Errand.LINKS, now=self.clock())
                kinds = {"kinds": ",".join(one.kind for one in stored)}
                kind = AuditKind.DICOMWEB_RESULT_STORED
                self.audit.record(session, _entry(reference, kind, self.agent, stored, kinds, peer=peer))
            if failed:
                codes = sorted({outcomes[one.sop_instance_uid].failure or "" for one in failed})
                detail = {"kinds": ",".join(one.kind for one in failed), "code": ",".join(codes)}
                kind = AuditKind.DICOMWEB_RESULT_FAILED
                self.audit.record(session, _entry(reference, kind, self.agent, failed, detail, peer=peer))
            session.commit()
        log.info("dicom_results_stored", stored=len(stored), failed=len(failed))


def store_url(ehr: EHR, reference: StudyReference) -> str:
    """Return the DICOMweb base at which a study's results are stored."""
    return (ehr.stow_url or reference.dicomweb_url).rstrip("/")


def _takes_token(reference: StudyReference, url: str) -> bool:
    """Return whether the EHR's token goes along: only to the server that asks for it when images are read."""
    return reference.token_required and origin_of(url) == origin_of(reference.dicomweb_url)


def _entry(
    reference: StudyReference,
    kind: AuditKind,
    agent: str,
    objects: Iterable[DICOMObject],
    detail: Mapping[str, str],
    *,
    peer: str | None = None,
) -> AuditEntry:
    failed = kind is AuditKind.DICOMWEB_RESULT_FAILED
    return AuditEntry(
        kind,
        Outcome.SERIOUS_FAILURE if failed else Outcome.SUCCESS,
        ehr_id=reference.ehr_id,
        agent=agent,
        patient_id=reference.patient_id,
        entities=(
            f"Patient/{reference.patient_id}",
            f"ImagingStudy/{reference.imaging_study_id}",
            oid_uri(reference.study_instance_uid),
            *(oid_uri(one.sop_instance_uid) for one in objects),
        ),
        detail=detail,
        peer=peer,
    )
