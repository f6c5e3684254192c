"""Which window asks. One browser holds one session: a launch for a second patient replaces that of the first.

The first patient's window still stands open then, and nothing it does may reach, or turn into, the second's.
So each session has a public mark, random and good for nothing else, and every page says in which session it
was made: links, forms and data addresses are written with `href`, which adds `?w=`, and scripts may send the
header X-Rayhook-Window instead. A request whose mark is not the session's is refused with 409, and so is one
that changes something and has no mark. `window.js` asks on return to a window and leaves a page that has ended.

Spec: IEC 62366-1, wrong-patient hazards; SMART App Launch 2.2.0, "Launch App: EHR Launch"
"""

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from starlette.requests import Request

from rayhook.auth.sessions import SMARTSession
from rayhook.fhir.errors import Conflict
from rayhook.fhir.text import translatable

HEADER = "X-Rayhook-Window"
PARAMETER = "w"

_STALE = translatable(
    "this window was opened for another patient, or before the last launch; open Rayhook again from the chart"
)
_SAFE = frozenset({"GET", "HEAD"})


class StaleWindow(Conflict):
    code = "window_stale"


@dataclass(slots=True)
class _Window:
    """The request's session and its mark, as soon as they are known, and whether it has a style sheet."""

    mark: str = ""
    has_style: bool = False
    session: SMARTSession | None = None
    emergency_until: float | None = None


_open: ContextVar[_Window | None] = ContextVar("window", default=None)


@contextmanager
def window_of_request() -> Iterator[None]:
    """Bind an empty window: what a thread of this context notes in it, the others see."""
    token = _open.set(_Window())
    try:
        yield
    finally:
        _open.reset(token)


def note_session(session: SMARTSession) -> None:
    """Say whose page is being made."""
    window = _open.get()
    if window is not None:
        window.session = session
        window.mark = session.window_mark
        window.has_style = session.context.style_url is not None


def note_emergency(ends_at: float) -> None:
    window = _open.get()
    if window is not None:
        window.emergency_until = ends_at


def emergency_until() -> datetime | None:
    """Return when the page's session loses its emergency access; None where it has none."""
    window = _open.get()
    if window is None or window.emergency_until is None:
        return None
    return datetime.fromtimestamp(window.emergency_until, UTC)


def window_mark() -> str:
    """Return the mark of the page's session, empty where there is none."""
    window = _open.get()
    return "" if window is None else window.mark


def session_of_page() -> SMARTSession | None:
    window = _open.get()
    return None if window is None else window.session


def has_style() -> bool:
    window = _open.get()
    return window is not None and window.has_style


def href(path: str) -> str:
    """Return `path` with the mark of the page's session: for links, form actions, images and data addresses."""
    return marked(path, window_mark())


def marked(path: str, mark: str) -> str:
    if not mark:
        return path
    target, hash_sign, fragment = path.partition("#")
    joint = "&" if "?" in target else "?"
    return f"{target}{joint}{urlencode({PARAMETER: mark})}{hash_sign}{fragment}"


def require_same_window(request: Request, session: SMARTSession) -> None:
    """Raise StaleWindow where the page that asks was made in another session, or does not say in which."""
    mark = request.headers.get(HEADER) or request.query_params.get(PARAMETER)
    if mark is None and request.method in _SAFE:
        return
    if mark is None or not hmac.compare_digest(mark.encode(), session.window_mark.encode()):
        _keep(mark or "none")
        raise StaleWindow(_STALE)


def _keep(mark: str) -> None:
    """The page that says so has links too: they must not lead into the other session either."""
    window = _open.get()
    if window is not None:
        window.mark = mark
