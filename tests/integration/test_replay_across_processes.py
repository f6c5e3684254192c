"""One token, many processes: the database lets in one of them, and remembers it through a kill and a restart.

Spec: CDS Hooks 2.0.1, "Trusting CDS Clients" (`jti`)
"""

import signal
import subprocess
import sys
import time
import uuid
from collections import Counter

import pytest

from rayhook.deploy.database import migrate

# 25 threads that begin together, on the sessions that calls use for this.
PROCESS = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from rayhook.auth.replay import ReplayMemory
from rayhook.deploy.database import create_database
from rayhook.fhir.errors import RayhookError

url, jti, starts_at, stay = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "stay"
database = create_database(url)
memory = ReplayMemory(database.unsynced)
time.sleep(max(0.0, starts_at - time.time()))
barrier = threading.Barrier(25)

def use(_):
    barrier.wait()
    try:
        memory.use("https://ehr.example.org", jti, expires_at=time.time() + 60, now=time.time())
    except RayhookError as error:
        return error.code
    return "accepted"

with ThreadPoolExecutor(25) as pool:
    print(",".join(pool.map(use, range(25))), flush=True)
if stay:
    time.sleep(60)
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request, tmp_path):
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    else:
        server = request.getfixturevalue("server")
        name = f"replay_{uuid.uuid4().hex}"
        server.psql(f"CREATE DATABASE {name}")
        found = server.get_uri(name)
    migrate(found)
    return found


def started(url, jti, starts_at, *, stay=False):
    arguments = [url, jti, str(starts_at), "stay" if stay else "end"]
    return subprocess.Popen([sys.executable, "-c", PROCESS, *arguments], stdout=subprocess.PIPE, text=True)


def told(process):
    return Counter(process.stdout.readline().strip().split(","))


def test_of_two_processes_with_twenty_five_threads_each_one_is_let_in(url):
    starts_at = time.time() + 4
    with started(url, "jti", starts_at) as one, started(url, "jti", starts_at) as other:
        outcomes = told(one) + told(other)
    assert outcomes == {"accepted": 1, "jti_replayed": 49}


def test_a_process_that_is_killed_has_not_forgotten(url):
    with started(url, "jti", 0, stay=True) as first:
        assert told(first) == {"accepted": 1, "jti_replayed": 24}
        first.send_signal(signal.SIGKILL)
    with started(url, "jti", 0) as again:
        assert told(again) == {"jti_replayed": 25}
    assert again.returncode == 0
