"""The page on our FHIR API names what the code serves."""

import re
from pathlib import Path

import pytest

from rayhook.smart_app.fhir_api import PREFIX, PROTECTED_RESOURCE, describe_server

PAGE = (Path(__file__).resolve().parents[3] / "deploy" / "docs" / "fhir-api.md").read_text()
SERVED = {one.type: one for one in describe_server("https://x").resources}
ROWS = {
    row[0]: [re.findall(r"`([^`]+)`", cell) for cell in row[1:]]
    for row in re.findall(r"^\| `([A-Z]\w+)` \|([^|\n]*)\|([^|\n]*)\|([^|\n]*)\|$", PAGE, flags=re.MULTILINE)
}


def test_every_type_is_documented():
    assert sorted(ROWS) == sorted(SERVED)


@pytest.mark.parametrize("kind", sorted(SERVED))
def test_a_type_is_documented_as_it_is_served(kind):
    served = SERVED[kind]
    assert ROWS[kind] == [sorted(served.parameters), list(served.includes), list(served.revincludes)]


def test_the_addresses_are_those_of_the_code():
    assert f"`{PREFIX}`" in PAGE
    assert f"`{PROTECTED_RESOURCE}`" in PAGE


def test_the_broken_resources_are_counted_as_the_tests_do():
    from tests.conformance.test_fhir_reports import BREAKS, UNSEEN_BY_PYROFILE

    at_run_time = sum(is_seen for _, _, is_seen in BREAKS.values())
    seen = len(BREAKS) - len(UNSEEN_BY_PYROFILE)
    assert (
        f"of {len(BREAKS)} broken resources in the tests it refuses {at_run_time}, pyrofile {seen}," in PAGE
    )
