import ast
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayhook.deploy.cli import app
from rayhook.deploy.crypto_inventory import INVENTORY

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("audit", "auth", "cds_hooks", "deploy", "fhir", "inference", "smart_app")
LIBRARIES = frozenset(
    {"argon2", "cryptography", "hashlib", "hmac", "joserfc", "jwt", "nacl", "pyotp", "ssl", "tink"}
)


def imported(path):
    """Return the libraries of cryptography that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    return {name.split(".")[0] for name in names} & LIBRARIES


def found():
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {
        (str(path.relative_to(ROOT)), library)
        for path in paths
        if "node_modules" not in path.parts
        for library in imported(path)
    }


def test_every_use_in_the_code_is_in_the_inventory():
    listed = {(module, library) for use in INVENTORY for module in use.modules for library in use.libraries}
    assert sorted(found() - listed) == []


def test_nothing_is_in_the_inventory_that_is_not_in_the_code():
    in_code = {module for module, _ in found()}
    assert sorted({module for use in INVENTORY for module in use.modules} - in_code) == []


@pytest.mark.parametrize("use", INVENTORY, ids=lambda use: use.name)
def test_each_is_told_whole(use):
    assert all((use.algorithm, use.purpose, use.rotation, use.post_quantum, use.functions, use.libraries))
    assert 0 <= use.quantum_level <= 6


def test_its_names_are_its_own():
    assert len({use.name for use in INVENTORY}) == len(INVENTORY)


def test_the_command_prints_a_bill_of_materials():
    result = CliRunner().invoke(app, ["keys", "inventory", "--json"])
    content = json.loads(result.stdout)
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    assert len(content["components"]) == len(INVENTORY)
    assert {one["type"] for one in content["components"]} == {"cryptographic-asset"}
