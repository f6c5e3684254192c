"""Who approves on the command line: a person with an account, by password and code, as at the sign-in."""

import time
from collections.abc import Callable

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.account_sign_in import SignedIn, SignInRefusal, begin_attempt, judge_attempt
from rayhook.auth.accounts import StaffAccount
from rayhook.auth.passwords import is_password
from rayhook.auth.roles import Role
from rayhook.deploy.maintenance import Installation
from rayhook.fhir.errors import Forbidden

_APPROVERS = frozenset({Role.ADMINISTRATOR, Role.COMPLIANCE_OFFICER})


def approver(
    installation: Installation,
    name: str,
    *,
    password: str,
    code: str,
    clock: Callable[[], float] = time.time,
) -> StaffAccount:
    """Return the account. Raises Forbidden for a wrong name, password or code, and for one without the role."""
    keyring, sessions = installation.keyring, installation.database.sessions
    with sessions() as session:
        attempt = begin_attempt(session, keyring, name, clock=clock)
        session.commit()
    matches = is_password(password, attempt.password_hash)
    with sessions() as session:
        outcome = judge_attempt(session, keyring, attempt, password_matches=matches, code=code, clock=clock)
        account = outcome.account if isinstance(outcome, SignedIn) else None
        may = account is not None and bool(account.roles & _APPROVERS)
        kind = AuditKind.AUTH_PROOF_ACCEPTED if may else AuditKind.AUTH_PROOF_REFUSED
        reason = outcome.value if isinstance(outcome, SignInRefusal) else "" if may else "role_missing"
        installation.audit.record(
            session,
            AuditEntry(
                kind,
                Outcome.SUCCESS if may else Outcome.SERIOUS_FAILURE,
                agent=attempt.agent,
                detail={"at": "rayhook command line"} | ({"code": reason} if reason else {}),
            ),
        )
        session.commit()
    if account is None or not may:
        raise Forbidden(
            "name, password or code is wrong, or the account is no administrator's or compliance officer's",
            code="approval_refused",
        )
    return account
