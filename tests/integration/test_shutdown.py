"""Stopping a real service: in two steps, with what is in hand finished or handed back, and nothing lost.

Spec: Kubernetes, "Pod Lifecycle", termination of Pods
"""

import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from tests.faults.account import settle
from tests.faults.cluster import running_alone, wait_for
from tests.faults.studies import patient_id

SHUTDOWN_S = 12


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    settings = {
        "RAYHOOK_DRAIN_S": "1.5",
        "RAYHOOK_HOOK_WAIT_S": "0.4",
        "RAYHOOK_JOB_LEASE_S": "4",
        "RAYHOOK_SHUTDOWN_S": str(SHUTDOWN_S),
    }
    with running_alone(tmp_path_factory.mktemp("shutdown"), studies=8, **settings) as cluster:
        yield cluster


@pytest.fixture
def service(running):
    """A service that is ready, whatever the test before did to it."""
    if not running.api.is_running:
        running.api.start()
        running.await_api()
    yield running
    running.switch(pacs={"slow_s": 0.0})


@pytest.fixture
def patient(request):
    """A patient of the test's own, whose study nobody has asked for."""
    number = patient.count = getattr(patient, "count", -1) + 1
    return patient_id(number)


def signalled(service, number=signal.SIGTERM):
    service.api._child.send_signal(number)
    return time.monotonic()


def ended(service, within_s):
    service.api._child.wait(timeout=within_s)


def asked(service, path):
    with suppress(httpx.TransportError):
        return httpx.get(f"{service.service_url}{path}", timeout=2).status_code
    return None


def rows(service, query):
    with sqlite3.connect(service.folder / "data" / "rayhook.sqlite3") as connection:
        return connection.execute(query).fetchall()


def newest_job(service):
    ((state, attempts),) = rows(
        service, "SELECT state, attempts FROM analysis_job ORDER BY created_at DESC LIMIT 1"
    )
    return state, attempts


def begun(service, patient, *, slow_s):
    """Ask for a study that the PACS takes its time for, and return when a thread has it in hand."""
    service.switch(pacs={"slow_s": slow_s})
    assert service.view(patient)["taken"]
    wait_for(lambda: newest_job(service)[0] == "running", 10, "the study to be in hand")


def test_it_is_not_ready_at_once_and_answers_for_a_while(service, patient):
    signalled(service)
    answers = [asked(service, f"/health/{one}") for one in ("ready", "live", "startup")]
    assert answers == [503, 200, 200]
    assert service.view(patient)["error"] is None
    ended(service, SHUTDOWN_S)
    assert asked(service, "/health/live") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hook_in_hand_is_answered(service, patient, number):
    """SIGINT shuts the door at once; the call is within all the same."""
    service.switch(pacs={"slow_s": 3.0})
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(service.view, patient)
        time.sleep(0.25)
        signalled(service, number)
        answer = call.result()
    assert (answer["error"], answer["topics"]) == (None, ["in-progress"])
    ended(service, SHUTDOWN_S)


def test_a_job_in_hand_is_finished(service, patient):
    begun(service, patient, slow_s=1.0)
    signalled(service)
    ended(service, SHUTDOWN_S)
    assert newest_job(service) == ("done", 1)


def test_a_job_that_would_take_too_long_is_handed_back(service, patient):
    begun(service, patient, slow_s=25.0)
    at = signalled(service)
    ended(service, SHUTDOWN_S + 2)
    assert time.monotonic() - at <= SHUTDOWN_S + 1
    assert newest_job(service)[0] == "queued"
    service.switch(pacs={"slow_s": 0.0})
    service.api.start()
    wait_for(lambda: newest_job(service)[0] == "done", 90, "the study to be taken up again")


def test_a_second_signal_ends_it_at_once_and_loses_nothing(service, patient):
    begun(service, patient, slow_s=25.0)
    signalled(service)
    time.sleep(0.2)
    at = signalled(service)
    ended(service, 5)
    assert time.monotonic() - at < 2
    assert newest_job(service)[0] == "running"
    service.switch(pacs={"slow_s": 0.0})
    service.api.start()
    wait_for(lambda: newest_job(service)[0] == "done", 90, "the study to be taken up again")


def test_the_log_ends_with_the_stop_and_is_signed_to_its_end(service):
    signalled(service)
    ended(service, SHUTDOWN_S)
    ((kind, seq),) = rows(service, "SELECT kind, seq FROM audit_event ORDER BY seq DESC LIMIT 1")
    ((signed,),) = rows(service, "SELECT max(size) FROM audit_checkpoint")
    assert (kind, signed) == ("application:process:stopped", seq)


def test_a_start_is_broken_off_at_once(running):
    running.api.stop()
    running.api.start()
    wait_for(lambda: asked(running, "/health/live") == 200, 60, "the service to listen")
    at = signalled(running)
    ended(running, 5)
    assert time.monotonic() - at < 3


def test_every_study_has_its_one_report_in_the_end(service):
    wait_for(lambda: not settle(service.entries()).lost, 60, "every report")
    assert not settle(service.entries()).doubled
