"""Events to take away: a file and its signed manifest, in one archive."""

import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Request
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from rayhook.audit.checkpoint import Checkpoint, latest_tree
from rayhook.audit.events import AuditKind
from rayhook.audit.export import Export, ExportFormat, Frame
from rayhook.audit.review import AuditSearch, timestamp, walk
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.smart_app.audit_question import Question
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_search import kind_groups
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

EXPORT: Final = "/staff/audit/export"
_ARCHIVE: Final = "archive"
_MAX_BYTES: Final = 1 << 34
_SUFFIXES: Final = {ExportFormat.CSV: "csv", ExportFormat.FHIR: "fhir.ndjson", ExportFormat.NDJSON: "ndjson"}


class ExportAsked(BaseModel):
    form: ExportFormat
    ehr: str = ""
    patient: str = ""
    kind: str = ""
    first_day: str = ""
    last_day: str = ""

    def search(self) -> AuditSearch:
        return Question(
            ehr=self.ehr,
            patient=self.patient.strip(),
            kind=self.kind,
            first_day=self.first_day,
            last_day=self.last_day,
        ).search()


@dataclass(frozen=True, slots=True)
class ExportPages:
    deps: SMARTDependencies
    pages: StaffPages
    gate: StaffGate
    reading: AuditReading

    def form(
        self, request: Request, member: StaffMember, *, problem: str | None = None, status: int = 200
    ) -> Response:
        self.reading.record(member, AuditKind.AUDIT_LOG_READ, {"page": "export"})
        return self.pages.render(
            "audit_export.html",
            request,
            member,
            status=status,
            problem=problem,
            is_fresh=self.gate.is_fresh(member),
            ehrs=[(ehr.id, ehr.name) for ehr in self.deps.registry],
            groups=kind_groups(),
        )

    def export(self, member: StaffMember, asked: ExportAsked) -> Response:
        """Tell the log, then send the archive, which lies encrypted on the disk until it is sent.

        It is whole before its first byte goes out: what fails is told, and the log is not read for as long as
        somebody's line is slow. Nobody but this process can read the file, and after it nobody.
        """
        wanted = asked.search()
        since, until = (
            None if moment is None else timestamp(moment) for moment in (wanted.since, wanted.until)
        )
        detail = {"format": asked.form.value, "from": since or "", "to": until or "", "kind": asked.kind}
        checkpoint = self._signed()
        self.reading.record(member, AuditKind.AUDIT_LOG_EXPORTED, detail, wanted)
        now = datetime.fromtimestamp(self.deps.clock(), UTC)
        frame = Frame(
            form=asked.form,
            observer=self.deps.observer,
            checkpoint=checkpoint,
            since=since,
            until=until,
            made_at=timestamp(now),
        )
        folder = tempfile.TemporaryDirectory(prefix="rayhook-export-")
        try:
            spool = SealedSpool.ephemeral(Path(folder.name), _MAX_BYTES)
            with self.deps.reading_sessions() as session:
                export = Export(walk(session, self.deps.keyring, wanted), frame)
                spool.write(_ARCHIVE, self._zipped(export, f"rayhook-audit-{now:%Y-%m-%d}", asked.form))
        except BaseException:
            folder.cleanup()
            raise
        name = f"rayhook-audit-{now:%Y-%m-%d}-{asked.form.value}.zip"
        return StreamingResponse(
            spool.read(_ARCHIVE),
            media_type="application/zip",
            headers={
                "Cache-Control": "no-store",
                "Content-Disposition": f'attachment; filename="{name}"',
                "X-Content-Type-Options": "nosniff",
            },
            background=BackgroundTask(folder.cleanup),
        )

    def _signed(self) -> Checkpoint | None:
        with self.deps.sessions() as session:
            self.deps.audit.checkpoint(session)
            session.commit()
        with self.deps.reading_sessions() as session:
            tree = latest_tree(session)
        return None if tree is None else tree.checkpoint

    def _zipped(self, export: Export, name: str, form: ExportFormat) -> Iterator[bytes]:
        """Yield the archive's bytes as they are made: nothing of it is kept."""
        made = _Made()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(f"{name}.{_SUFFIXES[form]}", "w", force_zip64=True) as file:
                for line in export:
                    file.write(line)
                    yield made.take()
            manifest = export.manifest.to_json(self.deps.keyring.audit_signing_key)
            archive.writestr(f"{name}.{_SUFFIXES[form]}.manifest.json", manifest)
        yield made.take()


class _Made:
    """What has been written and not yet taken. That there is no `tell` says that it is no file."""

    def __init__(self) -> None:
        self._content = bytearray()

    def write(self, content: bytes) -> int:
        self._content += content
        return len(content)

    def flush(self) -> None:
        """Nothing waits elsewhere."""

    def close(self) -> None:
        """Nothing was opened."""

    def take(self) -> bytes:
        taken = bytes(self._content)
        self._content.clear()
        return taken


def build_audit_export_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_LOG_EXPORT))]
    exporting = Annotated[StaffMember, Depends(gate.staffing(Permission.AUDIT_LOG_EXPORT, fresh=True))]
    own = ExportPages(deps, pages, gate, AuditReading(deps))

    @router.get(EXPORT)
    def form(request: Request, member: reading) -> Response:
        return own.form(request, member)

    @router.post(EXPORT)
    def export(request: Request, member: exporting, asked: Annotated[ExportAsked, Form()]) -> Response:
        try:
            return own.export(member, asked)
        except InvalidRequest as error:
            return own.form(request, member, problem=error.message, status=error.status)

    return router
