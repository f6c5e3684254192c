"""Signed reports on their way to the EHR: tried at once, and again until the EHR has them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from sqlalchemy import func
from sqlmodel import Session, col, select

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.auth.scopes import ScopeSet
from rayhook.fhir.errors import NotFound, RayhookError
from rayhook.fhir.references import oid_uri
from rayhook.fhir.transport import Transport
from rayhook.inference.job_table import Authorization
from rayhook.inference.outbox import AT_ONCE, BACKOFF, LEASE_S, Errand, begin_errand
from rayhook.inference.results import DeliveryState, StoredResult, load_result
from rayhook.inference.sealed_row import SealedRow
from rayhook.inference.sign_off_delivery import SignedDelivery, may_revise, write_signed
from rayhook.inference.signature import ReportSignatureRow, Signature, load_signatures

Clock = Callable[[], float]
Backend = Callable[[EHR], Authorization | None]

log = structlog.get_logger()


_NO_TOKEN = SignedDelivery(DeliveryState.NOT_PERMITTED, "no_authorization")


def no_backend(_ehr: EHR) -> Authorization | None:
    """Return no token: the service has none of its own."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignOffQueue:
    """Writes signed versions to their EHR, the older of one report before the newer.

    backend: gives a token of our own for an EHR, None where we have none there.
    on_written: is told of a result whose newest version the EHR has just taken, with the token that did it.
    """

    registry: EHRRegistry
    sessions: Sessions
    keyring: Keyring
    audit: AuditLog
    transport: Transport
    backend: Backend = no_backend
    on_written: Callable[[StoredResult, Authorization], None] | None = None
    clock: Clock = field(default=time.time)

    def deliver(
        self,
        result_id: str,
        *,
        authorization: Authorization | None = None,
        is_asked: bool = True,
        is_forced: bool = False,
    ) -> DeliveryState:
        """Try all versions of a result's report that the EHR lacks; return how the newest stands.

        authorization: the token of who asks, where there is one.  is_asked: whether a person did, and not
        the clock.  is_forced: as in write_signed.
        """
        with self.sessions() as session:
            stored = load_result(session, self.keyring, result_id)
            signatures = load_signatures(session, self.keyring, result_id)
        if stored is None or not signatures:
            raise NotFound("nothing of this result was signed")
        written: dict[str, str] = {}
        for place, signature in enumerate(signatures):
            if signature.delivery is DeliveryState.DELIVERED:
                written |= signature.written
                continue
            lent = self._claim(signature.id, is_asked=is_asked)
            if lent is None:
                return signature.delivery
            token = self._token(stored, (authorization, lent[0]))
            done = self._attempt(stored, signature, written, token, is_forced=is_forced)
            if done.state is not DeliveryState.DELIVERED:
                self._hold_back(signatures[place + 1 :], done)
                return done.state
            written |= done.written
            if (
                isinstance(token, Authorization)
                and self.on_written is not None
                and signature is signatures[-1]
            ):
                self.on_written(stored, token)
        return DeliveryState.DELIVERED

    def deliver_due(self) -> int:
        """Try what is due, and return how many reports that were."""
        query = (
            select(ReportSignatureRow.result_id)
            .where(col(ReportSignatureRow.next_attempt_at) <= self.clock())
            .group_by(ReportSignatureRow.result_id)
            .order_by(func.min(col(ReportSignatureRow.next_attempt_at)))
            .limit(AT_ONCE)
        )
        with self.sessions() as session:
            due = list(session.exec(query))
        for result_id in due:
            try:
                self.deliver(result_id, is_asked=False)
            except RayhookError as error:
                # The others are due all the same; this one stays so until its lease is over.
                log.warning("signed_report_delivery_failed", code=error.code)
        return len(due)

    def _attempt(
        self,
        stored: StoredResult,
        signature: Signature,
        written: Mapping[str, str],
        token: Authorization | SignedDelivery,
        *,
        is_forced: bool,
    ) -> SignedDelivery:
        ehr = self.registry.by_id(stored.ehr_id)
        if ehr is None or isinstance(token, SignedDelivery):
            done = token if isinstance(token, SignedDelivery) else _NO_TOKEN
        else:
            done = write_signed(
                self.transport,
                ehr,
                stored,
                signature.resources,
                token,
                written_before=written,
                is_forced=is_forced,
            )
        self._record(stored, signature, done)
        return done

    def _hold_back(self, later: Sequence[Signature], done: SignedDelivery) -> None:
        """Let the versions after one that the EHR lacks wait with it: due by themselves, they would be for ever."""
        with self.sessions() as session:
            for signature in later:
                row = _locked(session, signature.id)
                if row.delivery == DeliveryState.DELIVERED:
                    continue
                row.delivery = done.state.value
                row.next_attempt_at = self._next_attempt(done.state, max(1, row.attempts))
                session.add(row)
            session.commit()

    def _claim(self, signature_id: str, *, is_asked: bool) -> tuple[Authorization | None] | None:
        """Take one version for LEASE_S, with the token lent for it; None where another has it."""
        now = self.clock()
        with self.sessions() as session:
            row = _locked(session, signature_id)
            if row.delivery == DeliveryState.DELIVERED or not _is_free(row, now, is_asked=is_asked):
                return None
            row.delivery, row.attempts = DeliveryState.PENDING.value, row.attempts + 1
            row.next_attempt_at = now + LEASE_S
            lent = _lent(session, self.keyring, row)
            if lent is not None and lent.expires_at <= now:
                row.authorization = None
            session.add(row)
            session.commit()
        return (lent,)

    def _token(
        self, stored: StoredResult, tokens: tuple[Authorization | None, ...]
    ) -> Authorization | SignedDelivery:
        """Return the first token that may revise and is alive, a person's before our own; or why there is none."""
        for token in tokens:
            if token is not None and self._is_usable(token):
                return token
        ehr = self.registry.by_id(stored.ehr_id)
        try:
            own = None if ehr is None else self.backend(ehr)
        except RayhookError as error:
            return SignedDelivery(DeliveryState.FAILED, error.code)
        return own if own is not None and self._is_usable(own) else _NO_TOKEN

    def _is_usable(self, token: Authorization) -> bool:
        return token.expires_at > self.clock() and may_revise(ScopeSet.parse(token.scope))

    def _record(self, stored: StoredResult, signature: Signature, done: SignedDelivery) -> None:
        with self.sessions() as session:
            row = _locked(session, signature.id)
            # Whose lease ran out may come second, and find its own report changed: it is there all the same.
            if row.delivery != DeliveryState.DELIVERED:
                self._note(session, row, done)
                session.add(row)
            self.audit.record(session, _entry(stored, signature, done))
            session.commit()
        log.info("signed_report_delivery", state=done.state.value, detail=done.detail)

    def _note(self, session: Session, row: ReportSignatureRow, done: SignedDelivery) -> None:
        row.delivery, row.delivery_detail = done.state.value, done.detail
        row.next_attempt_at = self._next_attempt(done.state, row.attempts)
        if done.state is not DeliveryState.FAILED:
            row.authorization = None
        if done.state is DeliveryState.DELIVERED:
            plaintext = msgspec.json.encode(dict(done.written))
            row.written = SealedRow(session, self.keyring, ReportSignatureRow, row.id).seal(
                "written", plaintext, patient_index=row.patient_index
            )
            ehr = self.registry.by_id(row.ehr_id)
            if ehr is not None and ehr.dicom_results and _is_newest(session, row):
                begin_errand(session, row.result_id, Errand.SIGNED, now=self.clock())

    def _next_attempt(self, state: DeliveryState, attempts: int) -> float | None:
        """Return when to try again: a lost connection is retried, a refusal waits for a person."""
        if state is not DeliveryState.FAILED:
            return None
        return self.clock() + BACKOFF.pause_s(attempts)


