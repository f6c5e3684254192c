"""Whether the log is as it was written: who said so last, what stands outside, and a button to ask again."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from sqlalchemy import func, select
from sqlmodel import Session
from starlette.responses import RedirectResponse, Response

from rayhook.audit.checkpoint import Anchor, Checkpoint, latest_tree
from rayhook.audit.delivery import delivery_statuses
from rayhook.audit.events import AuditKind
from rayhook.audit.models import AUDIT_EVENT, AUDIT_TOMBSTONE
from rayhook.audit.review import AuditRecord, AuditSearch, search
from rayhook.audit.verification import Verifier, last_verification
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.correlation import request_id
from rayhook.fhir.text import translatable
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_words import who_text
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import decimal_text, moment_text
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

INTEGRITY: Final = "/staff/audit/integrity"
_VERDICTS: Final = {
    "changed": translatable("Changed after they were written"),
    "missing": translatable("Missing"),
    "inserted": translatable("Not written by this service"),
    "reordered": translatable("In another place than they were written"),
    "rewritten": translatable("Rewritten since a signed checkpoint"),
    "other": translatable("Further findings, in the verifier's own words"),
}


@dataclass(frozen=True, slots=True)
class Witness:
    """Something outside of the events that vouches for them: its name, how it stands, and whether that is well."""

    name: str
    state: str
    is_well: bool


@dataclass(frozen=True, slots=True)
class IntegrityPages:
    deps: SMARTDependencies
    pages: StaffPages
    reading: AuditReading
    verifier: Verifier

    def show(self, request: Request, member: StaffMember) -> Response:
        self.reading.record(member, AuditKind.AUDIT_LOG_READ, {"page": "integrity"})
        # Asked first: a verification that ends from here on is shown as under way, and the page loads again.
        is_running = self.verifier.is_running
        with self.deps.reading_sessions() as session:
            size = session.execute(select(func.max(AUDIT_EVENT.c.seq))).scalar() or 0
            purged = session.execute(select(func.count()).select_from(AUDIT_TOMBSTONE)).scalar_one()
            verified = last_verification(session, self.deps.keyring)
            tree = latest_tree(session)
            witnesses = [*self._witnesses(None if tree is None else tree.checkpoint), *_receivers(session)]
            export = self._last_export(session)
        return self.pages.render(
            "audit_integrity.html",
            request,
            member,
            size=decimal_text(size),
            purged=decimal_text(purged),
            checkpoint=None if tree is None else tree.checkpoint.tree_head,
            signed_at=None if tree is None else moment_text(_moment(tree.checkpoint)),
            unsealed=size - (0 if tree is None else tree.checkpoint.tree_head.size),
            verified=verified,
            found=[]
            if verified is None
            else [(_(_VERDICTS[name]), numbers) for name, numbers in verified.found.items()],
            witnesses=witnesses,
            export=export,
            is_running=is_running,
            has_failed=self.verifier.has_failed,
            progress=self.verifier.progress,
            moment=moment_text,
            who=who_text,
        )

    def _witnesses(self, checkpoint: Checkpoint | None) -> Iterator[Witness]:
        path = self.deps.audit.anchor
        name = _("Anchor file outside the database")
        if path is None:
            yield Witness(name, _("not set up"), is_well=False)
            return
        try:
            last = Anchor(path).last()
        except OSError:
            yield Witness(name, _("is not there"), is_well=checkpoint is None)
            return
        is_current = last == checkpoint
        yield Witness(
            name,
            _("has the last checkpoint") if is_current else _("has not got the last checkpoint"),
            is_current,
        )

    def _last_export(self, session: Session) -> AuditRecord | None:
        wanted = AuditSearch(kinds=(AuditKind.AUDIT_LOG_EXPORTED,))
        page = search(session, self.deps.keyring, wanted, limit=1, is_lenient=True)
        return next(iter(page.records), None)

    def verify(self, member: StaffMember) -> None:
        self.reading.record(member, AuditKind.AUDIT_LOG_READ, {"page": "integrity", "asked": "verify"})
        self.verifier.start(agent=member.agent, request_id=request_id.get())


def _receivers(session: Session) -> Iterator[Witness]:
    for one in delivery_statuses(session):
        name = _("Receiver %(target)s", target=one.target)
        if one.failures:
            state = _(
                "does not take it since %(failures)s tries; %(behind)s wait",
                failures=one.failures,
                behind=one.behind,
            )
        elif one.behind:
            state = _("%(behind)s wait to be sent", behind=one.behind)
        else:
            state = _("has everything")
        yield Witness(name, state, is_well=not one.failures)


def _moment(checkpoint: Checkpoint) -> datetime:
    return datetime.fromisoformat(checkpoint.tree_head.signed_at).astimezone(UTC)


def build_audit_integrity_router(
    deps: SMARTDependencies, pages: StaffPages, gate: StaffGate, verifier: Verifier
) -> APIRouter:
    router = staff_router(pages)
    verifying = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_LOG_VERIFY))]
    own = IntegrityPages(deps, pages, AuditReading(deps), verifier)

    @router.get(INTEGRITY)
    def show(request: Request, member: verifying) -> Response:
        return own.show(request, member)

    @router.post(INTEGRITY)
    def verify(member: verifying) -> Response:
        own.verify(member)
        return RedirectResponse(INTEGRITY, status_code=303, headers={"Cache-Control": "no-store"})

    return router
