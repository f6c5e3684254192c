"""The doorbell over Redis: Dramatiq messages that hold a job's id and a keyed digest of it, nothing else.

Spec: OWASP ASVS 5.0.0 V1.5.2 (no deserialisation of objects)
"""

import hmac
import queue
import threading
from collections.abc import Callable, Collection
from typing import Any, Final

import dramatiq
import redis
import structlog
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.errors import BrokerConnectionError, DramatiqError

from rayhook.auth.keys import Keyring
from rayhook.inference.job_table import WorkerQueue

log = structlog.get_logger()

# A killed worker's messages came back after 5 s with these, and not within 60 s at Dramatiq's own.
_MAINTENANCE_CHANCE: Final = 1_000_000
_HEARTBEAT_TIMEOUT_MS: Final = 5_000
_DEAD_MESSAGE_TTL_MS: Final = 60_000
_LOOKS_EVERY_MS: Final = 50
_STOP_TIMEOUT_MS: Final = 2_000
_BACKLOG: Final = 10_000
_MALFORMED: Final = (DramatiqError, AttributeError, KeyError, TypeError, ValueError)


class RedisDoorbell:
    """Rings and listens in threads of its own: while Redis is away nobody waits for it.

    What is not heard costs nothing but time, as the rows are swept.
    """

    def __init__(self, client: redis.Redis, keyring: Keyring, *, namespace: str = "rayhook") -> None:
        self._keyring = keyring
        self._broker = _StrictBroker(  # type: ignore[no-untyped-call]
            client=client,
            namespace=namespace,
            middleware=[],
            maintenance_chance=_MAINTENANCE_CHANCE,
            heartbeat_timeout=_HEARTBEAT_TIMEOUT_MS,
            dead_message_ttl=_DEAD_MESSAGE_TTL_MS,
        )
        self._actors = {queue: self._actor(queue) for queue in WorkerQueue}
        self._answer: Callable[[str], None] | None = None
        self._worker: dramatiq.Worker | None = None
        self._backlog: queue.Queue[tuple[str, WorkerQueue] | None] = queue.Queue(_BACKLOG)
        self._ringer = threading.Thread(target=self._ring_until_closed, name="doorbell", daemon=True)
        self._ringer.start()

    def ring(self, job_id: str, queue_: WorkerQueue) -> None:
        """Wake a worker of the queue; never waits, and never raises."""
        try:
            self._backlog.put_nowait((job_id, queue_))
        except queue.Full:
            log.warning("doorbell_not_rung", reason="backlog")

    def listen(self, answer: Callable[[str], None], queues: Collection[WorkerQueue]) -> None:
        """Call `answer` for what others ring for; it returns when somebody here is free to go."""
        self._answer = answer
        self._worker = dramatiq.Worker(
            self._broker,
            queues={one.value for one in queues},
            worker_threads=1,
            worker_timeout=_LOOKS_EVERY_MS,
        )
        # What waits here while we are busy is not heard by a worker that is free.
        self._worker.queue_prefetch = self._worker.delay_prefetch = 1
        self._worker.start()

    def close(self) -> None:
        self._backlog.put(None)
        self._ringer.join(_STOP_TIMEOUT_MS / 1000)
        if self._worker is not None:
            self._worker.stop(timeout=_STOP_TIMEOUT_MS)
        self._broker.client.close()

    def _actor(self, queue_: WorkerQueue) -> dramatiq.Actor[Any, None]:
        def hear(*arguments: object, **others: object) -> None:
            self._hear(queue_, arguments, others)

        named = dramatiq.actor(broker=self._broker, queue_name=queue_.value, actor_name=queue_.value)
        return named(hear)

    def _hear(self, queue_: WorkerQueue, arguments: tuple[object, ...], others: dict[str, object]) -> None:
        """Answer to what one of us rang for; anything else is dropped."""
        match arguments:
            case (str(job_id), str(digest)) if not others and self._is_ours(job_id, digest, queue_):
                assert self._answer is not None
                self._answer(job_id)
            case _:
                log.warning("doorbell_message_refused", queue=queue_.value)

    def _is_ours(self, job_id: str, digest: str, queue_: WorkerQueue) -> bool:
        return hmac.compare_digest(self._digest(job_id, queue_).encode(), digest.encode())

    def _digest(self, job_id: str, queue_: WorkerQueue) -> str:
        return self._keyring.blind_index(job_id, purpose=f"doorbell:{queue_.value}")

    def _ring_until_closed(self) -> None:
        is_away = False
        while (rung := self._backlog.get()) is not None:
            job_id, queue_ = rung
            try:
                self._actors[queue_].send(job_id, self._digest(job_id, queue_))
            except Exception as error:  # noqa: BLE001 - nobody else rings
                if not is_away:
                    log.warning("doorbell_not_rung", reason=type(error).__name__)
                is_away = True
            else:
                is_away = False


class _StrictConsumer(_RedisConsumer):
    """Drops what is no message at all, instead of starting over."""

    def __next__(self) -> MessageProxy | None:
        try:
            message: MessageProxy | None = super().__next__()  # type: ignore[no-untyped-call]
        except _MALFORMED as error:
            if isinstance(error, BrokerConnectionError):
                raise
            log.warning("doorbell_message_refused", queue=self.queue_name)
            return None
        return message


class _StrictBroker(RedisBroker):
    @property
    def consumer_class(self) -> type[_StrictConsumer]:
        return _StrictConsumer
