"""Metrics: for whom, and nothing but counts."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.unusual import Watching
from rayhook.audit.verification import Verifier
from rayhook.audit.watch import Thresholds
from rayhook.auth.keys import Keyring
from rayhook.deploy.arrival_metrics import ArrivalCollector
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.health import Check, Health
from rayhook.deploy.job_metrics import JobCollector, refusals_counted
from rayhook.deploy.key_metrics import KeyCollector
from rayhook.deploy.metrics import METRICS, build_router
from rayhook.deploy.middleware import RequestContext
from rayhook.deploy.problems import install_problem_handlers
from rayhook.deploy.request_metrics import HealthCollector, RequestMetrics
from rayhook.deploy.stage_metrics import StageMetrics
from rayhook.inference.arrival import Arrival, ArrivalWay, announce
from rayhook.inference.job_table import Priority
from rayhook.inference.received import ReceivedImages
from rayhook.inference.sealed_spool import SealedSpool
from rayhook.inference.stages import Stage

DOC = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "metrics.md"
CANARY = "canary-of-a-patient"


@pytest.fixture
def parts(tmp_path):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    keyring = Keyring.load_or_create(tmp_path / "keyring.json")
    yield database.sessions, database.reading, keyring, AuditLog(keyring, anchor=tmp_path / "anchor.jsonl")
    database.close()


def arrivals(parts) -> ArrivalCollector:
    sessions, reading, keyring, audit = parts
    spool = SealedSpool(audit.anchor.parent / "received", keyring, 1 << 20)
    return ArrivalCollector(reading, ReceivedImages(spool, sessions, keyring))


def ask(parts, token_file=None, *, address="127.0.0.1", headers=None, before=0) -> httpx.Response:
    app, requests, health = FastAPI(), RequestMetrics(), Health()
    health.certificate_left_s = lambda: 3600.0
    health.begin([Check("database", lambda: True), Check("engine", lambda: False)])
    refused = refusals_counted(requests.registry)
    refused(Priority.ROUTINE)
    stages = StageMetrics()
    stages.note({Stage.DECODE: 0.2})
    others = (
        requests.registry,
        stages.registry,
        HealthCollector(health),
        JobCollector(parts[1]),
        arrivals(parts),
        KeyCollector(parts[1], parts[2]),
    )
    app.include_router(build_router(parts[1], token_file, others=others))
    app.get("/patients/{patient}")(lambda patient: patient)
    app.add_middleware(RequestContext, https=False, metrics=requests)
    install_problem_handlers(app)

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(address, 50000))
        async with httpx.AsyncClient(transport=transport, base_url="http://rayhook.test") as client:
            for number in range(before):
                await client.get(f"/patients/{CANARY}-{number}")
                await client.request("CANARY", f"/{CANARY}-{number}")
            return await client.get("/metrics", headers=headers)

    # In a thread of its own: a browser of another test leaves its event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(asyncio.run, get()).result()
    health.close()
    return answer


@pytest.fixture
def filled(parts):
    """A log with an item, a verification and a checkpoint."""
    sessions, _, _, audit = parts
    with sessions() as session:
        for _ in range(5):
            audit.record(
                session,
                AuditEntry(
                    AuditKind.SMART_APP_ACCESS_DENIED,
                    Outcome.SERIOUS_FAILURE,
                    "ehr",
                    CANARY,
                    patient_id=CANARY,
                ),
            )
        audit.checkpoint(session)
        session.commit()
    Watching(*parts, Thresholds()).step()
    assert Verifier(*parts).run(agent="test").intact
    return parts


def values(answer):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_counts_are_those_of_the_log(filled):
    found = values(ask(filled))
    assert found["rayhook_audit_review_items", "repeated_denials", "open"] == 1
    assert found["rayhook_audit_review_items", "vip", "open"] == 0
    assert found["rayhook_audit_intact",] == 1
    assert found["rayhook_audit_events",] == 7


def test_requests_are_counted_by_the_template_of_their_route(filled):
    found = values(ask(filled, before=3))
    assert found["rayhook_requests_total", "GET", "/patients/{patient}", "200"] == 3
    assert found["rayhook_requests_total", "other", "unmatched", "404"] == 3
    assert found["rayhook_request_seconds_count", "GET", "/patients/{patient}"] == 3


def test_there_are_as_many_series_as_routes_whoever_is_asked_for(filled):
    few, many = (ask(filled, before=count) for count in (2, 50))
    assert values(few).keys() == values(many).keys()
    assert CANARY not in many.text


def test_the_parts_of_the_service_are_told(filled):
    found = values(ask(filled))
    assert (found["rayhook_health", "database"], found["rayhook_health", "engine"]) == (1.0, 0.0)
    assert found["rayhook_tls_certificate_left_seconds",] == 3600


def test_what_arrived_is_counted_by_its_way_and_state(filled):
    sessions, _, keyring, _ = filled
    arrival = Arrival(ehr_id="ehr", way=ArrivalWay.STOW, study_instance_uid="1.2.3")
    with sessions() as session:
        announce(session, keyring, arrival, settle_s=0)
        session.commit()
    found = values(ask(filled))
    counts = {way: found["rayhook_arrivals", "waiting", way] for way in ArrivalWay}
    assert counts == {ArrivalWay.POLL: 0, ArrivalWay.STOW: 1, ArrivalWay.SUBSCRIPTION: 0}


def test_nothing_of_a_patient_is_in_it(filled):
    assert CANARY not in ask(filled).text


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("192.0.2.9", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.9"}, 403),
        ("127.0.0.1", {"Forwarded": "for=192.0.2.9"}, 403),
    ],
)
def test_without_a_token_only_this_machine_may_read(parts, address, headers, status):
    assert ask(parts, address=address, headers=headers).status_code == status


@pytest.mark.parametrize(("shown", "status"), [("Bearer s3cret", 200), ("Bearer wrong", 403), ("", 403)])
def test_with_a_token_only_who_shows_it(parts, tmp_path, shown, status):
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    answer = ask(parts, file, address="192.0.2.9", headers={"Authorization": shown})
    assert answer.status_code == status


def test_a_token_that_cannot_be_read_opens_nothing(parts, tmp_path):
    assert ask(parts, tmp_path / "nothing").status_code == 403


def test_every_metric_is_documented():
    rows = re.findall(r"^\| `(rayhook_[a-z_]+)` \| (.*) \|$", DOC.read_text(), flags=re.MULTILINE)
    assert rows == list(METRICS.items())


def test_every_metric_is_told(filled):
    names = {name.removesuffix("_count") for name, *_ in values(ask(filled, before=1))}
    assert set(METRICS) - names == {"rayhook_audit_delivery_behind", "rayhook_audit_delivery_failures"}
