"""The web server: it listens before the service is made, and stops in order when it is told to."""

import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from rayhook.deploy.health import Health, Phase
from rayhook.deploy.settings import Settings
from rayhook.deploy.threads import in_threads
from rayhook.deploy.tls import ServedCertificate

log = structlog.get_logger(__name__)

_REQUESTS_S: Final = 20
_ENDED_HARD: Final = 70  # EX_SOFTWARE of sysexits.h


class Server(uvicorn.Server):
    """uvicorn's, with an end in two steps.

    The first signal to stop lets readiness say no while everything is still answered, for `drain_s`: a load
    balancer learns of it before the door is shut. Then nothing new is taken, and what is in hand is finished.
    A second signal ends the process at once, as does `shutdown_s`; what it had in hand is in its rows.
    """

    def __init__(self, config: uvicorn.Config, health: Health, *, drain_s: float, shutdown_s: float) -> None:
        super().__init__(config)
        self._health = health
        self._drain_s = drain_s
        self._shutdown_s = shutdown_s
        self._stops_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's interface
        if self._stops_at is not None or self._health.phase is Phase.STARTING:
            # Before the start is over there is nothing in hand; and who signals twice does not want to wait.
            os._exit(128 + sig)
        drain_s = 0.0 if sig == signal.SIGINT else self._drain_s
        self._stops_at = time.monotonic() + drain_s
        self._health.stop()
        self._captured_signals.append(sig)
        _end_hard_after(self._shutdown_s)

    async def on_tick(self, counter: int) -> bool:
        if self._health.failure is not None:
            self.should_exit = True
        if self._stops_at is not None and time.monotonic() >= self._stops_at:
            self.should_exit = True
        return await super().on_tick(counter)


def _end_hard_after(seconds: float) -> None:
    def end() -> None:
        log.error("shutdown_overdue", seconds=seconds)
        os._exit(_ENDED_HARD)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def run(app: ASGIApp, settings: Settings, health: Health) -> None:
    """Serve until told to stop. Raises what the start of the service failed for."""
    with served_certificate(settings) as certificate:
        if certificate is not None:
            health.certificate_left_s = certificate.left_s
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ssl_context_factory=None if certificate is None else _factory(certificate),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_REQUESTS_S,
        )
        server = Server(config, health, drain_s=settings.resolved_drain_s, shutdown_s=settings.shutdown_s)
        server.run()
    if health.failure is not None:
        raise health.failure


@contextmanager
def served_certificate(settings: Settings) -> Iterator[ServedCertificate | None]:
    """Yield the certificate that the settings name, kept as new as its files; None where they name none."""
    if settings.tls_certificate is None:
        yield None
        return
    certificate = ServedCertificate(settings.tls_certificate, settings.tls_key)
    with in_threads({"tls-certificate": certificate.renew_until}):
        yield certificate


def _factory(
    certificate: ServedCertificate,
) -> Callable[[uvicorn.Config, Callable[[], ssl.SSLContext]], ssl.SSLContext]:
    return lambda _config, _default: certificate.context
