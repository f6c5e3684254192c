"""Events in a file for somebody outside, with a signed manifest that says what is in it and that it is all.

Spec: RFC 8785 (the manifest's canonical form), RFC 8032 (Ed25519), RFC 4180 (CSV)
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from rayhook.audit.balp import Observer, audit_event
from rayhook.audit.checkpoint import Checkpoint
from rayhook.audit.review import AuditRecord
from rayhook.fhir.errors import InvalidRequest

_CONTEXT: Final = "rayhook-audit-export-v1"
_COLUMNS: Final = (
    "seq",
    "recorded_at",
    "kind",
    "outcome",
    "ehr_id",
    "request_id",
    "client_id",
    "agent",
    "patient_id",
    "entities",
    "detail",
    "context",
    "hash",
)
# A cell that begins so would be run as a formula by a spreadsheet.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class ExportFormat(StrEnum):
    CSV = "csv"
    FHIR = "fhir"
    NDJSON = "ndjson"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export holds: `count` events, the file's digest, and the log's last statement when it was made."""

    format: str
    since: str | None
    until: str | None
    count: int
    first_seq: int | None
    last_seq: int | None
    sha256: str
    size: int
    root: str
    made_at: str

    def statement(self) -> bytes:
        return rfc8785.dumps({"context": _CONTEXT, **asdict(self)})

    def to_json(self, key: Ed25519PrivateKey) -> str:
        content = {**asdict(self), "signature": key.sign(self.statement()).hex()}
        return json.dumps(content, sort_keys=True, indent=2) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What an export says of itself beside its events."""

    form: ExportFormat
    observer: Observer
    checkpoint: Checkpoint | None
    since: str | None
    until: str | None
    made_at: str


class Export:
    """The events as the bytes of a file, the oldest first; `manifest` says what they were once all have gone by."""

    def __init__(self, records: Iterable[AuditRecord], frame: Frame) -> None:
        self._frame = frame
        self._digest, self._told = hashlib.sha256(), _Told()
        self._lines = _WRITERS[frame.form](self._told.of(records), frame.observer)

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self._digest.update(line)
            yield line

    @property
    def manifest(self) -> Manifest:
        frame, told = self._frame, self._told
        head = None if frame.checkpoint is None else frame.checkpoint.tree_head
        return Manifest(
            format=frame.form.value,
            since=frame.since,
            until=frame.until,
            count=told.count,
            first_seq=told.first,
            last_seq=told.last,
            sha256=self._digest.hexdigest(),
            size=0 if head is None else head.size,
            root="" if head is None else head.root,
            made_at=frame.made_at,
        )


def write_export(records: Iterable[AuditRecord], path: Path, frame: Frame) -> Manifest:
    """Write the events to a file that is private to its owner, and return what was written."""
    export = Export(records, frame)
    path.touch(mode=0o600)
    with path.open("wb") as file:
        file.writelines(export)
    return export.manifest


def check_export(path: Path, manifest: str | bytes, public_key: Ed25519PublicKey) -> list[str]:
    """Return what does not hold, in words; raises InvalidRequest for what is no manifest."""
    try:
        content = json.loads(manifest)
        signature = bytes.fromhex(content.pop("signature"))
        stated = Manifest(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest("the file is no manifest of an export", code="manifest_unreadable") from error
    found = []
    try:
        public_key.verify(signature, stated.statement())
    except (InvalidSignature, rfc8785.CanonicalizationError):
        found.append("the manifest is not signed by the pinned key")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != stated.sha256:
            found.append("the file is not the one that was exported")
    return found


class _Told:
    """What has gone by: how many events, and between which numbers."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self.last: int | None = None

    def of(self, records: Iterable[AuditRecord]) -> Iterator[AuditRecord]:
        for record in records:
            self.count += 1
            self.first = record.seq if self.first is None else self.first
            self.last = record.seq
            yield record


def record_json(record: AuditRecord) -> dict[str, Any]:
    """Return the event by the names of its columns."""
    content = {name: getattr(record, name) for name in _COLUMNS}
    return content | {
        "recorded_at": record.recorded_at.isoformat(),
        "kind": record.kind.value,
        "outcome": record.outcome.value,
        "entities": list(record.entities),
        "detail": dict(record.detail),
        "context": dict(record.context),
    }


def _ndjson(records: Iterable[AuditRecord], _observer: Observer) -> Iterator[bytes]:
    for record in records:
        yield json.dumps(record_json(record), sort_keys=True).encode() + b"\n"


def _fhir(records: Iterable[AuditRecord], observer: Observer) -> Iterator[bytes]:
    for record in records:
        yield json.dumps(audit_event(record, observer)).encode() + b"\n"


def _csv(records: Iterable[AuditRecord], _observer: Observer) -> Iterator[bytes]:
    yield _csv_line(_COLUMNS)
    for record in records:
        content = record_json(record)
        yield _csv_line([_cell(content[name]) for name in _COLUMNS])


def _csv_line(cells: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue().encode()


def _cell(value: object) -> str:
    if isinstance(value, list):
        text = " ".join(map(str, value))
    elif isinstance(value, dict):
        text = "; ".join(f"{name}={one}" for name, one in sorted(value.items()))
    else:
        text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


_WRITERS: Final[dict[ExportFormat, Callable[[Iterable[AuditRecord], Observer], Iterator[bytes]]]] = {
    ExportFormat.CSV: _csv,
    ExportFormat.FHIR: _fhir,
    ExportFormat.NDJSON: _ndjson,
}
