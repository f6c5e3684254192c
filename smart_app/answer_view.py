"""What people answered and signed, as the page shows it, and what they may do next."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from rayhook.auth.roles import Permission
from rayhook.fhir.codes import DiagnosticReportStatus as Report
from rayhook.inference.answers import (
    REASONS,
    AnswerAction,
    Answers,
    FindingAnswer,
    FindingValue,
    Laterality,
    is_answerable,
)
from rayhook.inference.results import DeliveryState, StoredResult
from rayhook.inference.review_text import person_text
from rayhook.inference.sign_off import is_rejected, seen_state
from rayhook.inference.signature import SignAct, Signature, acts_on, report_status
from rayhook.inference.study import Finding
from rayhook.smart_app.access import Viewer
from rayhook.smart_app.answer_texts import ACTIONS, ACTS, REASON_TEXTS, SIDES, STATUSES, VALUES
from rayhook.smart_app.i18n import decimal_text, moment_text
from rayhook.smart_app.i18n import gettext as _

Coded = TypeVar("Coded", bound=StrEnum)

_ISSUED = frozenset({Report.AMENDED, Report.CORRECTED, Report.FINAL})
_TONES = {
    Report.AMENDED: "done",
    Report.CANCELLED: "neutral",
    Report.CORRECTED: "done",
    Report.ENTERED_IN_ERROR: "failed",
    Report.FINAL: "done",
    Report.PRELIMINARY: "waiting",
}


@dataclass(frozen=True, slots=True)
class Option:
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One answer in words; `details` are site, side, size and comment, as far as given."""

    action: str
    value: str
    who: str
    when: str
    reason: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnsweredView:
    """How far one finding is: the answer that counts, those before it, and the version a form has to name."""

    finding: str
    display: str
    version: int
    current: AnswerView | None
    earlier: tuple[AnswerView, ...]


@dataclass(frozen=True, slots=True)
class ActView:
    """One signature, change or withdrawal. `conclusion` are its sentences, in the language of the report."""

    act: str
    who: str
    when: str
    reason: str
    conclusion: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SignOffView:
    """The state of the report, and what the viewer may do with it.

    status, tone: of the report.  at_ehr: whether the EHR has it.  obstacle: why it cannot be signed yet.
    acts: what may be done, by the values of SignAct.  seen: what a form has to name.
    signing: what the signature makes of the report.
    signed_by: whose word counts beside the model's, and what it does; empty where nobody has signed.
    """

    status: str
    tone: str
    at_ehr: str
    acts: tuple[str, ...]
    history: tuple[ActView, ...]
    seen: str
    obstacle: str
    is_changed: bool
    can_send: bool
    is_conflict: bool
    signing: str
    signed_by: str


@dataclass(frozen=True, slots=True)
class ReviewView:
    """All about answers that result.html shows; `can_answer` says whether forms are shown."""

    can_answer: bool
    answered: dict[str, AnsweredView]
    added: tuple[AnsweredView, ...]
    sign_off: SignOffView | None
    values: tuple[Option, ...]
    added_values: tuple[Option, ...]
    sides: tuple[Option, ...]
    reasons: dict[str, tuple[Option, ...]]


def answers_path(result_id: str) -> str:
    return f"/results/{result_id}/answers"


def report_path(result_id: str) -> str:
    return f"/results/{result_id}/report"


def review_view(
    stored: StoredResult, answers: Answers, signatures: Sequence[Signature], viewer: Viewer
) -> ReviewView:
    """Return what the viewer sees of answers and signatures, and may do."""
    status = report_status(signatures)
    findings = {finding.code: finding for finding in stored.result.findings}
    return ReviewView(
        can_answer=is_answerable(stored) and may_answer(viewer, status),
        answered={code: answered_view(answers, code, finding) for code, finding in findings.items()},
        added=tuple(answered_view(answers, one.finding, None) for one in answers.added),
        sign_off=_sign_off(stored, answers, signatures, viewer) if is_answerable(stored) else None,
        values=_options(VALUES, tuple(FindingValue)),
        added_values=_options(VALUES, (FindingValue.PRESENT, FindingValue.UNCERTAIN)),
        sides=_options(SIDES, tuple(Laterality)),
        reasons={action.value: _options(REASON_TEXTS, REASONS[action]) for action in AnswerAction},
    )


def may_answer(viewer: Viewer, status: Report) -> bool:
    """Return whether the viewer may answer: what is signed is changed by those alone who may sign."""
    if status is Report.ENTERED_IN_ERROR or not viewer.can(Permission.SMART_APP_FINDING_ANSWER):
        return False
    return status not in _ISSUED or viewer.can(Permission.SMART_APP_REPORT_SIGN)


