"""The compliance officer's search, and one event with all that belongs to it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Path, Request
from starlette.responses import RedirectResponse, Response

from rayhook.audit.balp import audit_event
from rayhook.audit.checkpoint import latest_tree
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.proof import prove
from rayhook.audit.review import AuditRecord, Page
from rayhook.audit.unusual import count_open
from rayhook.audit.verification import last_verification
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest
from rayhook.smart_app.audit_question import Question, QuestionForm
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_words import (
    OUTCOMES,
    PACKAGES,
    entities_text,
    kind_text,
    purpose_text,
    sentence,
    story,
    who_text,
)
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.i18n import moment_text
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

HOME: Final = "/staff/audit"
_MOST_TOUCHED: Final = 2
Seq = Annotated[int, Path(ge=0, lt=2**63)]


@dataclass(frozen=True, slots=True)
class EventRow:
    seq: int
    at: str
    what: str
    patient: str
    touched: str
    outcome: str
    is_success: bool


@dataclass(frozen=True, slots=True)
class KindGroup:
    value: str
    title: str
    kinds: tuple[tuple[str, str], ...]


def event_row(record: AuditRecord) -> EventRow:
    return EventRow(
        seq=record.seq,
        at=moment_text(record.recorded_at),
        what=sentence(record),
        patient=_("erased") if record.is_erased else record.patient_id or "",
        touched=entities_text(record.entities, _MOST_TOUCHED),
        outcome=_(OUTCOMES[record.outcome]),
        is_success=record.outcome is Outcome.SUCCESS,
    )


def kind_groups() -> list[KindGroup]:
    return [
        KindGroup(
            package,
            _(title),
            tuple(
                (kind.value, kind_text(kind)) for kind in AuditKind if kind.value.partition(":")[0] == package
            ),
        )
        for package, title in PACKAGES.items()
    ]


@dataclass(frozen=True, slots=True)
class SearchPages:
    deps: SMARTDependencies
    pages: StaffPages
    reading: AuditReading

    def show(
        self,
        request: Request,
        member: StaffMember,
        question: Question,
        *,
        problem: str | None = None,
        status: int = 200,
    ) -> Response:
        found = Page((), None)
        if problem is None:
            found = self.reading.page(member, question.search(), before=question.before)
        with self.deps.reading_sessions() as session:
            verified = last_verification(session, self.deps.keyring)
            to_review = count_open(session)
        return self.pages.render(
            "audit_search.html",
            request,
            member,
            status=status,
            question=question,
            problem=problem,
            rows=[event_row(record) for record in found.records],
            unreadable=found.unreadable,
            older=self._address(question, member, found.before),
            ehrs=[(ehr.id, ehr.name) for ehr in self.deps.registry],
            groups=kind_groups(),
            outcomes=[(str(one.value), _(text)) for one, text in OUTCOMES.items()],
            verified=verified,
            to_review=to_review,
            moment=moment_text,
            who=who_text,
        )

    def _address(self, question: Question, member: StaffMember, before: int | None) -> str | None:
        if before is None:
            return None
        fields = {name: getattr(question, name) for name in question.__struct_fields__}
        return self.address(Question(**{**fields, "before": before}), member)

    def address(self, question: Question, member: StaffMember) -> str:
        return f"{HOME}/found/{question.sealed(self.deps.keyring, member)}"

    def event(self, request: Request, member: StaffMember, seq: int) -> Response:
        record, same = self.reading.event(member, seq)
        ehr = None if record.ehr_id is None else self.deps.registry.by_id(record.ehr_id)
        with self.deps.reading_sessions() as session:
            tree = latest_tree(session)
        return self.pages.render(
            "audit_event.html",
            request,
            member,
            record=record,
            title=sentence(record),
            story=story(record, record.ehr_id if ehr is None else ehr.name),
            at=moment_text(record.recorded_at),
            outcome=_(OUTCOMES[record.outcome]),
            purpose=purpose_text(record.context["purpose"]) if record.context.get("purpose") else None,
            timeline=[event_row(one) for one in same],
            related=list(self._related(record, member)),
            fhir=json.dumps(audit_event(record, self.deps.observer), indent=2, ensure_ascii=False),
            is_sealed=tree is not None and tree.checkpoint.tree_head.size >= record.seq,
        )

    def _related(self, record: AuditRecord, member: StaffMember) -> Iterator[tuple[str, str]]:
        """Yield searches from here: a title, and a sealed address."""
        ehr = record.ehr_id or ""
        if record.patient_id is not None and ehr:
            yield (
                _("All events of this patient"),
                self.address(Question(ehr=ehr, patient=record.patient_id), member),
            )
        if record.agent is not None:
            yield (
                _("All that this person or system did"),
                self.address(Question(ehr=ehr, person=record.agent), member),
            )
        study = next((one for one in record.entities if one.startswith("urn:oid:")), None)
        if study is not None:
            wanted = Question(ehr=ehr, study=study.removeprefix("urn:oid:"))
            yield _("The whole story of this study"), self.address(wanted, member)

    def proof(self, member: StaffMember, seq: int) -> Response:
        """Sign the log as it is, and return the proof that the event is in it; its values stay sealed."""
        self.reading.record(member, AuditKind.AUDIT_PROOF_MADE, {"event": str(seq)})
        with self.deps.sessions() as session:
            self.deps.audit.checkpoint(session)
            session.commit()
        with self.deps.reading_sessions() as session:
            tree = latest_tree(session)
            if tree is None:
                raise InvalidRequest("no checkpoint covers the event yet", code="event_unsealed")
            proof = prove(session, seq, tree.checkpoint)
        return download(f"{proof.to_json()}\n".encode(), f"event-{seq}-proof.json", "application/json")


def download(content: bytes, name: str, media_type: str) -> Response:
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, media_type=media_type, headers=headers)


def build_audit_search_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_LOG_READ))]
    own = SearchPages(deps, pages, AuditReading(deps))

    @router.get("/audit")
    @router.get(HOME)
    def newest(request: Request, member: reading) -> Response:
        return own.show(request, member, Question())

    @router.post(HOME)
    def ask(request: Request, member: reading, typed: Annotated[QuestionForm, Form()]) -> Response:
        question = typed.question()
        try:
            wanted = question.search()
        except InvalidRequest as error:
            return own.show(request, member, question, problem=error.message, status=error.status)
        own.reading.record(member, AuditKind.AUDIT_LOG_READ, {"asked": _asked(question)}, wanted)
        return RedirectResponse(
            own.address(question, member), status_code=303, headers={"Cache-Control": "no-store"}
        )

    @router.get(f"{HOME}/found/{{handle}}")
    def found(handle: str, request: Request, member: reading) -> Response:
        return own.show(request, member, Question.opened(handle, deps.keyring, member))

    @router.get(f"{HOME}/events/{{seq}}")
    def event(seq: Seq, request: Request, member: reading) -> Response:
        return own.event(request, member, seq)

    @router.get(f"{HOME}/events/{{seq}}/proof")
    def proof(seq: Seq, member: reading) -> Response:
        return own.proof(member, seq)

    return router


def _asked(question: Question) -> str:
    return json.dumps(question.asked(), sort_keys=True) if question.asked() else "the newest"
