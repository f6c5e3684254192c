"""The id that joins one inbound request to all that it causes (`X-Request-Id`)."""

import re
import uuid
from contextvars import ContextVar

_FORM = re.compile(r"[A-Za-z0-9._-]{8,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="")


def accept_request_id(value: str | None) -> str:
    """Return `value` where it has the form of an id, else a new one."""
    if value is not None and _FORM.fullmatch(value):
        return value
    return str(uuid.uuid4())
