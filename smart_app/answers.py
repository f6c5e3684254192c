"""Answering findings and signing reports: plain forms that name what the person had before them."""

import threading
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, TypeVar

import structlog
from fastapi import APIRouter, Depends, Form
from pydantic import BaseModel, Field
from sqlmodel import Session
from starlette.responses import RedirectResponse, Response

from rayhook.audit.events import AuditKind
from rayhook.audit.record import AuditEntry
from rayhook.auth.roles import Permission
from rayhook.fhir.errors import Conflict, Forbidden, InvalidRequest, NotFound, RayhookError
from rayhook.fhir.references import oid_uri
from rayhook.inference.answers import (
    AnswerAction,
    AnswerDraft,
    AnswerReason,
    Answers,
    FindingAnswer,
    FindingValue,
    Laterality,
    Person,
    finding_of,
    load_answers,
    lock_result,
    record_answer,
)
from rayhook.inference.job_table import Authorization
from rayhook.inference.jobs import StoredResult
from rayhook.inference.sign_off import SignRequest, sign
from rayhook.inference.sign_off_delivery import may_revise
from rayhook.inference.signature import SignAct, load_signatures, report_status
from rayhook.smart_app.access import Gate, Viewer, agent_of
from rayhook.smart_app.answer_view import AnsweredView, answer_view, answered_view, answers_path, may_answer
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.presentation import manifest_of
from rayhook.smart_app.results import ResultViews
from rayhook.smart_app.window import href

_WAIT_S = 4.0
_SIGNED = {
    SignAct.AMEND: AuditKind.SMART_APP_REPORT_CHANGED,
    SignAct.CORRECT: AuditKind.SMART_APP_REPORT_CHANGED,
    SignAct.SIGN: AuditKind.SMART_APP_REPORT_SIGNED,
    SignAct.WITHDRAW: AuditKind.SMART_APP_REPORT_WITHDRAWN,
}

log = structlog.get_logger(__name__)

Coded = TypeVar("Coded", bound=StrEnum)


class AnswerForm(BaseModel):
    """The fields of an answer as a browser sends them: empty where nothing was put in."""

    action: AnswerAction
    version: Annotated[int, Field(ge=0, le=1_000_000)]
    finding: Annotated[str, Field(max_length=64)] = ""
    value: Annotated[str, Field(max_length=16)] = ""
    reason: Annotated[str, Field(max_length=32)] = ""
    text: Annotated[str, Field(max_length=4000)] = ""
    comment: Annotated[str, Field(max_length=4000)] = ""
    display: Annotated[str, Field(max_length=400)] = ""
    site: Annotated[str, Field(max_length=400)] = ""
    laterality: Annotated[str, Field(max_length=16)] = ""
    size_mm: Annotated[str, Field(max_length=16)] = ""

    def draft(self) -> AnswerDraft:
        """Raise InvalidRequest that names a field whose value is none of those listed."""
        return AnswerDraft(
            finding=self.finding,
            action=self.action,
            value=_coded(FindingValue, "value", self.value),
            reason=_coded(AnswerReason, "reason", self.reason),
            text=self.text.strip(),
            comment=self.comment.strip(),
            display=self.display.strip(),
            site=self.site.strip(),
            laterality=_coded(Laterality, "laterality", self.laterality),
            size_mm=_size(self.size_mm),
        )


