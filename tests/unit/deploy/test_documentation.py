"""The documentation says what the code does: names that one has, the other has."""

import re
from pathlib import Path

import pytest
import typer.main

from rayhook.audit.events import AuditKind
from rayhook.auth.registry import load_registry
from rayhook.deploy.cli import app
from rayhook.deploy.settings import PREFIX, Settings
from rayhook.inference.registry import load_models

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


def test_the_readme_tells_the_figures_of_the_bundled_model():
    readme = (ROOT / "README.md").read_text()
    slices = load_models()[0].manifest.evaluations[0].estimates
    told = [
        f"| {e.value:.3f} | {e.low:.3f} to {e.high:.3f} |" for name, e in slices.items() if name != "pointing"
    ]
    assert [row for row in told if row not in readme] == []


def test_the_documented_registry_is_one(tmp_path):
    example = re.search(r"```toml\n(.*?)```", (DOCS / "registry.md").read_text(), flags=re.DOTALL)
    path = tmp_path / "ehrs.toml"
    path.write_text(example[1])
    assert [ehr.id for ehr in load_registry(path, development=False)] == ["general-hospital"]
