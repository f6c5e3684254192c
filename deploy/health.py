"""Liveness, readiness and start-up: three questions, three honest answers.

Spec: Kubernetes, "Liveness, Readiness, and Startup Probes"
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock
from typing import Final

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from rayhook.fhir.errors import RayhookError

log = structlog.get_logger(__name__)

HEALTH: Final = "/health"

_BOUND_S: Final = 1.0
_KEPT_S: Final = 1.0
_ASKERS: Final = 4
_MOST_CHECKS: Final = 16


class Condition(StrEnum):
    """`degraded`: the service does its work without it, more slowly or with less to fall back on."""

    OK = "ok"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


class Phase(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """How one part of the service is.

    ask: says so, or raises; False is as `failed` says.  failed: what its failure means for the service.
    late: what it means that it gives no answer within a second.
    at_start: the start is not over before it was well once.
    """

    name: str
    ask: Callable[[], Condition | bool]
    failed: Condition = Condition.UNAVAILABLE
    late: Condition = Condition.UNAVAILABLE
    at_start: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What was found; `checks` by their name, and nothing of what they found it in."""

    phase: Phase
    checks: Mapping[str, Condition] = field(default_factory=dict)

    @property
    def status(self) -> str:
        if self.phase is not Phase.RUNNING:
            return self.phase.value
        found = self.checks.values()
        worst = (one for one in (Condition.UNAVAILABLE, Condition.DEGRADED) if one in found)
        return next(worst, Condition.OK).value

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.RUNNING and Condition.UNAVAILABLE not in self.checks.values()


def _no_certificate() -> None:
    """Without a certificate of its own the process is behind a proxy that has one."""


class Health:
    """How this process is. Its parts are asked all at once, for a second at most, and not more often than that.

    Safe to share between threads; a part that hangs is not asked again until it has answered.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._phase = Phase.STARTING
        self._has_started = False
        self._checks: Sequence[Check] = ()
        self._lock = Lock()
        self._asked: dict[str, Future[Condition]] = {}
        self._kept: tuple[float, Mapping[str, Condition]] | None = None
        self._pool = ThreadPoolExecutor(_MOST_CHECKS, thread_name_prefix="health-check")
        self._askers = ThreadPoolExecutor(_ASKERS, thread_name_prefix="health")
        self.failure: BaseException | None = None
        self.certificate_left_s: Callable[[], float | None] = _no_certificate
        # What the start cannot go on without, and tries to have again and again: the check's name, and why.
        self.waiting: tuple[str, RayhookError] | None = None

    @property
    def phase(self) -> Phase:
        return self._phase

    def begin(self, checks: Sequence[Check]) -> None:
        """Say that the process does its work, and what it needs for that."""
        self._checks = checks
        if self._phase is Phase.STARTING:
            self._phase = Phase.RUNNING

    def stop(self) -> None:
        """Say from now on that nothing new is to come here."""
        self._phase = Phase.STOPPING

    def fail(self, failure: BaseException) -> None:
        """Say that the start came to nothing."""
        self.failure = failure
        self._phase = Phase.FAILED

    def close(self) -> None:
        for pool in (self._askers, self._pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def ready(self) -> Report:
        """Return whether requests may come here."""
        phase, waiting = self._phase, self.waiting
        if phase is Phase.STARTING and waiting is not None:
            return Report(phase, {waiting[0]: Condition.UNAVAILABLE})
        return Report(phase, self._examined() if phase is Phase.RUNNING else {})

    def started(self) -> tuple[bool, Report]:
        """Return whether the start is over: once it is, it stays so, whatever becomes of the parts."""
        if self._has_started or self._phase is Phase.STOPPING:
            return True, Report(self._phase)
        report = self.ready()
        needed = [check.name for check in self._checks if check.at_start]
        self._has_started = report.phase is Phase.RUNNING and all(
            report.checks[name] is Condition.OK for name in needed
        )
        return self._has_started, report

    async def asked_ready(self) -> Report:
        """Return what `ready` does, in threads of its own: those of the requests may all be taken."""
        return await asyncio.get_running_loop().run_in_executor(self._askers, self.ready)

    async def asked_started(self) -> tuple[bool, Report]:
        return await asyncio.get_running_loop().run_in_executor(self._askers, self.started)

    def _examined(self) -> Mapping[str, Condition]:
        with self._lock:
            now = self._monotonic()
            if self._kept is not None and now - self._kept[0] < _KEPT_S:
                return self._kept[1]
            asked = {check.name: self._answer_of(check) for check in self._checks}
            wait(asked.values(), timeout=_BOUND_S)
            found = {
                check.name: one.result() if (one := asked[check.name]).done() else check.late
                for check in self._checks
            }
            self._tell_change(found)
            self._kept = (self._monotonic(), found)
            return found

    def _answer_of(self, check: Check) -> Future[Condition]:
        pending = self._asked.get(check.name)
        if pending is None or pending.done():
            pending = self._asked[check.name] = self._pool.submit(_condition, check)
        return pending

    def _tell_change(self, found: Mapping[str, Condition]) -> None:
        before = self._kept[1] if self._kept is not None else {}
        for name, condition in found.items():
            if condition is not before.get(name, Condition.OK):
                log.warning("health_changed", check=name, condition=condition.value)


def _condition(check: Check) -> Condition:
    try:
        answer = check.ask()
    except (RayhookError, OSError) as error:
        log.info("health_check_failed", check=check.name, error_type=type(error).__name__)
        return check.failed
    if isinstance(answer, Condition):
        return answer
    return Condition.OK if answer else check.failed


def build_router(health: Health) -> APIRouter:
    """Return the health routes; none of them waits for a request's thread, or longer than a second for a part.

    `/health/live` says that the process answers: only a restart would help where it does not.
    `/health/ready` is 503 while requests are to go elsewhere; what is only degraded is told with a 200.
    `/health/startup` is 503 until the start is over, and never again.
    """
    router = APIRouter(prefix=HEALTH, tags=["health"])

    @router.get("/live")
    async def live() -> JSONResponse:
        return _answer({"status": "ok"}, is_well=True)

    @router.get("/ready")
    async def ready() -> JSONResponse:
        report = await health.asked_ready()
        return _answer(_told(report), is_well=report.is_ready)

    @router.get("/startup")
    async def startup() -> JSONResponse:
        is_over, report = await health.asked_started()
        return _answer({"status": "ok"} if is_over else _told(report), is_well=is_over)

    return router


def _told(report: Report) -> dict[str, object]:
    return {"status": report.status, "checks": {name: one.value for name, one in report.checks.items()}}


def _answer(content: dict[str, object], *, is_well: bool) -> JSONResponse:
    return JSONResponse(content, 200 if is_well else 503, headers={"Cache-Control": "no-store"})
