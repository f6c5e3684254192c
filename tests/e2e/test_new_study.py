"""A study that arrives while nobody looks is analysed, and reported, before its chart is opened."""

import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from rayhook.deploy.demo.catalogue import build_catalogue
from rayhook.deploy.demo.ehr_seed import imaging_study_id
from rayhook.deploy.demo.run import (
    DemoAddresses,
    _environment,
    demo_peers,
    rayhook_process,
    subscribe,
    wait_until_ready,
)
from tests.e2e.conftest import Demo
from tests.ports import free_port

_ANALYSED_S = 90.0  # seconds on a quiet machine are more on a busy one


@pytest.fixture(scope="module")
def subscribed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo as `make run` starts it, with the demo's own studies alone."""
    data_dir = tmp_path_factory.mktemp("subscribed")
    addresses = DemoAddresses.from_port(free_port(3))
    catalogue = build_catalogue(data_dir / "pacs", None)
    with (
        demo_peers(catalogue, addresses, data_dir) as peers,
        rayhook_process(addresses, data_dir) as process,
    ):
        wait_until_ready(addresses.rayhook, process)
        subscribe(addresses, data_dir)
        yield Demo(addresses, catalogue, data_dir, peers)


def rayhook(demo: Demo, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayhook.deploy.cli", *arguments],
        env=_environment(demo.addresses, demo.data_dir),
        capture_output=True,
        text=True,
        check=False,
    )


def reports(demo: Demo) -> list:
    return demo.peers.ehr.store.search("DiagnosticReport", [])


def test_the_demo_ehr_is_subscribed_to(subscribed: Demo) -> None:
    (subscription,) = subscribed.peers.ehr.store.search("Subscription", [])
    assert (subscription["status"], subscription["channel"]["type"]) == ("active", "rest-hook")


def test_subscribing_again_changes_nothing(subscribed: Demo) -> None:
    subscribe(subscribed.addresses, subscribed.data_dir)
    assert len(subscribed.peers.ehr.store.search("Subscription", [])) == 1


def test_a_new_study_is_reported_before_anybody_asks(subscribed: Demo) -> None:
    page = httpx.get(f"{subscribed.addresses.ehr}/")
    assert "A new study arrives" in page.text
    chart = httpx.post(f"{subscribed.addresses.ehr}/new-study")
    assert chart.status_code == 303
    patient = f"Patient/{chart.headers['Location'].removeprefix('/patients/')}"
    deadline = time.monotonic() + _ANALYSED_S
    while not reports(subscribed) and time.monotonic() < deadline:
        time.sleep(0.2)
    (report,) = reports(subscribed)
    seeded = {f"ImagingStudy/{imaging_study_id(study)}" for study in subscribed.catalogue.studies}
    (study,) = report["imagingStudy"]
    assert report["subject"]["reference"] == patient
    assert study["reference"] not in seeded


def test_the_subscriptions_are_listed_with_what_was_heard(subscribed: Demo) -> None:
    (subscription,) = subscribed.peers.ehr.store.search("Subscription", [])
    listed = rayhook(subscribed, "subscription", "list", "--ehr", "demo-ehr")
    assert listed.returncode == 0, listed.stderr
    assert subscription["id"][:8] in listed.stdout
    assert "never" not in listed.stdout


def test_an_ehr_that_is_not_registered_has_none(subscribed: Demo) -> None:
    refused = rayhook(subscribed, "subscription", "list", "--ehr", "other")
    assert (refused.returncode, "subscription_not_registered" in refused.stderr) == (2, True)


def test_a_subscription_is_deleted_by_its_id_or_with_all(subscribed: Demo) -> None:
    unknown = rayhook(subscribed, "subscription", "delete", "--ehr", "demo-ehr", "no-such-id")
    assert (unknown.returncode, len(subscribed.peers.ehr.store.search("Subscription", []))) == (2, 1)
    deleted = rayhook(subscribed, "subscription", "delete", "--ehr", "demo-ehr")
    assert deleted.returncode == 0, deleted.stderr
    assert subscribed.peers.ehr.store.search("Subscription", []) == []
