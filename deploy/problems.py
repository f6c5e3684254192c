"""How an error leaves the service: as an OperationOutcome. The SMART app's pages tell people the same."""

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from rayhook.fhir.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    QueueFull,
    RateLimited,
    RayhookError,
    Unauthenticated,
    operation_outcome,
)

log = structlog.get_logger(__name__)


def install_problem_handlers(app: FastAPI) -> None:
    """Let `app` answer every error in the protocol's own form, without a stack trace or a patient's value."""
    app.add_exception_handler(RayhookError, _rayhook_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


def problem_response(request: Request, error: RayhookError) -> Response:
    """Return `error` as an OperationOutcome; a 401 does not say why. Spec: CDS Hooks, best practices."""
    headers = {"Cache-Control": "no-store"}
    is_fhir = request.url.path.startswith("/fhir/")
    challenge = _challenge(request, error) if is_fhir else None
    if error.status == Unauthenticated.status:
        headers["WWW-Authenticate"] = challenge or "Bearer"
        error = Unauthenticated("authentication is required")
    elif challenge is not None:
        headers["WWW-Authenticate"] = challenge
    if isinstance(error, Overloaded | QueueFull | RateLimited):
        headers["Retry-After"] = str(error.retry_after_s)
    return JSONResponse(
        operation_outcome(error),
        status_code=error.status,
        headers=headers,
        media_type="application/fhir+json" if is_fhir else "application/json",
    )


def _challenge(request: Request, error: RayhookError) -> str | None:
    """Return what our FHIR endpoint asks for: no code where no token came, none that says what was wrong with one.

    Spec: RFC 6750, section 3
    """
    if error.status == Unauthenticated.status:
        shown = request.headers.get("Authorization") is not None
        return 'Bearer realm="fhir", error="invalid_token"' if shown else 'Bearer realm="fhir"'
    return 'Bearer realm="fhir", error="insufficient_scope"' if error.code == "scope_insufficient" else None


def _rayhook_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RayhookError)
    log.info("request_refused", status=error.status, code=error.code)
    return problem_response(request, error)


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path", "header"})
    return problem_response(request, InvalidRequest(f"{field}: {first['msg']}", expression=field or None))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == NotFound.status:
        return problem_response(request, NotFound("there is nothing at this address"))
    told = InvalidRequest(str(error.detail), code="http_error")
    told.status = error.status_code  # type: ignore[misc]  # Starlette's own status, 405 for one
    response = problem_response(request, told)
    response.headers.update(error.headers or {})
    return response


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected_error", error_type=type(error).__name__, exc_info=error)
    return problem_response(
        request, RayhookError("the request could not be completed", code="internal_error")
    )
