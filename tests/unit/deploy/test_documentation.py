"""The documentation says what the code does: names that one has, the other has."""

import re
from pathlib import Path

import pytest
import typer.main

from rayhook.audit.events import AuditKind
from rayhook.auth.registry import load_registry
from rayhook.deploy.cli import app
from rayhook.deploy.settings import Settings
from rayhook.deploy.storage_settings import PREFIX
from rayhook.inference.registry import Estimate, Manifest, Role, load_models
from rayhook.inference.training.evaluation_report import read_report
from rayhook.inference.training.model_card import model_card

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


def figure(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def row_of(manifest: Manifest) -> str:
    """Return what the README's table says of a classifier: its first evaluation."""
    first = manifest.evaluations[0]
    figures = (first.estimates[name] for name in ("auc", "sensitivity", "specificity", "ece"))
    unit = f"{first.count} {first.unit}s of {first.patients}"
    return f"| `{manifest.id}` | {unit} | {' | '.join(map(figure, figures))} |"


@pytest.mark.parametrize(
    "manifest",
    [p.manifest for p in load_models() if p.manifest.role is Role.CLASSIFIER],
    ids=lambda manifest: manifest.id,
)
def test_the_readme_tells_the_figures_of_the_bundled_models(manifest):
    assert row_of(manifest) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("manifest", [p.manifest for p in load_models()], ids=lambda manifest: manifest.id)
def test_every_bundled_model_is_documented(manifest):
    assert f"## `{manifest.id}`" in (DOCS / "models.md").read_text()


@pytest.mark.parametrize("package", load_models(), ids=lambda package: package.manifest.id)
def test_the_model_card_is_made_from_the_manifest_and_the_evaluation_alone(package):
    report = read_report((package.folder / "evaluation.json").read_bytes())
    assert (package.folder / "MODEL_CARD.md").read_text() == model_card(package.manifest, report)


def test_the_documented_registry_is_one(tmp_path):
    example = re.search(r"```toml\n(.*?)```", (DOCS / "registry.md").read_text(), flags=re.DOTALL)
    path = tmp_path / "ehrs.toml"
    path.write_text(example[1])
    assert [ehr.id for ehr in load_registry(path, development=False)] == ["general-hospital"]
