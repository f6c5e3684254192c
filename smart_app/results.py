"""The pages of the launched patient: studies, results and their images."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import RedirectResponse, Response

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry
from rayhook.auth.roles import Permission
from rayhook.fhir.errors import NotFound
from rayhook.inference.jobs import StoredJob, StoredResult, jobs_for_patient, load_result, results_for_patient
from rayhook.inference.study import KeyImage
from rayhook.smart_app.access import Gate, Viewer, agent_of
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.patient import EHRReader, KnownStudies, PatientBanner
from rayhook.smart_app.presentation import present_result
from rayhook.smart_app.studies import job_view, job_words, list_studies
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

    def of_patient(self, viewer: Viewer) -> tuple[list[StoredJob], list[StoredResult]]:
        deps = self._deps
        with deps.sessions() as session:
            jobs = jobs_for_patient(session, deps.keyring, viewer.ehr.id, viewer.patient_id)
            results = results_for_patient(session, deps.keyring, viewer.ehr.id, viewer.patient_id)
            studies = sorted({job.reference.study_instance_uid for job in jobs})
            deps.audit.record(
                session,
                self._entry(
                    viewer, AuditKind.SMART_APP_RESULT_VIEWED, *map(_oid, studies), part="list of studies"
                ),
            )
            session.commit()
        return jobs, results

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
        jobs, _ = self.of_patient(viewer)
        for job in jobs:
            if job.row.id == job_id:
                return job
        raise self._gate.refused(NotFound("this patient has no such analysis"), viewer.user)

    def _record_read(self, viewer: Viewer, entities: Iterable[str], *, succeeded: bool) -> None:
        entry = self._entry(viewer, AuditKind.FHIR_RESOURCE_READ, *entities)
        outcome = Outcome.SUCCESS if succeeded else Outcome.MINOR_FAILURE
        with self._deps.sessions() as session:
            self._deps.audit.record(session, replace(entry, outcome=outcome))
            session.commit()

    @staticmethod
    def _entry(viewer: Viewer, kind: AuditKind, *entities: str, **detail: str) -> AuditEntry:
        return AuditEntry(
            kind=kind,
            ehr_id=viewer.ehr.id,
            agent=agent_of(viewer.user),
            patient_id=viewer.patient_id,
            entities=entities,
            detail=detail,
        )


def build_result_router(
    deps: SMARTDependencies, pages: Pages, gate: Gate, viewer_files: ViewerFiles
) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    views = ResultViews(deps, gate)
    looking = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_STUDY_READ))]
    reading = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_RESULT_READ))]
    seeing = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_IMAGE_READ))]

    @router.get("/patient")
    def patient(viewer: looking) -> Response:
        known = views.known_studies(viewer)
        studies = list_studies(known.studies, *views.of_patient(viewer))
        return pages.render(
            "patient.html",
            ehr=viewer.ehr,
            patient=views.banner(viewer),
            studies=studies,
            unavailable=known.notice,
            in_progress=any(study.in_progress for study in studies),
        )

    @router.get("/jobs/{job_id}")
    def job(job_id: str, viewer: reading) -> Response:
        found = views.job(viewer, job_id)
        if found.row.result_id is not None:
            return RedirectResponse(f"/results/{found.row.result_id}", status_code=303)
        words = job_words(found)
        return pages.render(
            "job.html",
            ehr=viewer.ehr,
            patient=views.banner(viewer),
            study=job_view(found),
            headline=words.headline,
            sentences=words.sentences,
            in_progress=not found.row.state.is_final,
        )

    @router.get("/results/{result_id}")
    def result(result_id: str, viewer: reading) -> Response:
        stored = views.result(viewer, result_id, part="page")
        return pages.render(
            "result.html",
            ehr=viewer.ehr,
            patient=views.banner(viewer),
            result=present_result(stored, deps.manifests),
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
