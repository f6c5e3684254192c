"""The launched patient's studies, each with what became of its analysis and what people made of that."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rayhook.auth.keys import Keyring
from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.fhir.text import translatable
from rayhook.inference.anatomy import Region
from rayhook.inference.answers import FindingValue
from rayhook.inference.jobs import StoredJob, StoredResult
from rayhook.inference.review import AnswerState
from rayhook.inference.statement import is_experimental
from rayhook.inference.study import AnalysisStatus, Finding, StudyReference, StudyResult
from rayhook.smart_app.answer_texts import VALUES
from rayhook.smart_app.clinical_names import finding_name, region_names
from rayhook.smart_app.i18n import day_text, decimal_text, gettext, ngettext
from rayhook.smart_app.i18n import gettext as _
from rayhook.smart_app.image_study import study_handle
from rayhook.smart_app.job_words import job_words
from rayhook.smart_app.numbers import percent
from rayhook.smart_app.presentation import state_of
from rayhook.smart_app.reason_texts import reason_text
from rayhook.smart_app.trend import Examined, Prior, prior_of, regions_examined
from rayhook.smart_app.worklist_order import Place, Stage

METER_WIDTH = 120
# Spec: FHIR R4 ImagingStudy.status: nothing to analyse yet, or not any more.
WITHOUT_IMAGES = frozenset({"cancelled", "entered-in-error", "registered"})
_SAME_FROM_POINTS = 0.05


@dataclass(frozen=True, slots=True)
class TrendView:
    """An earlier answer on the same finding. change: in points of percent, empty where it would mislead."""

    href: str
    when: str
    probability: str
    change: str
    caveat: str


@dataclass(frozen=True, slots=True)
class FindingLine:
    """The model's answer on one finding. said: what the signed report says of it, empty where nobody signed."""

    name: str
    probability: str
    tone: str
    answer: str
    meter: float
    threshold: float
    trend: TrendView | None
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One study of the list. `href` is None where there is nothing to open, `earlier_href` where no older result.

    region: of the body, in words.  note: what stands below the state.  review: what people did with it.
    can_start: an analysis may be asked for, for the first time or again.
    """

    place: Place
    handle: str
    description: str
    modalities: tuple[str, ...]
    started: str
    region: str
    state: str
    tone: str
    note: str = ""
    is_note_english: bool = False
    findings: tuple[FindingLine, ...] = ()
    review: str = ""
    is_experimental: bool = False
    is_launched: bool = False
    href: str | None = None
    earlier_href: str | None = None
    can_start: bool = False
    is_again: bool = False

    @property
    def in_progress(self) -> bool:
        return self.place.stage is Stage.PROGRESS


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientStudies:
    """All that is known of one patient's imaging. before: how many analyses wait longer than a job that waits."""

    known: tuple[ImagingStudySummary, ...]
    jobs: tuple[StoredJob, ...]
    results: tuple[StoredResult, ...]
    answers: Mapping[str, AnswerState]
    before: Mapping[str, int] = field(default_factory=dict)


_STAGES = {
    AnalysisStatus.ABSTAINED: Stage.CHECK,
    AnalysisStatus.OUT_OF_SCOPE: Stage.OTHER,
    AnalysisStatus.REFUSED: Stage.CHECK,
}


