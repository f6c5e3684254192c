"""Routes for scripts: no page, and errors that a script can tell in the reader's language."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, Response

from rayhook.fhir.errors import InvalidRequest, Overloaded, RayhookError, Unauthenticated
from rayhook.smart_app import i18n, window

NO_STORE: Final = {"Cache-Control": "no-store"}

log = structlog.get_logger(__name__)


class JSONErrorRoute(APIRoute):
    """Errors as `code`, `message` and `retryable`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_json_errors(request: Request) -> Response:
            with i18n.speaking(i18n.language_of(request)), window.window_of_request():
                try:
                    return await handle(request)
                except RequestValidationError as error:
                    field = str(error.errors()[0]["loc"][-1])
                    return _problem(InvalidRequest(f"{field}: has the wrong form", expression=field))
                except RayhookError as error:
                    return _problem(error)

        return with_json_errors


def _problem(error: RayhookError) -> Response:
    log.info("image_refused", status=error.status, code=error.code)
    if isinstance(error, Unauthenticated):
        error = Unauthenticated("the session has ended")
    headers = (
        {**NO_STORE, "Retry-After": str(error.retry_after_s)} if isinstance(error, Overloaded) else NO_STORE
    )
    told = {"code": error.code, "message": error.message, "retryable": error.retryable}
    return JSONResponse(told, status_code=error.status, headers=headers)
