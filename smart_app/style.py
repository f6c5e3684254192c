"""The EHR's colours, as our own style sheet of variables: nothing of its file is passed on as it came.

Spec: SMART App Launch 2.2.0, "smart_style_url"
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urljoin

import structlog

from rayhook.auth.registry import EHR
from rayhook.auth.sessions import SMARTSession
from rayhook.fhir.errors import RayhookError, UpstreamError
from rayhook.smart_app.dependencies import SMARTDependencies

_COLOUR: Final = re.compile(r"#(?:[0-9A-Fa-f]{3,4}|[0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})")
_DIMENSION: Final = re.compile(r"\d{1,3}(?:\.\d{1,3})?(?:px|pt|em|rem)")
_FONTS: Final = re.compile(r"[A-Za-z0-9 ,'\-]{1,200}")
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    "color_background": _COLOUR,
    "color_error": _COLOUR,
    "color_highlight": _COLOUR,
    "color_modal_backdrop": _COLOUR,
    "color_success": _COLOUR,
    "color_text": _COLOUR,
    "dim_border_radius": _DIMENSION,
    "dim_font_size": _DIMENSION,
    "dim_spacing_size": _DIMENSION,
    "font_family_body": _FONTS,
    "font_family_heading": _FONTS,
}
_DEADLINE_S: Final = 1.5
_MAX_BYTES: Final = 16 * 1024
_KEPT_S: Final = 3600.0
_FAILURE_KEPT_S: Final = 60.0
_MAX_KEPT: Final = 64
_HTTP_OK: Final = 200

log = structlog.get_logger(__name__)


class StyleSheets:
    """Style sheets by address, kept for a while: the EHR changes the address when it changes its style."""

    def __init__(self, deps: SMARTDependencies) -> None:
        self._deps = deps
        self._kept: dict[tuple[str, str], tuple[float, str]] = {}
        self._lock = threading.Lock()

    def css(self, ehr: EHR, session: SMARTSession) -> str:
        """Return the style sheet, empty where the EHR has no style that can be used."""
        if session.context.style_url is None:
            return ""
        url = urljoin(f"{session.fhir_base_url}/", session.context.style_url)
        now = self._deps.clock()
        with self._lock:
            until, css = self._kept.get((ehr.id, url), (0.0, ""))
        if until > now:
            return css
        try:
            css, kept_s = style_sheet(self._fetch(ehr, url)), _KEPT_S
        except RayhookError as error:
            log.info("style_not_used", ehr=ehr.id, code=error.code)
            css, kept_s = "", _FAILURE_KEPT_S
        self._keep((ehr.id, url), now + kept_s, css)
        return css

    def _fetch(self, ehr: EHR, url: str) -> bytes:
        response = self._deps.transport.request(
            "GET",
            url,
            allowed_origins=ehr.authorization_origins,
            deadline_s=_DEADLINE_S,
            headers={"Accept": "application/json"},
            max_bytes=_MAX_BYTES,
        )
        if response.status != _HTTP_OK:
            raise UpstreamError("smart_style_url: the EHR did not answer 200", code="style_unavailable")
        return response.body

    def _keep(self, key: tuple[str, str], until: float, css: str) -> None:
        with self._lock:
            self._kept.pop(key, None)
            while len(self._kept) >= _MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = (until, css)


def style_sheet(document: bytes) -> str:
    """Return `:root` variables for the members that have the form the specification gives them.

    Raises UpstreamError for what is not a JSON object.
    """
    try:
        members: Any = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise UpstreamError("smart_style_url: not JSON", code="style_malformed") from error
    if not isinstance(members, dict):
        raise UpstreamError("smart_style_url: not a JSON object", code="style_malformed")
    variables = "".join(_variables(members))
    return f":root{{{variables}}}\n" if variables else ""


def _variables(members: Mapping[str, Any]) -> Iterator[str]:
    for name, form in _FORMS.items():
        value = members.get(name)
        if isinstance(value, str) and form.fullmatch(value):
            yield f"--smart-{name.replace('_', '-')}:{value};"
