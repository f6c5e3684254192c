"""What an administrator does to accounts, each act in one transaction with its audit event."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlmodel import Session

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.auth.accounts import (
    Clock,
    StaffAccount,
    account_name,
    create_account,
    enrol_at_once,
    find_account,
    invite,
    list_accounts,
    load_account,
    set_disabled,
    set_roles,
)
from rayhook.auth.database_types import Sessions
from rayhook.auth.keys import Keyring
from rayhook.auth.passwords import check_new_password
from rayhook.auth.roles import Role, written_roles
from rayhook.auth.staff_sessions import close_sessions_of
from rayhook.fhir.errors import NotFound


@dataclass(frozen=True, slots=True)
class Enrolled:
    """An account with what its person needs and nobody sees again: the app's secret and the recovery codes."""

    account: StaffAccount
    secret: str = field(repr=False)
    recovery_codes: tuple[str, ...] = field(repr=False)


class AccountActs:
    """`agent` is who acts: an administrator, or the command line."""

    def __init__(self, sessions: Sessions, keyring: Keyring, audit: AuditLog, clock: Clock) -> None:
        self._sessions = sessions
        self._keyring = keyring
        self._audit = audit
        self._clock = clock

    def all(self, *, agent: str) -> list[StaffAccount]:
        with self._sessions() as session:
            found = list_accounts(session, self._keyring)
            self._record(session, AuditKind.AUTH_ACCOUNT_LISTED, agent, ())
            session.commit()
        return found

    def create(self, name: str, roles: Iterable[Role], *, agent: str) -> tuple[StaffAccount, str]:
        """Return the account and the token of its invitation."""
        with self._sessions() as session:
            account = create_account(session, self._keyring, name, roles, clock=self._clock)
            token = invite(session, self._keyring, account.id, clock=self._clock)
            self._record(
                session,
                AuditKind.AUTH_ACCOUNT_CREATED,
                agent,
                (account,),
                roles=written_roles(account.roles),
            )
            session.commit()
        return account, token

    def create_enrolled(self, name: str, roles: Iterable[Role], password: str, *, agent: str) -> Enrolled:
        """Make an account whose password the caller chose. Raises InvalidRequest for one that may not be chosen."""
        check_new_password(password, account_name=account_name(name))
        with self._sessions() as session:
            account = create_account(session, self._keyring, name, roles, clock=self._clock)
            secret, codes = enrol_at_once(
                session, self._keyring, account.id, password=password, clock=self._clock
            )
            given = written_roles(account.roles)
            self._record(session, AuditKind.AUTH_ACCOUNT_CREATED, agent, (account,), roles=given)
            self._record(session, AuditKind.AUTH_ACCOUNT_ENROLLED, agent, (account,))
            session.commit()
        return Enrolled(account, secret, codes)

    def enrol_again(self, account_id: str, password: str, *, agent: str) -> Enrolled:
        """Void what the account has, its sessions too, and enrol it with this password."""
        with self._sessions() as session:
            account = load_account(session, self._keyring, account_id)
            check_new_password(password, account_name=account.name)
            close_sessions_of(session, account_id)
            secret, codes = enrol_at_once(
                session, self._keyring, account_id, password=password, clock=self._clock
            )
            self._record(session, AuditKind.AUTH_ACCOUNT_RESET, agent, (account,))
            self._record(session, AuditKind.AUTH_ACCOUNT_ENROLLED, agent, (account,))
            session.commit()
        return Enrolled(account, secret, codes)

    def named(self, name: str) -> StaffAccount:
        """Raise NotFound where no account has the name."""
        with self._sessions() as session:
            found = find_account(session, self._keyring, name)
        if found is None:
            raise NotFound("there is no account of this name", code="account_unknown")
        return found

    def reset(self, account_id: str, *, agent: str) -> tuple[StaffAccount, str]:
        """End what the account has, its sessions too, and return the token of a new invitation."""
        with self._sessions() as session:
            token = invite(session, self._keyring, account_id, clock=self._clock)
            close_sessions_of(session, account_id)
            account = load_account(session, self._keyring, account_id)
            self._record(session, AuditKind.AUTH_ACCOUNT_RESET, agent, (account,))
            session.commit()
        return account, token

    def disable(self, account_id: str, *, agent: str) -> StaffAccount:
        def act(session: Session) -> StaffAccount:
            close_sessions_of(session, account_id)
            return set_disabled(session, self._keyring, account_id, disabled=True)

        return self._changed(act, AuditKind.AUTH_ACCOUNT_DISABLED, agent)

    def enable(self, account_id: str, *, agent: str) -> StaffAccount:
        def act(session: Session) -> StaffAccount:
            return set_disabled(session, self._keyring, account_id, disabled=False)

        return self._changed(act, AuditKind.AUTH_ACCOUNT_ENABLED, agent)

    def give_roles(self, account_id: str, roles: Iterable[Role], *, agent: str) -> StaffAccount:
        with self._sessions() as session:
            before = load_account(session, self._keyring, account_id)
            account = set_roles(session, self._keyring, account_id, roles)
            self._record(
                session,
                AuditKind.AUTH_ROLE_CHANGED,
                agent,
                (account,),
                before=written_roles(before.roles),
                after=written_roles(account.roles),
            )
            session.commit()
        return account

    def _changed(self, act: Callable[[Session], StaffAccount], kind: AuditKind, agent: str) -> StaffAccount:
        with self._sessions() as session:
            account = act(session)
            self._record(session, kind, agent, (account,))
            session.commit()
        return account

    def _record(
        self,
        session: Session,
        kind: AuditKind,
        agent: str,
        accounts: Iterable[StaffAccount],
        **detail: str,
    ) -> None:
        entities = tuple(account.agent for account in accounts)
        entry = AuditEntry(kind=kind, agent=agent, entities=entities, detail=detail)
        self._audit.record(session, entry)
