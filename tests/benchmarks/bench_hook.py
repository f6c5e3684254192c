"""A hook answered from a finished result, beside a bare FastAPI JSON route, both served the same way.

    python -m tests.benchmarks.bench_hook

Both servers run in processes of their own under uvicorn; the same client sends to the one and the other in turn.
Also told: answers while the PACS hangs, which have to stay below half a second; the time from `rayhook serve` to ready, and resident memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from rayhook.deploy.demo.catalogue import build_catalogue
from rayhook.deploy.demo.ehr import DemoEHR
from rayhook.deploy.demo.run import DemoAddresses, demo_peers, rayhook_process, wait_until_ready
from tests.benchmarks.load import Call, Latencies, measure

ROUNDS = 3
HANGS_S = 20.0
PATH = "/cds-services/rayhook-patient-view"
BARE = """
import uvicorn
from fastapi import FastAPI

app = FastAPI()

@app.post("/bare")
def bare() -> dict[str, list[str]]:
    return {"cards": []}

uvicorn.run(app, port=PORT, log_config=None, access_log=False)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="A hook with a finished result, beside a bare JSON route.")
    parser.add_argument("--calls", type=int, default=400, help="calls a round")
    parser.add_argument("--port", type=int, default=18300, help="first of six free ports")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.port, arguments.calls)


def run(data_dir: Path, port: int, calls: int) -> None:
    addresses = DemoAddresses.from_port(port)
    catalogue = build_catalogue(data_dir / "pacs", None)
    patient, other = [s.patient_id for s in catalogue.studies if s.is_phantom and s.modality == "MR"][:2]
    with demo_peers(catalogue, addresses, data_dir) as peers, bare_server(port + 5) as bare_url:
        started = time.perf_counter()
        with rayhook_process(addresses, data_dir) as process:
            wait_until_ready(addresses.rayhook, process)
            say(f"rayhook serve to ready   {time.perf_counter() - started:6.2f} s")
            hook = hook_calls(peers.ehr, addresses, patient)
            until_finished(addresses.rayhook, hook)
            for name, mebibytes in resident_mib(process.pid).items():
                say(f"resident, {name:14} {mebibytes:6.0f} MiB")
            for callers in (1, 8):
                compare(addresses.rayhook, hook, bare_url, callers=callers, calls=calls)
            peers.pacs.faults.slow_s = HANGS_S
            hanging = hook_calls(peers.ehr, addresses, other)
            for callers in (1, 8, 20):
                answers = measure(addresses.rayhook, [hanging() for _ in range(5 * callers)], callers=callers)
                say(f"{callers:2} callers  PACS hangs  {answers}")
            peers.pacs.faults.slow_s = 0.0


def hook_calls(ehr: DemoEHR, addresses: DemoAddresses, patient_id: str) -> Callable[[], Call]:
    """Return a maker of patient-view calls: the body that the EHR sends, and a fresh JWT each time."""
    services = httpx.get(f"{addresses.rayhook}/cds-services").json()["services"]
    templates = next(s["prefetch"] for s in services if s["hook"] == "patient-view")
    context = {"userId": "Practitioner/demo-clinician", "patientId": patient_id}
    body = json.dumps(ehr.client.request(templates, "patient-view", context)).encode()

    def call() -> Call:
        token = ehr.client.assertion(addresses.rayhook + PATH)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return Call("POST", PATH, body, headers)

    return call


def until_finished(base_url: str, hook: Callable[[], Call]) -> None:
    """Call until the answer is a result: the benchmark must not time an "in progress" card."""
    for _ in range(300):
        call = hook()
        answer = httpx.post(base_url + call.path, content=call.body, headers=call.headers)
        cards = answer.raise_for_status().json()["cards"]
        if cards and not any("in progress" in card["summary"].lower() for card in cards):
            say(f"card: {cards[0]['summary']}")
            return
        time.sleep(0.2)
    raise SystemExit("the analysis did not finish")


def compare(base_url: str, hook: Callable[[], Call], bare_url: str, *, callers: int, calls: int) -> None:
    """Time hook and bare route in turn, ROUNDS times, and print both with their ratio."""
    hooks, bares = [], []
    for _ in range(ROUNDS):
        bare = Call("POST", "/bare", b"{}", {"Content-Type": "application/json"})
        bares.append(measure(bare_url, [bare] * calls, callers=callers))
        hooks.append(measure(base_url, [hook() for _ in range(calls)], callers=callers))
    whole, beside = Latencies.joined(hooks), Latencies.joined(bares)
    say(f"{callers} callers  hook  {whole}")
    say(f"{callers} callers  bare  {beside}")
    say(f"{callers} callers  ratio p50 {whole.quantile(0.5) / beside.quantile(0.5):.2f}")


@contextmanager
def bare_server(port: int) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", BARE.replace("PORT", str(port))])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                httpx.post(f"{url}/bare")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def resident_mib(pid: int) -> dict[str, float]:
    """Return the resident memory of the service's processes, by what they are."""
    found = {}
    for child in [pid, *children(pid)]:
        command = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
        found[role(command)] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return found


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sorted({int(child) for task in tasks for child in (task / "children").read_text().split()})


def role(command: str) -> str:
    names = {"decode_child": "decoder", "spawn_main": "engine", "resource_tracker": "tracker"}
    return next((name for mark, name in names.items() if mark in command), "API")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
