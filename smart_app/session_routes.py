"""What a page asks beside its content: whether its session lives, how it looks, and its end."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from rayhook.auth.sessions import SMARTSession
from rayhook.fhir.errors import Unauthenticated
from rayhook.smart_app.access import Cookies, require_own_page
from rayhook.smart_app.dependencies import SMARTDependencies
from rayhook.smart_app.live_sessions import LiveSessions
from rayhook.smart_app.pages import Pages, page_route
from rayhook.smart_app.style import StyleSheets
from rayhook.smart_app.window import require_same_window

_STYLE_LIFE_S = 300


def build_session_router(deps: SMARTDependencies, pages: Pages) -> APIRouter:
    router = APIRouter(route_class=page_route(pages), include_in_schema=False)
    live = LiveSessions(deps)
    styles = StyleSheets(deps)
    cookies = Cookies(deps.secure)

    def session_of(request: Request) -> SMARTSession:
        """Return the session of a script or a style sheet, which is no use of it by a person."""
        session_id = request.cookies.get(cookies.session)
        found = None if session_id is None else live.find(session_id, noted=False)
        if found is None:
            raise Unauthenticated("no live session")
        require_same_window(request, found)
        return found

    @router.get("/smart/window")
    def window(request: Request) -> Response:
        """Answer 204 to a page whose session lives, 401 or 409 to one that has to go."""
        session_of(request)
        return Response(status_code=204, headers={"Cache-Control": "no-store"})

    @router.get("/smart/style.css")
    def style(request: Request) -> Response:
        session = session_of(request)
        ehr = deps.registry.by_id(session.ehr_id)
        css = "" if ehr is None else styles.css(ehr, session)
        headers = {"Cache-Control": f"private, max-age={_STYLE_LIFE_S}", "X-Content-Type-Options": "nosniff"}
        return Response(css, media_type="text/css", headers=headers)

    @router.post("/smart/logout")
    def logout(request: Request) -> Response:
        """A stale window may end the session too: closing harms nobody."""
        require_own_page(request, deps.public_base_url)
        session_id = request.cookies.get(cookies.session)
        if session_id is not None:
            live.close(session_id)
        response = pages.render("closed.html", ehr=None)
        cookies.drop(response, cookies.session)
        return response

    @router.get("/smart/static/{name}")
    def static(name: str) -> Response:
        return pages.static(name)

    return router
