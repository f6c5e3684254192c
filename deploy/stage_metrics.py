"""The times of studies, by stage: for Prometheus as histograms, in the log one line a study."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Histogram

from rayhook.inference.stages import Stage

STAGES: Final = "rayhook_stage_seconds"
DOCUMENTED: Final = {
    STAGES: "Time of one study's stages that this process analysed: queue, fetch, decode, preprocess, forward, "
    "explain, write.",
}
_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StageMetrics:
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _seconds: Histogram = field(init=False)

    def __post_init__(self) -> None:
        histogram = Histogram(
            STAGES, DOCUMENTED[STAGES], ("stage",), registry=self.registry, buckets=_BUCKETS
        )
        for stage in Stage:
            histogram.labels(stage.value)
        object.__setattr__(self, "_seconds", histogram)

    def note(self, seconds: Mapping[Stage, float]) -> None:
        """Take one study's times."""
        for stage, one in seconds.items():
            self._seconds.labels(stage.value).observe(one)
        log.info("study_timed", **{f"{stage.value}_s": round(one, 4) for stage, one in seconds.items()})
