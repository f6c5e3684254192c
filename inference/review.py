"""How far people are with a patient's results: what was answered, what was signed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlmodel import Session

from rayhook.auth.keys import Keyring
from rayhook.fhir.codes import DiagnosticReportStatus
from rayhook.inference.answers import AnswerAction, is_added, load_answers, newest_actions
from rayhook.inference.signature import load_acts

__all__ = ["AnswerState", "answer_summary", "load_answers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerState:
    """How far one result is.

    answered: how many of the model's findings have an answer.  added: findings that people added.
    status: of the report.  at, by: of the newest signature, change or withdrawal.
    """

    answered: int = 0
    added: int = 0
    status: DiagnosticReportStatus = DiagnosticReportStatus.PRELIMINARY
    at: float | None = None
    by: str | None = None

    @property
    def is_signed(self) -> bool:
        """Return whether a person has signed the report, and it has not been withdrawn."""
        return self.status in {
            DiagnosticReportStatus.AMENDED,
            DiagnosticReportStatus.CORRECTED,
            DiagnosticReportStatus.FINAL,
        }


def answer_summary(
    session: Session, keyring: Keyring, ehr_id: str, patient_id: str
) -> Mapping[str, AnswerState]:
    """Return how far each of the patient's results is, by result id; those that nobody touched are left out."""
    states = {
        result_id: _counted(actions)
        for result_id, actions in newest_actions(session, keyring, ehr_id, patient_id).items()
    }
    for result_id, act, at in load_acts(session, keyring, ehr_id, patient_id):
        before = states.get(result_id, AnswerState())
        states[result_id] = replace(before, status=act.status, at=at, by=act.by.name or act.by.fhir_user)
    return states


def _counted(actions: Mapping[str, AnswerAction]) -> AnswerState:
    added = [action for finding, action in actions.items() if is_added(finding)]
    standing = sum(action is not AnswerAction.WITHDRAWN for action in added)
    return AnswerState(answered=len(actions) - len(added), added=standing)
