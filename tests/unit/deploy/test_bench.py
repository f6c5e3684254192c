import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from rayhook.deploy.bench_processes import Use, use_of
from rayhook.deploy.bench_report import Phase, percentile, report, tables
from rayhook.deploy.bench_throughput import Plan, free_port
from rayhook.deploy.cli import app
from rayhook.deploy.demo.catalogue import many_heads
from rayhook.fhir.errors import RayhookError
from rayhook.inference.stages import Stage

ROOT = Path(__file__).resolve().parents[3]
PLAN = Plan(studies=10, growth=(1, 10), workers=(1, 2), repeats=2, images=3, rate=None, stalled_s=60.0)
PHASE = Phase(
    studies=10,
    workers=2,
    repeat=1,
    done=10,
    elapsed_s=4.0,
    waits_s=tuple(float(number) for number in range(1, 11)),
    stages_s={Stage.DECODE: (0.1, 0.3), Stage.WRITE: ()},
    cpu_s={"worker": 9.0, "database": 9.0, "EHR and PACS": 100.0},
    resident_bytes={"worker": 5 << 20},
    table_rows={"analysis_job": 10, "used_jti": 0},
    table_bytes={"analysis_job": 20_480, "used_jti": 0},
    load=1.5,
)


@pytest.mark.parametrize(("share", "value"), [(50, 5.0), (95, 10.0), (99, 10.0), (1, 1.0)])
def test_percentile_is_a_value_that_was_measured(share, value):
    assert percentile(PHASE.waits_s, share) == value


def test_runs_that_are_compared_are_next_to_each_other():
    once = [(10, 1), (10, 2), (100, 1), (100, 2)]
    assert [run[1:] for run in PLAN.runs()] == once * 2
    assert [run[0] for run in PLAN.runs()] == [1] * 4 + [2] * 4


def test_every_run_has_studies_of_its_own():
    assert PLAN.total == 2 * (10 + 10 + 100 + 100) + 2 * 2 * (1 + 2 + 1 + 2)


def test_cost_is_that_of_the_product_alone():
    assert PHASE.own_cpu_s == 18.0
    assert PHASE.as_json(2.0)["cost_per_1000_studies"] == {"vcpu_hours": 0.5, "money": 1.0}


def test_no_price_is_invented():
    assert PHASE.as_json(None)["cost_per_1000_studies"]["money"] is None


def test_phase_is_told_by_the_study():
    told = PHASE.as_json(None)
    assert told["studies_per_s"] == 2.5
    assert told["stage_s"] == {"decode": {"mean": 0.2, "p50": 0.1, "p95": 0.3, "p99": 0.3}}
    assert told["cpu_s_per_study"]["worker"] == 0.9
    assert (told["rows_per_study"], told["bytes_per_study"]) == (
        {"analysis_job": 1.0},
        {"analysis_job": 2048.0},
    )


def test_report_says_on_what_machine():
    told = json.loads(json.dumps(report([PHASE], images=3, price=None, set_up={"redis": "no"})))
    assert told["machine"]["cores"] == os.cpu_count()
    assert [phase["workers"] for phase in told["phases"]] == [2]


def test_tables_tell_the_same():
    console = Console(width=200)
    with console.capture() as shown:
        for table in tables([PHASE], 2.0):
            console.print(table)
    text = shown.get()
    for figure in ("2.50", "5.00", "10.00", "0.500", "1.0000", "200", "900, 5"):
        assert figure in text


def test_use_of_a_process_counts_what_it_did():
    spinning = (
        "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", spinning])
    try:
        before = Use({}, {})
        deadline = time.monotonic() + 60
        while use_of({"worker": [child.pid]}).since(before)["worker"] < 0.3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert use_of({"worker": [child.pid]}).resident_bytes["worker"] > 1 << 20
    finally:
        child.kill()
        child.wait()


def test_process_that_has_ended_uses_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert use_of({"worker": [child.pid]}) == Use({}, {})


def test_ports_in_a_row_are_free():
    first = free_port(3)
    assert len({first, first + 1, first + 2, free_port()}) >= 3


def test_studies_are_of_different_patients_and_stay_the_same(tmp_path):
    catalogue = many_heads(tmp_path, 3, images=2)
    assert len({study.patient_id for study in catalogue.studies}) == 3
    assert len({one.sop_instance_uid for study in catalogue.studies for one in study.instances}) == 6
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}
    assert many_heads(tmp_path, 3, images=2) == catalogue
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")} == written


@pytest.mark.parametrize("value", ["", "0", "1,x", "-1", "1,,2"])
def test_what_is_no_list_of_numbers_is_refused(value):
    answer = CliRunner().invoke(app, ["bench", "throughput", "--workers", value])
    assert isinstance(answer.exception, RayhookError)
    assert answer.exception.expression == "--workers"


def test_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "other").touch()
    answer = CliRunner().invoke(app, ["bench", "throughput", "--data-dir", str(tmp_path)])
    assert isinstance(answer.exception, RayhookError)
    assert answer.exception.code == "bench_folder_used"


def test_documented_commands_are_there():
    """Options of `rayhook bench`, and modules that can be run."""
    page = (ROOT / "deploy" / "docs" / "capacity.md").read_text()
    commands = [line.removeprefix("$ ").split() for line in page.splitlines() if line.startswith("$ ")]
    [module] = [words for words in commands if words[0] == "python"]
    for words in commands:
        if words[0] == "rayhook":
            throughput = typer.main.get_command(app).commands["bench"].commands[words[2]]
            known = {option for parameter in throughput.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known
    assert (ROOT / module[2].replace(".", "/")).with_suffix(".py").exists()
