"""Events to take away: a file and its signed manifest, in one archive."""

import tempfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Request
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from rayhook.audit.checkpoint import Checkpoint, latest_tree
from rayhook.audit.events import AuditKind
from rayhook.audit.export import ExportFormat, write_export
from rayhook.audit.review import AuditSearch, timestamp, walk
from rayhook.auth.roles import Permission
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.errors import InvalidRequest
from rayhook.smart_app.audit_question import Question
from rayhook.smart_app.audit_reading import AuditReading
from rayhook.smart_app.audit_search import kind_groups
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

EXPORT: Final = "/staff/audit/export"
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
        """Tell the log, then write the archive to a private folder that goes once it is sent."""
        wanted = asked.search()
        since, until = (
            None if moment is None else timestamp(moment) for moment in (wanted.since, wanted.until)
        )
        detail = {"format": asked.form.value, "from": since or "", "to": until or "", "kind": asked.kind}
        checkpoint = self._signed()
        self.reading.record(member, AuditKind.AUDIT_LOG_EXPORTED, detail, wanted)
        folder = tempfile.TemporaryDirectory(prefix="rayhook-export-")
        try:
            archive = self._archive(
                Path(folder.name), asked.form, wanted, checkpoint, since=since, until=until
            )
        except BaseException:
            folder.cleanup()
            raise
        return FileResponse(
            archive,
            media_type="application/zip",
            filename=archive.name,
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
            background=BackgroundTask(folder.cleanup),
        )

    def _signed(self) -> Checkpoint | None:
        with self.deps.sessions() as session:
            self.deps.audit.checkpoint(session)
            session.commit()
        with self.deps.reading_sessions() as session:
            tree = latest_tree(session)
        return None if tree is None else tree.checkpoint

    def _archive(
        self,
        folder: Path,
        form: ExportFormat,
        wanted: AuditSearch,
        checkpoint: Checkpoint | None,
        *,
        since: str | None,
        until: str | None,
    ) -> Path:
        now = datetime.fromtimestamp(self.deps.clock(), UTC)
        path = folder / f"rayhook-audit-{now:%Y-%m-%d}.{_SUFFIXES[form]}"
        with self.deps.reading_sessions() as session:
            manifest = write_export(
                walk(session, self.deps.keyring, wanted),
                path,
                form=form,
                observer=self.deps.observer,
                checkpoint=checkpoint,
                since=since,
                until=until,
                made_at=timestamp(now),
            )
        archive = folder / f"rayhook-audit-{now:%Y-%m-%d}-{form.value}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(path, path.name)
            file.writestr(f"{path.name}.manifest.json", manifest.to_json(self.deps.keyring.audit_signing_key))
        path.unlink()
        return archive


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
