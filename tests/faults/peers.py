"""The demo EHR and PACS as a process of their own, with their ledger, and a door for the test that drives them.

    python -m tests.faults.peers FOLDER COUNT EHR_URL PACS_URL EHR_PORT PACS_PORT SERVICE_URL

The EHR's user opens charts when the test says so. The URLs are those that the service knows; what listens there
may be a line that the test cuts.
"""

import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter, Body, FastAPI

from rayhook.deploy.demo.ehr import DemoEHR, create_ehr, demo_registry_toml
from rayhook.deploy.demo.ledger import Act, LedgerFile, Outcome
from rayhook.deploy.demo.pacs import DemoPACS, create_pacs
from tests.faults.studies import many_studies

LEDGER = "ledger.jsonl"
REGISTRY = "ehrs.toml"


def main(
    folder: Path, count: int, *, ehr_url: str, pacs_url: str, ports: tuple[int, int], service: str
) -> None:
    catalogue = many_studies(folder / "pacs", count)
    ledger = LedgerFile(folder / LEDGER)
    ehr = create_ehr(
        catalogue,
        base_url=ehr_url,
        cds_base_url=service,
        pacs_base_url=pacs_url,
        keys_dir=folder / "ehr-keys",
        ledger=ledger,
    )
    pacs = create_pacs(catalogue, introspect=ehr.state.accepts_token, ledger=ledger)
    registry = demo_registry_toml(ehr_base_url=ehr_url, pacs_base_url=pacs_url)
    # Reports alone are counted: the objects for the PACS would be most of the work.
    lines = [line for line in registry.splitlines() if not line.startswith("dicom_results")]
    (folder / REGISTRY).write_text("\n".join(lines) + "\n")
    ehr.include_router(door(ehr.state.demo, pacs.state.demo, ledger))
    threading.Thread(target=serve, args=(pacs, ports[1]), daemon=True).start()
    serve(ehr, ports[0])


def serve(app: FastAPI, port: int) -> None:
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False, lifespan="off")


def door(ehr: DemoEHR, pacs: DemoPACS, ledger: LedgerFile) -> APIRouter:
    router = APIRouter(prefix="/test")

    @router.post("/view/{patient}")
    def view(patient: str) -> dict[str, Any]:
        """Open a chart. An answer with a card about the study is noted as asked: the service took it on."""
        answer = ehr.client.patient_view(patient)
        topics = [card.topic for card in answer.cards]
        is_taken = answer.error is None and bool(set(topics) - {"unreachable", "overloaded"})
        outcome = Outcome.CREATED if is_taken else Outcome.REFUSED
        ledger.note(Act.ASKED, outcome, "patient-view", subject=f"Patient/{patient}")
        return {"error": answer.error, "topics": topics, "taken": is_taken, "ms": answer.elapsed_ms}

    @router.post("/faults")
    def faults(switches: dict[str, dict[str, Any]] = Body()) -> None:  # noqa: B008, FAST002 - as FastAPI has it
        for who, target in (("ehr", ehr.faults), ("pacs", pacs.faults)):
            for name, value in switches.get(who, {}).items():
                setattr(target, name, value)
        if "token_life_s" in switches.get("tokens", {}):
            ehr.authorization.tokens.life_s = switches["tokens"]["token_life_s"]

    @router.get("/held")
    def held() -> dict[str, dict[str, int]]:
        """Return how many reports and observations the EHR holds for each patient."""
        kinds = ("DiagnosticReport", "Observation")
        return {
            kind: Counter(str(one["subject"]["reference"]) for one in ehr.store.search(kind, []))
            for kind in kinds
        }

    @router.get("/ready")
    def ready() -> str:
        return "ready"

    return router


if __name__ == "__main__":
    where, number, ehr_at, pacs_at, ehr_port, pacs_port, service_at = sys.argv[1:]
    main(
        Path(where),
        int(number),
        ehr_url=ehr_at,
        pacs_url=pacs_at,
        ports=(int(ehr_port), int(pacs_port)),
        service=service_at,
    )
