"""From a stored result to objects at the PACS and their links at the EHR: after the report, and never before it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rayhook.audit.record import AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import Unprocessable
from rayhook.fhir.transport import Transport
from rayhook.inference.analysis import Analyser
from rayhook.inference.dicom_results import ObjectStore, build_objects
from rayhook.inference.dicom_table import load_source
from rayhook.inference.dicomweb_store import StoreLimits
from rayhook.inference.job_table import Authorization
from rayhook.inference.results import StoredResult
from rayhook.inference.study import StudyReference, StudyResult


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
    ) -> None:
        """Make the objects of a result, and store those that the PACS lacks.

        Raises ServiceUnavailable where the database or the audit cannot be written.
        """
        if not ehr.dicom_results or not result.source_header:
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
            return
        token = authorization.access_token if authorization else None
        self.store.store(ehr, reference, result_id, objects, access_token=token)

    def deliver_again(self, ehr: EHR, stored: StoredResult, authorization: Authorization | None) -> None:
        """Do the same for a stored result, with a token that came since."""
        with self.sessions() as session:
            header = load_source(session, self.keyring, stored.id)
        if header is not None:
            result = replace(stored.result, source_header=header)
            self.deliver(ehr, stored.reference, stored.id, result, authorization)
