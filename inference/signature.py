"""Who signed a result's report, and what became of it: nothing but a person's act makes it final.

Spec: FHIR R4 valueset-diagnostic-report-status, valueset-observation-status
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Column, LargeBinary, UniqueConstraint
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import patient_index
from rayhook.fhir.codes import DiagnosticReportStatus as Report
from rayhook.fhir.codes import ObservationStatus as Observed
from rayhook.fhir.errors import Conflict
from rayhook.fhir.r4 import decode_json, encode_json
from rayhook.inference.answers import Person
from rayhook.inference.job_table import Authorization
from rayhook.inference.results import (
    MAX_MESSAGE,
    DeliveryState,
    StoredResult,
)
from rayhook.inference.sealed_row import SealedRow

Resource = dict[str, Any]

_ISSUED = frozenset({Report.AMENDED, Report.CORRECTED, Report.FINAL})
_UNISSUED = frozenset({Report.CANCELLED, Report.PRELIMINARY})
_OBSERVED = frozenset({Observed.AMENDED, Observed.CORRECTED, Observed.FINAL})


class SignAct(StrEnum):
    """What a radiologist does with a report. `amend`: more is known now; `correct`: it was wrong."""

    AMEND = "amend"
    CORRECT = "correct"
    SIGN = "sign"
    WITHDRAW = "withdraw"


_CHANGES = {SignAct.AMEND: Report.AMENDED, SignAct.CORRECT: Report.CORRECTED}


def next_status(status: Report, act: SignAct, *, rejected: bool = False) -> Report:
    """Return what the act makes of a report; `rejected`: nothing of it was accepted, edited or added.

    Raises Conflict where the act does not fit: one signs once, changes what is signed, and nothing
    follows on what was withdrawn in error.
    """
    if act is SignAct.SIGN and status in _UNISSUED:
        return Report.CANCELLED if rejected else Report.FINAL
    if act in _CHANGES and status in _ISSUED:
        return _CHANGES[act]
    if act is SignAct.WITHDRAW and status in _ISSUED:
        return Report.ENTERED_IN_ERROR
    if act is SignAct.WITHDRAW and status is Report.PRELIMINARY:
        return Report.CANCELLED
    raise Conflict(f"a report that is {status} cannot take the act {act}", code="act_does_not_fit")


def acts_on(status: Report) -> tuple[SignAct, ...]:
    """Return what can be done with a report in that status."""

    def fits(act: SignAct) -> bool:
        try:
            next_status(status, act)
        except Conflict:
            return False
        return True

    return tuple(filter(fits, SignAct))


def observation_status(before: Observed, act: SignAct, *, stands: bool, changed: bool) -> Observed:
    """Return what the act makes of one Observation.

    stands: it was accepted, edited or added, and not rejected.  changed: since the last signature.
    """
    if act is SignAct.WITHDRAW or not stands:
        gone = before in _OBSERVED or before is Observed.ENTERED_IN_ERROR
        return Observed.ENTERED_IN_ERROR if gone else Observed.CANCELLED
    if before in {Observed.CANCELLED, Observed.PRELIMINARY, Observed.REGISTERED}:
        return Observed.FINAL
    if not changed:
        return before
    return Observed.AMENDED if act is SignAct.AMEND else Observed.CORRECTED


class ReportSignatureRow(SQLModel, table=True):
    """One signature, change or withdrawal, with the resources as they stand after it, sealed."""

    __tablename__ = "report_signature"
    __table_args__ = (UniqueConstraint("result_id", "version"),)

    id: str = Field(primary_key=True, max_length=32)
    result_id: str = Field(foreign_key="analysis_result.id", index=True, max_length=32)
    ehr_id: str = Field(max_length=128)
    patient_index: str = Field(max_length=64, index=True)
    version: int
    act: str = Field(max_length=16)
    status: str = Field(max_length=16)
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    resources: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    authorization: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    written: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    delivery: str = Field(max_length=16)
    delivery_detail: str | None = Field(default=None, max_length=MAX_MESSAGE)
    attempts: int = 0
    next_attempt_at: float | None = Field(default=None, index=True)
    signed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What was signed, by whom, and why it was changed or withdrawn.

    answers: `Answers.state` that it was signed in.
    """

    act: SignAct
    status: Report
    by: Person
    answers: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One stored act. `version` is that of the resources, of which the model's own are 1.

    resources: the Observations, the DiagnosticReport and the Provenance of this version.
    written: the EHR's `Type/id/_history/version` of each, by our own `Type/id`.
    """

    id: str
    result_id: str
    ehr_id: str
    version: int
    act: Act
    resources: tuple[Resource, ...]
    delivery: DeliveryState
    delivery_detail: str | None
    attempts: int
    at: float
    written: Mapping[str, str]

    @property
    def status(self) -> Report:
        return self.act.status

    @property
    def conclusion(self) -> str:
        """Return the words of the report as it was signed."""
        return next(
            (str(one["conclusion"]) for one in self.resources if one["resourceType"] == "DiagnosticReport"),
            "",
        )


def is_withdrawn(signatures: Sequence[Signature]) -> bool:
    """Return whether the newest of them took the report back."""
    return bool(signatures) and signatures[-1].act.act is SignAct.WITHDRAW


def load_signatures(session: Session, keyring: Keyring, result_id: str) -> tuple[Signature, ...]:
    """Return all acts on one result's report, the oldest first."""
    query = (
        select(ReportSignatureRow)
        .where(ReportSignatureRow.result_id == result_id)
        .order_by(col(ReportSignatureRow.version))
    )
    return tuple(opened_signature(session, keyring, row) for row in session.exec(query))


