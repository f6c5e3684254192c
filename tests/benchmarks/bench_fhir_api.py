"""A search and a read of our FHIR API with a bearer token, beside a bare FastAPI JSON route, both served the same way.

    python -m tests.benchmarks.bench_fhir_api

The token is introspected once for all calls of half a minute; a round with a new token for every call tells what that saves.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from rayhook.deploy.demo.catalogue import build_catalogue
from rayhook.deploy.demo.ehr import DemoEHR
from rayhook.deploy.demo.run import DemoAddresses, demo_peers, rayhook_process, wait_until_ready
from tests.benchmarks.bench_hook import bare_server, hook_calls, say, until_finished
from tests.benchmarks.load import Call, Latencies, measure

Asked = dict[str, Callable[[], list[Call]]]

ROUNDS = 3
SCOPE = "patient/DiagnosticReport.rs patient/Observation.rs"
SEARCH = "/fhir/R4/DiagnosticReport?_include=DiagnosticReport:result"


def main() -> None:
    parser = argparse.ArgumentParser(description="Our FHIR API, beside a bare JSON route.")
    parser.add_argument("--calls", type=int, default=200, help="calls a round")
    parser.add_argument("--port", type=int, default=18400, help="first of six free ports")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.port, arguments.calls)


def run(data_dir: Path, port: int, calls: int) -> None:
    addresses = DemoAddresses.from_port(port)
    catalogue = build_catalogue(data_dir / "pacs", None)
    patient = next(s.patient_id for s in catalogue.studies if s.is_phantom and s.modality == "MR")
    with (
        demo_peers(catalogue, addresses, data_dir) as peers,
        bare_server(port + 5) as bare_url,
        rayhook_process(addresses, data_dir) as process,
    ):
        wait_until_ready(addresses.rayhook, process)
        until_finished(addresses.rayhook, hook_calls(peers.ehr, addresses, patient))
        headers = {"Authorization": f"Bearer {peers.ehr.authorization.issue(patient, SCOPE)}"}
        found = httpx.get(f"{addresses.rayhook}{SEARCH}", headers=headers).json()
        report = next(e["resource"]["id"] for e in found["entry"] if e["search"]["mode"] == "match")
        asked = {
            "search": lambda: [Call("GET", SEARCH, b"", headers)] * calls,
            "read": lambda: [Call("GET", f"/fhir/R4/DiagnosticReport/{report}", b"", headers)] * calls,
            "search, new token": lambda: new_tokens(peers.ehr, patient, calls // 4),
        }
        for callers in (1, 8):
            compare(addresses.rayhook, asked, bare_url, callers=callers)


def new_tokens(ehr: DemoEHR, patient: str, calls: int) -> list[Call]:
    tokens = (ehr.authorization.issue(patient, SCOPE) for _ in range(calls))
    return [Call("GET", SEARCH, b"", {"Authorization": f"Bearer {token}"}) for token in tokens]


def compare(base_url: str, asked: Asked, bare_url: str, *, callers: int) -> None:
    """Each in turn, round by round, so that the machine's mood is shared."""
    times: dict[str, list[Latencies]] = {name: [] for name in ("bare", *asked)}
    for _ in range(ROUNDS):
        bare = [Call("POST", "/bare", b"{}", {"Content-Type": "application/json"})] * 200
        times["bare"].append(measure(bare_url, bare, callers=callers))
        for name, make in asked.items():
            times[name].append(measure(base_url, make(), callers=callers))
    joined = {name: Latencies.joined(rounds) for name, rounds in times.items()}
    for name, one in joined.items():
        ratio = one.quantile(0.5) / joined["bare"].quantile(0.5)
        say(f"{callers} callers, {name:18} {one}   {ratio:5.1f} x bare")


if __name__ == "__main__":
    main()
