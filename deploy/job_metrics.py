"""How many jobs there are, how long the oldest has waited, and who works on them: read when it is asked."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rayhook.auth.database_types import Sessions
from rayhook.inference.job_list import count_jobs
from rayhook.inference.job_table import JobState, Priority, WorkerQueue
from rayhook.inference.workers import living_workers

JOBS: Final = "rayhook_jobs"
OLDEST: Final = "rayhook_job_oldest_waiting_seconds"
WORKERS: Final = "rayhook_workers"
NOT_BEGUN: Final = "rayhook_jobs_not_begun_total"
DOCUMENTED: Final = {
    JOBS: "Analyses, by state and queue.",
    OLDEST: "Time that the oldest analysis which may be taken has waited; 0 where none waits.",
    WORKERS: "Workers that were heard of lately, by queue.",
    NOT_BEGUN: "Analyses that this process refused for now because too many wait, by priority.",
}


@dataclass(frozen=True, slots=True)
class JobCollector(Collector):
    """Several processes tell the same."""

    sessions: Sessions
    clock: Callable[[], float] = time.time

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        now = self.clock()
        with self.sessions() as session:
            counts = count_jobs(session, now=now)
            alive = living_workers(session, now=now)
        jobs = GaugeMetricFamily(JOBS, DOCUMENTED[JOBS], labels=("state", "queue"))
        workers = GaugeMetricFamily(WORKERS, DOCUMENTED[WORKERS], labels=("queue",))
        oldest = GaugeMetricFamily(OLDEST, DOCUMENTED[OLDEST])
        for queue in WorkerQueue:
            for state in JobState:
                jobs.add_metric([state.value, queue.value], counts.by_queue.get((state, queue), 0))
            workers.add_metric([queue.value], sum(queue in one.queues for one in alive))
        oldest.add_metric([], counts.oldest_waiting_s or 0.0)
        return (jobs, oldest, workers)


def refusals_counted(registry: CollectorRegistry) -> Callable[[Priority], None]:
    """Return what is to be told of each analysis that may not wait."""
    counter = Counter(NOT_BEGUN, DOCUMENTED[NOT_BEGUN], ("priority",), registry=registry)
    for priority in Priority:
        counter.labels(priority.value)
    return lambda priority: counter.labels(priority.value).inc()
