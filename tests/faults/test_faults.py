"""Faults on loopback: what an EHR and a PACS were asked for and given, while everything behind the service fails.

The limits are the product's own: no study lost, no write doubled, a killed worker's study taken up again within
15 s, work within 10 s of a server's return, and within 30 s of the loss of everything that Redis held.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.conftest import ROOT
from tests.faults.account import Account, reclaims, recovery_s, settle
from tests.faults.cluster import Cluster, Process, as_json, describe, running_cluster, wait_for
from tests.faults.line import Cut
from tests.faults.storm import RECLAIM_S, RECOVERY_S, Storm, cutting
from tests.faults.studies import patient_id

pytestmark = [pytest.mark.alone, pytest.mark.postgresql, pytest.mark.timeout(900)]

STUDIES = 1000
SINGLE = 160
SEED = 7
SETTLED_S = 60.0
FIGURES = ROOT / ".cache" / "faults.json"


@dataclass
class Ward:
    """The cluster, with patients that no test has asked for yet."""

    cluster: Cluster
    next: int = STUDIES
    own: list[str] = field(default_factory=list)

    def patients(self, count: int) -> list[str]:
        first, self.next = self.next, self.next + count
        assert self.next <= STUDIES + SINGLE
        patients = [patient_id(number) for number in range(first, self.next)]
        self.own += patients
        return patients

    @property
    def account(self) -> Account:
        """Return the account of this test's patients."""
        own = {f"Patient/{patient}" for patient in self.own}
        return settle(self.cluster.entries()).of(own)

    def ask(self, count: int) -> list[str]:
        patients = self.patients(count)
        for patient in patients:
            answer = self.cluster.view(patient)
            assert answer["taken"], answer
        return patients

    def await_reports(self, timeout_s: float = SETTLED_S) -> None:
        wait_for(
            lambda: not self.account.lost,
            timeout_s,
            lambda: f"reports: {self.account}\n{describe(self.cluster)}",
        )

    def await_fetch(self, since: float, timeout_s: float = 20.0) -> None:
        def is_fetched() -> bool:
            return any(one.act == "retrieved" and one.at > since for one in self.cluster.entries())

        wait_for(is_fetched, timeout_s, "a study to be fetched")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("faults"), studies=STUDIES + SINGLE) as running:
        yield running


@pytest.fixture(scope="module")
def _ward(cluster: Cluster) -> Ward:
    return Ward(cluster)


@pytest.fixture
def ward(_ward: Ward) -> Iterator[Ward]:
    """Whatever the fault of a test, in the end every study has its one report, and nothing is left switched on."""
    _ward.own.clear()
    yield _ward
    cluster = _ward.cluster
    cluster.switch(
        ehr={"fhir_status": None}, pacs={"slow_s": 0.0, "fail_share": 0.0}, tokens={"token_life_s": 300}
    )
    _ward.await_reports()
    assert _ward.account.is_settled, (_ward.account, describe(cluster))


def test_what_is_asked_for_is_reported_once(ward: Ward) -> None:
    ward.ask(6)
    ward.await_reports()
    assert settle(ward.cluster.entries()).repeated == 0


def test_a_killed_workers_study_is_taken_up_within_15_s(ward: Ward) -> None:
    """It is killed while the images come in: the study has been fetched, and has no report."""
    cluster = ward.cluster
    killed = []
    for worker in cluster.workers:
        with cutting(cluster.pacs_line, Cut.SILENT):
            before = cluster.pacs_line.cuts
            ward.ask(3)
            wait_for(
                lambda before=before: cluster.pacs_line.cuts >= before + 2,
                30.0,
                "both workers to have a study",
            )
            killed.append(worker.kill())
        worker.start()
        ward.await_reports()
    times = reclaims(cluster.entries(), killed)
    assert len(times) >= len(killed), "no study was in hand when its worker was killed"
    assert max(times) <= RECLAIM_S


def test_a_killed_worker_leaves_no_process_behind(ward: Ward) -> None:
    for worker in ward.cluster.workers:
        wait_for(lambda worker=worker: not worker.orphans(), 10.0, "the engines of killed workers to end")


def test_redis_may_go_away_and_come_back(ward: Ward) -> None:
    """What is asked for meanwhile is taken on all the same: the row is what counts."""
    cluster = ward.cluster
    ward.ask(4)
    cluster.redis.stop()
    ward.ask(4)
    time.sleep(2.0)
    cluster.redis.start()
    back = time.time()
    ward.ask(4)
    ward.await_reports()
    assert (recovery_s(cluster.entries(), back) or 99.0) <= RECOVERY_S["redis restarted"]


def test_redis_may_lose_everything(ward: Ward) -> None:
    """The workers sleep while the messages come and are lost: nothing but the rows tells them of the studies."""
    cluster = ward.cluster
    with asleep(cluster.workers):
        ward.ask(6)
        assert cluster.redis.flush() > 0, "Redis held nothing that could be lost"
        lost = time.time()
    ward.await_reports()
    assert (recovery_s(cluster.entries(), lost) or 99.0) <= RECOVERY_S["redis flushed"]


