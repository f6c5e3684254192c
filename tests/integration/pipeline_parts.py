"""A whole pipeline over a folder; run as a module it is a worker process that a test may kill."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayhook.audit.record import AuditLog
from rayhook.auth.keys import Keyring
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.transport import Transport
from rayhook.inference.analysis import Analyser
from rayhook.inference.decode import Decoder
from rayhook.inference.pipeline import Pipeline
from tests.unit.inference.images import SpotEngine, package


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
    transport.close()
    database.close()


if __name__ == "__main__":
    folder, ehr_url, pacs_url, job_id = sys.argv[1:]
    with (
        Decoder() as decoder,
        pipeline_over(Path(folder), ehr_url=ehr_url, pacs_url=pacs_url, decoder=decoder) as pipeline,
    ):
        pipeline.run(job_id)
