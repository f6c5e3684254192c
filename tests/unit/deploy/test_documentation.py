"""The documentation says what the code does: names that one has, the other has."""

import re
from pathlib import Path

import pytest
import typer.main

from rayhook.audit.events import AuditKind
from rayhook.deploy.cli import app
from rayhook.deploy.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "deploy" / "docs"


def first_column(page: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", (DOCS / page).read_text(), flags=re.MULTILINE)


def environment_name(name: str) -> str:
    alias = Settings.model_fields[name].validation_alias
    return str(alias) if alias else PREFIX + name.upper()


def commands(group, prefix="rayhook"):
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        if hasattr(command, "commands"):
            yield from commands(command, path)
        else:
            yield path


def test_every_setting_is_documented():
    assert sorted(first_column("settings.md")) == sorted(map(environment_name, Settings.model_fields))


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_setting_is_described_as_in_the_code(name):
    assert Settings.model_fields[name].description in (DOCS / "settings.md").read_text()


def test_every_audit_event_is_documented():
    assert sorted(first_column("audit.md")) == sorted(AuditKind)


def test_every_command_is_documented():
    assert sorted(first_column("commands.md")) == sorted(commands(typer.main.get_command(app)))