def _locked(session: Session, signature_id: str) -> ReportSignatureRow:
    query = select(ReportSignatureRow).where(ReportSignatureRow.id == signature_id).with_for_update()
    return session.exec(query, execution_options={"populate_existing": True}).one()


def _is_newest(session: Session, row: ReportSignatureRow) -> bool:
    later = select(ReportSignatureRow.id).where(
        ReportSignatureRow.result_id == row.result_id, col(ReportSignatureRow.version) > row.version
    )
    return session.exec(later).first() is None


def _is_free(row: ReportSignatureRow, now: float, *, is_asked: bool) -> bool:
    """Return whether a version may be tried: when it is due, or at any time that somebody asks for it."""
    is_due = row.next_attempt_at is not None and row.next_attempt_at <= now
    is_in_hand = row.delivery == DeliveryState.PENDING and row.attempts > 0
    return is_due or (is_asked and not is_in_hand)


def _lent(session: Session, keyring: Keyring, row: ReportSignatureRow) -> Authorization | None:
    if row.authorization is None:
        return None
    plaintext = SealedRow(session, keyring, ReportSignatureRow, row.id).open(
        "authorization", row.authorization
    )
    return msgspec.json.decode(plaintext, type=Authorization)


def _entry(stored: StoredResult, signature: Signature, done: SignedDelivery) -> AuditEntry:
    is_done = done.state is DeliveryState.DELIVERED
    detail: dict[str, Any] = {"result": stored.id, "version": str(signature.version)}
    return AuditEntry(
        AuditKind.FHIR_RESULT_WRITTEN if is_done else AuditKind.FHIR_RESULT_WRITE_REFUSED,
        Outcome.SUCCESS if is_done else Outcome.SERIOUS_FAILURE,
        ehr_id=stored.ehr_id,
        agent="rayhook",
        patient_id=stored.patient_id,
        entities=(
            f"Patient/{stored.patient_id}",
            f"ImagingStudy/{stored.reference.imaging_study_id}",
            oid_uri(stored.reference.study_instance_uid),
            *(reference.partition("/_history/")[0] for reference in done.written.values()),
        ),
        detail=detail if is_done else detail | {"code": done.detail or ""},
    )
