"""The documented tables of roles are those of the code and of the running service's routes."""

from pathlib import Path

from rayhook.auth.roles import Permission, Role
from rayhook.deploy.role_tables import markdown, routes
from rayhook.smart_app.role_texts import PERMISSION_TEXTS, ROLE_NAMES

ROLES = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "roles.md"


def test_the_documented_tables_are_those_of_the_code():
    assert ROLES.read_text().endswith(markdown(routes()))


def test_every_permission_has_words():
    assert set(PERMISSION_TEXTS) == set(Permission)


def test_every_role_has_a_name():
    assert set(ROLE_NAMES) == set(Role)
