"""What the service runs with, as an administrator sees it. Nothing here is a secret, and nothing can be changed."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from sqlmodel import Session, col, select
from starlette.responses import Response

from rayhook.audit.events import AuditKind
from rayhook.audit.handover import key_name
from rayhook.audit.models import AuditKeyRow
from rayhook.audit.record import AuditEntry
from rayhook.audit.review import AuditSearch, recent, walk
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR
from rayhook.auth.roles import Permission, written_roles
from rayhook.auth.staff_sessions import StaffMember
from rayhook.fhir.text import translatable
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import moment_text
from rayhook.smart_app.staff_access import StaffGate
from rayhook.smart_app.staff_pages import StaffPages, staff_router

_LIBRARIES: Final = (
    "ai-edge-litert",
    "cryptography",
    "dramatiq",
    "fastapi",
    "fhir.resources",
    "highdicom",
    "joserfc",
    "numpy",
    "opencv-python-headless",
    "pydicom",
    "sqlalchemy",
    "tink",
    "uvicorn",
)
_ALLOWED: Final = {
    "base": translatable("FHIR base URL"),
    "images": translatable("Images may be fetched from"),
    "smart": translatable("SMART scopes"),
    "backend": translatable("Backend service scopes"),
    "objects": translatable("DICOM results"),
    "store": translatable("DICOM results are stored at"),
    "frames": translatable("May show pages in a frame"),
    "roles": translatable("Roles of its practitioners"),
}
_KEY_STATES: Final = {
    "current": translatable("signs"),
    "seals": translatable("seals"),
    "next": translatable("signs next"),
    "retired": translatable("still published"),
}


@dataclass(frozen=True, slots=True)
class KeyView:
    """`since`: when it began to sign or to seal; None where it has not yet, or does no more."""

    purpose: str
    kid: str
    state: str
    since: datetime | None


def allowed_of(ehr: EHR) -> Mapping[str, str]:
    """Return what an EHR's registration lets us, and it, do: what is not allowed is left out."""
    given: dict[str, Iterable[str]] = {
        "base": ehr.fhir_base_urls,
        "images": sorted(ehr.image_origins),
        "smart": () if ehr.smart is None else ehr.smart.scopes,
        "backend": () if ehr.backend is None else ehr.backend.scopes,
        "objects": ehr.dicom_results,
        "store": (ehr.stow_url,) if ehr.stow_url else (),
        "frames": ehr.frame_ancestors,
        "roles": (written_roles(ehr.practitioner_roles),),
    }
    return {_ALLOWED[name]: " ".join(values) for name, values in given.items() if any(values)}


def keys_of(session: Session, keyring: Keyring) -> list[KeyView]:
    """Return the keys by name; a key that was never changed has signed since the first event."""
    first = next(iter(walk(session, keyring, AuditSearch(), limit=1)), None)
    begun = None if first is None else first.recorded_at
    rotated = recent(session, keyring, limit=1, kind=AuditKind.AUTH_CLIENT_KEYS_ROTATED)
    since = rotated[0].recorded_at if rotated else begun
    handed = session.exec(select(AuditKeyRow).order_by(col(AuditKeyRow.id).desc())).first()
    audit_since = begun if handed is None else datetime.fromisoformat(handed.signed_at)
    audit = KeyView("Ed25519", key_name(keyring.audit_public_key), _KEY_STATES["current"], audit_since)
    clients = [
        KeyView(one.algorithm, one.kid, _KEY_STATES[one.state], since if one.state == "current" else None)
        for one in keyring.client_key_statuses()
    ]
    sealing = KeyView(
        "AES-256-GCM", str(keyring.sealing_key), _KEY_STATES["seals"], _sealing_since(keyring) or begun
    )
    return [sealing, audit, *clients]


def _sealing_since(keyring: Keyring) -> datetime | None:
    since = keyring.sealing_since
    return None if since is None else datetime.fromtimestamp(since, UTC)


def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the libraries that results and security rest on."""
    found = {"Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build_settings_router(deps: SMARTDependencies, pages: StaffPages, gate: StaffGate) -> APIRouter:
    router = staff_router(pages)
    reading = Annotated[StaffMember, Depends(gate.staffing(Permission.DEPLOY_SETTINGS_READ))]

    @router.get("/staff/settings")
    def settings(request: Request, member: reading) -> Response:
        with deps.sessions() as session:
            keys = keys_of(session, deps.keyring)
            deps.audit.record(session, AuditEntry(AuditKind.DEPLOY_SETTINGS_READ, agent=member.agent))
            session.commit()
        return pages.render(
            "staff_settings.html",
            request,
            member,
            version=deps.version,
            settings=deps.settings,
            ehrs=[(ehr, allowed_of(ehr)) for ehr in deps.registry],
            models=deps.manifests,
            running={model.id: model for model in deps.models},
            keys=keys,
            now=deps.clock(),
            moment=moment_text,
            versions=versions(),
        )

    return router
