"""What the rules for unusual access found, to be looked at, and what became of it."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Request
from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from rayhook.audit.events import AuditKind
from rayhook.audit.unusual import ReviewItem, ReviewState, Watching, change_item, review_items
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest, NotFound
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_words import REVIEW_STATES, RULES, who_text
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.i18n import moment_text
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

REVIEWS: Final = "/staff/audit/reviews"
_SHOWN_EVENTS: Final = 60


class ReviewAsked(BaseModel):
    state: ReviewState
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReviewView:
    item: ReviewItem
    title: str
    state: str
    raised_at: str
    who: str
    ehr: str
    events: tuple[int, ...]
    changed: str | None

    @classmethod
    def of(cls, item: ReviewItem, deps: SMARTDependencies) -> "ReviewView":
        ehr = None if item.ehr_id is None else deps.registry.by_id(item.ehr_id)
        changed = (
            None
            if item.changed_at is None
            else _("%(at)s by %(who)s", at=moment_text(item.changed_at), who=who_text(item.changed_by))
        )
        return cls(
            item=item,
            title=_(RULES[item.rule]),
            state=_(REVIEW_STATES[item.state]),
            raised_at=moment_text(item.raised_at),
            who=who_text(item.agent),
            ehr=(item.ehr_id or "") if ehr is None else ehr.name,
            events=item.events[:_SHOWN_EVENTS],
            changed=changed,
        )


@dataclass(frozen=True, slots=True)
class ReviewPages:
    deps: SMARTDependencies
    pages: StaffPages
    reading: AuditReading
    watching: Watching

    def show(
        self,
        request: Request,
        member: StaffMember,
        *,
        problem: str | None = None,
        of: str | None = None,
        status: int = 200,
    ) -> Response:
        """Look at what is new first: who opens the page sees what happened a second ago."""
        self.watching.step()
        with self.deps.reading_sessions() as session:
            items = review_items(session, self.deps.keyring)
        self.reading.record(
            member,
            AuditKind.AUDIT_LOG_READ,
            {"page": "reviews", "items": " ".join(item.id for item in items)},
        )
        return self.pages.render(
            "audit_reviews.html",
            request,
            member,
            status=status,
            problem=problem,
            of=of,
            counts=[
                (_(text), Counter(item.state for item in items)[state])
                for state, text in REVIEW_STATES.items()
            ],
            views=[ReviewView.of(item, self.deps) for item in items],
            states=[(state.value, _(text)) for state, text in REVIEW_STATES.items()],
        )

    def change(self, member: StaffMember, item_id: str, asked: ReviewAsked) -> None:
        now = datetime.fromtimestamp(self.deps.clock(), UTC)
        with self.deps.sessions() as session:
            change_item(
                session,
                self.deps.keyring,
                self.deps.audit,
                id_=item_id,
                state=asked.state,
                note=asked.note,
                agent=member.agent,
                now=now,
            )
            session.commit()


def build_audit_review_router(
    deps: SMARTDependencies, pages: StaffPages, gate: StaffGate, watching: Watching
) -> APIRouter:
    router = staff_router(pages)
    reviewing = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_REVIEW_MANAGE))]
    own = ReviewPages(deps, pages, AuditReading(deps), watching)

    @router.get(REVIEWS)
    def show(request: Request, member: reviewing) -> Response:
        return own.show(request, member)

    @router.post(f"{REVIEWS}/{{item_id}}")
    def change(
        item_id: str, request: Request, member: reviewing, asked: Annotated[ReviewAsked, Form()]
    ) -> Response:
        try:
            own.change(member, item_id, asked)
        except NotFound:
            own.reading.record(member, AuditKind.AUDIT_LOG_READ, {"page": "reviews", "missing": item_id[:32]})
            raise
        except InvalidRequest as error:
            return own.show(request, member, problem=error.message, of=item_id, status=error.status)
        return RedirectResponse(
            f"{REVIEWS}#item-{item_id}", status_code=303, headers={"Cache-Control": "no-store"}
        )

    return router