class Worklist:
    """The rows of one patient. launched: the UIDs of the studies that the EHR opened the app from."""

    def __init__(self, keyring: Keyring, studies: PatientStudies, launched: frozenset[str]) -> None:
        self._keyring = keyring
        self._answers = studies.answers
        self._launched = launched
        self._listed = studies.known
        self._before = studies.before
        self._known = {one.study_instance_uid: one for one in studies.known if one.study_instance_uid}
        self._jobs = _by_study(studies.jobs)
        self._results = {one.id: one for one in studies.results}
        self._examined = tuple(self._examinations())

    def rows(self) -> list[StudyRow]:
        """Return one row a study: those of the EHR's list, and those analysed that it does not name."""
        rows = [self._asked(jobs) for jobs in self._jobs.values()]
        return rows + [self._unasked(one) for one in self._listed if one.study_instance_uid not in self._jobs]

    def _examinations(self) -> Iterator[Examined]:
        for jobs in self._jobs.values():
            newest = next(
                (self._results[i] for job in jobs if (i := job.row.result_id or "") in self._results), None
            )
            if newest is not None:
                yield Examined(newest, self._regions(newest.reference, newest.result))

    def _regions(self, reference: StudyReference, result: StudyResult | None = None) -> frozenset[Region]:
        study = self._known.get(reference.study_instance_uid)
        findings = () if result is None else result.findings
        return regions_examined(() if study is None else study.body_sites, reference.description, findings)

    def _asked(self, jobs: list[StoredJob]) -> StudyRow:
        """Return the row of a study by its newest job."""
        stored = self._results.get(jobs[0].row.result_id or "")
        return self._waiting_or_failed(jobs) if stored is None else self._analysed(stored)

    def _waiting_or_failed(self, jobs: list[StoredJob]) -> StudyRow:
        job, words = jobs[0], job_words(jobs[0])
        reference = job.reference
        stage = Stage.CHECK if job.row.state.is_final else Stage.PROGRESS
        earlier = next((old.row.result_id for old in jobs[1:] if old.row.result_id is not None), None)
        told = self._queue_text(job) if job.row.error_message is None else gettext(job.row.error_message)
        return StudyRow(
            place=self._place(reference, stage),
            handle=study_handle(self._keyring, reference.study_instance_uid),
            description=_title(reference.description),
            modalities=reference.modalities,
            started=day_text(reference.started),
            region=region_names(self._regions(reference)),
            state=words.state,
            tone=words.tone,
            note=told,
            is_note_english=bool(told) and told == job.row.error_message,
            is_launched=reference.study_instance_uid in self._launched,
            href=f"/jobs/{job.row.id}",
            earlier_href=None if earlier is None else f"/results/{earlier}",
            can_start=job.row.may_begin,
            is_again=True,
        )

    def _queue_text(self, job: StoredJob) -> str:
        before = self._before.get(job.row.id)
        if before is None:
            return ""
        if not before:
            return _("Next in the queue")
        return ngettext("%(count)s analysis before it", "%(count)s analyses before it", before, count=before)

    def _analysed(self, stored: StoredResult) -> StudyRow:
        result, reference = stored.result, stored.reference
        state, stage = state_of(result), self._stage(stored)
        reason = result.reason if result.status is not AnalysisStatus.ANALYSED else None
        told = "" if reason is None else reason_text(reason)
        return StudyRow(
            place=self._place(reference, stage, result),
            handle=study_handle(self._keyring, reference.study_instance_uid),
            description=_title(reference.description),
            modalities=reference.modalities,
            started=day_text(reference.started),
            region=region_names(self._regions(reference, result)),
            state=state.name,
            tone=_tone(state.tone, self._answers.get(stored.id)),
            note=told,
            is_note_english=bool(told) and told == reason,
            findings=tuple(self._lines(stored)) if result.status is AnalysisStatus.ANALYSED else (),
            review=review_text(self._answers.get(stored.id), len(result.findings)),
            is_experimental=is_experimental(result.model),
            is_launched=reference.study_instance_uid in self._launched,
            href=f"/results/{stored.id}",
        )

    def _stage(self, stored: StoredResult) -> Stage:
        answer = self._answers.get(stored.id)
        if answer is not None and answer.is_signed:
            return Stage.SIGNED
        if stored.result.status is not AnalysisStatus.ANALYSED:
            return _STAGES[stored.result.status]
        return Stage.REVIEW if any(one.positive for one in stored.result.findings) else Stage.NEGATIVE

    def _lines(self, stored: StoredResult) -> Iterator[FindingLine]:
        of = next(one for one in self._examined if one.stored.id == stored.id)
        for finding in sorted(stored.result.findings, key=lambda one: -one.probability):
            prior = prior_of(finding, of, self._examined)
            yield finding_line(finding, prior, self._answers.get(stored.id))

    def _unasked(self, study: ImagingStudySummary) -> StudyRow:
        uid = study.study_instance_uid
        has_images = uid is not None and study.status not in WITHOUT_IMAGES
        return StudyRow(
            place=Place(Stage.OTHER, study.started, uid or study.id, modalities=study.modalities),
            handle="" if uid is None else study_handle(self._keyring, uid),
            description=_title(study.description),
            modalities=study.modalities,
            started=day_text(study.started),
            region=region_names(regions_examined(study.body_sites, study.description, ())),
            state=_("Not requested") if has_images else _("No images"),
            tone="neutral",
            note=_("Rayhook has not been asked about this study.")
            if has_images
            else _("Your EHR names no images of this study that could be analysed."),
            is_launched=uid in self._launched,
            can_start=has_images,
        )

    @staticmethod
    def _place(reference: StudyReference, stage: Stage, result: StudyResult | None = None) -> Place:
        findings = () if result is None else result.findings
        return Place(
            stage,
            reference.started,
            reference.study_instance_uid,
            probability=max((one.probability for one in findings if one.positive), default=0.0),
            modalities=reference.modalities,
        )


