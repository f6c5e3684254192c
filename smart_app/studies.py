"""The launched patient's studies, each with what became of its analysis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.jobs import JobState, StoredJob, StoredResult
from rayhook.inference.statement import NOTHING_TO_RATE, is_experimental
from rayhook.inference.study import StudyReference, StudyResult
from rayhook.smart_app.numbers import percent
from rayhook.smart_app.presentation import day, state_of


@dataclass(frozen=True, slots=True)
class StudyView:
    """One row of the list, and the head of a job's page. `href` is None where there is nothing to open."""

    description: str
    modalities: tuple[str, ...]
    started: str
    state: str
    tone: str
    note: str
    href: str | None
    in_progress: bool = False


@dataclass(frozen=True, slots=True)
class JobWords:
    """How a job without a result is told."""

    state: str
    tone: str
    headline: str
    sentences: tuple[str, ...]


_NOTHING_KNOWN = "Until then nothing is known about whether a finding is present."
_NOT_NEGATIVE = "This is not a negative result. Read the study as if Rayhook had not been asked."
_WAITING = JobWords(
    "In progress",
    "waiting",
    "The analysis is in progress",
    ("This page shows the result as soon as there is one.", _NOTHING_KNOWN),
)
_WORDS = {
    JobState.QUEUED: _WAITING,
    JobState.RUNNING: _WAITING,
    JobState.FAILED: JobWords("Failed", "failed", "Not analysed: the analysis failed", (_NOT_NEGATIVE,)),
    JobState.DEAD: JobWords(
        "Failed", "failed", "Not analysed: the analysis failed several times", (_NOT_NEGATIVE,)
    ),
    JobState.REFUSED: JobWords(
        "Not analysed", "failed", "Not analysed: the study was refused", (_NOT_NEGATIVE,)
    ),
}


def job_words(job: StoredJob) -> JobWords:
    """Return the words for a job that is not done, with its own message where it has one."""
    words = _WORDS[job.row.state]
    if job.row.error_message is None:
        return words
    reason = f"Reason: {job.row.error_message} ({job.row.error_code})"
    again = ("It is tried again when the patient's chart is opened again.",) if job.row.retryable else ()
    return JobWords(words.state, words.tone, words.headline, (reason, *words.sentences, *again))


def list_studies(
    known: Iterable[ImagingStudySummary], jobs: Iterable[StoredJob], results: Iterable[StoredResult]
) -> list[StudyView]:
    """Return one row a study, newest first: those of the EHR's list, and those analysed that it does not name."""
    by_id = {result.id: result for result in results}
    newest: dict[str, StoredJob] = {}
    for job in jobs:
        newest.setdefault(job.reference.study_instance_uid, job)
    rows = [_analysed(job, by_id) for job in newest.values()]
    rows += [_unasked(study) for study in known if study.study_instance_uid not in newest]
    return sorted(rows, key=lambda row: row.started, reverse=True)


def job_view(job: StoredJob) -> StudyView:
    words = job_words(job)
    return _view(
        job.reference,
        state=words.state,
        tone=words.tone,
        note="",
        href=f"/jobs/{job.row.id}",
        in_progress=not job.row.state.is_final,
    )


def _analysed(job: StoredJob, results: Mapping[str, StoredResult]) -> StudyView:
    stored = results.get(job.row.result_id or "")
    if stored is None:
        return job_view(job)
    state = state_of(stored.result)
    return _view(
        stored.reference,
        state=state.name,
        tone=state.tone,
        note=_note(stored.result),
        href=f"/results/{stored.id}",
    )


def _note(result: StudyResult) -> str:
    findings = ", ".join(f"{one.display}: {percent(one.probability)}" for one in result.findings)
    told = NOTHING_TO_RATE if result.found_nothing_to_rate else findings or result.reason or ""
    return f"{told} (experimental model)" if is_experimental(result.model) else told


def _view(
    reference: StudyReference, *, state: str, tone: str, note: str, href: str, in_progress: bool = False
) -> StudyView:
    return StudyView(
        description=reference.description or "Imaging study",
        modalities=reference.modalities,
        started=day(reference.started),
        state=state,
        tone=tone,
        note=note,
        href=href,
        in_progress=in_progress,
    )


def _unasked(study: ImagingStudySummary) -> StudyView:
    return StudyView(
        description=study.description or "Imaging study",
        modalities=study.modalities,
        started=day(study.started),
        state="Not requested",
        tone="neutral",
        note="Rayhook has not been asked about this study.",
        href=None,
    )
