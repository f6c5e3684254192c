import re
from datetime import time, timedelta
from pathlib import Path

import pytest

from rayhook.audit.watch import Thresholds
from rayhook.deploy.audit_watch import load_thresholds
from rayhook.fhir.errors import InvalidRequest

AUDIT = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "audit.md"


def written(tmp_path, content):
    path = tmp_path / "watch.toml"
    path.write_text(content)
    return path


def test_without_a_file_the_defaults_hold():
    assert load_thresholds(None) == Thresholds()


def test_an_empty_file_says_the_defaults(tmp_path):
    found = load_thresholds(written(tmp_path, ""))
    assert (found.patients, found.denials, found.quiet) == (50, 5, timedelta(hours=1))


def test_the_documented_file_is_one(tmp_path):
    example = re.search(r"```toml\n(patients.*?)```", AUDIT.read_text(), flags=re.DOTALL)
    found = load_thresholds(written(tmp_path, example[1]))
    assert found.night_from == time(22)
    assert found.vips == {("general-hospital", "1234")}
    assert found.people == {("general-hospital", "Practitioner/7"): "5678"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("patients = 0", "patients"),
        ("patient = 5", "patient"),
        ('time_zone = "Mars/Olympus"', "time_zone"),
        ("night_from = 'late'", "night_from"),
        ("patients =", "watch file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, told):
    with pytest.raises(InvalidRequest, match=told):
        load_thresholds(written(tmp_path, content))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_thresholds(tmp_path / "nothing.toml")