def _by_study(jobs: Iterable[StoredJob]) -> dict[str, list[StoredJob]]:
    """Return the jobs of each study, the newest first, as they come."""
    by_study: dict[str, list[StoredJob]] = {}
    for job in jobs:
        by_study.setdefault(job.reference.study_instance_uid, []).append(job)
    return by_study


def _title(description: str | None) -> str:
    return description or _("Imaging study")


def review_text(answer: AnswerState | None, findings: int) -> str:
    """Return what people did with a result, empty where nobody has looked at its findings yet."""
    if answer is None:
        return ""
    if answer.status in _CLOSED:
        return _(_CLOSED[answer.status], name=answer.by or _("a radiologist"))
    if answer.is_signed:
        signed = _("Signed by %(name)s", name=answer.by) if answer.by else _("Signed")
        return f"{signed}, {_added_text(answer.added)}" if answer.added else signed
    if not answer.answered:
        return ""
    return ngettext(
        "%(answered)s of %(count)s finding answered",
        "%(answered)s of %(count)s findings answered",
        findings,
        answered=answer.answered,
        count=findings,
    )


_CLOSED: Mapping[DiagnosticReportStatus, str] = {
    DiagnosticReportStatus.CANCELLED: translatable("Rejected by %(name)s: the model's answer does not count"),
    DiagnosticReportStatus.ENTERED_IN_ERROR: translatable(
        "Report withdrawn by %(name)s: disregard what it said"
    ),
}


def _added_text(count: int) -> str:
    return ngettext("%(count)s finding added", "%(count)s findings added", count, count=count)


def _tone(tone: str, answer: AnswerState | None) -> str:
    """A person's word gives the colour once there is one: red for what they reject would say that it stands."""
    if answer is None or answer.at is None:
        return tone
    return "positive" if answer.says_present else "neutral"


def _line_tone(finding: Finding, answer: AnswerState | None) -> str:
    tone = "positive" if finding.positive else "negative"
    if answer is None or answer.at is None:
        return tone
    return "positive" if answer.said.get(finding.code) is FindingValue.PRESENT else "neutral"


def _said(finding: Finding, answer: AnswerState | None) -> str:
    if answer is None or not answer.is_signed:
        return ""
    value = answer.said.get(finding.code)
    return _(
        "In the signed report: %(value)s", value=_("No statement") if value is None else _(VALUES[value])
    )


def finding_line(finding: Finding, prior: Prior | None, answer: AnswerState | None = None) -> FindingLine:
    return FindingLine(
        name=finding_name(finding),
        probability=percent(finding.probability),
        tone=_line_tone(finding, answer),
        answer=_("above threshold") if finding.positive else _("below threshold"),
        meter=round(finding.probability * METER_WIDTH, 1),
        threshold=round(finding.threshold * METER_WIDTH, 1),
        trend=None if prior is None else _trend(finding, prior),
        said=_said(finding, answer),
    )


def _trend(finding: Finding, prior: Prior) -> TrendView:
    return TrendView(
        href=f"/results/{prior.result_id}",
        when=day_text(prior.started),
        probability=percent(prior.probability),
        change=_change((finding.probability - prior.probability) * 100) if prior.same_model else "",
        caveat="" if prior.same_model else _("by another model or version: not comparable"),
    )


def _change(points: float) -> str:
    """Return the difference of two probabilities of one model, in words: an arrow says nothing to a screen reader."""
    if abs(points) < _SAME_FROM_POINTS:
        return _("unchanged")
    size = decimal_text(abs(points), 1)
    if points > 0:
        return _("up by %(points)s points", points=size)
    return _("down by %(points)s points", points=size)


STAGE_TITLES: Mapping[Stage, str] = {
    Stage.REVIEW: translatable("To be read first"),
    Stage.CHECK: translatable("To be looked at"),
    Stage.PROGRESS: translatable("In progress"),
    Stage.NEGATIVE: translatable("Nothing marked"),
    Stage.OTHER: translatable("Not analysed"),
    Stage.SIGNED: translatable("Signed"),
}
STAGE_MEANINGS: Mapping[Stage, str] = {
    Stage.REVIEW: translatable("a finding at or above the model's threshold, and the report is not signed"),
    Stage.CHECK: translatable("the model gave no answer, or the analysis failed or was refused"),
    Stage.PROGRESS: translatable("the analysis waits or runs"),
    Stage.NEGATIVE: translatable("no finding at the threshold, or nothing to rate; this rules nothing out"),
    Stage.OTHER: translatable("not requested, without images, or no model is meant for it"),
    Stage.SIGNED: translatable("a person has signed the report"),
}
