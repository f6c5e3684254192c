"""Liveness, readiness and start-up: bounded in time, and honest."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI

from rayhook.deploy.health import Check, Condition, Health, Phase, build_router
from rayhook.deploy.middleware import WhileStarting
from rayhook.fhir.errors import ServiceUnavailable


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def health():
    made = Health()
    yield made
    made.close()


def ask(health, path):
    app = FastAPI()
    app.include_router(build_router(health))
    app.add_middleware(WhileStarting, health=health)

    async def get():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://rayhook.test") as client:
            return await client.get(path)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, get()).result()


def fails():
    raise ServiceUnavailable("it does not answer")


def always(condition):
    return lambda: condition


def test_a_process_that_starts_is_alive_and_not_ready(health):
    statuses = [ask(health, f"/health/{one}").status_code for one in ("live", "ready", "startup")]
    assert statuses == [200, 503, 503]
    assert ask(health, "/health/ready").json() == {"status": "starting", "checks": {}}


def test_other_routes_are_told_to_come_again_while_it_starts(health):
    answer = ask(health, "/cds-services")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["issue"][0]["code"] == "transient"


def test_a_process_whose_parts_are_well_is_ready(health):
    health.begin([Check("database", always(True))])
    answer = ask(health, "/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "checks": {"database": "ok"}})


@pytest.mark.parametrize(
    ("check", "status", "told"),
    [
        (Check("redis", always(False), failed=Condition.DEGRADED), 200, "degraded"),
        (Check("redis", fails, failed=Condition.DEGRADED), 200, "degraded"),
        (Check("database", always(False)), 503, "unavailable"),
        (Check("database", fails), 503, "unavailable"),
        (Check("schema", always(Condition.DEGRADED)), 200, "degraded"),
    ],
)
def test_what_is_needed_takes_the_process_out_and_what_is_not_is_told(health, check, status, told):
    health.begin([check, Check("disk", always(True))])
    answer = ask(health, "/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (status, told)
    assert answer.json()["checks"] == {check.name: told, "disk": "ok"}


def test_a_failure_does_not_say_what_it_failed_with(health):
    health.begin([Check("database", fails)])
    assert "does not answer" not in ask(health, "/health/ready").text


def test_a_part_that_hangs_is_waited_for_a_second(health):
    ends = threading.Event()
    health.begin([Check("database", ends.wait), Check("redis", ends.wait, late=Condition.DEGRADED)])
    started = time.monotonic()
    report = health.ready()
    ends.set()
    assert time.monotonic() - started < 1.5
    assert report.checks == {"database": Condition.UNAVAILABLE, "redis": Condition.DEGRADED}


def test_parts_are_asked_at_the_same_time(health):
    together = threading.Barrier(3, timeout=5)
    health.begin([Check(str(number), lambda: together.wait() >= 0) for number in range(3)])
    assert health.ready().is_ready


def test_a_part_that_hangs_is_not_asked_again_before_it_answers():
    ends, asked, clock = threading.Event(), [], Clock()
    health = Health(monotonic=clock)

    def hang():
        asked.append(1)
        return ends.wait()

    health.begin([Check("database", hang)])
    for _ in range(3):
        health.ready()
        clock.now += 10
    assert len(asked) == 1
    ends.set()
    while health._asked["database"].running():
        time.sleep(0.01)
    assert health.ready().is_ready
    health.close()


def test_the_answer_is_kept_for_a_second():
    asked, clock = [], Clock()
    health = Health(monotonic=clock)
    health.begin([Check("database", lambda: not asked.append(1))])
    for _ in range(5):
        health.ready()
    clock.now += 1.1
    health.ready()
    health.close()
    assert len(asked) == 2


def test_a_process_that_stops_is_not_ready_at_once_though_nothing_is_asked(health):
    health.begin([Check("database", always(True))])
    assert health.ready().is_ready
    health.stop()
    answers = {one: ask(health, f"/health/{one}") for one in ("live", "ready")}
    assert {one: answer.status_code for one, answer in answers.items()} == {"live": 200, "ready": 503}
    assert answers["ready"].json()["status"] == "stopping"


def test_what_is_in_hand_is_answered_while_it_stops(health):
    health.begin([])
    health.stop()
    assert ask(health, "/cds-services").status_code == 404  # of the application: there is no such route here


def test_the_start_is_over_when_the_engine_has_been_well_once(health):
    warm = threading.Event()
    health.begin([Check("engine", warm.is_set, at_start=True)])
    assert ask(health, "/health/startup").status_code == 503
    warm.set()
    health._kept = None
    assert ask(health, "/health/startup").json() == {"status": "ok"}
    warm.clear()
    health._kept = None
    assert ask(health, "/health/startup").status_code == 200
    assert ask(health, "/health/ready").status_code == 503


def test_the_start_waits_for_nothing_else(health):
    health.begin([Check("database", fails), Check("engine", always(True), at_start=True)])
    assert ask(health, "/health/startup").status_code == 200


def test_a_start_that_failed_is_never_ready(health):
    health.fail(ServiceUnavailable("no keyring"))
    assert health.phase is Phase.FAILED
    assert ask(health, "/health/ready").json()["status"] == "failed"
    assert ask(health, "/cds-services").status_code == 503


def test_the_threads_of_requests_are_not_needed(health):
    """Every one of them may wait for an EHR: the probe is answered all the same."""
    import anyio.to_thread

    health.begin([Check("database", always(True))])
    app = FastAPI()
    app.include_router(build_router(health))

    async def get():
        limiter = anyio.to_thread.current_default_thread_limiter()
        for number in range(int(limiter.total_tokens)):
            limiter.acquire_on_behalf_of_nowait(number)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://rayhook.test") as client:
            return [(await client.get(f"/health/{one}")).status_code for one in ("live", "ready", "startup")]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(asyncio.run, asyncio.wait_for(get(), 5)).result() == [200, 200, 200]
