import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rayhook.fhir.errors import ModelIntegrityError, NotFound
from rayhook.inference.registry import (
    MANIFEST,
    WEIGHTS,
    ModelPackage,
    ModelStatus,
    Role,
    encode_manifest,
    find_model,
    identify,
    load_models,
    select_models,
)
from tests.unit.inference.samples import manifest


def _copy(package, folder):
    target = folder / package.folder.name
    shutil.copytree(package.folder, target)
    return target


def test_bundled_model_is_what_its_manifest_pins(flair):
    flair.verify()


def test_bundled_model_is_experimental(flair):
    assert flair.manifest.status is ModelStatus.EXPERIMENTAL


def test_bundled_model_names_its_finding_in_snomed(flair):
    finding = flair.manifest.labels[0].finding
    assert (finding.system, finding.code) == ("http://snomed.info/sct", "126952004")


def test_bundled_weights_are_small(flair):
    assert flair.weights_path.stat().st_size <= 30 * 2**20


def test_bundled_model_card_has_every_source_attribute(flair):
    assert [attribute.number for attribute in flair.manifest.card] == list(range(1, 32))
    assert all(attribute.value for attribute in flair.manifest.card)


def test_bundled_figures_carry_intervals_that_hold_the_value(flair):
    assert flair.manifest.evaluations
    for evaluation in flair.manifest.evaluations:
        for figure in evaluation.estimates.values():
            assert figure.low <= figure.high
            assert 0 <= figure.value <= 1


def test_manifest_comes_back_from_json(flair, tmp_path):
    folder = _copy(flair, tmp_path)
    (folder / MANIFEST).write_bytes(encode_manifest(flair.manifest))
    assert load_models(tmp_path)[0].manifest == flair.manifest


def test_altered_weights_are_refused(flair, tmp_path):
    folder = _copy(flair, tmp_path)
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ModelIntegrityError, match="SHA-256"):
        load_models(tmp_path)[0].verify()


@pytest.mark.parametrize("change", [{"threshold": 1}, {"labels": "tumour"}, {"status": "cleared"}])
def test_a_manifest_that_does_not_fit_is_refused(flair, tmp_path, change):
    folder = tmp_path / "model"
    folder.mkdir()
    manifest = json.loads((flair.folder / MANIFEST).read_bytes()) | change
    manifest.pop("licence")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelIntegrityError, match="schema"):
        load_models(tmp_path)


def test_two_models_of_one_id_are_refused(flair, tmp_path):
    shutil.copytree(flair.folder, tmp_path / "a")
    shutil.copytree(flair.folder, tmp_path / "b")
    with pytest.raises(ModelIntegrityError, match="same id"):
        load_models(tmp_path)


def test_a_model_is_found_by_id(flair):
    assert find_model([flair], "mri-flair-tumour") is flair
    assert find_model([flair], "another") is None


def test_serving_modules_do_not_import_tensorflow():
    code = (
        "import sys, rayhook.inference.engine, rayhook.inference.predict, rayhook.inference.explain; "
        "rayhook.inference.registry.load_models(); "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'ai_edge_litert')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _named(id_, **changes):
    return ModelPackage(Path(id_), replace(manifest(), id=id_, **changes), manifest_sha256=f"digest of {id_}")


INSTALLED = (
    _named("brain"),
    _named("film-off", enabled=False),
    _named("nodule", finder="spotter", status=ModelStatus.VALIDATED),
    _named("nodule-off", finder="spotter-off", enabled=False),
    _named("spotter", role=Role.FINDER),
    _named("spotter-off", role=Role.FINDER, enabled=False),
)


@pytest.mark.parametrize(
    ("ids", "running"),
    [
        ((), ["brain", "nodule", "spotter"]),
        (("film-off",), ["film-off"]),
        (("nodule", "brain"), ["nodule", "brain", "spotter"]),
        (("brain", "brain"), ["brain"]),
        (("spotter", "nodule"), ["spotter", "nodule"]),
        (("nodule-off",), ["nodule-off", "spotter-off"]),
    ],
    ids=["none", "off by default", "in their order", "twice", "finder too", "its finder is off"],
)
def test_the_models_named_run_with_their_finders(ids, running):
    assert [package.manifest.id for package in select_models(INSTALLED, ids)] == running


def test_a_model_that_is_not_installed_cannot_run():
    with pytest.raises(NotFound, match="lung"):
        select_models(INSTALLED, ["brain", "lung"])


def test_a_model_without_its_finder_cannot_run():
    with pytest.raises(ModelIntegrityError, match="finder"):
        select_models(INSTALLED[:3])


def test_an_identity_has_the_digest_of_the_manifest(flair):
    digest = hashlib.sha256((flair.folder / MANIFEST).read_bytes()).hexdigest()
    assert identify([flair])[0].manifest_sha256 == digest


def test_an_identity_tells_its_finders(flair):
    identities = {identity.id: identity for identity in identify(INSTALLED)}
    assert identities["nodule"].finder == identities["spotter"]


@pytest.mark.parametrize(("id_", "experimental"), [("brain", True), ("nodule", False)])
def test_an_identity_says_whether_the_model_is_experimental(id_, experimental):
    (identity,) = identify([package for package in INSTALLED if package.manifest.id == id_])
    assert identity.experimental is experimental
