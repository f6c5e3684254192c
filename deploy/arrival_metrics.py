"""What arrived by itself, by which way, and what became of it: read when it is asked."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rayhook.auth.database_types import Sessions
from rayhook.inference.arrival import ArrivalState, ArrivalWay, count_arrivals
from rayhook.inference.arrival_source import SourceKind, silent_s
from rayhook.inference.received import ReceivedImages

ARRIVALS: Final = "rayhook_arrivals"
SILENT: Final = "rayhook_arrival_source_silent_seconds"
SPOOL: Final = "rayhook_received_bytes"
DOCUMENTED: Final = {
    ARRIVALS: "Studies that announced themselves in the last week, by way and state.",
    SILENT: "Time since the longest silent subscription or polled PACS was heard, by kind; 0 where there is none.",
    SPOOL: "Bytes of images that were stored here and are not analysed, or not removed, yet.",
}


@dataclass(frozen=True, slots=True)
class ArrivalCollector(Collector):
    """Several processes tell the same."""

    sessions: Sessions
    received: ReceivedImages
    clock: Callable[[], float] = time.time

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        now = self.clock()
        with self.sessions() as session:
            counts = count_arrivals(session)
            silent = {kind: silent_s(session, kind, now=now) for kind in SourceKind}
        arrivals = GaugeMetricFamily(ARRIVALS, DOCUMENTED[ARRIVALS], labels=("way", "state"))
        for way in ArrivalWay:
            for state in ArrivalState:
                arrivals.add_metric([way.value, state.value], counts.get((way, state), 0))
        sources = GaugeMetricFamily(SILENT, DOCUMENTED[SILENT], labels=("kind",))
        for kind in SourceKind:
            sources.add_metric([kind.value], silent[kind])
        spool = GaugeMetricFamily(SPOOL, DOCUMENTED[SPOOL], value=self.received.spool.used_bytes())
        return (arrivals, sources, spool)
