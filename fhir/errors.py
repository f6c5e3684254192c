"""The one exception tree, and how it is told as an OperationOutcome.

RayhookError
├── InvalidRequest            400  malformed body, parameter or token of the protocol
├── Unauthenticated           401  nobody, or not who they say; the reason stays inside
├── Forbidden                 403  known, but not allowed
│   └── EgressDenied          403  an address that no registered EHR owns
├── NotFound                  404
├── NotAcceptable             406  no form of the answer that we have
├── Conflict                  409  somebody else was first, or the state of things does not allow it
├── Erased                    410  it was about a patient whose key was destroyed since
├── PrefetchUnavailable       412  data the service needs could not be had (CDS Hooks)
├── PayloadTooLarge           413
├── UnsupportedMediaType      415
├── Unprocessable             422
│   ├── IdentityConflict      422  token, context, study and image are not of one patient
│   ├── ImageRefused          422  an image that cannot be read faithfully
│   └── OutOfScope            422  a readable image that no model is meant for
├── RateLimited               429
├── ModelIntegrityError       500  weights or engine are not what the manifest pins
├── UpstreamError             502  EHR or PACS answered wrongly
│   ├── UpstreamConflict      502  the EHR's copy is not the version that was to be changed (409, 412)
│   ├── UpstreamRefused       502  EHR or PACS said 401 or 403 to the token given
│   │   └── UpstreamUnauthorized  502  it was 401: another token may be let in
│   ├── UpstreamUnavailable   503  EHR or PACS cannot be reached, or answers 5xx
│   └── UpstreamTimeout       504  EHR or PACS did not answer in time
└── ServiceUnavailable        503
    ├── AuditUnavailable      503  no audit, no access
    ├── EngineUnavailable     503  the inference engine does not answer
    ├── Overloaded            503  more at the same time than may be: ask again in a moment
    └── QueueFull             503  as many analyses wait as may: ask again later

Messages name the field and the rule, never a patient's value.
"""

from typing import Any, ClassVar


class RayhookError(Exception):
    """Base of all errors that a caller may be told of.

    `expression` is a FHIRPath-like path of the field at fault, or a DICOM keyword.
    """

    status: ClassVar[int] = 500
    issue_type: ClassVar[str] = "exception"
    code: str = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None, expression: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.expression = expression
        if code is not None:
            self.code = code


class InvalidRequest(RayhookError):
    status = 400
    issue_type = "invalid"
    code = "invalid_request"


class Unauthenticated(RayhookError):
    """The message is for the audit and the log only; callers get a bare 401."""

    status = 401
    issue_type = "login"
    code = "unauthenticated"


class Forbidden(RayhookError):
    status = 403
    issue_type = "forbidden"
    code = "forbidden"


class EgressDenied(Forbidden):
    issue_type = "security"
    code = "egress_denied"


class NotFound(RayhookError):
    status = 404
    issue_type = "not-found"
    code = "not_found"


class Conflict(RayhookError):
    status = 409
    issue_type = "conflict"
    code = "conflict"


class Erased(RayhookError):
    """Spec: FHIR R4 http.html#delete (410)."""

    status = 410
    issue_type = "deleted"
    code = "erased"

    def __init__(self, message: str = "the patient's data were erased") -> None:
        super().__init__(message)


class NotAcceptable(RayhookError):
    """Spec: RFC 9110 section 15.5.7; FHIR R4 http.html#mime-type."""

    status = 406
    issue_type = "not-supported"
    code = "not_acceptable"


class PrefetchUnavailable(RayhookError):
    """Spec: CDS Hooks 2.0.1, "Prefetch Template" and "HTTP Status Codes" (412)."""

    status = 412
    issue_type = "incomplete"
    code = "prefetch_unavailable"


class PayloadTooLarge(RayhookError):
    status = 413
    issue_type = "too-long"
    code = "payload_too_large"


class UnsupportedMediaType(RayhookError):
    status = 415
    issue_type = "not-supported"
    code = "unsupported_media_type"


class Unprocessable(RayhookError):
    status = 422
    issue_type = "processing"
    code = "unprocessable"


class IdentityConflict(Unprocessable):
    issue_type = "business-rule"
    code = "identity_conflict"


class ImageRefused(Unprocessable):
    issue_type = "not-supported"
    code = "image_refused"


class OutOfScope(Unprocessable):
    issue_type = "business-rule"
    code = "out_of_scope"


class RateLimited(RayhookError):
    """`retry_after_s` is for the header Retry-After, `is_first` says that the caller was not told before.

    Spec: RFC 6585, section 4
    """

    status = 429
    issue_type = "throttled"
    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1, is_first: bool = True) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_first = is_first


class ModelIntegrityError(RayhookError):
    status = 500
    issue_type = "exception"
    code = "model_integrity"


class UpstreamError(RayhookError):
    status = 502
    issue_type = "exception"
    code = "upstream_error"


class UpstreamConflict(UpstreamError):
    issue_type = "conflict"
    code = "upstream_conflict"


class UpstreamRefused(UpstreamError):
    issue_type = "forbidden"
    code = "upstream_refused"


class UpstreamUnauthorized(UpstreamRefused):
    issue_type = "login"


class UpstreamUnavailable(UpstreamError):
    status = 503
    issue_type = "transient"
    code = "upstream_unavailable"
    retryable = True


class UpstreamTimeout(UpstreamError):
    status = 504
    issue_type = "timeout"
    code = "upstream_timeout"
    retryable = True


class ServiceUnavailable(RayhookError):
    status = 503
    issue_type = "transient"
    code = "service_unavailable"
    retryable = True


class AuditUnavailable(ServiceUnavailable):
    code = "audit_unavailable"


class EngineUnavailable(ServiceUnavailable):
    code = "engine_unavailable"


class QueueFull(ServiceUnavailable):
    """`retry_after_s` is for the header Retry-After."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int = 30) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(ServiceUnavailable):
    """`retry_after_s` is for the header Retry-After."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def code_of(error: BaseException) -> str:
    """Return the code of an error of ours, and of another its type: never its text, which may quote a patient."""
    return error.code if isinstance(error, RayhookError) else type(error).__name__


def operation_outcome(error: RayhookError) -> dict[str, Any]:
    """Return the FHIR R4 OperationOutcome that tells of `error`.

    Spec: FHIR R4 OperationOutcome; CDS Hooks 3.0.0-ballot, "Returning OperationOutcome".
    """
    issue: dict[str, Any] = {
        "severity": "error",
        "code": error.issue_type,
        "details": {"coding": [{"system": "urn:rayhook:error", "code": error.code}]},
        "diagnostics": error.message,
    }
    if error.expression is not None:
        issue["expression"] = [error.expression]
    return {"resourceType": "OperationOutcome", "issue": [issue]}
