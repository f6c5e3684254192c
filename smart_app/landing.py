"""Where a launch leads: to the result it names, to the study it was about, else to the patient's studies.

Spec: CDS Hooks 2.0.1, Link `appContext`; SMART App Launch 2.2.0, "fhirContext"
"""

import json
import re
from typing import Any

from rayhook.auth.sessions import SMARTSession
from rayhook.inference.jobs import StoredJob, jobs_for_patient
from rayhook.inference.study import StudyReference
from rayhook.smart_app.dependencies import SMARTDependencies

_RESULT_ID = re.compile(r"[0-9a-f]{32}")


def landing(deps: SMARTDependencies, session: SMARTSession, app_context: str | None) -> str:
    """Return the path of one of our own pages.

    Jobs come newest first: of a study analysed twice, the later analysis is shown.
    """
    result_id = named_result(app_context)
    if result_id is not None:
        return f"/results/{result_id}"
    job = next((job for job in _jobs(deps, session) if is_launched(session, job.reference)), None)
    if job is None:
        return "/patient"
    return f"/jobs/{job.row.id}" if job.row.result_id is None else f"/results/{job.row.result_id}"


def is_launched(session: SMARTSession, study: StudyReference) -> bool:
    """Say whether the app was opened from this study: the list of studies marks it."""
    return is_launched_study(session, study.imaging_study_id, study.study_instance_uid)


def is_launched_study(session: SMARTSession, imaging_study_id: str, study_instance_uid: str | None) -> bool:
    context = session.context
    return (
        imaging_study_id in context.study_ids(session.fhir_base_url)
        or study_instance_uid in context.study_instance_uids()
    )


def named_result(app_context: str | None) -> str | None:
    try:
        context: Any = json.loads(app_context or "null")
    except (ValueError, RecursionError):
        return None
    result_id = context.get("result") if isinstance(context, dict) else None
    return result_id if isinstance(result_id, str) and _RESULT_ID.fullmatch(result_id) else None


def _jobs(deps: SMARTDependencies, session: SMARTSession) -> list[StoredJob]:
    if session.patient_id is None or not session.context.items:
        return []
    with deps.sessions() as database:
        return list(jobs_for_patient(database, deps.keyring, session.ehr_id, session.patient_id))