class SignForm(BaseModel):
    """What is done with the report, on what the person saw."""

    act: SignAct
    seen: Annotated[str, Field(max_length=8000)]
    reason: Annotated[str, Field(max_length=4000)] = ""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Two answers to one finding: the one that stands, and the one that came too late."""

    stored: StoredResult
    answers: Answers
    draft: AnswerDraft


class Reviewers:
    """Stores what people answer and sign, each with its audit event in the same transaction."""

    def __init__(self, deps: SMARTDependencies, views: ResultViews, gate: Gate) -> None:
        self._deps = deps
        self._views = views
        self._gate = gate

    def answer(
        self, viewer: Viewer, result_id: str, draft: AnswerDraft, *, expected: int
    ) -> FindingAnswer | Overtaken:
        """Store an answer.

        Raises Forbidden, told to the audit, where the report is signed and the viewer may not change it.
        """
        stored = self._views.result(viewer, result_id, part="answer")
        deps = self._deps
        with deps.sessions() as session:
            # Locked before it is looked at: somebody may be about to sign.
            lock_result(session, stored.id)
            signatures = load_signatures(session, deps.keyring, stored.id)
            may = may_answer(viewer, report_status(signatures))
            if may:
                kept = self._kept(session, viewer, stored, draft, expected=expected)
        if not may:
            error = Forbidden("the report is signed: only who may sign can change its answers")
            raise self._gate.refused(error, viewer.user, permission=Permission.SMART_APP_REPORT_SIGN)
        return kept

    def _kept(
        self, session: Session, viewer: Viewer, stored: StoredResult, draft: AnswerDraft, *, expected: int
    ) -> FindingAnswer | Overtaken:
        deps = self._deps
        try:
            answer = record_answer(
                session,
                deps.keyring,
                stored,
                draft,
                expected_version=expected,
                by=person_of(viewer),
                clock=deps.clock,
            )
        except Conflict as error:
            if error.code != "answer_overtaken":
                raise
            return Overtaken(stored, load_answers(session, deps.keyring, stored.id), draft)
        detail = {
            "action": answer.action.value,
            "finding": answer.finding,
            "reason": draft.reason.value if draft.reason else "",
            "version": str(answer.version),
        }
        deps.audit.record(session, self._entry(viewer, stored, AuditKind.SMART_APP_FINDING_ANSWERED, detail))
        session.commit()
        return answer

    def sign(self, viewer: Viewer, result_id: str, act: SignAct, *, seen: str, reason: str) -> None:
        """Sign, change or withdraw the report, and begin to bring it to the EHR."""
        stored = self._views.result(viewer, result_id, part="signature")
        deps = self._deps
        request = SignRequest(act=act, by=person_of(viewer), seen=seen, reason=reason)
        try:
            with deps.sessions() as session:
                sign(
                    session,
                    deps.keyring,
                    stored,
                    request,
                    manifest=manifest_of(stored.result.model, deps.manifests),
                    authorization=authorization_of(viewer),
                    clock=deps.clock,
                )
                deps.audit.record(session, self._signed_entry(session, viewer, stored, act))
                session.commit()
        except Forbidden as error:
            raise self._gate.refused(
                error, viewer.user, permission=Permission.SMART_APP_REPORT_SIGN
            ) from error
        deps.report_changed(stored.id)
        self.deliver(viewer, stored.id)

    def deliver(self, viewer: Viewer, result_id: str, *, is_forced: bool = False) -> None:
        """Bring what is signed to the EHR; an EHR that is slow is not waited for, it goes on beside the page."""
        deps, token = self._deps, authorization_of(viewer)
        with deps.sessions() as session:
            if not load_signatures(session, deps.keyring, result_id):
                raise NotFound("nothing of this result was signed")

        def bring() -> None:
            try:
                deps.sign_off.deliver(result_id, authorization=token, is_forced=is_forced)
            except RayhookError as error:
                # It stays due: the service tries again by itself.
                log.warning("signed_report_delivery_failed", code=error.code)

        courier = threading.Thread(target=copy_context().run, args=(bring,), daemon=True)
        courier.start()
        courier.join(_WAIT_S)

    def _signed_entry(
        self, session: Session, viewer: Viewer, stored: StoredResult, act: SignAct
    ) -> AuditEntry:
        newest = load_signatures(session, self._deps.keyring, stored.id)[-1]
        detail = {"act": act.value, "status": newest.status.value, "version": str(newest.version)}
        return self._entry(viewer, stored, _SIGNED[act], detail)

    @staticmethod
    def _entry(
        viewer: Viewer, stored: StoredResult, kind: AuditKind, detail: Mapping[str, str]
    ) -> AuditEntry:
        return AuditEntry(
            kind,
            ehr_id=viewer.ehr.id,
            agent=agent_of(viewer.user),
            client_id=viewer.user.client_id,
            patient_id=viewer.patient_id,
            entities=(
                f"Patient/{viewer.patient_id}",
                f"ImagingStudy/{stored.reference.imaging_study_id}",
                oid_uri(stored.reference.study_instance_uid),
            ),
            detail={"result": stored.id, **detail},
        )


def build_answer_router(deps: SMARTDependencies, pages: Pages, gate: Gate) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    views = ResultViews(deps, gate)
    reviewers = Reviewers(deps, views, gate)
    answering = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_FINDING_ANSWER))]
    signing = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_REPORT_SIGN))]

    @router.post("/results/{result_id}/answers")
    def answer(result_id: str, viewer: answering, form: Annotated[AnswerForm, Form()]) -> Response:
        given = reviewers.answer(viewer, result_id, form.draft(), expected=form.version)
        if isinstance(given, Overtaken):
            return pages.render(
                "overtaken.html",
                ehr=viewer.ehr,
                status=409,
                patient=views.banner(viewer),
                **_both(given),
            )
        anchor = "added" if given.is_added else f"finding-{given.finding}"
        return _to(f"/results/{result_id}#{anchor}")

    @router.post("/results/{result_id}/report")
    def report(
        result_id: str,
        viewer: signing,
        form: Annotated[SignForm, Form()],
    ) -> Response:
        reviewers.sign(viewer, result_id, form.act, seen=form.seen, reason=form.reason)
        return _to(f"/results/{result_id}#report")

    @router.post("/results/{result_id}/report/delivery")
    def delivery(
        result_id: str,
        viewer: signing,
        replace: Annotated[str, Form(max_length=3)] = "",
    ) -> Response:
        is_forced = replace == "yes"
        part = "report to replace the EHR's copy with" if is_forced else "report to send again"
        stored = views.result(viewer, result_id, part=part)
        reviewers.deliver(viewer, stored.id, is_forced=is_forced)
        return _to(f"/results/{result_id}#report")

    return router


def person_of(viewer: Viewer) -> Person:
    """Return who acts, by the reference that the EHR's id_token gave."""
    return Person(fhir_user=agent_of(viewer.user), name=viewer.session.name)


