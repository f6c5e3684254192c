"""A signed result as FHIR R4: the next version of its Observations and report, and who stands for it.

Spec: FHIR R4 DiagnosticReport.resultsInterpreter, Provenance.entity (revision); HL7 AI Transparency
1.0.0-ballot (AI-Provenance, verifier)
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rayhook.fhir import codes
from rayhook.fhir.codes import Coding, DiagnosticReportStatus, ObservationStatus, ProvenanceEntityRole
from rayhook.fhir.r4 import decimal, validate
from rayhook.inference.answers import AnswerAction, FindingAnswer, FindingValue, Laterality
from rayhook.inference.report import attachment
from rayhook.inference.report_observation import COMPONENT_SYSTEM, Subject, tag_of
from rayhook.inference.report_text import narrative, report_title
from rayhook.inference.results import StoredResult
from rayhook.inference.review_text import (
    ReviewedResult,
    answered_sentence,
    review_page,
    review_sentences,
    value_text,
)
from rayhook.inference.signature import SignAct, observation_status
from rayhook.inference.statement import cautions
from rayhook.inference.study import Finding

Resource = dict[str, Any]

ANSWER_SYSTEM = "urn:rayhook:answer"
REASON_SYSTEM = "urn:rayhook:answer-reason"

_INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
_ANSWER = Coding(COMPONENT_SYSTEM, "human-answer", "What a person did with the model's answer")
_REASON = Coding(COMPONENT_SYSTEM, "human-answer-reason", "Why")
_VALUES = {
    FindingValue.ABSENT: (codes.ABSENT, Coding(_INTERPRETATION, "NEG", "Negative")),
    FindingValue.PRESENT: (codes.PRESENT, Coding(_INTERPRETATION, "POS", "Positive")),
    FindingValue.UNCERTAIN: (codes.EQUIVOCAL, Coding(_INTERPRETATION, "IND", "Indeterminate")),
}
_SIDES = {
    Laterality.BILATERAL: codes.BILATERAL,
    Laterality.LEFT: codes.LEFT,
    Laterality.MIDLINE: codes.MIDLINE,
    Laterality.RIGHT: codes.RIGHT,
}
_GONE = frozenset({ObservationStatus.CANCELLED, ObservationStatus.ENTERED_IN_ERROR})
_HUMAN_PARTS = frozenset({_ANSWER.code, _REASON.code, codes.LATERALITY.code, codes.LONG_AXIS.code})


class SignedReport:
    """Builds the resources of one act on one result's report.

    current: the result's resources as they stand before it.  signed_answers: `Answers.state` at the last
    signature, empty where there was none.  version: of the resources, of which the model's own are 1.
    """

    def __init__(
        self,
        stored: StoredResult,
        reviewed: ReviewedResult,
        *,
        current: Sequence[Resource],
        signed_answers: str,
        version: int,
    ) -> None:
        self._stored = stored
        self._reviewed = reviewed
        self._subject = Subject(stored.reference, stored.result)
        self._version = version
        self._current = {_local(one): one for one in current}
        self._signed = dict(part.rpartition(":")[::2] for part in signed_answers.split(".") if part)
        self._sentences = review_sentences(reviewed)
        self._instant = _instant(reviewed.at)
        self._person = _person_reference(reviewed)

    def resources(self) -> list[Resource]:
        """Return the Observations, the DiagnosticReport and the Provenance of this version.

        Raises InvalidRequest if one were not valid R4: it must not leave.
        """
        observations = [*self._of_model(), *self._of_people()]
        panel = self._panel(observations)
        report = self._report([panel, *observations])
        revised = [panel, *observations, report]
        every = [*revised, self._provenance(revised)]
        for resource in every:
            validate(resource)
        return every

    @property
    def _act(self) -> SignAct:
        return self._reviewed.act.act

    def _made(self, part: str) -> Resource:
        """Return the model's own Observation, by the end of its identifier: keys of older results may differ."""
        return next(
            one
            for one in self._stored.resources
            if one["resourceType"] == "Observation" and one["identifier"][0]["value"].endswith(f".{part}")
        )

    def _of_model(self) -> Iterator[Resource]:
        for finding in self._stored.result.findings:
            made = self._made(f"finding.{finding.code}")
            answer = self._reviewed.answers.latest.get(finding.code)
            stands = answer is not None and answer.action is not AnswerAction.REJECTED
            status = self._status(made, stands=stands, finding=finding.code)
            yield self._answered(made, finding, answer, status)

    def _of_people(self) -> Iterator[Resource]:
        """Yield the findings that people added, those taken back too where they were signed once."""
        for answer in self._reviewed.answers.latest.values():
            if not answer.is_added:
                continue
            blank = self._added(answer)
            stands = answer.action is not AnswerAction.WITHDRAWN
            if stands or _local(blank) in self._current:
                status = self._status(blank, stands=stands, finding=answer.finding)
                yield self._answered(blank, None, answer, status)

    def _added(self, answer: FindingAnswer) -> Resource:
        """Return the Observation of a finding that a person added: nothing of it is a model's."""
        key = self._subject.key(f"finding.{answer.finding}")
        study = {"reference": f"ImagingStudy/{self._stored.reference.imaging_study_id}"}
        name = answer.draft.display or self._name_of(answer.finding)
        return {
            "resourceType": "Observation",
            **self._subject.elements(key),
            "meta": {"tag": [tag_of(key)]},
            "partOf": [study],
            "status": ObservationStatus.PRELIMINARY.value,
            "category": [codes.IMAGING.concept()],
            "code": {"text": name},
            "derivedFrom": [study],
        }

    def _name_of(self, finding: str) -> str:
        """Return what an added finding was called: taking it back says no name."""
        history = self._reviewed.answers.of(finding)
        return next((answer.draft.display for answer in history if answer.draft.display), "Finding")

    def _status(self, made: Resource, *, stands: bool, finding: str | None = None) -> ObservationStatus:
        before = self._current.get(_local(made), made)["status"]
        version = str(self._reviewed.answers.version(finding or ""))
        changed = finding is None or self._signed.get(finding) != version
        return observation_status(ObservationStatus(before), self._act, stands=stands, changed=changed)

    def _answered(
        self, made: Resource, finding: Finding | None, answer: FindingAnswer | None, status: ObservationStatus
    ) -> Resource:
        revised = self._revised(made, status)
        if answer is None:
            return _without_value(revised) if status in _GONE else revised
        value = answer.value_of(finding)
        sentence = answered_sentence(finding, answer)
        model = self._stored.result.model
        beside = cautions(model) if finding is not None else ()
        revised |= {"text": narrative(sentence, *beside), "note": list(self._notes(answer, sentence, beside))}
        parts = [part for part in made.get("component", []) if not _is_human(part)]
        if status in _GONE or value is None:
            revised = _without_value(revised)
            parts = []
        elif answer.action is not AnswerAction.ACCEPTED:
            concept, interpretation = _VALUES[value]
            revised |= {
                "valueCodeableConcept": concept.concept(f"{value_text(value)}, as answered by a person"),
                "interpretation": [interpretation.concept()],
                **_site(made, answer),
            }
        return revised | {"component": [*parts, *_human_parts(answer)]}

    def _panel(self, members: Sequence[Resource]) -> Resource:
        made = self._made("study")
        gone = {DiagnosticReportStatus.CANCELLED, DiagnosticReportStatus.ENTERED_IN_ERROR}
        status = self._status(made, stands=self._reviewed.act.status not in gone)
        links = [{"reference": _local(member)} for member in members]
        revised = self._revised(made, status) | {"text": narrative(*self._sentences)}
        if status in _GONE:
            revised = _without_value(revised) | {"note": [{"text": " ".join(self._sentences)}]}
        else:
            revised |= {"valueString": "\n".join(self._sentences)}
        return revised | ({"hasMember": links} if links else {})

    def _revised(self, made: Resource, status: ObservationStatus) -> Resource:
        """Return an Observation under its new status, with the person who stands for it as performer."""
        security = [*made["meta"].get("security", []), codes.CLINICIAN_ASSERTED.json()]
        return {
            **made,
            "meta": {**made["meta"], "security": security},
            "status": status.value,
            "issued": self._instant,
            "performer": [self._person],
        }

    def _report(self, observations: Sequence[Resource]) -> Resource:
        made = next(one for one in self._stored.resources if one["resourceType"] == "DiagnosticReport")
        title = report_title(self._stored.result.model)
        security = [*made["meta"].get("security", []), codes.CLINICIAN_ASSERTED.json()]
        revised = {
            **made,
            "meta": {**made["meta"], "security": security},
            "text": narrative(*self._sentences),
            "status": self._reviewed.act.status.value,
            "issued": self._instant,
            "resultsInterpreter": [self._person],
            "result": [{"reference": _local(one)} for one in observations],
            "conclusion": "\n".join(self._sentences),
            "conclusionCode": list(self._conclusion_codes()),
            "presentedForm": [attachment(review_page(self._reviewed), f"{title}, reviewed", self._instant)],
        }
        return revised if revised["conclusionCode"] else _without(revised, "conclusionCode")

    def _conclusion_codes(self) -> Iterator[Resource]:
        gone = {DiagnosticReportStatus.CANCELLED, DiagnosticReportStatus.ENTERED_IN_ERROR}
        if self._reviewed.act.status in gone:
            return
        latest = self._reviewed.answers.latest
        for finding in self._stored.result.findings:
            answer = latest.get(finding.code)
            if answer is not None and answer.value_of(finding) is FindingValue.PRESENT:
                whose = "found by AI, accepted" if answer.action is AnswerAction.ACCEPTED else "stated"
                yield Coding(finding.system, finding.code, finding.display).concept(f"{whose} by a person")
        for answer in self._reviewed.answers.added:
            if answer.draft.value is FindingValue.PRESENT:
                yield {"text": answer.draft.display}

    def _provenance(self, revised: Sequence[Resource]) -> Resource:
        """Return who verified what, with the model still named as its author, and which version this follows."""
        key = self._subject.key(f"provenance.review.{self._version}")
        made = next(one for one in self._stored.resources if one["resourceType"] == "Provenance")
        study = {"reference": f"ImagingStudy/{self._stored.reference.imaging_study_id}"}
        return {
            **made,
            "id": key.id,
            "meta": {**made["meta"], "tag": [tag_of(key)]},
            "text": narrative(self._sentences[0]),
            "target": [{"reference": _local(one)} for one in revised],
            "occurredDateTime": self._instant,
            "recorded": self._instant,
            "activity": codes.REVISE.concept(),
            "agent": [*made["agent"], {"type": codes.VERIFIER.concept(), "who": self._person}],
            "entity": [
                {"role": ProvenanceEntityRole.SOURCE.value, "what": study},
                *(one for one in made["entity"] if one["role"] == ProvenanceEntityRole.DERIVATION),
                *(
                    {"role": ProvenanceEntityRole.REVISION.value, "what": what}
                    for what in self._before(revised)
                ),
            ],
        }

    def _before(self, revised: Sequence[Resource]) -> Iterator[Resource]:
        for one in revised:
            if _local(one) in self._current:
                yield {"reference": f"{_local(one)}/_history/{self._version - 1}"}

    @staticmethod
    def _notes(answer: FindingAnswer, sentence: str, beside: Sequence[str]) -> Iterator[Resource]:
        """Yield what was answered, in sentences that name who did, then the model's cautions."""
        for text in filter(None, (sentence, answer.draft.comment)):
            yield {"time": _instant(answer.at), "text": text}
        yield from ({"text": caution} for caution in beside)


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _human_parts(answer: FindingAnswer) -> Iterator[Resource]:
    """Yield what a person said as components: the act, its coded reason, side and size."""
    draft = answer.draft
    acted = Coding(ANSWER_SYSTEM, answer.action.value, answer.action.value)
    yield {"code": _ANSWER.concept(), "valueCodeableConcept": acted.concept()}
    if draft.reason is not None:
        reason = Coding(REASON_SYSTEM, draft.reason.value, draft.reason.value.replace("-", " "))
        yield {"code": _REASON.concept(), "valueCodeableConcept": reason.concept(draft.text.strip() or None)}
    if draft.laterality is not None:
        side = _SIDES[draft.laterality].concept()
        yield {"code": codes.LATERALITY.concept(), "valueCodeableConcept": side}
    if draft.size_mm is not None:
        size = {"value": decimal(draft.size_mm, places=1), "unit": "mm", "system": codes.UCUM, "code": "mm"}
        yield {"code": codes.LONG_AXIS.concept(), "valueQuantity": size}


def _site(made: Mapping[str, Any], answer: FindingAnswer) -> Resource:
    """Return the body site as a person put it: in words, beside the model's code where there is one."""
    if not answer.draft.site.strip():
        return {}
    return {"bodySite": {**made.get("bodySite", {}), "text": answer.draft.site.strip()}}


def _without_value(observation: Resource) -> Resource:
    """Return an Observation that states nothing of its finding any more.

    Spec: FHIR R4 Observation, obs-6
    """
    left = _without(
        observation, "valueCodeableConcept", "valueString", "interpretation", "extension", "component"
    )
    absent = codes.UNKNOWN.concept("the answer of the model does not stand")
    return left | {"dataAbsentReason": absent}


def _without(resource: Resource, *elements: str) -> Resource:
    return {name: value for name, value in resource.items() if name not in elements}


def _is_human(part: Mapping[str, Any]) -> bool:
    return part["code"]["coding"][0]["code"] in _HUMAN_PARTS


def _local(resource: Mapping[str, Any]) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


def _person_reference(reviewed: ReviewedResult) -> Resource:
    person = reviewed.act.by
    return {"reference": person.fhir_user, **({"display": person.name} if person.name else {})}
