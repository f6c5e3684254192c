"""The staff's first page, and who may do what."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rayhook.auth.roles import PERMISSIONS, Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.smart_app.role_texts import PERMISSION_TEXTS, ROLE_NAMES
from rayhook.smart_app.routes_access import route_accesses
from rayhook.smart_app.staff_access import HOME, StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router


def build_staff_router(pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    anybody = Annotated[StaffMember, Depends(gate.staffing(None))]
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.AUTH_ROLE_READ))]

    @router.get(HOME)
    def home(request: Request, member: anybody) -> Response:
        return pages.render("staff.html", request, member, role_names=ROLE_NAMES)

    @router.get("/staff/roles")
    def roles(request: Request, member: reading) -> Response:
        return pages.render(
            "staff_roles.html",
            request,
            member,
            role_names=ROLE_NAMES,
            permission_texts=PERMISSION_TEXTS,
            permissions=PERMISSIONS,
            accesses=route_accesses(request.app.routes),
        )

    return router
