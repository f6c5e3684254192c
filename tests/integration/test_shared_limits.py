"""Limits that several processes keep together over a real Redis, and alone while it is away."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from rayhook.auth.keys import Keyring
from rayhook.cds_hooks.rate_limit import RateLimit
from rayhook.deploy.redis import connect
from rayhook.deploy.shared_limits import SharedLimits
from rayhook.fhir.errors import RateLimited
from rayhook.smart_app.address_limit import SignInLimit
from tests.conftest import absent
from tests.peers.redis_server import program, running
from tests.unit.cds_hooks.test_rate_limit import admitted, principal

ADDRESS = "192.0.2.7"


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def server(tmp_path):
    if program() is None:
        absent("redis-server")
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def process(server, keyring):
    """Make what one process has."""
    clients = []

    def make():
        clients.append(connect(server.url, timeout_s=0.1))
        return SharedLimits(keyring, "rayhook", clients[-1])

    yield make
    for client in clients:
        client.close()


def tried(limit, times, address=ADDRESS):
    count = 0
    for _ in range(times):
        try:
            limit.admit(address)
        except RateLimited:
            continue
        count += 1
    return count


@pytest.mark.parametrize("calls", [5, 1000])
def test_two_processes_admit_no_more_calls_than_one(process, calls):
    limits = [RateLimit(process().calls()) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda limit: admitted(limit, principal(calls=calls), calls), limits))
    assert sum(counts) == calls


def test_without_redis_each_process_counts_for_itself(keyring):
    limits = [RateLimit(SharedLimits(keyring, "rayhook").calls()) for _ in range(2)]
    assert [admitted(limit, principal(calls=5), 9) for limit in limits] == [5, 5]


def test_two_processes_admit_no_more_tries_to_sign_in_than_one(process):
    assert sum(tried(SignInLimit(process().tries()), 15) for _ in range(2)) == 20


def test_the_first_refusal_is_told_by_one_of_all_processes(process):
    marks = []
    for _ in range(2):
        limit = SignInLimit(process().tries())
        tried(limit, 19 if not marks else 1)
        for _ in range(2):
            try:
                limit.admit(ADDRESS)
            except RateLimited as refused:
                marks.append(refused.is_first)
    assert marks.count(True) == 1


def test_redis_holds_no_address_and_no_name(process, server):
    tried(SignInLimit(process().tries()), 25)
    admitted(RateLimit(process().calls()), principal("https://ehr-of-a-hospital.example"), 9)
    held = server.content()
    assert held.count(b"rayhook:limits") >= 3
    assert not any(text in held for text in (b"192.0.2", b"ehr-of-a-hospital", b"example"))


def test_the_counts_end_by_themselves(process, server):
    tried(SignInLimit(process().tries()), 25)
    admitted(RateLimit(process().calls()), principal(), 9)
    with server.client() as client:
        assert all(0 < client.ttl(key) <= 600 for key in client.keys("*"))


def test_while_redis_is_away_each_process_keeps_the_limit_by_itself(process, server):
    limit = SignInLimit(process().tries())
    tried(limit, 1)
    server.stop()
    with capture_logs() as lines:
        assert tried(limit, 40) == 20
    told = [line for line in lines if line["event"] == "shared_limits_away"]
    assert len(told) == 1
    assert ADDRESS not in str(told)


def test_a_redis_that_hangs_costs_one_call_its_timeout(process, server):
    limit = SignInLimit(process().tries())
    tried(limit, 1)
    server.hang(3)
    started = time.monotonic()
    tried(limit, 30)
    assert time.monotonic() - started < 1.0


def test_a_redis_that_is_back_counts_again(process, server):
    rate = process().tries()
    limit = SignInLimit(rate)
    server.stop()
    tried(limit, 3)
    server.start()
    rate._away_until = time.monotonic()
    tried(limit, 1)
    assert server.content()


def test_calls_are_not_lost_when_redis_goes_away_among_many_threads(process, server):
    limit = RateLimit(process().calls())
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(admitted, limit, principal(calls=1000), 100) for _ in range(8)]
        server.stop()
        assert sum(one.result() for one in running) == 800
