"""From a stored result to objects at the PACS and their links at the EHR: after the report, and never before it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import RayhookError, Unprocessable, UpstreamRefused, UpstreamUnauthorized
from rayhook.fhir.references import oid_uri
from rayhook.fhir.transport import Transport
from rayhook.inference.analysis import Analyser
from rayhook.inference.answers import Answers, FindingValue, load_answers
from rayhook.inference.authority import Authority
from rayhook.inference.dicom_links import LINKED, build_links, may_link, write_links
from rayhook.inference.dicom_results import (
    DICOMObject,
    ObjectStore,
    build_note,
    build_objects,
    build_verified,
    store_url,
)
from rayhook.inference.dicom_table import (
    ObjectNames,
    StoredObject,
    StoreState,
    count_untried,
    drop_source,
    give_up,
    load_objects,
    load_source,
    results_beside,
    set_linked,
    unlinked,
)
from rayhook.inference.dicom_uid import ObjectKind
from rayhook.inference.dicomweb_store import StoreLimits
from rayhook.inference.job_table import Authorization
from rayhook.inference.outbox import Errand, end_errand, put_off
from rayhook.inference.results import StoredResult
from rayhook.inference.review_text import person_text
from rayhook.inference.signature import Signature, is_withdrawn, load_signatures
from rayhook.inference.study import StudyReference, StudyResult

if TYPE_CHECKING:
    from rayhook.inference.structured_report import Review


log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectDelivery:
    """Makes and stores the objects that an EHR's registration asks for."""

    transport: Transport
    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    analyser: Analyser
    organization: str
    agent: str
    authority: Authority = field(default_factory=Authority)
    limits: StoreLimits = field(default_factory=StoreLimits)
    clock: Callable[[], float] = time.time

    @property
    def store(self) -> ObjectStore:
        return ObjectStore(
            transport=self.transport,
            sessions=self.sessions,
            keyring=self.keyring,
            audit=self.audit,
            agent=self.agent,
            limits=self.limits,
            clock=self.clock,
        )

    def deliver(
        self,
        ehr: EHR,
        reference: StudyReference,
        result_id: str,
        result: StudyResult,
        authorization: Authorization | None,
        *,
        written: Sequence[str] = (),
    ) -> None:
        """Make the objects of a result, store those that the PACS lacks, and tell the EHR of them.

        written: the EHR's own references to the report, as far as they are known.
        Raises ServiceUnavailable where the database or the audit cannot be written.
        """
        if not ehr.dicom_results or not result.source_header or self._is_withdrawn(result_id):
            return
        try:
            objects = build_objects(
                result.source_header,
                result,
                self.analyser.manifest_of(result.model),
                organization=self.organization,
                kinds=ehr.dicom_results,
            )
        except Unprocessable as error:
            self.store.told_unmade(reference, error.code)
            objects = []
        if not objects:
            self._forget(result_id)
            return
        self._store(
            ehr, reference, result_id, result, objects=objects, authorization=authorization, written=written
        )

    def _store(
        self,
        ehr: EHR,
        reference: StudyReference,
        result_id: str,
        result: StudyResult,
        *,
        objects: Sequence[DICOMObject],
        authorization: Authorization | None,
        written: Sequence[str] = (),
    ) -> None:
        """Store the objects, and link what is newly there; a link that fails is told in the log and the audit."""
        token = self.authority.choose(ehr, authorization, lambda _: True)
        stored = self.store.store(
            ehr,
            reference,
            result_id,
            objects,
            access_token=token.access_token if token else None,
            trouble=None if token else self.authority.trouble(ehr),
        )
        if stored:
            self._link(ehr, reference, result_id, result, authorization=authorization, written=written)

    def link_again(self, ehr: EHR, stored: StoredResult, authorization: Authorization | None) -> None:
        """Tell the EHR of objects that it was not told of; the errand is the caller's."""
        self._link(ehr, stored.reference, stored.id, stored.result, authorization=authorization)

    def _link(
        self,
        ehr: EHR,
        reference: StudyReference,
        result_id: str,
        result: StudyResult,
        *,
        authorization: Authorization | None,
        written: Sequence[str] = (),
    ) -> None:
        """Tell the EHR where its new objects are; what fails is told in the log and the audit, and tried again."""
        with self.sessions() as session:
            new = unlinked(session, self.keyring, result_id)
        is_told = not self._is_withdrawn(result_id)
        objects = [one for one in new if is_told and one.kind in LINKED]
        if not objects or not self.authority.permits(ehr, authorization, may_link):
            self._end_unlinked(ehr, result_id, is_left=bool(objects))
            return
        links = build_links(
            reference,
            result,
            [(one.kind, one.names) for one in objects],
            written=written,
            organization=self.organization,
        )
        code = None
        try:
            self.authority.call(
                ehr,
                authorization,
                may_link,
                lambda writer: write_links(self.transport, ehr, reference, writer, links),
            )
        except RayhookError as error:
            code = error.code
            log.warning("dicom_links_not_written", code=code)
            is_refused = isinstance(error, UpstreamRefused) and not isinstance(error, UpstreamUnauthorized)
        with self.sessions() as session:
            if code is None:
                set_linked(session, objects, now=self.clock())
            if code is None or is_refused:
                end_errand(session, result_id, Errand.LINKS)
            else:
                is_due = self.authority.has_own(ehr)
                put_off(session, result_id, Errand.LINKS, now=self.clock(), is_due=is_due)
            self.audit.record(session, _link_entry(reference, objects, code, self.agent))
            session.commit()

    def _end_unlinked(self, ehr: EHR, result_id: str, *, is_left: bool) -> None:
        """Where our own token may permit it later, the errand stays; else the EHR takes no links."""
        with self.sessions() as session:
            if is_left and self.authority.has_own(ehr):
                put_off(session, result_id, Errand.LINKS, now=self.clock(), is_due=True)
            else:
                end_errand(session, result_id, Errand.LINKS)
            session.commit()

    def _forget(self, result_id: str) -> None:
        with self.sessions() as session:
            drop_source(session, result_id)
            session.commit()

    def deliver_again(self, ehr: EHR, stored: StoredResult, authorization: Authorization | None) -> None:
        """Do the same for a stored result, with a token that came since; of a withdrawn report no more is stored."""
        began = self.clock()
        with self.sessions() as session:
            header = load_source(session, self.keyring, stored.id)
            objects = load_objects(session, self.keyring, stored.id)
        if header is not None and not _has_all(objects, ehr, stored.reference):
            result = replace(stored.result, source_header=header)
            self.deliver(ehr, stored.reference, stored.id, result, authorization)
        self.deliver_signed(ehr, stored, authorization)
        with self.sessions() as session:
            count_untried(session, stored.id, since=began)
            session.commit()

    def deliver_signed(self, ehr: EHR, stored: StoredResult, authorization: Authorization | None) -> None:
        """Store the newest signed version of a result's report as a verified one, where the model's is there.

        Where it is a withdrawal, a note that rejects what is there.
        """
        with self.sessions() as session:
            header = load_source(session, self.keyring, stored.id)
            signatures = load_signatures(session, self.keyring, stored.id)
            answers = load_answers(session, self.keyring, stored.id)
            objects = load_objects(session, self.keyring, stored.id)
        if header is not None and is_withdrawn(signatures):
            self._take_back(
                ehr, stored, header, objects, withdrawal=signatures[-1], authorization=authorization
            )
            return
        before = _predecessor(objects, [signed.version for signed in signatures])
        if header is None or before is None or not signatures or "sr" not in ehr.dicom_results:
            return
        signed = signatures[-1]
        if signed.act.answers != answers.state:
            return
        make = partial(
            build_verified, review=_review(stored, signed, answers, self.organization), predecessor=before
        )
        self._make_and_store(ehr, stored, header, make, authorization)

    def _make_and_store(
        self,
        ehr: EHR,
        stored: StoredResult,
        header: bytes,
        make: Callable[..., list[DICOMObject]],
        authorization: Authorization | None,
    ) -> None:
        """Store what comes of a signature or a withdrawal; make: of dicom_results, but for whose result it is."""
        try:
            made = make(
                header,
                stored.result,
                self.analyser.manifest_of(stored.result.model),
                organization=self.organization,
            )
        except Unprocessable as error:
            self.store.told_unmade(stored.reference, error.code)
            return
        if made:
            self._store(
                ehr, stored.reference, stored.id, stored.result, objects=made, authorization=authorization
            )

    def _take_back(
        self,
        ehr: EHR,
        stored: StoredResult,
        header: bytes,
        objects: Sequence[StoredObject],
        *,
        withdrawal: Signature,
        authorization: Authorization | None,
    ) -> None:
        """Store no more of a withdrawn report, and tell the PACS that what it has is not to be used."""
        with self.sessions() as session:
            of_report = [one for one in objects if one.kind != ObjectKind.REJECTION_NOTE]
            give_up(session, of_report, "report_withdrawn", now=self.clock())
            if not objects:
                drop_source(session, stored.id)
            rejected = [one for one in of_report if self._is_to_reject(session, one)]
            session.commit()
        if "rejection_note" in ehr.dicom_results:
            make = partial(build_note, withdrawal=withdrawal, objects=rejected)
            self._make_and_store(ehr, stored, header, make, authorization)

    def _is_to_reject(self, session: Session, one: StoredObject) -> bool:
        """Return whether the PACS has the object or is getting it, and no other result of the images stands by it."""
        if one.state not in (StoreState.PENDING, StoreState.STORED):
            return False
        others = results_beside(session, one.id)
        return all(is_withdrawn(load_signatures(session, self.keyring, other)) for other in others)

    def _is_withdrawn(self, result_id: str) -> bool:
        with self.sessions() as session:
            return is_withdrawn(load_signatures(session, self.keyring, result_id))


