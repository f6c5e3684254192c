"""`rayhook jobs` as a person runs it, over an installation of its own."""

import os
import subprocess
import sys

import pytest

from rayhook.audit.review import recent
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate
from rayhook.inference import jobs
from tests.unit.inference.samples import reference


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "rayhook.deploy.cli", "jobs", *arguments, "--data-dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HOME": os.environ["HOME"], "PATH": os.environ["PATH"], "COLUMNS": "240"},
    )


@pytest.fixture
def installation(tmp_path):
    keyring = Keyring.load_or_create(tmp_path / "keyring.json")
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    ids = {}
    with database.sessions() as session:
        for name, retryable in (("passing", True), ("lasting", False)):
            row, _ = jobs.enqueue(session, keyring, reference(), None, key=name, request_id=f"asked-{name}")
            claimed = jobs.claim(session, keyring, row.id, lease_s=60)
            jobs.fail(session, claimed, code=f"code_{name}", message="why", retryable=retryable)
            ids[name] = row.id
        session.commit()
    yield tmp_path, database, keyring, ids
    database.close()


def states(database, ids):
    with database.reading() as session:
        return {name: jobs.load_job(session, id_).state.value for name, id_ in ids.items()}


def test_list_tells_counts_and_codes(installation):
    folder, _, _, ids = installation
    told = run(folder, "list").stdout
    assert "2 failed" in told
    assert all(word in told for word in (*ids.values(), "code_passing", "asked-lasting"))


def test_all_retries_what_failed_for_a_passing_reason(installation):
    folder, database, keyring, ids = installation
    told = run(folder, "retry", "--all")
    assert told.stdout == "1 queued again\n"
    assert states(database, ids) == {"passing": "queued", "lasting": "failed"}
    with database.reading() as session:
        (event,) = recent(session, keyring, limit=1)
    assert (event.kind, event.agent) == ("inference:job:retried", "rayhook command line")


def test_what_may_not_be_retried_is_told(installation):
    folder, database, _, ids = installation
    told = run(folder, "retry", ids["lasting"])
    assert (told.returncode, "job_not_retryable" in told.stderr) == (2, True)
    assert states(database, ids)["lasting"] == "failed"


@pytest.mark.parametrize("arguments", [(), ("--all", "0123")])
def test_jobs_are_named_or_all(installation, arguments):
    told = run(installation[0], "retry", *arguments)
    assert (told.returncode, "jobs_not_named" in told.stderr) == (2, True)


def test_what_waits_is_cancelled_and_audited(installation):
    folder, database, keyring, ids = installation
    run(folder, "retry", ids["passing"])
    assert run(folder, "cancel", ids["passing"]).stdout == "1 cancelled\n"
    assert states(database, ids)["passing"] == "cancelled"
    with database.reading() as session:
        (event,) = recent(session, keyring, limit=1)
    assert (event.kind, event.agent) == ("inference:job:cancelled", "rayhook command line")


def test_what_has_ended_is_not_cancelled(installation):
    folder, _, _, ids = installation
    told = run(folder, "cancel", ids["lasting"])
    assert (told.returncode, "job_ended" in told.stderr) == (2, True)


def test_list_tells_what_waits_with_its_priority_and_queue(installation):
    folder, _, _, ids = installation
    run(folder, "retry", ids["passing"])
    told = run(folder, "list").stdout
    assert "1 wait in the queue cpu" in told
    assert "routine" in told
