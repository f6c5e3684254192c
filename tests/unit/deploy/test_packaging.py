import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOP_LEVEL = ("audit", "auth", "cds_hooks", "deploy", "fhir", "inference", "smart_app")
WEB_SOURCES = ROOT / "smart_app" / "web"  # what is built from them is shipped
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def package_folders() -> set[str]:
    return {
        "rayhook." + ".".join(module.parent.relative_to(ROOT).parts)
        for folder in TOP_LEVEL
        for module in (ROOT / folder).rglob("*.py")
        if "node_modules" not in module.parts
    }


def test_every_package_folder_is_listed():
    assert set(SETUPTOOLS["packages"]) == package_folders()


@pytest.mark.parametrize("folder", TOP_LEVEL)
def test_every_top_level_folder_is_mapped(folder):
    assert SETUPTOOLS["package-dir"][f"rayhook.{folder}"] == folder


def test_fhir_folder_does_not_hide_fhir_resources():
    assert not (ROOT / "fhir" / "__init__.py").exists()


def test_every_data_file_is_shipped():
    shipped = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.removeprefix("rayhook.").replace(".", "/")).glob(pattern)
    }
    present = {
        path
        for folder in TOP_LEVEL
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and not path.is_relative_to(WEB_SOURCES)
        and path.suffix in {".html", ".css", ".js", ".svg", ".toml", ".mako", ".safetensors"}
    }
    assert present - shipped == set()


def test_the_built_viewer_is_shipped():
    shipped = SETUPTOOLS["package-data"]["rayhook.smart_app"]
    assert {"static/viewer/*", "static/viewer/assets/*"} <= set(shipped)
