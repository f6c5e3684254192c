"""Cards: what the clinician reads.

Every card says that it is investigational, and each way of having no answer has its own words: none of them can
be read as "nothing found".
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC

import msgspec

from rayhook.cds_hooks.answers import StudyAnswer, Topic
from rayhook.cds_hooks.markdown import escape
from rayhook.cds_hooks.models import Card, Coding, Link, ReasonCoding, Source, Suggestion
from rayhook.cds_hooks.override_reasons import reasons_for
from rayhook.cds_hooks.review_words import fitted, in_sentence, review_detail, review_summary
from rayhook.fhir.r4 import ImagingStudySummary
from rayhook.inference.registry import Manifest, ModelStatus
from rayhook.inference.statement import (
    INVESTIGATIONAL,
    NOTHING_TO_RATE,
    cautions,
    is_experimental,
    limits,
    marked,
    probability_text,
)
from rayhook.inference.study import Finding, ModelIdentity, StudyResult

TOPIC_SYSTEM = "urn:rayhook:card-topic"

_MODALITY = re.compile(r"[A-Z0-9]{2,6}")
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_DATE_TIME = re.compile(r"\d{4}(-\d{2}(-\d{2}(T[0-9:.]+(Z|[+-]\d{2}:\d{2})?)?)?)?")

_SUMMARIES = {
    Topic.ABSTAINED: "No AI answer for {study}: the images are unlike those the model knows",
    Topic.CANCELLED: "{Study} was not analysed: the analysis was cancelled",
    Topic.FAILED: "No AI answer for {study}: the analysis failed",
    Topic.GIVEN_UP: "No AI answer for {study}: its images end the process that analyses them",
    Topic.IN_PROGRESS: "AI analysis of {study} is in progress: no result yet",
    Topic.NOT_BEGUN: "AI analysis of {study} has not begun: too many studies wait already",
    Topic.OUT_OF_SCOPE: "{Study} was not analysed: outside the intended use of the AI models",
    Topic.REFUSED: "{Study} was not analysed: its images could not be read faithfully",
    Topic.UNREACHABLE: "{Study} was not analysed: its images cannot be reached",
}
_EXPLANATIONS = {
    Topic.ABSTAINED: "The model declined to answer. This says nothing about whether a finding is present.",
    Topic.CANCELLED: "The analysis was cancelled. This says nothing about whether a finding is present.",
    Topic.FAILED: "The analysis ended in an error. This says nothing about whether a finding is present.",
    Topic.GIVEN_UP: (
        "Each attempt to analyse these images ended the process that did it, so no further one is made unless an "
        "administrator asks for it. This says nothing about whether a finding is present."
    ),
    Topic.IN_PROGRESS: (
        "The images are being analysed. Open the patient again in a moment for the result; until then nothing is "
        "known about whether a finding is present."
    ),
    Topic.NOT_BEGUN: (
        "The service has as many studies to analyse as it takes. Open the patient again later; until then nothing is "
        "known about whether a finding is present."
    ),
    Topic.OUT_OF_SCOPE: "No model is meant for these images. This says nothing about whether a finding is present.",
    Topic.REFUSED: "No image was analysed. This says nothing about whether a finding is present.",
    Topic.UNREACHABLE: "No image was analysed. This says nothing about whether a finding is present.",
    Topic.NO_FINDING: (
        "No finding reached its threshold. This does not exclude disease, and the model looks for nothing but the "
        "findings below."
    ),
    Topic.NOTHING_TO_RATE: NOTHING_TO_RATE,
}
_ANSWERED = frozenset({Topic.FINDING, Topic.NO_FINDING, Topic.NOTHING_TO_RATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class CardWriter:
    """Writes cards for one deployment. `launch_url` is None for an EHR that cannot launch the SMART app.

    `about_url` is where a clinician learns what the service is.
    """

    manifests: tuple[Manifest, ...]
    launch_url: str | None
    about_url: str | None = None

    def card(
        self,
        answer: StudyAnswer,
        *,
        suggestion: Suggestion | None = None,
        guidance: str | None = None,
        more_links: tuple[Link, ...] = (),
    ) -> Card:
        """Return the card that tells `answer`; `guidance` is Markdown on what to do next."""
        return self.written(
            answer.topic,
            summary=self._summary(answer),
            indicator=self._indicator(answer),
            detail="\n\n".join(self._detail(answer, guidance)),
            suggestion=suggestion,
            links=(*self.links(answer.result_id), *more_links),
            is_overridable=answer.result_id is not None,
        )

    def written(
        self,
        topic: Topic,
        *,
        summary: str,
        indicator: str,
        detail: str,
        suggestion: Suggestion | None,
        links: tuple[Link, ...],
        is_overridable: bool,
    ) -> Card:
        reasons: tuple[ReasonCoding, ...] = reasons_for(topic) if is_overridable else ()
        return Card(
            uuid=str(uuid.uuid4()),
            summary=summary,
            indicator=indicator,
            source=_source(topic, self.about_url),
            detail=detail,
            suggestions=() if suggestion is None else (suggestion,),
            selection_behavior=None if suggestion is None else "at-most-one",
            override_reasons=reasons,
            links=links,
        )

    def incomplete(self) -> Card:
        """Return the card that says that the list of studies itself was cut short."""
        return self.written(
            Topic.INCOMPLETE,
            summary="Not all imaging studies of this patient could be read: some may be missing here",
            indicator="info",
            detail=(
                "The EHR's list of imaging studies goes on in a page that could not be read, or holds a study in a "
                "form that could not be read. This says nothing about the studies that are missing."
                f"\n\n**{INVESTIGATIONAL}**"
            ),
            suggestion=None,
            links=(),
            is_overridable=False,
        )

    def _summary(self, answer: StudyAnswer) -> str:
        study = named(answer.study)
        if answer.review is not None and answer.result is not None:
            return review_summary(answer.review, answer.result, study)
        if answer.result is None or answer.topic not in _ANSWERED:
            return _SUMMARIES[answer.topic].format(study=study, Study=study[0].upper() + study[1:])
        speaker = "Experimental AI" if is_experimental(answer.result.model) else "Investigational AI"
        if answer.topic is Topic.NO_FINDING:
            return f"{speaker}: no finding above threshold on {study}; this does not exclude disease"
        if answer.topic is Topic.NOTHING_TO_RATE:
            return f"{speaker}: nothing was found to rate on {study}; this does not exclude disease"
        first = _by_probability(answer.result.findings)[0]
        ending = f", probability {probability_text(first.probability)}, on {study}"
        return fitted(f"{speaker}: possible ", in_sentence(first.display), ending)

    def _indicator(self, answer: StudyAnswer) -> str:
        """Only a model that was validated when it answered, and still is, may ask for more than `info`."""
        model = None if answer.result is None else answer.result.model
        manifest = self._manifest(model)
        still = manifest is not None and manifest.status is ModelStatus.VALIDATED
        validated = still and not is_experimental(model)
        return "warning" if validated and answer.topic is Topic.FINDING else "info"

    def _manifest(self, model: ModelIdentity | None) -> Manifest | None:
        if model is None:
            return None
        found = (m for m in self.manifests if (m.id, m.version) == (model.id, model.version))
        return next(found, None)

    def _detail(self, answer: StudyAnswer, guidance: str | None) -> Iterator[str]:
        if answer.review is not None and answer.result is not None:
            yield from review_detail(answer.review, answer.result)
        elif answer.topic in _EXPLANATIONS:
            yield _EXPLANATIONS[answer.topic]
        is_unsigned = answer.review is None
        if (
            is_unsigned
            and answer.result is not None
            and answer.result.findings
            and answer.topic is not Topic.ABSTAINED
        ):
            yield "\n".join(_table(answer.result.findings))
        yield "\n".join(f"- {fact}" for fact in self._facts(answer))
        if known := " ".join(map(escape, self._limits(answer.result))):
            yield f"Limits: {known}"
        if guidance is not None:
            yield guidance
        model = None if answer.result is None else answer.result.model
        yield from (f"**{caution}**" for caution in cautions(model))

    def _facts(self, answer: StudyAnswer) -> Iterator[str]:
        yield from _study_facts(answer.study)
        if answer.code is not None:
            yield f"Reason: {escape(answer.code)}"
        if answer.result is not None:
            yield from self._result_facts(answer.result)

    def _result_facts(self, result: StudyResult) -> Iterator[str]:
        if result.reason is not None and not result.found_nothing_to_rate:
            yield f"Reason: {escape(result.reason)}"
        yield f"Analysed: {result.analysed_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        if result.model is not None:
            model = (
                f"Model: {escape(result.model.id)}, version {escape(result.model.version)}, "
                f"weights SHA-256 {result.model.weights_sha256[:12]}"
            )
            yield marked(model, result.model)
        manifest = self._manifest(result.model)
        if manifest is not None:
            yield f"Intended use: {escape(manifest.intended_use)}"

    def _limits(self, result: StudyResult | None) -> Iterator[str]:
        """Return what this result leaves out, then what its model is known not to do."""
        if result is None:
            return
        yield from limits(result)
        manifest = self._manifest(result.model)
        if manifest is not None:
            yield from manifest.limits

    def links(self, result_id: str | None) -> tuple[Link, ...]:
        if self.launch_url is None or result_id is None:
            return ()
        context = msgspec.json.encode({"result": result_id}).decode()
        return (Link(label="Open images and result", url=self.launch_url, type="smart", app_context=context),)


def _source(topic: Topic, url: str | None) -> Source:
    display = topic.value.replace("-", " ")
    coding = Coding(code=topic.value, system=TOPIC_SYSTEM, display=display)
    return Source(label="Rayhook", topic=coding, url=url)


def named(study: ImagingStudySummary) -> str:
    """Return the study in a few words that hold no foreign text, such as "the MR study of 2026-03-12"."""
    modalities = [code for code in study.modalities if _MODALITY.fullmatch(code)][:3]
    kind = "/".join(modalities) or "imaging"
    date = _DATE.match(study.started or "")
    return f"the {kind} study of {date[0]}" if date else f"the {kind} study of unknown date"


def _by_probability(findings: Iterable[Finding]) -> Sequence[Finding]:
    return sorted(findings, key=lambda finding: (not finding.positive, -finding.probability))


def _table(findings: Iterable[Finding]) -> Iterator[str]:
    yield "| Finding | Calibrated probability | Threshold | Answer |"
    yield "| --- | --- | --- | --- |"
    for finding in _by_probability(findings):
        answer = "possible" if finding.positive else "below threshold"
        name = escape(finding.display)
        yield f"| {name} | {probability_text(finding.probability)} | {finding.threshold:.3f} | {answer} |"


def _study_facts(study: ImagingStudySummary) -> Iterator[str]:
    acquired = study.started if study.started and _DATE_TIME.fullmatch(study.started) else "unknown"
    yield f"Acquired: {acquired}"
    if study.description:
        yield f"Study: {escape(study.description)}"