def report_status(signatures: Sequence[Signature]) -> Report:
    """Return the status of a report: preliminary, whatever was answered, until somebody signs."""
    return signatures[-1].status if signatures else Report.PRELIMINARY


def add_signature(
    session: Session,
    keyring: Keyring,
    stored: StoredResult,
    act: Act,
    resources: Sequence[Resource],
    *,
    version: int,
    authorization: Authorization | None,
    clock: Callable[[], float] = time.time,
) -> str:
    """Store an act in the caller's transaction, due to be written to the EHR at once; return its id."""
    id_, now = uuid.uuid4().hex, clock()
    lent = None if authorization is None else msgspec.json.encode(authorization)
    patient = patient_index(keyring, stored.ehr_id, stored.patient_id)

    def sealed(column: str, plaintext: bytes) -> bytes:
        return SealedRow(session, keyring, ReportSignatureRow, id_).seal(
            column, plaintext, patient_index=patient
        )

    row = ReportSignatureRow(
        id=id_,
        result_id=stored.id,
        ehr_id=stored.ehr_id,
        patient_index=patient,
        version=version,
        act=act.act.value,
        status=act.status.value,
        content=sealed("content", msgspec.json.encode(act)),
        resources=sealed("resources", encode_json(list(resources))),
        authorization=None if lent is None else sealed("authorization", lent),
        delivery=DeliveryState.PENDING.value,
        next_attempt_at=now,
        signed_at=now,
    )
    session.add(row)
    session.flush()
    return id_


def current_resources(stored: StoredResult, signatures: Sequence[Signature]) -> tuple[Resource, ...]:
    """Return a result's resources as they now stand: the model's, replaced and joined by what was signed."""
    standing = {(one["resourceType"], one["id"]): one for one in stored.resources}
    for signature in signatures:
        for one in signature.resources:
            standing[one["resourceType"], one["id"]] = one
    return tuple(standing.values())


def load_acts(
    session: Session, keyring: Keyring, ehr_id: str, patient_id: str
) -> Iterator[tuple[str, Act, float]]:
    """Yield the acts on the patient's reports with their result's id and time, the oldest of each first."""
    query = (
        select(ReportSignatureRow)
        .where(ReportSignatureRow.patient_index == patient_index(keyring, ehr_id, patient_id))
        .order_by(col(ReportSignatureRow.version))
    )
    for row in session.exec(query):
        yield row.result_id, _act(session, keyring, row), row.signed_at


def opened_signature(session: Session, keyring: Keyring, row: ReportSignatureRow) -> Signature:
    resources = decode_json(
        SealedRow(session, keyring, ReportSignatureRow, row.id).open("resources", row.resources)
    )
    written = (
        {}
        if row.written is None
        else json.loads(SealedRow(session, keyring, ReportSignatureRow, row.id).open("written", row.written))
    )
    return Signature(
        id=row.id,
        result_id=row.result_id,
        ehr_id=row.ehr_id,
        version=row.version,
        act=_act(session, keyring, row),
        resources=tuple(resources),
        delivery=DeliveryState(row.delivery),
        delivery_detail=row.delivery_detail,
        attempts=row.attempts,
        at=row.signed_at,
        written=written,
    )


def _act(session: Session, keyring: Keyring, row: ReportSignatureRow) -> Act:
    plaintext = SealedRow(session, keyring, ReportSignatureRow, row.id).open("content", row.content)
    return msgspec.json.decode(plaintext, type=Act)