def _link_entry(
    reference: StudyReference, stored: Sequence[StoredObject], code: str | None, agent: str
) -> AuditEntry:
    detail = {"resources": f"DocumentReference {len(stored)}"}
    return AuditEntry(
        AuditKind.FHIR_RESULT_WRITTEN if code is None else AuditKind.FHIR_RESULT_WRITE_REFUSED,
        Outcome.SUCCESS if code is None else Outcome.MINOR_FAILURE,
        ehr_id=reference.ehr_id,
        agent=agent,
        patient_id=reference.patient_id,
        entities=(
            f"Patient/{reference.patient_id}",
            f"ImagingStudy/{reference.imaging_study_id}",
            oid_uri(reference.study_instance_uid),
            *(oid_uri(one.names.sop_instance_uid) for one in stored),
        ),
        detail=detail if code is None else detail | {"code": code},
    )


def _has_all(objects: Sequence[StoredObject], ehr: EHR, reference: StudyReference) -> bool:
    """Return whether nothing more will come of the model's objects; to make them takes a tenth of a second."""
    url = store_url(ehr, reference)
    settled = (StoreState.REFUSED, StoreState.STORED)
    kinds = {one.kind for one in objects if one.names.url == url and one.state in settled}
    return set(ehr.dicom_results) - {ObjectKind.REJECTION_NOTE.value} <= kinds


def _predecessor(objects: Sequence[StoredObject], versions: Sequence[int]) -> ObjectNames | None:
    """Return the report that the newest signed one follows: the last one signed before, else the model's.

    The newest one's own row, where an earlier try left it, is not before itself.
    """
    stored = [one for one in objects if one.state is StoreState.STORED]
    verified = [one for one in objects if one.kind == ObjectKind.VERIFIED_SR]
    earlier = [one for one in verified if one in stored][: len(versions) - 1]
    unsigned = [one for one in stored if one.kind == ObjectKind.SR]
    return next((one.names for one in (*reversed(earlier), *unsigned)), None)


def _review(stored: StoredResult, signed: Signature, answers: Answers, organization: str) -> "Review":
    from rayhook.inference.structured_report import Review

    latest = answers.latest
    given = {f: latest[f.code].value_of(f) for f in stored.result.findings if f.code in latest}
    said = {FindingValue.ABSENT: False, FindingValue.PRESENT: True}
    return Review(
        name=person_text(signed.act.by),
        organization=organization,
        at=datetime.fromtimestamp(signed.at, UTC),
        version=signed.version,
        answers={finding.code: said.get(value) if value else None for finding, value in given.items()},
        sentences=tuple(signed.conclusion.splitlines()),
    )
