"""Where a request came from and to whom: what an event says of both ends of the wire, without being told."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestSource:
    """The network addresses of one inbound request; empty outside of one."""

    client_address: str = ""
    server_address: str = ""


@dataclass(slots=True)
class RequestPurpose:
    """Why one request is made, where it is not for treatment, as soon as that is known; a code of v3-ActReason."""

    code: str = ""


NOWHERE = RequestSource()
request_source: ContextVar[RequestSource] = ContextVar("request_source", default=NOWHERE)
request_purpose: ContextVar[RequestPurpose | None] = ContextVar("request_purpose", default=None)
