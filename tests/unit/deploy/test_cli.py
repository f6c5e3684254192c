"""The command as a person runs it: a process of its own, its output and its status."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from pydicom.data import get_testdata_file

from rayhook.deploy.demo.ehr import demo_registry_toml
from rayhook.inference.statement import EXPERIMENTAL
from tests.unit.inference.images import dicom_slice
from tests.unit.inference.samples import ANALYZE_FIELDS

REGISTRY = demo_registry_toml(ehr_base_url="http://127.0.0.1:8001", pacs_base_url="http://127.0.0.1:8002")


def rayhook(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayhook.deploy.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HOME": os.environ["HOME"], "PATH": os.environ["PATH"]},
    )


@pytest.fixture
def registry(tmp_path):
    path = tmp_path / "ehrs.toml"
    path.write_text(REGISTRY)
    return path


def test_a_registry_is_checked_as_the_service_does(registry):
    assert rayhook("registry", "check", registry).returncode == 2


def test_a_registry_on_loopback_is_for_development(registry):
    assert rayhook("registry", "check", registry, "--development").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("audit", "verify", "--data-dir", "/nonexistent"), "no_installation"),
        (("serve",), "RAYHOOK_PUBLIC_BASE_URL: must be https in production"),
    ],
)
def test_a_refusal_is_one_line_without_a_stack_trace(arguments, told):
    run = rayhook(*arguments)
    assert (run.returncode, told in run.stderr.replace("\n", " "), "Traceback" in run.stderr) == (
        2,
        True,
        False,
    )


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "a.txt").write_text("no DICOM")
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), folder / "b.dcm")
    run = rayhook("analyze", "--json", folder)
    return run, [json.loads(line) for line in run.stdout.splitlines()], folder


def test_analyze_prints_one_line_an_instance(analysed):
    assert [line["status"] for line in analysed[1]] == ["refused", "out_of_scope"]


def test_analyze_ends_with_1_when_a_file_was_refused(analysed):
    assert analysed[0].returncode == 1


def test_analyze_prints_the_documented_fields(analysed):
    assert [set(line) for line in analysed[1]] == [ANALYZE_FIELDS, ANALYZE_FIELDS]


def test_analyze_says_why_a_file_was_refused(analysed):
    assert analysed[1][0]["error"] == {"code": "not_dicom", "message": "the file has no DICM prefix"}


def test_the_table_says_that_the_model_is_experimental(tmp_path):
    (tmp_path / "slice.dcm").write_bytes(dicom_slice())
    assert EXPERIMENTAL in " ".join(rayhook("analyze", tmp_path).stdout.split())


def test_the_installed_models_are_one_json_array():
    run = rayhook("model", "list", "--json")
    assert "mri-flair-tumour" in [model["id"] for model in json.loads(run.stdout)]


def test_the_table_of_models_says_which_are_experimental():
    assert "experimental" in rayhook("model", "list").stdout


def test_a_model_that_is_not_installed_cannot_be_asked_for(analysed):
    run = rayhook("analyze", "--model", "another", analysed[2])
    assert (run.returncode, "unknown_model" in run.stderr) == (2, True)
