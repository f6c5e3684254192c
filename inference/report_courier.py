"""Finished reports on their way to the EHR: as the job ends, with a later call's token, and by themselves."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from rayhook.audit.record import AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.fhir.correlation import request_id
from rayhook.fhir.transport import Transport
from rayhook.inference.attempt import Attempt, delivery_entry
from rayhook.inference.authority import Authority
from rayhook.inference.delivery import FOR_WANT_OF_A_TOKEN, Delivery, deliver
from rayhook.inference.job_table import Authorization, ClaimedJob
from rayhook.inference.lease import Hold
from rayhook.inference.outbox import Errand, Outbox, end_errand, put_off
from rayhook.inference.results import AnalysisResult, DeliveryState, StoredResult, load_result, set_delivery
from rayhook.inference.study import StudyResult

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCourier:
    """Writes reports as conditional creates, and notes what came of it beside the audit's event."""

    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    transport: Transport
    authority: Authority
    clock: Callable[[], float] = time.time

    def deliver(
        self,
        attempt: Attempt,
        ehr: EHR,
        result_id: str,
        result: StudyResult,
        *,
        resources: Sequence[dict[str, Any]],
    ) -> Delivery:
        """Write a report whose errand is in our hands."""
        delivery = deliver(
            self.transport,
            ehr,
            attempt.claimed.reference,
            attempt.authorization,
            result=result,
            resources=resources,
            authority=self.authority,
        )
        with self.sessions() as session:
            row = session.get(AnalysisResult, result_id, populate_existing=True, with_for_update=True)
            # Whose lease ran out may come second: what the other brought is there all the same.
            if row is None or row.delivery != DeliveryState.DELIVERED:
                set_delivery(session, result_id, delivery.state, delivery.detail)
            if _may_change(delivery):
                is_due = self.authority.has_own(ehr)
                put_off(session, result_id, Errand.REPORT, now=self.clock(), is_due=is_due)
            else:
                end_errand(session, result_id, Errand.REPORT)
            self.audit.record(session, delivery_entry(attempt, delivery))
            session.commit()
        log.info("result_delivery", state=delivery.state.value, detail=delivery.detail)
        return delivery

    def deliver_again(
        self, ehr: EHR, result_id: str, authorization: Authorization | None, *, is_asked: bool
    ) -> None:
        """Write a report that the EHR lacks; nothing where another process is at it.

        is_asked: whether a call brought the token, so that the report need not be due.
        """
        if not Outbox(self.sessions, self.clock).claim(result_id, Errand.REPORT, is_asked=is_asked):
            return
        with self.sessions() as session:
            stored = load_result(session, self.keyring, result_id)
        if stored is None or stored.delivery is DeliveryState.DELIVERED:
            Outbox(self.sessions).release(result_id, Errand.REPORT)
            return
        late = _late(stored, authorization)
        attempt = Attempt(late, authorization, Hold(late))
        self.deliver(attempt, ehr, result_id, stored.result, resources=stored.resources)


def _late(stored: StoredResult, authorization: Authorization | None) -> ClaimedJob:
    return ClaimedJob(stored.job_id, 0, 0, stored.reference, authorization, request_id.get())


def _may_change(delivery: Delivery) -> bool:
    """Return whether another token, or the same one later, could bring the report there."""
    if delivery.state is DeliveryState.NOT_PERMITTED:
        return delivery.detail in FOR_WANT_OF_A_TOKEN
    return delivery.state is DeliveryState.FAILED
