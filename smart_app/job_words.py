"""How a job without a result is told."""

from dataclasses import dataclass

from rayhook.fhir.text import translatable
from rayhook.inference.jobs import JobState, StoredJob
from rayhook.smart_app.i18n import gettext as _


@dataclass(frozen=True, slots=True)
class JobWords:
    state: str
    tone: str
    headline: str
    sentences: tuple[str, ...]


_NOTHING_KNOWN = translatable("Until then nothing is known about whether a finding is present.")
_NOT_NEGATIVE = translatable(
    "This is not a negative result. Read the study as if Rayhook had not been asked."
)
_SHOWN_AS_SOON = translatable("This page shows the result as soon as there is one.")
_AGAIN = translatable(
    "It is tried again when the patient's chart is opened again, or now in the list of studies."
)
_BY_ITSELF = translatable("It is tried again by itself, and when the patient's chart is opened again.")
_WORDS = {
    JobState.CANCELLED: JobWords(
        translatable("Cancelled"),
        "failed",
        translatable("Not analysed: the analysis was cancelled"),
        (_NOT_NEGATIVE,),
    ),
    JobState.QUEUED: JobWords(
        translatable("Waiting"),
        "waiting",
        translatable("The analysis waits for its turn"),
        (_SHOWN_AS_SOON, _NOTHING_KNOWN),
    ),
    JobState.RUNNING: JobWords(
        translatable("In progress"),
        "waiting",
        translatable("The analysis is in progress"),
        (_SHOWN_AS_SOON, _NOTHING_KNOWN),
    ),
    JobState.DONE: JobWords(
        translatable("Failed"), "failed", translatable("The result is not stored any more"), (_NOT_NEGATIVE,)
    ),
    JobState.FAILED: JobWords(
        translatable("Failed"), "failed", translatable("Not analysed: the analysis failed"), (_NOT_NEGATIVE,)
    ),
    JobState.DEAD: JobWords(
        translatable("Failed"),
        "failed",
        translatable("Not analysed: the images end the process that analyses them"),
        (_NOT_NEGATIVE,),
    ),
    JobState.REFUSED: JobWords(
        translatable("Not analysed"),
        "failed",
        translatable("Not analysed: the study was refused"),
        (_NOT_NEGATIVE,),
    ),
}


def job_words(job: StoredJob) -> JobWords:
    """Return the words for a job that is not done, in the reader's language, with its own message if it has one."""
    words = _WORDS[job.row.state]
    sentences = tuple(_(sentence) for sentence in words.sentences)
    if job.row.error_message is not None:
        reason = _("Reason: %(reason)s", reason=f"{_(job.row.error_message)} ({job.row.error_code})")
        again = (_(_AGAIN),) if job.row.retryable else ()
        again = (_(_BY_ITSELF),) if job.row.is_put_off else again
        sentences = (reason, *sentences, *again)
    return JobWords(_(words.state), words.tone, _(words.headline), sentences)
