"""A whole pipeline over a folder; run as a module it is a worker process that a test may kill."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayhook.audit.record import AuditLog
from rayhook.auth.backend import BackendTokens
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, BackendClient, CDSClient, EHRRegistry
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.demo.ehr_scopes import SYSTEM_SCOPES
from rayhook.deploy.demo.ehr_tokens import CLIENT_ID
from rayhook.fhir.transport import Transport
from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.pipeline import Pipeline
from tests.unit.inference.images import SpotEngine, package

_DUE = "deliver-due-at="


@contextmanager
def pipeline_over(
    folder: Path, *, ehr_url: str, pacs_url: str, decoder: Decoder, dicom_results: Any = (), **changes: Any
) -> Iterator[Pipeline]:
    """Yield a pipeline whose database, keys and model are in the folder."""
    url = f"sqlite:///{folder / 'rayhook.sqlite3'}"
    migrate(url)
    database = create_database(url)
    keyring = Keyring.load_or_create(folder / "keyring.json")
    transport = Transport(allow_loopback_http=True)
    model = package(folder)
    hospital = EHR(
        id="ehr",
        name="A hospital",
        fhir_base_urls=(f"{ehr_url}/fhir",),
        cds_client=CDSClient(issuer=ehr_url, jwks_url=f"{ehr_url}/cds-client/jwks.json"),
        dicomweb_origins=(pacs_url,),
        dicom_results=dicom_results,
    )
    try:
        yield Pipeline(
            registry=EHRRegistry((hospital,)),
            sessions=database.sessions,
            keyring=keyring,
            audit=AuditLog(keyring, anchor=folder / "anchor.jsonl"),
            transport=transport,
            analyser=Analyser((model,), {model.manifest.id: SpotEngine()}, decoder),
            organization="Demo hospital",
            **changes,
        )
    finally:
        transport.close()
        database.close()


def as_backend(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with tokens of its own from the EHR, which has to know its keys."""
    (ehr,) = pipeline.registry
    registered = replace(ehr, backend=BackendClient(client_id=CLIENT_ID, scopes=SYSTEM_SCOPES))
    tokens = BackendTokens(pipeline.transport, pipeline.keyring, issued=lambda *_: None)
    return replace(pipeline, registry=EHRRegistry((registered,)), backend=tokens)


def deliver_due_at(pipeline: Pipeline, signal: Path) -> None:
    """Say that we are ready, and bring what is due as soon as there is a file `signal`."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not signal.exists():
        time.sleep(0.005)
    as_backend(pipeline).deliver_due()


if __name__ == "__main__":
    folder, ehr_url, pacs_url, job_id, *kinds = sys.argv[1:]
    with (
        Decoder() as decoder,
        pipeline_over(
            Path(folder), ehr_url=ehr_url, pacs_url=pacs_url, decoder=decoder, dicom_results=tuple(kinds)
        ) as pipeline,
    ):
        if job_id.startswith(_DUE):
            deliver_due_at(pipeline, Path(job_id.removeprefix(_DUE)))
        else:
            pipeline.run(job_id)
