"""Results of analyses: sealed rows, found by result id or by patient."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Column, LargeBinary
from sqlalchemy.orm import defer
from sqlmodel import Field, Session, SQLModel, col, select

from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import patient_index
from rayhook.fhir.errors import NotFound, Unprocessable
from rayhook.fhir.r4 import decode_json, encode_json
from rayhook.inference.outbox import Errand, begin_errand
from rayhook.inference.sealed_row import SealedRow
from rayhook.inference.study import KeyImage, StudyReference, StudyResult

MAX_MESSAGE = 1000


class DeliveryState(StrEnum):
    """Whether the EHR has the report.

    `conflict`: the EHR's copy was changed by somebody else.  `not_permitted`: the granted scope does not
    allow writing it.
    """

    CONFLICT = "conflict"
    DELIVERED = "delivered"
    FAILED = "failed"
    NOT_PERMITTED = "not_permitted"
    PENDING = "pending"


class AnalysisResult(SQLModel, table=True):
    """One finished analysis, sealed."""

    __tablename__ = "analysis_result"

    id: str = Field(primary_key=True, max_length=32)
    job_id: str = Field(foreign_key="analysis_job.id", unique=True, max_length=32)
    ehr_id: str = Field(max_length=128)
    patient_index: str = Field(max_length=64, index=True)
    reference: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    result: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    key_image: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    resources: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    delivery: str = Field(max_length=16)
    delivery_detail: str | None = Field(default=None, max_length=MAX_MESSAGE)
    created_at: float


_KEY_IMAGE: Any = AnalysisResult.key_image  # SQLAlchemy's attribute, which SQLModel types as its value


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A finished analysis. `resources` are FHIR JSON; lists of results leave `result.key_image` out."""

    id: str
    job_id: str
    ehr_id: str
    patient_id: str
    reference: StudyReference
    result: StudyResult
    resources: tuple[dict[str, Any], ...]
    delivery: DeliveryState
    delivery_detail: str | None
    created_at: float


def add_result(
    session: Session,
    keyring: Keyring,
    reference: StudyReference,
    result: StudyResult,
    resources: Sequence[dict[str, Any]],
    *,
    job_id: str,
    now: float,
) -> str:
    """Store the result of a job and return its id.

    Raises Unprocessable for a result with a number that is not finite.
    """
    id_ = uuid.uuid4().hex
    patient = patient_index(keyring, reference.ehr_id, reference.patient_id)

    def sealed(column: str, plaintext: bytes) -> bytes:
        return SealedRow(session, keyring, AnalysisResult, id_).seal(column, plaintext, patient_index=patient)

    image = result.key_image
    row = AnalysisResult(
        id=id_,
        job_id=job_id,
        ehr_id=reference.ehr_id,
        patient_index=patient,
        reference=sealed("reference", msgspec.json.encode(reference)),
        result=sealed("result", _result_json(result)),
        key_image=None if image is None else sealed("key_image", msgspec.msgpack.encode(image)),
        resources=sealed("resources", _resources_json(resources)),
        delivery=DeliveryState.PENDING.value,
        created_at=now,
    )
    session.add(row)
    session.flush()
    begin_errand(session, id_, Errand.REPORT, now=now)
    return id_


def load_result(session: Session, keyring: Keyring, result_id: str) -> StoredResult | None:
    row = session.get(AnalysisResult, result_id, populate_existing=True)
    if row is None:
        return None
    stored = _stored(session, keyring, row)
    if row.key_image is None:
        return stored
    image = msgspec.msgpack.decode(
        SealedRow(session, keyring, AnalysisResult, row.id).open("key_image", row.key_image), type=KeyImage
    )
    return replace(stored, result=replace(stored.result, key_image=image))


def results_for_patient(
    session: Session, keyring: Keyring, ehr_id: str, patient_id: str
) -> list[StoredResult]:
    """Return the patient's results, the newest first, without their key images."""
    query = (
        select(AnalysisResult)
        .where(AnalysisResult.patient_index == patient_index(keyring, ehr_id, patient_id))
        .order_by(col(AnalysisResult.created_at).desc(), col(AnalysisResult.id))
        .options(defer(_KEY_IMAGE))
    )
    return [_stored(session, keyring, row) for row in session.exec(query)]


def set_delivery(session: Session, result_id: str, state: DeliveryState, detail: str | None = None) -> None:
    """Note whether the EHR took the report. Raises NotFound for an unknown result."""
    row = session.get(AnalysisResult, result_id)
    if row is None:
        raise NotFound("no such result")
    row.delivery = state.value
    row.delivery_detail = None if detail is None else detail[:MAX_MESSAGE]
    session.add(row)
    session.flush()


def index(keyring: Keyring, what: str, ehr_id: str, value: str) -> str:
    """Return the blind index of one EHR's `value`: equal ids of two EHRs are not the same patient."""
    return keyring.blind_index(json.dumps([ehr_id, value]), purpose=f"analysis.{what}")


def seal(keyring: Keyring, model: type[SQLModel], column: str, row: str, plaintext: bytes) -> bytes:
    return keyring.seal(plaintext, table=str(model.__tablename__), column=column, row=row)


def unseal(keyring: Keyring, model: type[SQLModel], column: str, row: str, ciphertext: bytes) -> bytes:
    return keyring.open(ciphertext, table=str(model.__tablename__), column=column, row=row)


def _stored(session: Session, keyring: Keyring, row: AnalysisResult) -> StoredResult:
    def opened(column: str, ciphertext: bytes) -> bytes:
        return SealedRow(session, keyring, AnalysisResult, row.id).open(column, ciphertext)

    reference = msgspec.json.decode(opened("reference", row.reference), type=StudyReference)
    result = msgspec.json.decode(opened("result", row.result), type=StudyResult)
    return StoredResult(
        id=row.id,
        job_id=row.job_id,
        ehr_id=row.ehr_id,
        patient_id=reference.patient_id,
        reference=reference,
        result=result,
        resources=tuple(decode_json(opened("resources", row.resources))),
        delivery=DeliveryState(row.delivery),
        delivery_detail=row.delivery_detail,
        created_at=row.created_at,
    )


def _result_json(result: StudyResult) -> bytes:
    encoded = msgspec.json.encode(replace(result, key_image=None, source_header=b""))
    try:
        # NaN and infinity are written as null, which does not read back as a number.
        msgspec.json.decode(encoded, type=StudyResult)
    except msgspec.ValidationError as error:
        raise Unprocessable("every number of a result must be finite", code="non_finite_result") from error
    return encoded


def _resources_json(resources: Sequence[dict[str, Any]]) -> bytes:
    try:
        json.dumps(list(resources), allow_nan=False, default=float)  # msgspec would write NaN as null
        return encode_json(list(resources))
    except ValueError as error:
        raise Unprocessable("every number of a resource must be finite", code="non_finite_result") from error
