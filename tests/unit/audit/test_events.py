import re

import pytest

from rayhook.audit.events import AuditKind, Outcome


@pytest.mark.parametrize("kind", AuditKind)
def test_tag_is_package_subject_action(kind):
    assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z_]+", kind)


@pytest.mark.parametrize("kind", AuditKind)
def test_tag_fits_its_column(kind):
    assert len(kind) <= 64


def test_tags_are_alphabetical():
    assert [kind.value for kind in AuditKind] == sorted(kind.value for kind in AuditKind)


def test_outcomes_are_those_of_fhir():
    assert [outcome.value for outcome in Outcome] == [0, 4, 8, 12]
