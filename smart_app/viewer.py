"""The viewer on a page: its built bundle, its texts, and what it is to show."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.responses import Response

from rayhook.auth.keys import Keyring
from rayhook.auth.roles import Permission
from rayhook.fhir.errors import NotFound
from rayhook.inference.jobs import StoredResult
from rayhook.smart_app.access import Viewer
from rayhook.smart_app.image_study import study_handle
from rayhook.smart_app.viewer_texts import viewer_texts

BUNDLE = Path(__file__).parent / "static" / "viewer"
BASE = "/smart/static/viewer"

_ENTRY = "src/main.ts"
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class ViewerBundle:
    """Addresses of the built viewer; the names of its files change with what is in them."""

    script: str
    styles: tuple[str, ...]
    preloads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ViewerView:
    """What `_viewer.html` puts on the page; None in its place where there is nothing to look at.

    texts: the viewer's own texts in the reader's language, as JSON.
    """

    bundle: ViewerBundle
    study: str
    result: str
    texts: dict[str, str]


class ViewerFiles:
    """The bundle, read once; absent where it was not built, and the page then shows its still pictures."""

    def __init__(self, folder: Path = BUNDLE) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.suffix in (*_MEDIA_TYPES, ".br", ".gz")
        }
        manifest = folder / "manifest.json"
        self.bundle = read_manifest(json.loads(manifest.read_bytes())) if manifest.is_file() else None

    def response(self, name: str, accepted: str) -> Response:
        """Return a file, compressed as the browser accepts it. Raises NotFound."""
        media_type = _MEDIA_TYPES.get(Path(name).suffix)
        if media_type is None or name not in self._files:
            raise NotFound("static: no such file")
        codings = {part.partition(";")[0].strip() for part in accepted.split(",")}
        headers = {"Cache-Control": _FOR_EVER, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
        for coding, suffix in (("br", ".br"), ("gzip", ".gz")):
            compressed = self._files.get(name + suffix)
            if coding in codings and compressed is not None:
                headers["Content-Encoding"] = coding
                return Response(compressed, media_type=media_type, headers=headers)
        return Response(self._files[name], media_type=media_type, headers=headers)


def read_manifest(manifest: dict[str, Any]) -> ViewerBundle:
    """Return what a page has to name, from Vite's own manifest; what comes later is preloaded as well."""
    entry = manifest[_ENTRY]
    wanted: list[dict[str, Any]] = [entry]
    for name in (*entry.get("imports", ()), *entry.get("dynamicImports", ())):
        wanted += [manifest[name], *(manifest[other] for other in manifest[name].get("imports", ()))]
    files = dict.fromkeys(one["file"] for one in wanted[1:])
    styles = dict.fromkeys(style for one in wanted for style in one.get("css", ()))
    return ViewerBundle(
        script=f"{BASE}/{entry['file']}",
        styles=tuple(f"{BASE}/{name}" for name in styles),
        preloads=tuple(f"{BASE}/{name}" for name in files if name != entry["file"]),
    )


def viewer_view(
    files: ViewerFiles, keyring: Keyring, viewer: Viewer, stored: StoredResult
) -> ViewerView | None:
    """Return the viewer of a result's page: None without the bundle, or without the right to see images."""
    if files.bundle is None or not viewer.can(Permission.SMART_APP_IMAGE_READ):
        return None
    if not viewer.may("ImagingStudy", "r"):
        return None
    handle = study_handle(keyring, stored.reference.study_instance_uid)
    return ViewerView(files.bundle, f"/studies/{handle}", f"/results/{stored.id}/overlay", viewer_texts())


def build_viewer_router(files: ViewerFiles) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get(f"{BASE}/{{name:path}}")
    def file(name: str, accept_encoding: Annotated[str, Header()] = "") -> Response:
        return files.response(name, accept_encoding)

    return router
