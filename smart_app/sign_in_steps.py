"""What a sign-in of the staff does, each step told to the audit: password and code, proof, enrolment, sign-out."""

import time
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from sqlmodel import Session

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.account_sign_in import (
    Attempt,
    SignedIn,
    SignInRefusal,
    begin_attempt,
    begin_proof,
    judge_attempt,
    renew_hash,
)
from rayhook.auth.accounts import StaffAccount, enrol, find_enrolment
from rayhook.auth.one_time_codes import matching_step
from rayhook.auth.passwords import check_new_password, hash_password, is_outdated, is_password
from rayhook.auth.staff_sessions import (
    StaffMember,
    close_staff_session,
    note_proof,
    open_account_session,
)
from rayhook.fhir.errors import InvalidRequest, RateLimited, RayhookError
from rayhook.fhir.text import translatable
from rayhook.smart_app.dependencies import SMARTDependencies

# Longer than any of the checks takes: what was wrong must not be told by the time it takes to say so.
_REFUSED_AFTER_S: Final = 0.7


@dataclass(frozen=True, slots=True)
class Caller:
    """From where somebody tries, and the session that the browser still has."""

    address: str
    member: StaffMember | None = None


class SignInSteps:
    def __init__(self, deps: SMARTDependencies) -> None:
        self._deps = deps

    def sign_in(self, name: str, password: str, code: str, caller: Caller) -> str | None:
        """Return the id of a new session; None for a wrong name, password or code, all after the same time.

        Raises RateLimited for one try too many from the caller's address.
        """
        started = time.monotonic()
        deps = self._deps
        self.admit(caller)
        with deps.sessions() as session:
            attempt = begin_attempt(session, deps.keyring, name, clock=deps.clock)
            session.commit()
        matches = is_password(password, attempt.password_hash)
        session_id = None
        with deps.sessions() as session:
            outcome = self._judge(session, attempt, code=code, password_matches=matches)
            if isinstance(outcome, SignedIn):
                session_id = self._open(session, outcome, caller)
            else:
                self._refuse(session, AuditKind.AUTH_SIGN_IN_REFUSED, attempt, outcome, caller)
            session.commit()
        if session_id is None:
            _wait_until(started + _REFUSED_AFTER_S)
        else:
            self._renew(attempt, password)
        return session_id

    def prove(self, member: StaffMember, code: str, caller: Caller) -> bool:
        """Say whether the code is the account's, and note the proof."""
        started = time.monotonic()
        deps = self._deps
        self.admit(caller)
        if member.account_id is None:
            return False
        with deps.sessions() as session:
            attempt = begin_proof(session, deps.keyring, member.account_id, clock=deps.clock)
            session.commit()
        with deps.sessions() as session:
            outcome = self._judge(session, attempt, code=code, password_matches=True)
            proved = isinstance(outcome, SignedIn)
            if isinstance(outcome, SignedIn):
                note_proof(session, member, clock=deps.clock)
                self._record(session, AuditKind.AUTH_PROOF_ACCEPTED, member.agent, _how(outcome, caller))
            else:
                self._refuse(session, AuditKind.AUTH_PROOF_REFUSED, attempt, outcome, caller)
            session.commit()
        if not proved:
            _wait_until(started + _REFUSED_AFTER_S)
        return proved

    def invitation(self, token: str) -> tuple[StaffAccount, str]:
        with self._deps.sessions() as session:
            return find_enrolment(session, self._deps.keyring, token, clock=self._deps.clock)

    def enrol(self, token: str, password: str, code: str, caller: Caller) -> tuple[str, ...]:
        """Return the recovery codes.

        Raises InvalidRequest for a password that may not be chosen or a code that is not the app's, NotFound for
        an invitation that is void.
        """
        deps = self._deps
        self.admit(caller)
        account, _ = self.invitation(token)
        check_new_password(password, account_name=account.name)
        hashed = hash_password(password)
        with deps.sessions() as session:
            account, secret = find_enrolment(session, deps.keyring, token, clock=deps.clock)
            step = matching_step(secret, code, now=deps.clock(), last_step=-1)
            if step is None:
                raise InvalidRequest(
                    translatable("code: is not the one that the app shows now"),
                    code="code_wrong",
                    expression="code",
                )
            codes = enrol(session, deps.keyring, account.id, password_hash=hashed, totp_step=step)
            detail = {"address": caller.address}
            self._record(session, AuditKind.AUTH_ACCOUNT_ENROLLED, account.agent, detail)
            session.commit()
        return codes

    def sign_out(self, member: StaffMember) -> None:
        with self._deps.sessions() as session:
            close_staff_session(session, member)
            self._record(session, AuditKind.AUTH_SIGN_IN_ENDED, member.agent, {})
            session.commit()

    def admit(self, caller: Caller) -> None:
        """Raise RateLimited for one try too many from the caller's address."""
        try:
            self._deps.sign_in_limit.admit(caller.address)
        except RateLimited as error:
            if error.is_first:
                self.refused(error, caller)
            raise

    def refused(self, error: RayhookError, caller: Caller, **detail: str) -> None:
        """Record a sign-in that led nowhere, of nobody who is known."""
        told = {"code": error.code, "address": caller.address, **detail}
        self._deps.tell_refusal(
            AuditEntry(AuditKind.AUTH_SIGN_IN_REFUSED, Outcome.SERIOUS_FAILURE, detail=told)
        )

    def _judge(
        self, session: Session, attempt: Attempt, *, code: str, password_matches: bool
    ) -> SignedIn | SignInRefusal:
        deps = self._deps
        return judge_attempt(
            session,
            deps.keyring,
            attempt,
            password_matches=password_matches,
            code=code,
            clock=deps.clock,
        )

    def _open(self, session: Session, signed_in: SignedIn, caller: Caller) -> str:
        """The browser's earlier session ends: its id must not outlive the change of who it stands for."""
        if caller.member is not None:
            close_staff_session(session, caller.member)
        session_id = open_account_session(session, signed_in.account.id, clock=self._deps.clock)
        agent = signed_in.account.agent
        self._record(session, AuditKind.AUTH_SIGN_IN_ACCEPTED, agent, _how(signed_in, caller))
        return session_id

    def _refuse(
        self, session: Session, kind: AuditKind, attempt: Attempt, why: SignInRefusal, caller: Caller
    ) -> None:
        """A name that nobody has is not told: people type passwords into the wrong field."""
        detail = {"code": why.value, "address": caller.address}
        self._record(session, kind, attempt.agent, detail, Outcome.SERIOUS_FAILURE)
        if attempt.locks_out:
            told = {"address": caller.address}
            self._record(
                session, AuditKind.AUTH_ACCOUNT_LOCKED_OUT, attempt.agent, told, Outcome.SERIOUS_FAILURE
            )

    def _renew(self, attempt: Attempt, password: str) -> None:
        if (
            attempt.account_id is None
            or attempt.password_hash is None
            or not is_outdated(attempt.password_hash)
        ):
            return
        renewed = hash_password(password)
        with self._deps.sessions() as session:
            renew_hash(session, self._deps.keyring, attempt.account_id, renewed)
            session.commit()

    def _record(
        self,
        session: Session,
        kind: AuditKind,
        agent: str | None,
        detail: dict[str, str],
        outcome: Outcome = Outcome.SUCCESS,
    ) -> None:
        self._deps.audit.record(session, AuditEntry(kind=kind, outcome=outcome, agent=agent, detail=detail))


def caller_of(request: Request, member: StaffMember | None = None) -> Caller:
    return Caller("unknown" if request.client is None else request.client.host, member)


def _how(signed_in: SignedIn, caller: Caller) -> dict[str, str]:
    factor = "recovery code" if signed_in.with_recovery_code else "one-time code"
    return {"second_factor": factor, "address": caller.address}


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
