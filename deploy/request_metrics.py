"""How many requests of which route were answered, how and how fast, and how well the process is."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rayhook.deploy.health import Condition, Health

REQUESTS: Final = "rayhook_requests_total"
SECONDS: Final = "rayhook_request_seconds"
HEALTH: Final = "rayhook_health"
CERTIFICATE: Final = "rayhook_tls_certificate_left_seconds"
DOCUMENTED: Final = {
    REQUESTS: "Requests answered, by method, template of the route and status.",
    SECONDS: "Time from a request's first byte to its answer's last, by method and template of the route.",
    HEALTH: "1 where a part of the service is well, 0.5 where it is degraded, 0 where it is not available, by check.",
    CERTIFICATE: "Time until the served TLS certificate ends.",
}

UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_VALUES: Final = {Condition.OK: 1.0, Condition.DEGRADED: 0.5, Condition.UNAVAILABLE: 0.0}
# A hook has half a second; a page a few; a retrieval from the PACS thirty.
_BUCKETS: Final = (0.005, 0.015, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Counted by the template of a route, never by its path: as many series as there are routes, whoever asks."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _answered: Counter = field(init=False)
    _seconds: Histogram = field(init=False)

    def __post_init__(self) -> None:
        labels = ("method", "route")
        counter = Counter(REQUESTS, DOCUMENTED[REQUESTS], (*labels, "status"), registry=self.registry)
        histogram = Histogram(SECONDS, DOCUMENTED[SECONDS], labels, registry=self.registry, buckets=_BUCKETS)
        object.__setattr__(self, "_answered", counter)
        object.__setattr__(self, "_seconds", histogram)

    def note(self, method: str, route: str, *, status: int, elapsed_s: float) -> None:
        """Anybody may send a method of their own: those are counted together."""
        known = method if method in _METHODS else "other"
        self._answered.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(elapsed_s)


@dataclass(frozen=True, slots=True)
class HealthCollector(Collector):
    health: Health

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        conditions = GaugeMetricFamily(HEALTH, DOCUMENTED[HEALTH], labels=("check",))
        for name, condition in self.health.ready().checks.items():
            conditions.add_metric([name], _VALUES[condition])
        yield conditions
        left_s = self.health.certificate_left_s()
        if left_s is not None:
            yield GaugeMetricFamily(CERTIFICATE, DOCUMENTED[CERTIFICATE], value=left_s)
