"""What a job reads of its study: who the patient is, where the images are, and the images."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from rayhook.audit.events import AuditKind
from rayhook.auth.registry import EHR
from rayhook.fhir.errors import NotFound, ServiceUnavailable, UpstreamRefused
from rayhook.fhir.transport import Transport
from rayhook.inference.attempt import Attempt, access_entry
from rayhook.inference.authority import Authority, AuthorizedReader, reading
from rayhook.inference.dicomweb import RetrievalLimits, begun, retrieve_study
from rayhook.inference.docket import Docket
from rayhook.inference.endpoint import image_endpoint, readable_endpoints
from rayhook.inference.identity import identifier_values
from rayhook.inference.job_table import Authorization
from rayhook.inference.read_ahead import read_ahead
from rayhook.inference.received import ReceivedImages

_AHEAD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Reads for one job at a time; each access is audited in the transaction that prolongs the job's lease.

    received: images that were stored here; a study that is here as a whole is not fetched.
    """

    transport: Transport
    authority: Authority
    docket: Docket
    limits: RetrievalLimits
    received: ReceivedImages | None = None
    clock: Callable[[], float] = time.time

    def patient_identifiers(self, attempt: Attempt, ehr: EHR) -> frozenset[str]:
        """Return the identifier values of the Patient; none where the scope does not let us know them."""
        if not self.authority.permits(ehr, attempt.authorization, reading("Patient")):
            return frozenset()
        reference = attempt.claimed.reference
        patient = self._read(attempt, ehr, "Patient", reference.patient_id)
        self.docket.keep(attempt, access_entry(attempt.claimed, AuditKind.FHIR_RESOURCE_READ))
        return identifier_values(patient)

    def locate(self, attempt: Attempt, ehr: EHR) -> None:
        """Read the Endpoints that the hook had no time to read.

        Raises NotFound where none of them serves WADO-RS, ServiceUnavailable where the images were stored here, in
        the folder of another process: it may have the next attempt.
        """
        reference = attempt.claimed.reference
        if reference.dicomweb_url or (not reference.endpoint_ids and self._is_here(attempt)):
            return
        resources = [self._read(attempt, ehr, "Endpoint", id_) for id_ in reference.endpoint_ids]
        endpoint = image_endpoint(readable_endpoints(resources))
        if endpoint is None:
            if self.received is not None and self.received.is_elsewhere(reference):
                raise ServiceUnavailable(
                    "the images are in a folder that this worker does not have", code="received_elsewhere"
                )
            raise NotFound("no Endpoint of the study serves WADO-RS", code="no_dicomweb_endpoint")
        located = replace(
            reference, dicomweb_url=endpoint.address, token_required=endpoint.requires_access_token
        )
        attempt.claimed = replace(attempt.claimed, reference=located)

    def _read(self, attempt: Attempt, ehr: EHR, resource_type: str, resource_id: str) -> dict[str, Any]:
        reader = AuthorizedReader(
            self.transport, ehr, attempt.claimed.reference.fhir_base_url, self.authority
        )
        return reader.read(resource_type, resource_id, hook=attempt.authorization)

    def files(self, attempt: Attempt, ehr: EHR) -> Generator[bytes]:
        """Yield the study's files, keeping the lease while they come, and audit when the last one has."""
        is_here = self._is_here(attempt)
        files = self._received(attempt) if is_here else self._open_study(attempt, ehr)
        kept_at = self.clock()
        with closing(read_ahead(_counted(files, attempt), max_bytes=_AHEAD_BYTES)) as ahead:
            for data in ahead:
                attempt.hold.check()
                if self.clock() - kept_at > self.docket.lease_s / 3:
                    self.docket.keep(attempt)
                    kept_at = self.clock()
                yield data
        attempt.is_retrieving = False
        received = {"instances": str(attempt.instances), "from": "spool" if is_here else "pacs"}
        self.docket.keep(
            attempt, access_entry(attempt.claimed, AuditKind.DICOMWEB_STUDY_RETRIEVED, detail=received)
        )

    def _is_here(self, attempt: Attempt) -> bool:
        return self.received is not None and self.received.has_all(attempt.claimed.reference)

    def _received(self, attempt: Attempt) -> Generator[bytes]:
        assert self.received is not None
        attempt.is_retrieving = True
        return self.received.retrieve(attempt.claimed.reference)

    def _open_study(self, attempt: Attempt, ehr: EHR) -> Generator[bytes]:
        """Ask for the images, with the EHR's token where the PACS wants one, and where it takes that no more, ours.

        Which scopes it looks at, it does not say.
        Spec: SMART App Launch 2.2.0, extension requires-access-token
        """
        if not attempt.claimed.reference.token_required:
            return self._begin_retrieval(attempt, ehr, None)

        def step(chosen: Authorization | None) -> Generator[bytes]:
            if chosen is None:
                had_one = attempt.claimed.authorization is not None
                code = "authorization_expired" if had_one else "authorization_missing"
                raise UpstreamRefused("the images need an access token that the EHR has to give", code=code)
            return self._begin_retrieval(attempt, ehr, chosen.access_token)

        return self.authority.call(ehr, attempt.authorization, lambda _: True, step)

    def _begin_retrieval(self, attempt: Attempt, ehr: EHR, access_token: str | None) -> Generator[bytes]:
        attempt.is_retrieving = True
        return begun(
            retrieve_study(
                self.transport,
                attempt.claimed.reference,
                allowed_origins=ehr.image_origins,
                access_token=access_token,
                limits=self.limits,
            )
        )


def _counted(files: Iterator[bytes], attempt: Attempt) -> Generator[bytes]:
    for data in files:
        attempt.instances += 1
        yield data
