"""A service and its workers as processes of their own, over PostgreSQL and Redis: who does what, and who stops when."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from rayhook.inference.claims import MAX_ATTEMPTS
from tests.faults.cluster import Cluster, Process, describe, running_cluster, wait_for
from tests.faults.studies import patient_id
from tests.ports import free_port

pytestmark = [pytest.mark.alone, pytest.mark.postgresql, pytest.mark.timeout(600)]

PATIENTS = 60
LEASE_S = 3.0
SLOW_S = 4.0
CANCELLED_S = 20.0  # longer than a command takes on a busy machine


class Ward:
    """The installation with one worker, and patients that no test has asked for yet."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.next = 0

    @property
    def worker(self) -> Process:
        return self.cluster.workers[0]

    def patient(self) -> str:
        self.next += 1
        assert self.next <= PATIENTS
        return patient_id(self.next - 1)

    def view(self, patient: str) -> list[str]:
        answer = self.cluster.view(patient)
        assert answer["error"] is None, answer
        return list(answer["topics"])

    def ask(self) -> tuple[str, str]:
        """Open the chart of a new patient; return who it is, and the id of the job that came of it."""
        patient = self.patient()
        self.view(patient)
        return patient, self.one("SELECT id FROM analysis_job ORDER BY created_at DESC LIMIT 1")

    def one(self, sql: str, *values: Any) -> Any:
        with psycopg.connect(self.cluster.postgresql.url) as connection:
            row = connection.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def change(self, sql: str, *values: Any) -> None:
        with psycopg.connect(self.cluster.postgresql.url) as connection:
            connection.execute(sql, values)

    def state(self, job_id: str) -> str:
        return str(self.one("SELECT state FROM analysis_job WHERE id = %s", job_id))

    def await_state(self, job_id: str, *states: str, timeout_s: float = 60.0) -> None:
        told = f"{states}\n{describe(self.cluster)}"
        wait_for(lambda: self.state(job_id) in states, timeout_s, told)

    def slow(self, seconds: float) -> None:
        self.cluster.switch(pacs={"slow_s": seconds})

    def await_worker(self) -> None:
        alive = (
            "SELECT count(*) FROM worker WHERE seen_at > extract(epoch FROM now()) - 10 AND NOT is_stopping"
        )
        wait_for(lambda: self.one(alive) >= 1, 60.0, "a worker")

    def jobs(self, *arguments: str) -> None:
        process = Process(
            "jobs", ["rayhook.deploy.cli", "jobs", *arguments], self.cluster.environment, self.cluster.folder
        )
        process.start()
        wait_for(lambda: not process.is_running, 60.0, "rayhook jobs")


@pytest.fixture(scope="module")
def _ward(tmp_path_factory) -> Iterator[Ward]:
    with running_cluster(tmp_path_factory.mktemp("workers"), studies=PATIENTS, workers=0) as cluster:
        cluster.environment["RAYHOOK_JOB_LEASE_S"] = str(LEASE_S)
        worker = Process("worker", ["rayhook.deploy.cli", "worker"], cluster.environment, cluster.folder)
        cluster.workers.append(worker)
        worker.start()
        ward = Ward(cluster)
        ward.await_worker()
        yield ward
        worker.stop()


@pytest.fixture
def ward(_ward: Ward) -> Iterator[Ward]:
    if not _ward.worker.is_running:
        _ward.worker.start()
        _ward.await_worker()
    yield _ward
    _ward.slow(0.0)


def test_the_service_itself_has_no_engine(ward: Ward) -> None:
    names = [
        " ".join(child.cmdline()) for child in psutil.Process(ward.cluster.api.pid).children(recursive=True)
    ]
    assert not [name for name in names if "spawn_main" in name]


def test_a_study_is_analysed_by_the_worker(ward: Ward) -> None:
    patient, job = ward.ask()
    ward.await_state(job, "done")
    assert ward.view(patient)[0] in {"finding", "no-finding"}


def test_a_redis_that_holds_a_job_holds_nothing_of_the_patient(ward: Ward) -> None:
    ward.worker.stop()
    patient, _ = ward.ask()
    keys = [key for key in ward.cluster.redis.content() if b"msgs" in key]
    assert keys
    assert not [value for value in keys if patient.encode() in value]


def test_the_more_urgent_is_done_first(ward: Ward) -> None:
    ward.worker.stop()
    asked = [ward.ask()[1] for _ in range(3)]
    ward.change("UPDATE analysis_job SET priority = 'stat', due_at = created_at WHERE id = %s", asked[2])
    ward.worker.start()
    for job in asked:
        ward.await_state(job, "done")
    ended = [ward.one("SELECT created_at FROM analysis_result WHERE job_id = %s", job) for job in asked]
    assert ended[2] < ended[0] < ended[1]


