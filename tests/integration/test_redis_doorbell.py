"""The doorbell on a real Redis: what is rung is heard, what is not ours is dropped, and nothing waits while it is away."""

import json
import pickle
import queue
import time
import uuid

import pytest
import redis
import structlog

from rayhook.auth.keys import Keyring
from rayhook.deploy.redis import connect
from rayhook.deploy.redis_doorbell import RedisDoorbell
from rayhook.inference.job_table import WorkerQueue
from tests.faults.servers import Redis
from tests.ports import free_port

JOB = "0123456789abcdef0123456789abcdef"
HEARD_S = 10.0


class Planted:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring.load_or_create(tmp_path_factory.mktemp("keys") / "keyring.json")


@pytest.fixture
def bells(redis_server, keyring):
    """Doorbells of one installation, each as another process would have its own; they are closed at the end."""
    made = []
    namespace = uuid.uuid4().hex

    def ring(keys=keyring, url=redis_server.url):
        bell = RedisDoorbell(connect(url), keys, namespace=namespace)
        made.append(bell)
        return bell

    ring.namespace = namespace
    yield ring
    for bell in made:
        bell.close()


@pytest.fixture
def raw(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def listening(bell, queues=tuple(WorkerQueue)):
    heard = queue.Queue()
    bell.listen(heard.put, queues)
    return heard


def plant(raw, namespace, data, name="cpu"):
    """Put a message where Dramatiq keeps them, as somebody with access to Redis could."""
    id_ = str(uuid.uuid4())
    raw.hset(f"{namespace}:{name}.msgs", id_, data)
    raw.rpush(f"{namespace}:{name}", id_)
    return id_


def message(**changes):
    values = {
        "queue_name": "cpu",
        "actor_name": "cpu",
        "args": [JOB, "0" * 64],
        "kwargs": {},
        "options": {"redis_message_id": str(uuid.uuid4())},
        "message_id": str(uuid.uuid4()),
        "message_timestamp": 0,
    }
    return json.dumps(values | changes).encode()


def test_what_is_rung_is_heard_in_another_process(bells):
    heard = listening(bells())
    bells().ring(JOB, WorkerQueue.CPU)
    assert heard.get(timeout=HEARD_S) == JOB


def test_only_workers_of_the_queue_hear_it(bells):
    cpu, gpu = listening(bells(), [WorkerQueue.CPU]), listening(bells(), [WorkerQueue.GPU])
    bells().ring(JOB, WorkerQueue.GPU)
    assert gpu.get(timeout=HEARD_S) == JOB
    assert cpu.empty()


def test_a_message_holds_the_id_and_a_digest_and_nothing_else(bells, raw):
    bells().ring(JOB, WorkerQueue.CPU)
    deadline = time.monotonic() + HEARD_S
    while not (held := raw.hvals(f"{bells.namespace}:cpu.msgs")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = json.loads(held[0])
    id_, digest = found["args"]
    assert (id_, len(digest), found["kwargs"], set(found["options"])) == (JOB, 64, {}, {"redis_message_id"})


@pytest.mark.parametrize(
    "data",
    [
        message(),
        message(args=[JOB]),
        message(args=[{"job": JOB}, "0" * 64]),
        message(kwargs={"job": JOB}),
        message(actor_name="os.system"),
        b"{}",
        b"[]",
        b"not JSON",
    ],
    ids=["altered digest", "no digest", "object", "keyword", "other actor", "empty", "list", "text"],
)
def test_what_is_not_ours_is_dropped_and_the_next_is_heard(bells, raw, data):
    heard = listening(bells())
    plant(raw, bells.namespace, data)
    bells().ring(JOB, WorkerQueue.CPU)
    assert heard.get(timeout=HEARD_S) == JOB
    assert heard.empty()


def test_a_pickled_object_is_never_loaded(bells, raw, tmp_path):
    heard = listening(bells())
    plant(raw, bells.namespace, pickle.dumps(Planted(tmp_path / "planted")))
    bells().ring(JOB, WorkerQueue.CPU)
    assert heard.get(timeout=HEARD_S) == JOB
    assert not (tmp_path / "planted").exists()


def test_a_message_for_one_queue_is_nothing_in_another(bells, raw):
    """The digest is of the queue too."""
    bells().ring(JOB, WorkerQueue.GPU)
    deadline = time.monotonic() + HEARD_S
    while not (held := raw.hvals(f"{bells.namespace}:gpu.msgs")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    moved = json.loads(held[0]) | {"queue_name": "cpu", "actor_name": "cpu"}
    heard = listening(bells(), [WorkerQueue.CPU])
    with structlog.testing.capture_logs() as logs:
        plant(raw, bells.namespace, json.dumps(moved).encode())
        deadline = time.monotonic() + HEARD_S
        while not any(log["event"] == "doorbell_message_refused" for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert heard.empty()


def test_another_installation_is_not_answered(bells, tmp_path):
    heard = listening(bells())
    bells(Keyring.load_or_create(tmp_path / "other.json")).ring("f" * 32, WorkerQueue.CPU)
    bells().ring(JOB, WorkerQueue.CPU)
    assert heard.get(timeout=HEARD_S) == JOB
    assert heard.empty()


def test_who_rings_waits_for_nobody_while_redis_is_away(bells):
    bell = bells(url=f"redis://127.0.0.1:{free_port()}/0")
    begin = time.monotonic()
    for _ in range(1000):
        bell.ring(JOB, WorkerQueue.CPU)
    assert time.monotonic() - begin < 0.5


def test_what_is_rung_after_a_restart_is_heard(bells, redis_server):
    heard, bell = listening(bells()), bells()
    redis_server.stop()
    bell.ring(JOB, WorkerQueue.CPU)
    redis_server.start()
    deadline = time.monotonic() + HEARD_S
    while heard.empty():
        assert time.monotonic() < deadline
        bell.ring(JOB, WorkerQueue.CPU)
        time.sleep(0.2)


def test_what_is_rung_after_everything_was_lost_is_heard(bells, redis_server):
    heard, bell = listening(bells()), bells()
    bell.ring(JOB, WorkerQueue.CPU)
    assert heard.get(timeout=HEARD_S) == JOB
    redis_server.flush()
    bell.ring(JOB, WorkerQueue.CPU)
    assert heard.get(timeout=HEARD_S) == JOB


def test_a_listener_that_starts_before_redis_hears_what_comes(tmp_path_factory, keyring):
    port = free_port()
    bell = RedisDoorbell(connect(f"redis://127.0.0.1:{port}/0"), keyring)
    heard = listening(bell)
    server = Redis(tmp_path_factory.mktemp("late"), port)
    deadline = time.monotonic() + HEARD_S
    while heard.empty():
        assert time.monotonic() < deadline
        bell.ring(JOB, WorkerQueue.CPU)
        time.sleep(0.2)
    bell.close()
    server.close()