def authorization_of(viewer: Viewer) -> Authorization | None:
    """Return the session's token where the EHR lets it change reports, to be lent to the delivery."""
    session = viewer.session
    if not may_revise(session.scopes):
        return None
    return Authorization(session.access_token, str(session.scopes), session.access_token_expires_at)


def _both(overtaken: Overtaken) -> dict[str, object]:
    """Return what the page of two answers shows, and the form that gives the later one again."""
    stored, draft = overtaken.stored, overtaken.draft
    finding = finding_of(stored, draft.finding)
    theirs: AnsweredView = answered_view(overtaken.answers, draft.finding, finding)
    late = FindingAnswer(
        id="", finding=draft.finding, version=theirs.version, draft=draft, by=Person(fhir_user=""), at=0.0
    )
    fields = {
        "action": draft.action.value,
        "version": str(theirs.version),
        "finding": draft.finding,
        "value": draft.value.value if draft.value else "",
        "reason": draft.reason.value if draft.reason else "",
        "text": draft.text,
        "comment": draft.comment,
        "display": draft.display,
        "site": draft.site,
        "laterality": draft.laterality.value if draft.laterality else "",
        "size_mm": "" if draft.size_mm is None else f"{draft.size_mm:g}",
    }
    return {
        "theirs": theirs,
        "yours": answer_view(late, finding),
        "display": theirs.display,
        "fields": list(fields.items()),
        "answers_path": answers_path(stored.id),
        "result_path": f"/results/{stored.id}",
    }


def _coded(kind: type[Coded], field: str, value: str) -> Coded | None:
    try:
        return kind(value) if value else None
    except ValueError as error:
        raise InvalidRequest(f"{field}: is none of those listed", expression=field) from error


def _size(value: str) -> float | None:
    try:
        return float(value.replace(",", ".")) if value.strip() else None
    except ValueError as error:
        raise InvalidRequest("size_mm: must be a number", expression="size_mm") from error


def _to(path: str) -> Response:
    return RedirectResponse(href(path), status_code=303, headers={"Cache-Control": "no-store"})
