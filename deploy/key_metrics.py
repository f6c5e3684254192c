"""How worn the keys are: read when it is asked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rayhook.auth.database_types import Sessions
from rayhook.auth.encryption import MAX_USES
from rayhook.auth.keys import Keyring
from rayhook.deploy.key_use import told_uses

WORN: Final = "rayhook_encryption_key_worn_ratio"
DOCUMENTED: Final = {
    WORN: "How much of the 2^32 times that a key may seal the keyring's sealing key has had; rotate at half.",
}


@dataclass(frozen=True, slots=True)
class KeyCollector(Collector):
    """Several processes tell the same."""

    sessions: Sessions
    keyring: Keyring

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        with self.sessions() as session:
            uses = told_uses(session).get(self.keyring.sealing_key, 0)
        return [GaugeMetricFamily(WORN, DOCUMENTED[WORN], value=uses / MAX_USES)]
