"""The pages of the launched patient: studies, results and their images."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.roles import Permission
from rayhook.fhir.errors import NotFound
from rayhook.inference.answers import Answers
from rayhook.inference.jobs import StoredJob, StoredResult, jobs_for_patient, load_result, results_for_patient
from rayhook.inference.review import AnswerState, answer_summary, load_answers
from rayhook.inference.signature import Signature, load_signatures
from rayhook.inference.study import KeyImage
from rayhook.smart_app.access import Gate, Viewer, agent_of
from rayhook.smart_app.answer_view import answers_path, report_path, review_view
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.patient import EHRReader, KnownStudies, PatientBanner
from rayhook.smart_app.presentation import present_result
from rayhook.smart_app.viewer import ViewerFiles, viewer_view

_PNG = "image/png"


class ResultViews:
    """Reads for one viewer, each read with its audit event in the same transaction, before anything leaves."""

    def __init__(self, deps: SMARTDependencies, gate: Gate) -> None:
        self._deps = deps
        self._gate = gate
        self._reader = EHRReader(deps.transport)

    def banner(self, viewer: Viewer) -> PatientBanner:
        banner = self._reader.banner(viewer)
        self._record_read(viewer, [f"Patient/{viewer.patient_id}"], succeeded=banner.read)
        return banner

    def known_studies(self, viewer: Viewer) -> KnownStudies:
        known = self._reader.studies(viewer)
        entities = [f"ImagingStudy/{study.id}" for study in known.studies]
        self._record_read(viewer, entities, succeeded=known.notice is None)
        return known

    def of_patient(
        self, viewer: Viewer
    ) -> tuple[list[StoredJob], list[StoredResult], Mapping[str, AnswerState]]:
        deps = self._deps
        with deps.sessions() as session:
            jobs = jobs_for_patient(session, deps.keyring, viewer.ehr.id, viewer.patient_id)
            results = results_for_patient(session, deps.keyring, viewer.ehr.id, viewer.patient_id)
            answers = answer_summary(session, deps.keyring, viewer.ehr.id, viewer.patient_id)
            studies = sorted({job.reference.study_instance_uid for job in jobs})
            deps.audit.record(
                session,
                self._entry(
                    viewer, AuditKind.SMART_APP_RESULT_VIEWED, *map(_oid, studies), part="list of studies"
                ),
            )
            session.commit()
        return jobs, results, answers

    def reviewed(
        self, viewer: Viewer, result_id: str, *, part: str = "page"
    ) -> tuple[StoredResult, Answers, tuple[Signature, ...]]:
        """Return a result with what people answered and signed; raises as `result` does."""
        stored = self.result(viewer, result_id, part=part)
        with self._deps.sessions() as session:
            answers = load_answers(session, self._deps.keyring, stored.id)
            signatures = load_signatures(session, self._deps.keyring, stored.id)
        return stored, answers, signatures

    def result(self, viewer: Viewer, result_id: str, *, part: str) -> StoredResult:
        """Raise NotFound for another patient's result as for one that does not exist."""
        deps = self._deps
        with deps.sessions() as session:
            stored = load_result(session, deps.keyring, result_id)
            if stored is not None and (stored.ehr_id, stored.patient_id) == (
                viewer.ehr.id,
                viewer.patient_id,
            ):
                study = _oid(stored.reference.study_instance_uid)
                deps.audit.record(
                    session,
                    self._entry(
                        viewer, AuditKind.SMART_APP_RESULT_VIEWED, study, part=part, result=stored.id
                    ),
                )
                session.commit()
                return stored
        raise self._gate.refused(NotFound("this patient has no such result"), viewer.user)

    def job(self, viewer: Viewer, job_id: str) -> StoredJob:
        """Raise NotFound for another patient's job as for one that does not exist."""
        jobs = self.of_patient(viewer)[0]
        for job in jobs:
            if job.row.id == job_id:
                return job
        raise self._gate.refused(NotFound("this patient has no such analysis"), viewer.user)

    def _record_read(self, viewer: Viewer, entities: Iterable[str], *, succeeded: bool) -> None:
        entry = self._entry(viewer, AuditKind.FHIR_RESOURCE_READ, *entities)
        outcome = Outcome.SUCCESS if succeeded else Outcome.MINOR_FAILURE
        self._deps.tell(replace(entry, outcome=outcome))

    @staticmethod
    def _entry(viewer: Viewer, kind: AuditKind, *entities: str, **detail: str) -> AuditEntry:
        return AuditEntry(
            kind=kind,
            ehr_id=viewer.ehr.id,
            agent=agent_of(viewer.user),
            client_id=viewer.user.client_id,
            patient_id=viewer.patient_id,
            entities=entities,
            detail=detail,
        )


def build_result_router(
    deps: SMARTDependencies, pages: Pages, gate: Gate, viewer_files: ViewerFiles
) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    views = ResultViews(deps, gate)
    reading = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_RESULT_READ))]
    seeing = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_IMAGE_READ))]

    @router.get("/results/{result_id}")
    def result(result_id: str, viewer: reading) -> Response:
        stored, answers, signatures = views.reviewed(viewer, result_id)
        return pages.render(
            "result.html",
            ehr=viewer.ehr,
            patient=views.banner(viewer),
            result=present_result(stored, deps.manifests, deps.held_out),
            review=review_view(stored, answers, signatures, viewer),
            answers_path=answers_path(stored.id),
            report_path=report_path(stored.id),
            viewer=viewer_view(viewer_files, deps.keyring, viewer, stored),
        )

    @router.get("/results/{result_id}/image.png")
    def image(result_id: str, viewer: seeing) -> Response:
        return _png(views.result(viewer, result_id, part="image"), lambda key: key.image_png)

    @router.get("/results/{result_id}/overlay.png")
    def overlay(result_id: str, viewer: seeing) -> Response:
        return _png(views.result(viewer, result_id, part="overlay"), lambda key: key.overlay_png)

    def _png(stored: StoredResult, part: Callable[[KeyImage], bytes]) -> Response:
        key_image = stored.result.key_image
        if key_image is None:
            raise NotFound("this result has no image")
        headers = {**pages.headers(None), "Content-Disposition": "inline"}
        return Response(part(key_image), media_type=_PNG, headers=headers)

    return router


def _oid(study_instance_uid: str) -> str:
    return f"urn:oid:{study_instance_uid}"