def answer_view(answer: FindingAnswer, finding: Finding | None) -> AnswerView:
    """Return one answer in words."""
    draft, value = answer.draft, answer.value_of(finding)
    reason = "" if draft.reason is None else _(REASON_TEXTS[draft.reason])
    return AnswerView(
        action=_(ACTIONS[answer.action]),
        value=_("No statement") if value is None else _(VALUES[value]),
        who=person_text(answer.by),
        when=moment_text(datetime.fromtimestamp(answer.at, UTC)),
        reason=": ".join(filter(None, (reason, draft.text.strip()))),
        details=tuple(
            filter(
                None,
                (
                    draft.site.strip(),
                    "" if draft.laterality is None else _(SIDES[draft.laterality]),
                    "" if draft.size_mm is None else f"{decimal_text(draft.size_mm, 1)} mm",
                    draft.comment.strip(),
                ),
            )
        ),
    )


def answered_view(answers: Answers, code: str, finding: Finding | None) -> AnsweredView:
    """Return how far one finding is."""
    views = [answer_view(answer, finding) for answer in answers.of(code)]
    display = answers.latest[code].draft.display if finding is None else finding.display
    return AnsweredView(
        finding=code,
        display=display,
        version=answers.version(code),
        current=views[-1] if views else None,
        earlier=tuple(reversed(views[:-1])),
    )


def _sign_off(
    stored: StoredResult, answers: Answers, signatures: Sequence[Signature], viewer: Viewer
) -> SignOffView:
    status = report_status(signatures)
    newest = signatures[-1] if signatures else None
    is_changed = newest is not None and status in _ISSUED and newest.act.answers != answers.state
    can_sign = viewer.can(Permission.SMART_APP_REPORT_SIGN)
    missing = len(answers.unanswered(stored.result.findings))
    undelivered = newest is not None and newest.delivery is not DeliveryState.DELIVERED
    return SignOffView(
        status=_(STATUSES[status]),
        tone=_TONES[status],
        at_ehr=_at_ehr(stored, newest),
        acts=tuple(_acts(status, missing, is_changed=is_changed)) if can_sign else (),
        history=tuple(_act_view(signature) for signature in reversed(signatures)),
        seen=seen_state(answers, tuple(signatures)),
        obstacle=_obstacle(status, missing, can_sign=can_sign),
        is_changed=is_changed,
        can_send=can_sign and undelivered,
        is_conflict=newest is not None and newest.delivery is DeliveryState.CONFLICT,
        signing=_signing(is_rejected(stored, answers)),
        signed_by=_signed_by(newest),
    )


def _signing(rejected: bool) -> str:
    if rejected:
        return _("All answers are rejected: by signing you cancel the report at the EHR, under your name.")
    return _(
        "By signing you make the answers above your report: it goes to the EHR as final, under your name."
    )


def _signed_by(newest: Signature | None) -> str:
    if newest is None:
        return ""
    if newest.status not in _ISSUED:
        return _(
            "%(person)s has taken the report back: disregard what the model said of any finding.",
            person=person_text(newest.act.by),
        )
    return _(
        "%(person)s has signed the report: what counts is their answer below, not the model's.",
        person=person_text(newest.act.by),
    )


def _acts(status: Report, missing: int, *, is_changed: bool) -> Iterable[str]:
    """Yield the acts that make sense: what is signed is amended or corrected once an answer has changed."""
    for act in acts_on(status):
        if act is SignAct.WITHDRAW or (not missing and (act is SignAct.SIGN or is_changed)):
            yield act.value


def _obstacle(status: Report, missing: int, *, can_sign: bool) -> str:
    if status is Report.ENTERED_IN_ERROR:
        return _("This report was withdrawn. Nothing more can be signed here.")
    if missing:
        return _("Every finding has to be answered before the report can be signed.")
    if not can_sign:
        return _("Only a radiologist signs. Your answers stay with the preliminary report.")
    return ""


def _at_ehr(stored: StoredResult, newest: Signature | None) -> str:
    if newest is None:
        delivered = stored.delivery is DeliveryState.DELIVERED
        return _("The EHR has the preliminary report.") if delivered else _("The EHR has no report yet.")
    return {
        DeliveryState.CONFLICT: _(
            "Signed here, not at the EHR: somebody changed the EHR's copy since. Look at it before you replace it."
        ),
        DeliveryState.DELIVERED: _("The EHR has this version."),
        DeliveryState.FAILED: _("Signed here, not yet at the EHR. It is tried again by itself."),
        DeliveryState.NOT_PERMITTED: _(
            "Signed here, not at the EHR: the EHR does not permit Rayhook to change the report."
        ),
        DeliveryState.PENDING: _("Signed here, on its way to the EHR."),
    }[newest.delivery]


def _act_view(signature: Signature) -> ActView:
    act = signature.act
    return ActView(
        act=_(ACTS[act.act]),
        who=person_text(act.by),
        when=moment_text(datetime.fromtimestamp(signature.at, UTC)),
        reason=act.reason,
        conclusion=tuple(signature.conclusion.splitlines()),
    )


def _options(texts: Mapping[Coded, str], values: Iterable[Coded]) -> tuple[Option, ...]:
    return tuple(Option(value.value, _(texts[value])) for value in values)
