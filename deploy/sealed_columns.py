"""Every column that is sealed, so that no key is destroyed while a row still needs it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Column, LargeBinary, MetaData, Table
from sqlmodel import SQLModel

from rayhook.audit.models import AuditEventRow, AuditHoldRow, AuditReviewItemRow
from rayhook.auth.accounts import StaffAccountRow
from rayhook.auth.patient_keys import PatientKeyRow
from rayhook.auth.sessions import SMARTLaunchRow, SMARTSessionRow
from rayhook.auth.staff_oidc_requests import StaffOIDCRequestRow
from rayhook.auth.staff_sessions import StaffSessionRow
from rayhook.cds_hooks.feedback import CardFeedback
from rayhook.inference.answers import FindingAnswerRow
from rayhook.inference.arrival import ArrivalRow
from rayhook.inference.arrival_source import ArrivalSourceRow
from rayhook.inference.dicom_table import DICOMResult, DICOMSource
from rayhook.inference.erasure_table import PatientErasureRow
from rayhook.inference.job_table import AnalysisJob
from rayhook.inference.results import AnalysisResult
from rayhook.inference.signature import ReportSignatureRow


class Under(StrEnum):
    """What seals new values of a column. Values from before there were data keys are under the keyring."""

    DATA_KEY = "data_key"
    KEYRING = "keyring"


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column, bound to its table, its own name and its row's primary key.

    `is_hashed`: the stored bytes are in the audit's Merkle tree, so that they can never be written anew.
    """

    model: type[SQLModel]
    name: str
    under: Under
    is_hashed: bool = False

    @property
    def table(self) -> Table:
        return SQLModel.metadata.tables[str(self.model.__tablename__)]

    @property
    def column(self) -> Column[bytes]:
        return self.table.c[self.name]

    @property
    def row(self) -> "Column[str] | Column[int]":
        """The column that names the row in what the value is bound to."""
        [key] = self.table.primary_key.columns
        return key

    def __str__(self) -> str:
        return f"{self.table.name}.{self.name}"


def _columns(
    model: type[SQLModel], *names: str, under: Under, is_hashed: bool = False
) -> tuple[SealedColumn, ...]:
    return tuple(SealedColumn(model, name, under, is_hashed) for name in names)


SEALED_COLUMNS: Final[tuple[SealedColumn, ...]] = (
    *_columns(AnalysisJob, "reference", "authorization", under=Under.DATA_KEY),
    *_columns(AnalysisResult, "reference", "result", "key_image", "resources", under=Under.DATA_KEY),
    *_columns(ArrivalRow, "content", under=Under.KEYRING),
    *_columns(ArrivalSourceRow, "seen", under=Under.KEYRING),
    *_columns(
        AuditEventRow,
        *("agent_sealed", "patient_sealed", "entities_sealed", "detail_sealed", "context_sealed"),
        under=Under.DATA_KEY,
        is_hashed=True,
    ),
    *_columns(AuditHoldRow, "subject_sealed", "reason_sealed", under=Under.DATA_KEY),
    *_columns(AuditReviewItemRow, "subject_sealed", "note_sealed", "changed_by_sealed", under=Under.DATA_KEY),
    *_columns(CardFeedback, "item_sealed", under=Under.DATA_KEY),
    *_columns(DICOMResult, "content", under=Under.DATA_KEY),
    *_columns(DICOMSource, "header", under=Under.DATA_KEY),
    *_columns(FindingAnswerRow, "content", under=Under.DATA_KEY),
    *_columns(
        PatientErasureRow,
        *("subject_sealed", "reason_sealed", "asked_by_sealed", "decided_by_sealed"),
        under=Under.DATA_KEY,
    ),
    *_columns(PatientKeyRow, "wrapped", under=Under.KEYRING),
    *_columns(ReportSignatureRow, "content", "resources", "authorization", "written", under=Under.DATA_KEY),
    *_columns(SMARTLaunchRow, "nonce", "code_verifier", under=Under.KEYRING),
    *_columns(
        SMARTSessionRow,
        *("access_token", "patient_id", "fhir_user", "name", "refresh_token", "context"),
        under=Under.KEYRING,
    ),
    *_columns(StaffAccountRow, "name", "password_hash", "totp_secret", under=Under.KEYRING),
    *_columns(StaffOIDCRequestRow, "nonce", "code_verifier", under=Under.KEYRING),
    *_columns(StaffSessionRow, "name", "agent", under=Under.KEYRING),
)

# Bytes that are no secret of anybody's, each with what they are.
UNSEALED_COLUMNS: Final[dict[str, str]] = {}


def forgotten_columns(metadata: MetaData) -> list[str]:
    """Return the columns of bytes that are neither listed as sealed nor as open."""
    listed = {str(sealed) for sealed in SEALED_COLUMNS} | UNSEALED_COLUMNS.keys()
    return sorted(
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary) and f"{table.name}.{column.name}" not in listed
    )
