"""The language menu: a form that every page has, and that works without a script."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from rayhook.fhir.errors import InvalidRequest
from rayhook.smart_app.access import Cookies, require_own_page
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.i18n import LANGUAGES
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.window import PARAMETER, marked

_LIFE_S = 365 * 24 * 3600
_START = "/patient"


def build_language_router(deps: SMARTDependencies, pages: Pages) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    cookies = Cookies(deps.secure)

    @router.post("/smart/language")
    def language(request: Request, language: Annotated[str, Form(max_length=8)]) -> Response:
        require_own_page(request, deps.public_base_url)
        if language not in LANGUAGES:
            raise InvalidRequest("language: is not one that is served here", expression="language")
        mark = request.query_params.get(PARAMETER, "")
        page = page_before(request.headers.get("Referer"), deps.public_base_url) or marked(_START, mark)
        response = RedirectResponse(page, status_code=303, headers={"Cache-Control": "no-store"})
        cookies.put(response, cookies.language, language, max_age_s=_LIFE_S)
        return response

    return router


def page_before(referrer: str | None, public_base_url: str) -> str | None:
    """Return the path of our own page that the form was on; never an address of anybody else's."""
    parts = urlsplit(referrer or "")
    own = f"{parts.scheme}://{parts.netloc}" == public_base_url
    if not own or not parts.path.startswith("/") or parts.path.startswith(("//", "/smart/")):
        return None
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
