"""The bench over two studies: everything it starts is real, so this takes a while."""

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    command = [
        sys.executable,
        "-m",
        "rayhook.deploy.cli",
        "bench",
        "throughput",
        "--studies",
        "2",
        "--images",
        "1",
    ]
    command += ["--json", "--price-per-vcpu-hour", "1", "--data-dir", str(folder / "state")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture
def phase(told):
    [phase] = told["phases"]
    return phase


def test_every_study_went_through(phase):
    assert (phase["studies"], phase["done"]) == (2, 2)
    assert phase["studies_per_s"] > 0


def test_every_stage_was_timed(phase):
    assert set(phase["stage_s"]) == {"queue", "fetch", "decode", "preprocess", "forward", "explain", "write"}
    assert all(times["mean"] > 0 for times in phase["stage_s"].values())


def test_each_kind_of_process_is_told(phase):
    assert {"EHR and PACS", "service", "worker", "worker: decoders", "worker: engines"} <= set(
        phase["cpu_s_per_study"]
    )


def test_cost_is_told_in_hours_and_money(phase):
    cost = phase["cost_per_1000_studies"]
    assert cost["money"] == cost["vcpu_hours"] > 0


def test_what_a_study_leaves_in_the_database_is_told(phase):
    rows = phase["rows_per_study"]
    assert (rows["analysis_job"], rows["analysis_result"]) == (1.0, 1.0)
    assert rows["audit_event"] >= 3
