"""The accounts of the staff, as an administrator keeps them."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from rayhook.auth.accounts import ENROLMENT_LIFE_S, StaffAccount
from rayhook.auth.roles import STAFF_ROLES, Permission, Role
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import Conflict, Forbidden, InvalidRequest
from rayhook.fhir.text import translatable
from rayhook.smart_app.account_acts import AccountActs
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import moment_text
from rayhook.smart_app.role_texts import ROLE_NAMES
from rayhook.smart_app.sign_in import go
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

_ACCOUNTS = "/staff/accounts"


class AccountPages:
    def __init__(self, deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> None:
        self._deps = deps
        self._pages = pages
        self._gate = gate
        self.acts = AccountActs(deps.sessions, deps.keyring, deps.audit, deps.clock)

    def overview(
        self, request: Request, member: StaffMember, *, problem: str | None = None, status: int = 200
    ) -> Response:
        return self._pages.render(
            "staff_accounts.html",
            request,
            member,
            status=status,
            accounts=self.acts.all(agent=member.agent),
            now=self._deps.clock(),
            moment=lambda seconds: moment_text(datetime.fromtimestamp(seconds, UTC)),
            is_fresh=self._gate.is_fresh(member),
            staff_roles=sorted(STAFF_ROLES),
            role_names=ROLE_NAMES,
            problem=problem,
        )

    def create(self, request: Request, member: StaffMember, name: str, roles: list[Role]) -> Response:
        try:
            account, token = self.acts.create(name, roles, agent=member.agent)
        except (Conflict, InvalidRequest) as error:
            return self.overview(request, member, problem=error.code, status=error.status)
        return self.invitation(request, member, account, token)

    def invitation(
        self, request: Request, member: StaffMember, account: StaffAccount, token: str
    ) -> Response:
        return self._pages.render(
            "staff_invitation.html",
            request,
            member,
            account=account,
            url=f"{self._deps.public_base_url}/sign-in/enrol/{token}",
            hours=int(ENROLMENT_LIFE_S // 3600),
        )


def build_account_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    own = AccountPages(deps, pages, gate)
    acts = own.acts
    looking = Annotated[StaffMember, Depends(gate.staffing(Permission.AUTH_ACCOUNT_MANAGE))]
    managing = Annotated[StaffMember, Depends(gate.staffing(Permission.AUTH_ACCOUNT_MANAGE, fresh=True))]
    given = Annotated[list[Role] | None, Form()]

    @router.get(_ACCOUNTS)
    def accounts(request: Request, member: looking) -> Response:
        return own.overview(request, member)

    @router.post(_ACCOUNTS)
    def create(
        request: Request, member: managing, name: Annotated[str, Form(max_length=255)], role: given = None
    ) -> Response:
        return own.create(request, member, name, role or [])

    @router.post("/staff/accounts/{account_id}/roles")
    def give_roles(account_id: str, member: managing, role: given = None) -> Response:
        _require_another(member, account_id)
        acts.give_roles(account_id, role or (), agent=member.agent)
        return go(_ACCOUNTS)

    @router.post("/staff/accounts/{account_id}/disable")
    def disable(account_id: str, member: managing) -> Response:
        _require_another(member, account_id)
        acts.disable(account_id, agent=member.agent)
        return go(_ACCOUNTS)

    @router.post("/staff/accounts/{account_id}/enable")
    def enable(account_id: str, member: managing) -> Response:
        acts.enable(account_id, agent=member.agent)
        return go(_ACCOUNTS)

    @router.post("/staff/accounts/{account_id}/reset")
    def reset(request: Request, account_id: str, member: managing) -> Response:
        _require_another(member, account_id)
        account, token = acts.reset(account_id, agent=member.agent)
        return own.invitation(request, member, account, token)

    return router


def _require_another(member: StaffMember, account_id: str) -> None:
    """Nobody gives themselves rights, and nobody locks themselves out by mistake."""
    if member.account_id == account_id:
        raise Forbidden(translatable("another administrator has to change your account"), code="own_account")
