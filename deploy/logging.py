"""Structured logs: one line an event, ids only, never a patient's value."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from rayhook.deploy.settings import LogFormat
from rayhook.fhir.correlation import request_id

_SECRET_KEYS = frozenset({"authorization", "access_token", "token", "client_assertion", "code", "id_token"})
# An error's code is one of our own words; an authorization code of OAuth is not.
_ERROR_CODE = re.compile(r"[a-z]+(_[a-z]+)*|[a-z]+(-[a-z]+)*")
_ERROR_CODE_LENGTH = 64
_TOKEN = re.compile(r"(Bearer\s+)[^\s\"']+|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


def configure_logging(*, level: str, log_format: LogFormat) -> None:
    """Send structlog and the standard library's loggers through one formatter to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        _redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _renderer(log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in (
        "httpx",
        "httpcore",
        "uvicorn.access",
        "alembic",
        "pydicom",
        "dramatiq",
        "rayhook.deploy.postgresql",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


def _renderer(log_format: LogFormat) -> structlog.typing.Processor:
    if log_format is LogFormat.CONSOLE:
        return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.processors.JSONRenderer()


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if value := request_id.get():
        event.setdefault("request_id", value)
    return event


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key in _SECRET_KEYS and not (key == "code" and _is_error_code(value)):
            event[key] = "[redacted]"
        elif isinstance(value, str):
            event[key] = _TOKEN.sub(r"\1[redacted]", value)
    return event


def _is_error_code(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _ERROR_CODE_LENGTH and bool(_ERROR_CODE.fullmatch(value))