@contextmanager
def asleep(processes: list[Process]) -> Iterator[None]:
    for one in processes:
        os.kill(one.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in processes:
            os.kill(one.pid, signal.SIGCONT)


def test_postgresql_may_be_cut_off_and_come_back(ward: Ward) -> None:
    cluster = ward.cluster
    ward.ask(8)
    cluster.postgresql.stop()
    refused = cluster.view(ward.patients(1)[0])
    time.sleep(2.0)
    cluster.postgresql.start()
    back = time.time()
    ward.await_reports()
    assert not refused["taken"]
    assert "503" in refused["error"]
    assert (recovery_s(cluster.entries(), back) or 99.0) <= RECOVERY_S["postgresql restarted"]


@pytest.mark.parametrize(
    "fault",
    [{"slow_s": 1.5}, {"status": 503}, {"status": 500}, {"fail_share": 0.5}, {"truncated": True}],
    ids=str,
)
def test_a_pacs_in_trouble_costs_no_study(ward: Ward, fault: dict[str, object]) -> None:
    ward.cluster.switch(pacs=fault)
    ward.ask(4)
    time.sleep(4.0)
    ward.cluster.switch(pacs={"slow_s": 0.0, "status": None, "fail_share": 0.0, "truncated": False})
    ward.await_reports()


@pytest.mark.parametrize("cut", [Cut.HALF_CLOSED, Cut.ANSWER_LOST])
def test_a_pacs_whose_answers_are_cut_costs_no_study(ward: Ward, cut: Cut) -> None:
    with cutting(ward.cluster.pacs_line, cut):
        ward.ask(4)
        wait_for(lambda: ward.cluster.pacs_line.cuts > 0, 20.0, "an answer to be cut")
    ward.await_reports()


def test_an_ehr_in_trouble_costs_no_report(ward: Ward) -> None:
    cluster = ward.cluster
    ward.ask(4)
    cluster.switch(ehr={"fhir_status": 503})
    time.sleep(4.0)
    cluster.switch(ehr={"fhir_status": None})
    ward.await_reports()


def test_an_answer_lost_after_the_ehr_wrote_doubles_nothing(ward: Ward) -> None:
    cluster = ward.cluster
    before = settle(cluster.entries()).repeated
    patients = ward.ask(4)
    with cutting(cluster.ehr_line, Cut.ANSWER_LOST):
        time.sleep(6.0)
    ward.await_reports()
    wait_for(lambda: not undelivered(cluster), 90.0, "every report to be known as written")
    held = cluster.held()["DiagnosticReport"]
    assert [held[f"Patient/{patient}"] for patient in patients] == [1] * len(patients)
    assert settle(cluster.entries()).repeated >= before


def test_tokens_that_end_during_the_job_are_replaced_by_our_own(ward: Ward) -> None:
    """The EHR said that they would live for five minutes, and ended them after a second."""
    ward.cluster.switch(tokens={"token_life_s": 1})
    ward.ask(6)
    time.sleep(3.0)
    ward.cluster.switch(tokens={"token_life_s": 300})
    ward.await_reports(30.0)


def test_the_api_may_be_killed_in_the_middle_of_calls(ward: Ward) -> None:
    """Whoever got no answer asks again; whoever got one need not."""
    cluster = ward.cluster
    patients = ward.patients(24)
    storm = Storm(cluster, patients, seed=SEED, limit_s=120.0)
    threads = storm.askers()
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    cluster.api.kill()
    cluster.api.start()
    cluster.await_api()
    for thread in threads:
        thread.join(timeout=60)
    ward.await_reports()
    asked = {one.subject for one in cluster.entries() if one.act == "asked" and one.outcome == "created"}
    assert asked >= {f"Patient/{patient}" for patient in patients}
    assert storm.refused > 0, "no call was in flight when the API was killed"


def test_a_thousand_studies_in_a_storm_of_all_faults(ward: Ward) -> None:
    cluster = ward.cluster
    ward.own += [patient_id(n) for n in range(STUDIES)]
    storm = Storm(cluster, ward.own, seed=SEED, limit_s=780.0)
    figures = storm.run()
    as_json(figures.as_dict(), FIGURES)
    told = f"{figures.as_dict()}\n{describe(cluster)}"
    assert figures.kills >= 10, told
    assert figures.reclaims_s, told
    assert figures.is_within_limits, told


def test_every_job_ended_as_done(ward: Ward) -> None:
    counted = ward.cluster.query("SELECT state, error_code, count(*) FROM analysis_job GROUP BY 1, 2")
    assert [state for state, *_ in counted] == ["done"], counted


def undelivered(cluster: Cluster) -> list[tuple[object, ...]]:
    return cluster.query(
        "SELECT delivery, delivery_detail, count(*) FROM analysis_result WHERE delivery <> 'delivered' GROUP BY 1, 2"
    )


def test_the_ehr_holds_what_the_ledger_says(ward: Ward) -> None:
    held = ward.cluster.held()
    assert set(held["DiagnosticReport"].values()) == {1}
    assert set(held["DiagnosticReport"]) <= set(held["Observation"])


def test_the_audit_still_verifies(ward: Ward) -> None:
    environment = ward.cluster.environment
    command = [sys.executable, "-m", "rayhook.deploy.cli", "audit", "verify"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
