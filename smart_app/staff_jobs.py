"""The analyses of all EHRs, as an administrator sees them: how many, which failed and why, and once more."""

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import Conflict
from rayhook.fhir.text import translatable
from rayhook.inference.job_list import SHOWN
from rayhook.inference.job_table import JobState, WorkerQueue
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import moment_text
from rayhook.smart_app.job_acts import JobActs
from rayhook.smart_app.sign_in import go
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

_JOBS: Final = "/staff/jobs"
_STATES: Final = {
    JobState.QUEUED: translatable("Waiting"),
    JobState.RUNNING: translatable("In progress"),
    JobState.DONE: translatable("Done"),
    JobState.FAILED: translatable("Failed"),
    JobState.DEAD: translatable("Given up"),
    JobState.REFUSED: translatable("Refused"),
    JobState.CANCELLED: translatable("Cancelled"),
}


def build_job_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    acts = JobActs(deps.sessions, deps.keyring, deps.audit, deps.queue.send, deps.clock)
    looking = Annotated[StaffMember, Depends(gate.staffing(Permission.INFERENCE_JOB_READ))]
    cancelling = Annotated[StaffMember, Depends(gate.staffing(Permission.INFERENCE_JOB_CANCEL, fresh=True))]
    retrying = Annotated[StaffMember, Depends(gate.staffing(Permission.INFERENCE_JOB_RETRY, fresh=True))]

    def overview(
        request: Request, member: StaffMember, *, problem: str | None = None, status: int = 200
    ) -> Response:
        found = acts.overview(agent=member.agent)
        return pages.render(
            "staff_jobs.html",
            request,
            member,
            status=status,
            counts=found.counts,
            under_way=found.under_way,
            jobs=found.jobs,
            workers=found.workers,
            shown=SHOWN,
            states=_STATES,
            queues=tuple(WorkerQueue),
            moment=lambda seconds: moment_text(datetime.fromtimestamp(seconds, UTC)),
            is_fresh=gate.is_fresh(member),
            can_cancel=member.can(Permission.INFERENCE_JOB_CANCEL),
            can_retry=member.can(Permission.INFERENCE_JOB_RETRY),
            problem=problem,
        )

    @router.get(_JOBS)
    def jobs(request: Request, member: looking) -> Response:
        return overview(request, member)

    @router.post("/staff/jobs/retry")
    def retry_all(member: retrying) -> Response:
        acts.retry_all(agent=member.agent)
        return go(_JOBS)

    @router.post("/staff/jobs/{job_id}/retry")
    def retry(request: Request, job_id: str, member: retrying) -> Response:
        try:
            acts.retry(job_id, agent=member.agent)
        except Conflict as error:
            return overview(request, member, problem=error.code, status=error.status)
        return go(_JOBS)

    @router.post("/staff/jobs/{job_id}/cancel")
    def cancel(request: Request, job_id: str, member: cancelling) -> Response:
        try:
            acts.cancel(job_id, agent=member.agent)
        except Conflict as error:
            return overview(request, member, problem=error.code, status=error.status)
        return go(_JOBS)

    return router
