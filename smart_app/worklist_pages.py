"""The list of the launched patient's studies, the page of one analysis under way, and the request for one."""

from collections.abc import Iterable, Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from rayhook.auth.roles import Permission
from rayhook.fhir.errors import NotFound
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.jobs import JobState, StoredJob, waiting
from rayhook.inference.study import StudyReference
from rayhook.smart_app.access import Gate, Viewer
from rayhook.smart_app.analysis_start import start_analysis
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import day_text
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.image_study import reference_of, study_handle
from rayhook.smart_app.job_words import job_words
from rayhook.smart_app.landing import is_launched_study
from rayhook.smart_app.own_page import require_own_page
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.patient import KnownStudies
from rayhook.smart_app.results import ResultViews
from rayhook.smart_app.window import href
from rayhook.smart_app.worklist import STAGE_MEANINGS, STAGE_TITLES, PatientStudies, StudyRow, Worklist
from rayhook.smart_app.worklist_order import Page, Selection, Sort, Stage, page_of

# After this the page says that it takes longer than usual: a slow archive is the usual reason.
_SLOW_FROM_S = 60.0


def build_worklist_router(deps: SMARTDependencies, pages: Pages, gate: Gate) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    views = ResultViews(deps, gate)
    looking = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_STUDY_READ))]
    reading = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_RESULT_READ))]
    starting = Annotated[Viewer, Depends(gate.viewing(Permission.SMART_APP_ANALYSIS_START))]

    @router.get("/patient")
    def patient(request: Request, viewer: looking) -> Response:
        known = views.known_studies(viewer)
        jobs, results, answers = views.of_patient(viewer)
        studies = PatientStudies(
            known=known.studies,
            jobs=tuple(jobs),
            results=tuple(results),
            answers=answers,
            before=_before(deps, jobs),
        )
        rows = Worklist(deps.keyring, studies, _launched(viewer, known, jobs)).rows()
        selection = Selection.of(request.query_params)
        page = page_of(rows, selection)
        return pages.render(
            "worklist.html",
            ehr=viewer.ehr,
            patient=views.banner(viewer),
            page=page,
            groups=groups_of(page, selection),
            selection=selection,
            modalities=sorted({code for row in rows for code in row.modalities}),
            stages=STAGE_TITLES,
            meanings=STAGE_MEANINGS,
            known=known,
            may_start=viewer.can(Permission.SMART_APP_ANALYSIS_START) and bool(deps.models),
            in_progress=any(row.in_progress for row in rows),
        )

    @router.post("/studies/{handle}/analysis")
    def analysis(request: Request, handle: str, viewer: starting) -> Response:
        require_own_page(request, deps.public_base_url)
        reference = _reference(deps, views, viewer, handle)
        if reference is None:
            raise gate.refused(
                NotFound("this patient has no such study", code="study_not_found"), viewer.user
            )
        job_id = start_analysis(deps, viewer, reference)
        return RedirectResponse(
            href(f"/jobs/{job_id}"), status_code=303, headers={"Cache-Control": "no-store"}
        )

    @router.get("/jobs/{job_id}")
    def job(job_id: str, viewer: reading) -> Response:
        found = views.job(viewer, job_id)
        if found.row.result_id is not None:
            return RedirectResponse(href(f"/results/{found.row.result_id}"), status_code=303)
        return pages.render(
            "job.html",
            ehr=viewer.ehr,
            patient=views.banner(viewer),
            study=found.reference,
            started=day_text(found.reference.started),
            words=job_words(found),
            in_progress=not found.row.state.is_final,
            is_slow=not found.row.state.is_final and deps.clock() - found.row.created_at > _SLOW_FROM_S,
        )

    return router


def _before(deps: SMARTDependencies, jobs: Iterable[StoredJob]) -> Mapping[str, int]:
    """Return how many analyses wait longer than each job that waits."""
    if not any(job.row.state is JobState.QUEUED for job in jobs):
        return {}
    with deps.sessions() as session:
        return {id_: place for place, id_ in enumerate(waiting(session))}


def _launched(viewer: Viewer, known: KnownStudies, jobs: Iterable[StoredJob]) -> frozenset[str]:
    """Return the UIDs of the studies that the EHR opened the app from."""
    named = [(one.id, one.study_instance_uid) for one in known.studies]
    named += [(job.reference.imaging_study_id, job.reference.study_instance_uid) for job in jobs]
    return frozenset(uid for id_, uid in named if uid and is_launched_study(viewer.session, id_, uid))


def _reference(
    deps: SMARTDependencies, views: ResultViews, viewer: Viewer, handle: str
) -> StudyReference | None:
    """Return the study as the EHR has it now, or else as it was when it was last asked for."""

    def is_it(uid: str | None) -> bool:
        return uid is not None and study_handle(deps.keyring, uid) == handle

    listed: ImagingStudySummary | None = next(
        (one for one in views.known_studies(viewer).studies if is_it(one.study_instance_uid)), None
    )
    if listed is not None:
        return reference_of(listed, viewer)
    jobs = views.of_patient(viewer)[0]
    return next((job.reference for job in jobs if is_it(job.reference.study_instance_uid)), None)


def groups_of(page: Page[StudyRow], selection: Selection) -> list[tuple[str, tuple[StudyRow, ...]]]:
    """Return the rows under the title of their stage; in the order of the dates they stand under none."""
    if selection.sort is not Sort.URGENCY:
        return [("", page.rows)]
    by_stage = [(stage, tuple(row for row in page.rows if row.place.stage is stage)) for stage in Stage]
    return [(_(STAGE_TITLES[stage]), rows) for stage, rows in by_stage if rows]
