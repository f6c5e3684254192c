"""HTML answers: templates, headers, static files, and errors as pages."""

from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.responses import HTMLResponse, Response

from rayhook.auth.registry import EHR, EHRRegistry
from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import InvalidRequest, NotFound, RateLimited, RayhookError
from rayhook.inference.statement import INVESTIGATIONAL
from rayhook.smart_app import i18n, window
from rayhook.smart_app.problem import problem_of
from rayhook.smart_app.shell import reader_of

_HERE = Path(__file__).parent
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_CSP = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'self'{form_action}; img-src 'self'; "
    "script-src 'self'; style-src 'self'; frame-ancestors {ancestors}"
)

log = structlog.get_logger(__name__)


class Pages:
    """Renders templates; only registered EHRs may show them in a frame."""

    def __init__(self, registry: EHRRegistry) -> None:
        self._registry = registry
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=select_autoescape(),
            extensions=["jinja2.ext.i18n"],
            undefined=StrictUndefined,
            auto_reload=False,  # a page is of the same version as the code
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.policies["ext.i18n.trimmed"] = True
        translations: Any = self._environment  # the extension adds its methods at run time
        translations.install_gettext_callables(i18n.gettext, i18n.ngettext)
        self._environment.globals["language"] = i18n.language
        self._environment.globals["languages"] = i18n.LANGUAGES
        self._environment.globals["investigational"] = INVESTIGATIONAL
        self._environment.globals |= {
            "emergency_until": window.emergency_until,
            "has_style": window.has_style,
            "href": window.href,
            "moment_text": i18n.moment_text,
            "reader_of_page": lambda: reader_of(window.session_of_page()),
            "window_mark": window.window_mark,
        }
        self._static = {
            path.name: path.read_bytes()
            for path in (_HERE / "static").iterdir()
            if path.suffix in _MEDIA_TYPES
        }

    def render(self, template: str, *, ehr: EHR | None, status: int = 200, **values: object) -> Response:
        """Return a page that may be framed by `ehr`, or by every registered EHR where none is known yet."""
        html = self._environment.get_template(template).render(values)
        return HTMLResponse(html, status_code=status, headers=self.headers(ehr))

    def form_to(self, origin: str, template: str, *, ehr: EHR, **values: object) -> Response:
        """Return a page whose form goes to `origin`, the one that it may be sent to beside our own."""
        html = self._environment.get_template(template).render(values)
        return HTMLResponse(html, headers=self.headers(ehr, form_origin=origin))

    def problem(self, error: RayhookError) -> Response:
        response = self.render(
            "problem.html",
            ehr=None,
            status=error.status,
            problem=problem_of(error),
            request_id=request_id.get(),
            may_break_glass=error.code == "role_insufficient" and self._may_break_glass(),
        )
        if isinstance(error, RateLimited):
            response.headers["Retry-After"] = str(error.retry_after_s)
        return response

    def _may_break_glass(self) -> bool:
        session = window.session_of_page()
        ehr = None if session is None else self._registry.by_id(session.ehr_id)
        return ehr is not None and ehr.break_glass and session is not None and not session.roles

    def headers(self, ehr: EHR | None, *, form_origin: str | None = None) -> dict[str, str]:
        """Return the headers of everything that shows a patient's data.

        The referrer stays within our origin: with none at all, browsers send `Origin: null` with our forms.
        Spec: W3C CSP Level 3; Fetch, "serializing a request origin"
        """
        ehrs = self._registry if ehr is None else (ehr,)
        return {
            "Cache-Control": "no-store",
            "Content-Security-Policy": _CSP.format(
                ancestors=_ancestors(ehrs), form_action="" if form_origin is None else f" {form_origin}"
            ),
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }

    def static(self, name: str) -> Response:
        content = self._static.get(name)
        if content is None:
            raise NotFound("static: no such file")
        return Response(
            content,
            media_type=_MEDIA_TYPES[Path(name).suffix],
            headers={"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"},
        )


def _ancestors(ehrs: Iterable[EHR]) -> str:
    origins = sorted({origin for ehr in ehrs for origin in ehr.frame_ancestors})
    return " ".join(origins) or "'none'"


def page_route(pages: Pages) -> type[APIRoute]:
    """Return the route class whose errors are pages that the EHR's frame may show."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def with_error_pages(request: Request) -> Response:
                with i18n.speaking(i18n.language_of(request)), window.window_of_request():
                    try:
                        return await handle(request)
                    except RequestValidationError as error:
                        return pages.problem(_invalid(error))
                    except RayhookError as error:
                        log.info("page_refused", status=error.status, code=error.code)
                        return pages.problem(error)
                    except Exception as error:
                        log.exception("page_failed", error_type=type(error).__name__)
                        return pages.problem(RayhookError("the request could not be completed"))

            return with_error_pages

    return PageRoute


def _invalid(error: RequestValidationError) -> InvalidRequest:
    field = str(error.errors()[0]["loc"][-1])
    return InvalidRequest(f"{field}: is missing or has the wrong form", expression=field)
