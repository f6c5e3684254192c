"""Answers at twenty callers while the EHR's FHIR server and the PACS hang, drip, or fail three times in ten.

    python -m tests.benchmarks.bench_faults

The service runs as `rayhook serve` does; EHR and PACS are the demo's, in this process, with their fault switches.
Where the FHIR server is at fault nothing is prefetched, so that every call has to fetch: it answers with cards,
or with 412 where it could not. Exit status 1 if any p99 is half a second or more, or any answer is another.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rayhook.deploy.demo.catalogue import build_catalogue
from rayhook.deploy.demo.run import (
    DemoAddresses,
    DemoPeers,
    demo_peers,
    rayhook_process,
    wait_until_ready,
)
from tests.benchmarks.bench_hook import hook_calls, say
from tests.benchmarks.load import Call, Latencies, measure

LIMIT_MS = 500.0
ANSWERED = frozenset({200, 412})
FAULTS: dict[str, dict[str, float]] = {
    "hangs": {"slow_s": 20.0},
    "drips": {"drip_s": 0.05},
    "fails 30 %": {"fail_share": 0.3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A hook while the servers behind it fail.")
    parser.add_argument("--calls", type=int, default=300, help="calls a fault")
    parser.add_argument("--callers", type=int, default=20)
    parser.add_argument("--port", type=int, default=18400, help="first of three free ports")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), arguments.port, calls=arguments.calls, callers=arguments.callers)
    whole = Latencies.joined(found)
    say(f"all                  {whole}")
    slow = [one for one in found if one.quantile(0.99) >= LIMIT_MS or one.failures]
    raise SystemExit(1 if slow else 0)


def run(data_dir: Path, port: int, *, calls: int, callers: int) -> list[Latencies]:
    addresses = DemoAddresses.from_port(port)
    catalogue = build_catalogue(data_dir / "pacs", None)
    patients = [study.patient_id for study in catalogue.studies]
    found = []
    with demo_peers(catalogue, addresses, data_dir) as peers, rayhook_process(addresses, data_dir) as process:
        wait_until_ready(addresses.rayhook, process)
        warm_up(addresses, peers, patients[0])
        for name, fault in FAULTS.items():
            for who in ("FHIR", "PACS", "both"):
                with at_fault(peers, who, fault):
                    made = [make() for make in itertools.islice(makers(peers, addresses, patients), calls)]
                    answers = measure(addresses.rayhook, made, callers=callers, expect=ANSWERED)
                say(f"{who:4} {name:12}  {answers}")
                found.append(answers)
    return found


def warm_up(addresses: DemoAddresses, peers: DemoPeers, patient_id: str) -> None:
    """A service that is up has answered before: imports and connections are not what is measured."""
    make = hook_calls(peers.ehr, addresses, patient_id)
    measure(addresses.rayhook, [make() for _ in range(20)], callers=2)


def makers(peers: DemoPeers, addresses: DemoAddresses, patients: list[str]) -> Iterator[Callable[[], Call]]:
    """Yield a maker of calls for one patient after the other."""
    return itertools.cycle([hook_calls(peers.ehr, addresses, patient) for patient in patients])


@contextmanager
def at_fault(peers: DemoPeers, who: str, fault: dict[str, float]) -> Iterator[None]:
    ehr, pacs = peers.ehr.faults, peers.pacs.faults
    targets = {"FHIR": [ehr], "PACS": [pacs], "both": [ehr, pacs]}[who]
    ehr.no_prefetch = ehr in targets
    for target in targets:
        for switch, value in fault.items():
            setattr(target, switch, value)
    try:
        yield
    finally:
        ehr.no_prefetch = False
        for target in targets:
            for switch in fault:
                setattr(target, switch, 0.0)


if __name__ == "__main__":
    sys.exit(main())
