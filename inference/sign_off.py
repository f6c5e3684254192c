"""Signing a report, changing and withdrawing it: what a person saw is what is signed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlmodel import Session

from rayhook.auth.keys import Keyring
from rayhook.fhir.errors import Conflict, Forbidden, InvalidRequest
from rayhook.fhir.references import parse_reference
from rayhook.inference.answers import (
    MAX_TEXT,
    AnswerAction,
    Answers,
    Person,
    is_answerable,
    load_answers,
    lock_result,
)
from rayhook.inference.job_table import Authorization
from rayhook.inference.registry import Manifest
from rayhook.inference.results import StoredResult
from rayhook.inference.review_report import SignedReport
from rayhook.inference.review_text import ReviewedResult
from rayhook.inference.signature import (
    Act,
    SignAct,
    Signature,
    add_signature,
    current_resources,
    load_signatures,
    next_status,
    report_status,
)

_SIGNERS = frozenset({"Practitioner", "PractitionerRole"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRequest:
    """What somebody asks for. `seen` is `state_of` what they had before them; `reason` is why it changes."""

    act: SignAct
    by: Person
    seen: str
    reason: str = ""


def seen_state(answers: Answers, signatures: tuple[Signature, ...]) -> str:
    """Return what a signer sees, in one word: another answer or signature gives another."""
    return f"{len(signatures)}/{answers.state}"


def sign(
    session: Session,
    keyring: Keyring,
    stored: StoredResult,
    request: SignRequest,
    *,
    manifest: Manifest | None,
    authorization: Authorization | None,
    clock: Callable[[], float] = time.time,
) -> str:
    """Carry out the act in the caller's transaction, and return the signature's id.

    Raises Conflict where a finding has no answer, somebody was faster, or the act does not fit the report,
    Forbidden where the EHR does not say which practitioner signs, InvalidRequest without a due reason.
    """
    _check(stored, request)
    lock_result(session, stored.id)
    answers = load_answers(session, keyring, stored.id)
    signatures = load_signatures(session, keyring, stored.id)
    if request.seen != seen_state(answers, signatures):
        raise Conflict(
            "answers or signatures have changed since you opened the page", code="signature_overtaken"
        )
    if request.act is not SignAct.WITHDRAW and answers.unanswered(stored.result.findings):
        raise Conflict(
            "every finding has to be answered before the report is signed", code="findings_unanswered"
        )
    rejected = is_rejected(stored, answers)
    status = next_status(report_status(signatures), request.act, rejected=rejected)
    act = Act(
        act=request.act, status=status, by=request.by, answers=answers.state, reason=request.reason.strip()
    )
    report = SignedReport(
        stored,
        ReviewedResult(result=stored.result, answers=answers, act=act, at=clock(), manifest=manifest),
        current=current_resources(stored, signatures),
        signed_answers=signatures[-1].act.answers if signatures else "",
        version=len(signatures) + 2,
    )
    return add_signature(
        session,
        keyring,
        stored,
        act,
        report.resources(),
        version=len(signatures) + 2,
        authorization=authorization,
        clock=clock,
    )


def _check(stored: StoredResult, request: SignRequest) -> None:
    if not is_answerable(stored):
        raise Conflict("the model gave no answer: there is nothing to sign", code="nothing_to_answer")
    if not is_signer(request.by):
        raise Forbidden("the EHR has to say which practitioner signs", code="signer_unknown")
    if request.act is not SignAct.SIGN and not request.reason.strip():
        raise InvalidRequest(
            "reason must say why a signed report changes", code="answer_invalid", expression="reason"
        )
    if len(request.reason) > MAX_TEXT:
        raise InvalidRequest(
            f"reason must have at most {MAX_TEXT} characters", code="answer_invalid", expression="reason"
        )


def is_signer(person: Person) -> bool:
    """Return whether a report can name that person as who interpreted its results."""
    try:
        return parse_reference(person.fhir_user).type in _SIGNERS
    except InvalidRequest:
        return False


def is_rejected(stored: StoredResult, answers: Answers) -> bool:
    """Return whether nothing is left to report: every finding was rejected, and none added."""
    latest = answers.latest
    actions = [latest[f.code].action for f in stored.result.findings if f.code in latest]
    return bool(actions) and not answers.added and all(a is AnswerAction.REJECTED for a in actions)