def test_a_job_cancelled_while_in_hand_is_stopped_and_nothing_is_written(ward: Ward) -> None:
    ward.slow(CANCELLED_S)
    patient, job = ward.ask()
    ward.await_state(job, "running")
    ward.jobs("cancel", job)
    assert ward.state(job) == "cancelled"
    wait_for(lambda: "job_given_up" in ward.worker.log(), CANCELLED_S, "the worker to notice")
    time.sleep(CANCELLED_S)
    assert ward.one("SELECT count(*) FROM analysis_result WHERE job_id = %s", job) == 0
    assert f"Patient/{patient}" not in ward.cluster.held()["DiagnosticReport"]
    assert ward.one("SELECT count(*) FROM audit_event WHERE kind = 'inference:job:cancelled'") == 1
    assert ward.view(patient) == ["cancelled"]


def test_a_killed_workers_job_is_taken_up_when_its_lease_is_over(ward: Ward) -> None:
    ward.slow(SLOW_S)
    _, job = ward.ask()
    ward.await_state(job, "running")
    ward.worker.kill()
    ward.slow(0.0)
    ward.worker.start()
    ward.await_state(job, "done")
    assert ward.one("SELECT attempts FROM analysis_job WHERE id = %s", job) == 2


def test_images_that_end_each_worker_are_given_up_and_told_as_that(ward: Ward) -> None:
    ward.slow(SLOW_S)
    patient, job = ward.ask()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        taken = "SELECT attempts FROM analysis_job WHERE id = %s AND state = 'running'"
        wait_for(lambda n=attempt, q=taken: ward.one(q, job) == n, 60.0, f"attempt {attempt}")
        ward.worker.kill()
        ward.worker.start()
    ward.await_state(job, "dead")
    assert ward.view(patient) == ["given-up"]
    time.sleep(2 * LEASE_S)
    assert ward.state(job) == "dead"


def test_a_dead_job_is_done_when_somebody_asks_for_it_by_name(ward: Ward) -> None:
    job = ward.one("SELECT id FROM analysis_job WHERE state = 'dead'")
    ward.jobs("retry", job)
    ward.await_state(job, "done")


def test_a_worker_told_to_stop_finishes_what_is_in_hand(ward: Ward) -> None:
    ward.slow(1.5)
    _, job = ward.ask()
    ward.await_state(job, "running")
    me = ward.one("SELECT id FROM worker ORDER BY started_at DESC LIMIT 1")
    ward.worker.stop()
    assert ward.state(job) == "done"
    assert ward.one("SELECT count(*) FROM worker WHERE id = %s", me) == 0


def test_a_worker_told_to_stop_hands_back_what_takes_too_long(ward: Ward) -> None:
    ward.worker.stop()
    ward.cluster.environment["RAYHOOK_SHUTDOWN_S"] = "5"
    ward.worker.start()
    ward.await_worker()
    ward.slow(30.0)
    _, job = ward.ask()
    ward.await_state(job, "running")
    psutil.Process(ward.worker.pid).send_signal(signal.SIGTERM)
    wait_for(lambda: not ward.worker.is_running, 10.0, "the worker to stop")
    del ward.cluster.environment["RAYHOOK_SHUTDOWN_S"]
    attempts = ward.one("SELECT attempts FROM analysis_job WHERE id = %s", job)
    assert (ward.state(job), attempts) == ("queued", 0)


def test_jobs_go_on_while_redis_is_away(ward: Ward) -> None:
    ward.cluster.redis.stop()
    _, job = ward.ask()
    ward.await_state(job, "done", timeout_s=15.0)
    ward.cluster.redis.start()


def test_a_worker_starts_while_redis_is_away(ward: Ward) -> None:
    ward.worker.stop()
    ward.cluster.redis.stop()
    _, job = ward.ask()
    ward.worker.start()
    ward.await_state(job, "done")
    ward.cluster.redis.start()


def test_a_call_that_finds_the_queue_full_is_told_so(ward: Ward) -> None:
    """The limit is the service's own: another process of it has another."""
    ward.worker.stop()
    cluster = ward.cluster
    cluster.environment["RAYHOOK_QUEUE_LIMIT"] = "2"
    cluster.api.stop()
    cluster.api.start()
    cluster.await_api()
    patients = [ward.patient() for _ in range(4)]
    topics = [ward.view(patient) for patient in patients]
    assert topics == [["in-progress"], ["in-progress"], ["not-begun"], ["not-begun"]]
    metrics = httpx.get(f"{cluster.service_url}/metrics").text
    assert 'rayhook_jobs_not_begun_total{priority="asap"} 2.0' in metrics
    assert 'rayhook_jobs{queue="cpu",state="queued"} 2.0' in metrics
    ward.worker.start()
    ward.await_worker()
    waits = "SELECT count(*) FROM analysis_job WHERE state IN ('queued', 'running')"
    wait_for(lambda: ward.one(waits) == 0, 60.0, "what waits")
    assert ward.view(patients[2]) != ["not-begun"]


def test_a_workers_probes_are_answered_where_a_port_is_named(ward: Ward) -> None:
    port = free_port()
    environment = {**ward.cluster.environment, "RAYHOOK_WORKER_HEALTH_PORT": str(port)}
    second = Process("probed", ["rayhook.deploy.cli", "worker"], environment, ward.cluster.folder)
    second.start()

    def is_ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=2).is_success
        except httpx.TransportError:
            return False

    wait_for(is_ready, 60.0, f"the probe\n{second.log()}")
    second.stop()
