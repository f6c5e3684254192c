"""The conformance command, and schemathesis, against the whole product as `make run` starts it."""

import json
import subprocess
import sys
from pathlib import Path

import httpx

SCRIPTS = Path(sys.executable).parent


def test_the_demo_keeps_every_requirement_that_can_be_seen(demo):
    options = [
        "--base-url", demo.addresses.rayhook,
        "--issuer", demo.addresses.ehr,
        "--key", demo.data_dir / "ehr-keys" / "cds-client.jwk",
        "--json",
    ]  # fmt: skip
    command = [sys.executable, "-m", "rayhook.deploy.cli", "conformance", "cds", *map(str, options)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(run.stdout)
    failed = [one for one in report["requirements"] if one["result"] == "failed"]
    assert failed == []
    assert run.returncode == 0
    assert report["summary"]["passed"] == 64  # a patient with a finding, who shows nine more, is not given


def test_no_route_of_the_product_is_a_server_error(demo):
    """Spec: the OpenAPI document, which is served in development."""
    command = [
        str(SCRIPTS / "st"), "run", f"{demo.addresses.rayhook}/openapi.json",
        "--checks", "not_a_server_error",
        "--phases", "coverage,fuzzing",
        "--max-examples", "25",
        "--no-color",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    paths = httpx.get(f"{demo.addresses.rayhook}/openapi.json").json()["paths"]
    operations = sum(len(methods) for methods in paths.values())
    assert f"Tested: {operations}" in run.stdout
