"""Everything goes wrong while studies are analysed: a schedule of faults, the same for the same seed, and its figures."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.faults.account import Account, reclaims, recovery_s, settle
from tests.faults.cluster import Cluster, describe
from tests.faults.line import Cut, Line

ASKERS = 4
KILLED_EVERY_S = (6.0, 12.0)
DOWN_S = 2.0
TROUBLE_S = 6.0
_FIRST, _LAST = 0.04, 0.85  # the faults come while this share of the studies is done
_AGAIN_S = 0.5

RECLAIM_S = 15.0
RECOVERY_S = {"redis flushed": 30.0, "redis restarted": 10.0, "postgresql restarted": 10.0}


@dataclass(frozen=True)
class Figures:
    """What one storm came to. Times are in seconds; `recoveries` are from the moment the server was back."""

    seed: int
    studies: int
    elapsed_s: float
    account: Account
    kills: int
    ended_by_themselves: int
    crashes: int
    api_kills: int
    reclaims_s: tuple[float, ...]
    recoveries_s: dict[str, float | None]
    refused_calls: int
    cpu_s: float

    @property
    def is_within_limits(self) -> bool:
        times = {name: self.recoveries_s.get(name) for name in RECOVERY_S}
        return (
            self.account.is_settled
            and self.crashes == 0
            and max(self.reclaims_s, default=0.0) <= RECLAIM_S
            and all(found is not None and found <= RECOVERY_S[name] for name, found in times.items())
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "seed": self.seed,
            "studies": self.studies,
            "elapsed_s": round(self.elapsed_s, 1),
            "lost": len(self.account.lost),
            "doubled": len(self.account.doubled),
            "strange": list(self.account.strange),
            "written_again": self.account.repeated,
            "workers_killed": self.kills,
            "workers_ended_by_themselves": self.ended_by_themselves,
            "workers_crashed": self.crashes,
            "api_killed": self.api_kills,
            "reclaims": len(self.reclaims_s),
            "reclaim_max_s": round(max(self.reclaims_s, default=0.0), 1),
            "recoveries_s": {
                name: None if seconds is None else round(seconds, 1)
                for name, seconds in sorted(self.recoveries_s.items())
            },
            "calls_refused": self.refused_calls,
            "cpu_s": round(self.cpu_s),
        }


@dataclass
class Storm:
    """One run over `patients`, which nobody asked for before."""

    cluster: Cluster
    patients: Sequence[str]
    seed: int
    limit_s: float
    refused: int = 0
    _random: random.Random = field(init=False)
    _done: threading.Event = field(default_factory=threading.Event)
    _kills: list[float] = field(default_factory=list)
    _troubles: list[tuple[float, float]] = field(default_factory=list)
    _backs: dict[str, float] = field(default_factory=dict)
    _api_kills: int = 0
    _ended: int = 0
    _crashes: int = 0
    _cpu_before: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def run(self) -> Figures:
        begun = time.monotonic()
        self._cpu_before = self.cluster.cpu_s()
        faults = self._faults()
        self._random.shuffle(faults)
        marks = [_FIRST + (_LAST - _FIRST) * n / max(1, len(faults) - 1) for n in range(len(faults))]
        threads = [threading.Thread(target=self._kill_workers), *self.askers()]
        for thread in threads:
            thread.start()
        try:
            for mark, (name, fault) in zip(marks, faults, strict=True):
                self._await(mark, begun)
                at = self.cluster.note(name)
                fault()
                if not name.startswith(("redis", "api")):
                    self._troubles.append((at, time.time()))
            self._await(1.0, begun)
        finally:
            self._done.set()
            for thread in threads:
                thread.join(timeout=60)
        return self._figures(time.monotonic() - begun)

    def _faults(self) -> list[tuple[str, Callable[[], None]]]:
        cluster = self.cluster
        return [
            ("redis restarted", self._restart_redis),
            ("redis flushed", self._flush_redis),
            ("postgresql restarted", self._restart_postgresql),
            ("api killed", self._kill_api),
            ("api killed again", self._kill_api),
            ("pacs slow", lambda: self._trouble(pacs={"slow_s": 1.0}, then={"slow_s": 0.0})),
            (
                "pacs fails half the time",
                lambda: self._trouble(pacs={"fail_share": 0.5}, then={"fail_share": 0.0}),
            ),
            ("ehr answers 503", lambda: self._trouble(ehr={"fhir_status": 503}, then={"fhir_status": None})),
            ("tokens end after a second", self._end_tokens),
            ("pacs half closed", lambda: self._cut(cluster.pacs_line, Cut.HALF_CLOSED)),
            ("pacs answers lost", lambda: self._cut(cluster.pacs_line, Cut.ANSWER_LOST)),
            ("ehr answers lost", lambda: self._cut(cluster.ehr_line, Cut.ANSWER_LOST)),
        ]

    def _await(self, share: float, begun: float) -> None:
        """Wait until the share of the studies has a report."""
        own = {f"Patient/{patient}" for patient in self.patients}
        while True:
            account = settle(self.cluster.entries())
            reported = len(account.reported & own)
            if reported >= share * len(own) or account.doubled or account.strange:
                return
            assert time.monotonic() - begun < self.limit_s, (
                f"seed {self.seed}: {reported} of {len(own)} studies after {self.limit_s:.0f} s; without: "
                f"{sorted(own - account.reported)[:20]}\n{describe(self.cluster)}"
            )
            time.sleep(0.5)

    def _kill_workers(self) -> None:
        """Kill one of them every few seconds, once all have brought something since their start.

        One that is still starting has nothing to lose, and with none alive a reclaim would be the time of a start.
        """
        chance = random.Random(self.seed + 1)
        while not self._done.wait(chance.uniform(*KILLED_EVERY_S)):
            self._start_again()
            working = [worker for worker in self.cluster.workers if worker.has_said("result_delivery")]
            if len(working) == len(self.cluster.workers):
                worker = chance.choice(working)
                self._kills.append(worker.kill())
                self.cluster.note(f"{worker.name} killed")
                worker.start()

    def _start_again(self) -> None:
        """Do what whoever runs the workers does with one that ended because the database was away at its start."""
        for worker in self.cluster.workers:
            if not worker.is_running:
                self.cluster.note(f"{worker.name} had ended by itself")
                self._ended += 1
                self._crashes += worker.has_crashed
                worker.start()

    def askers(self) -> list[threading.Thread]:
        """Open every chart, and open it again where the service was not there to take it on."""
        waiting = list(reversed(self.patients))
        lock = threading.Lock()

        def ask() -> None:
            while not self._done.is_set():
                with lock:
                    patient = waiting.pop() if waiting else None
                if patient is None:
                    return
                if not self._is_taken(patient):
                    with lock:
                        waiting.append(patient)
                        self.refused += 1
                    self._done.wait(_AGAIN_S)

        return [threading.Thread(target=ask) for _ in range(ASKERS)]

    def _is_taken(self, patient: str) -> bool:
        try:
            return bool(self.cluster.view(patient)["taken"])
        except httpx.HTTPError:
            return False

    def _restart_redis(self) -> None:
        self.cluster.redis.stop()
        time.sleep(DOWN_S)
        self.cluster.redis.start()
        self._back("redis restarted")

    def _flush_redis(self) -> None:
        self.cluster.redis.flush()
        self._back("redis flushed")

    def _restart_postgresql(self) -> None:
        self.cluster.postgresql.stop()
        time.sleep(DOWN_S)
        self.cluster.postgresql.start()
        self._back("postgresql restarted")

    def _back(self, name: str) -> None:
        self._backs[name] = self.cluster.note(f"{name}: back")

    def _kill_api(self) -> None:
        self.cluster.api.kill()
        self._api_kills += 1
        time.sleep(DOWN_S / 2)
        self.cluster.api.start()
        self.cluster.await_api()

    def _trouble(self, *, then: dict[str, object], **switches: dict[str, object]) -> None:
        ((who, _),) = switches.items()
        self.cluster.switch(**switches)
        time.sleep(TROUBLE_S)
        self.cluster.switch(**{who: then})

    def _end_tokens(self) -> None:
        self.cluster.switch(tokens={"token_life_s": 1})
        time.sleep(TROUBLE_S)
        self.cluster.switch(tokens={"token_life_s": 300})

    def _cut(self, line: Line, cut: Cut) -> None:
        with cutting(line, cut):
            time.sleep(TROUBLE_S)

    def _figures(self, elapsed_s: float) -> Figures:
        entries = self.cluster.entries()
        return Figures(
            seed=self.seed,
            studies=len(self.patients),
            elapsed_s=elapsed_s,
            account=settle(entries),
            kills=len(self._kills),
            ended_by_themselves=self._ended,
            crashes=self._crashes,
            api_kills=self._api_kills,
            reclaims_s=tuple(reclaims(entries, self._kills, self._troubles)),
            recoveries_s={name: recovery_s(entries, at) for name, at in self._backs.items()},
            refused_calls=self.refused,
            cpu_s=self.cluster.cpu_s() - self._cpu_before,
        )


@contextmanager
def cutting(line: Line, cut: Cut) -> Iterator[None]:
    line.cut = cut
    try:
        yield
    finally:
        line.cut = None
