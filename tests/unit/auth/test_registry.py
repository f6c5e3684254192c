import copy
import json
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey, RSAKey

from rayhook.auth.registry import EHRRegistry, load_registry
from rayhook.fhir.errors import InvalidRequest

NORTH = {
    "id": "north",
    "name": "North Hospital",
    "fhir_base_urls": ["https://fhir.north.example/r4"],
    "dicomweb_origins": ["https://pacs.north.example:8443"],
    "cds_client": {
        "issuer": "https://ehr.north.example",
        "jwks_url": "https://ehr.north.example/jwks.json",
        "tenants": ["main"],
    },
    "smart": {"client_id": "rayhook", "scopes": ["openid", "patient/Patient.r"]},
}


def toml(value: Any) -> str:
    """JSON is TOML for strings, booleans and lists; tables are written inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ehrs.toml"


def load(path: Path, *ehrs: dict[str, Any], development: bool = False) -> EHRRegistry:
    path.write_text(f"ehr = {toml(list(ehrs))}\n")
    return load_registry(path, development=development)


def changed(**changes: Any) -> dict[str, Any]:
    """Return NORTH with members set, `a__b` reaching into a table; None takes one out."""
    ehr: dict[str, Any] = copy.deepcopy(NORTH)
    for name, value in changes.items():
        *tables, key = name.split("__")
        table = ehr
        for step in tables:
            table = table[step]
        if value is None:
            del table[key]
        else:
            table[key] = value
    return ehr


def test_the_form_that_the_documentation_shows(path: Path) -> None:
    path.write_text(
        """
        [[ehr]]
        id = "north"
        name = "North Hospital"
        fhir_base_urls = ["https://fhir.north.example/r4"]
        dicomweb_origins = ["https://pacs.north.example"]
        [ehr.cds_client]
        issuer = "https://ehr.north.example"
        jwks_url = "https://ehr.north.example/jwks.json"
        [ehr.smart]
        client_id = "rayhook"
        scopes = ["openid"]
        """
    )
    assert [ehr.name for ehr in load_registry(path, development=False)] == ["North Hospital"]


def test_an_empty_file_registers_nobody(path: Path) -> None:
    path.write_text("")
    assert len(load_registry(path, development=False)) == 0


def test_the_smart_issuer_is_the_fhir_base_unless_given(path: Path) -> None:
    smart = load(path, NORTH).ehrs[0].smart
    assert smart is not None
    assert smart.issuer == "https://fhir.north.example/r4"


def test_allowed_origins_are_those_of_fhir_dicomweb_and_keys(path: Path) -> None:
    assert load(path, NORTH).ehrs[0].allowed_origins == {
        "https://fhir.north.example",
        "https://pacs.north.example:8443",
        "https://ehr.north.example",
    }


def test_found_by_issuer(path: Path) -> None:
    found = load(path, NORTH).by_issuer("https://ehr.north.example")
    assert found is not None
    assert found.id == "north"


@pytest.mark.parametrize("url", ["https://fhir.north.example/r4", "https://fhir.north.example/r4/"])
def test_found_by_fhir_base(path: Path, url: str) -> None:
    assert load(path, NORTH).by_fhir_base(url) is not None


@pytest.mark.parametrize(
    "url",
    [
        "https://fhir.north.example/r4/Patient",
        "https://fhir.north.example/r4//",
        "https://fhir.north.example",
        "https://fhir.north.example.evil/r4",
        "https://FHIR.north.example/r4",
        "https://fhir.north.example:443/r4",
        "http://fhir.north.example/r4",
        "https://x@fhir.north.example/r4",
        "",
    ],
)
def test_not_found_by_what_only_looks_like_the_fhir_base(path: Path, url: str) -> None:
    assert load(path, NORTH).by_fhir_base(url) is None


@pytest.mark.parametrize(
    ("ehr", "key"),
    [
        (changed(colour="red"), "colour"),
        (changed(cds_client__secret="x"), "secret"),
        (changed(smart__password="x"), "password"),
        (changed(name=None), "name"),
        (changed(name=" "), "ehr[0].name"),
        (changed(name=7), "ehr[0].name"),
        (changed(id="North Hospital"), "ehr[0].id"),
        (changed(cds_client=None), "cds_client"),
        (changed(fhir_base_urls=[]), "ehr[0].fhir_base_urls"),
        (changed(fhir_base_urls=["https://a.example/r4"] * 2), "ehr[0].fhir_base_urls"),
        (changed(fhir_base_urls=["http://fhir.north.example/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["http://127.0.0.1:8080/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["ftp://fhir.north.example/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["fhir.north.example/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://fhir.north.example/r4/"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://fhir.north.example:443/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://Fhir.north.example/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://me@fhir.north.example/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://fhir.north.example/r4?x=1"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://fhir.north.example/r4#x"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://fhir.north.example/../r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://fhir.north.example/a%2fr4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://2130706433/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://0x7f.1/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://a..b/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https:///r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(fhir_base_urls=["https://[::1/r4"]), "ehr[0].fhir_base_urls[0]"),
        (changed(dicomweb_origins=["https://pacs.north.example/dicomweb"]), "ehr[0].dicomweb_origins[0]"),
        (changed(dicomweb_origins=["https://pacs.north.example/"]), "ehr[0].dicomweb_origins[0]"),
        (changed(frame_ancestors=["*"]), "ehr[0].frame_ancestors[0]"),
        (changed(cors_origins=["null"]), "ehr[0].cors_origins[0]"),
        (changed(cds_client__jwks_url=None), "ehr[0].cds_client"),
        (changed(cds_client__jwks={"keys": []}), "ehr[0].cds_client"),
        (changed(cds_client__issuer="north"), "ehr[0].cds_client.issuer"),
        (changed(cds_client__tenants=["a", "a"]), "ehr[0].cds_client.tenants"),
        (changed(smart__client_id=""), "ehr[0].smart.client_id"),
        (changed(smart__scopes=["openid fhirUser"]), "ehr[0].smart.scopes[0]"),
        (changed(smart__introspection="yes"), "ehr[0].smart.introspection"),
    ],
)
def test_refused_naming_the_key(path: Path, ehr: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        load(path, ehr)
    assert key in refusal.value.message


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"fhir_base_urls": ["https://b.example"], "cds_client__issuer": "https://b.example"}, "ehr.id"),
        ({"id": "south", "fhir_base_urls": ["https://b.example"]}, "ehr.cds_client.issuer"),
        ({"id": "south", "cds_client__issuer": "https://b.example"}, "ehr.fhir_base_urls"),
    ],
)
def test_two_ehrs_share_no_identity(path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        load(path, NORTH, changed(**changes))
    assert refusal.value.expression == key


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080"])
def test_http_to_loopback_in_development(path: Path, host: str) -> None:
    registry = load(path, changed(fhir_base_urls=[f"http://{host}/fhir"]), development=True)
    assert f"http://{host}" in registry.ehrs[0].allowed_origins


@pytest.mark.parametrize("host", ["fhir.north.example", "10.0.0.1", "localhost.example"])
def test_http_elsewhere_is_refused_in_development_too(path: Path, host: str) -> None:
    with pytest.raises(InvalidRequest, match="https"):
        load(path, changed(fhir_base_urls=[f"http://{host}/fhir"]), development=True)


def test_an_issuer_may_end_with_a_slash_and_it_counts(path: Path) -> None:
    registry = load(path, changed(cds_client__issuer="https://ehr.north.example/"))
    assert registry.by_issuer("https://ehr.north.example") is None


def test_inline_keys(path: Path, ec_key: ECKey, rsa_key: RSAKey) -> None:
    keys = [ec_key.as_dict(private=False), rsa_key.as_dict(private=False)]
    registry = load(path, changed(cds_client__jwks_url=None, cds_client__jwks={"keys": keys}))
    found = registry.ehrs[0].cds_client.keys
    assert found is not None
    assert found.find("ec-1", "ES384") is not None


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(OctKey.generate_key(256, {"kid": "a"}).as_dict(), id="symmetric"),
        pytest.param(ECKey.generate_key("P-384").as_dict(private=False, kid=""), id="no kid"),
        pytest.param({"kty": "RSA", "kid": "short", "e": "AQAB", "n": "z" * 170 + "8"}, id="short RSA"),
        pytest.param({"kty": "EC"}, id="incomplete"),
        pytest.param("key", id="no object"),
    ],
)
def test_inline_keys_that_cannot_verify_are_refused(path: Path, key: Any) -> None:
    with pytest.raises(InvalidRequest, match="jwks"):
        load(path, changed(cds_client__jwks_url=None, cds_client__jwks={"keys": [key]}))


@pytest.mark.parametrize("text", ["ehr = [", "[ehr]\nid = 'a'", "\x00"])
def test_a_file_that_is_not_this_toml_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InvalidRequest):
        load_registry(path, development=False)


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_registry(path, development=False)


def test_private_origins_are_those_that_say_so(path: Path) -> None:
    registry = load(path, changed(private_network=True))
    assert registry.private_origins == registry.ehrs[0].allowed_origins
    assert load(path, NORTH).private_origins == frozenset()


def test_a_token_of_the_ehr_never_goes_to_its_key_server(path: Path) -> None:
    ehr = load(path, NORTH).ehrs[0]
    assert not ehr.fhir_origins & ehr.jwks_origins


def test_results_are_written_as_no_dicom_objects_unless_asked_for(path: Path) -> None:
    assert load(path, NORTH).ehrs[0].dicom_results == ()


def test_dicom_objects_may_be_stored_elsewhere(path: Path) -> None:
    archive = "https://archive.north.example/dicom-web"
    (ehr,) = load(path, changed(dicom_results=["sr", "sr", "secondary_capture"], stow_url=archive)).ehrs
    assert (ehr.dicom_results, ehr.stow_url) == (("sr", "secondary_capture"), archive)
    assert "https://archive.north.example" in ehr.stow_origins & ehr.allowed_origins
    assert "https://archive.north.example" not in ehr.image_origins


@pytest.mark.parametrize(
    "changes", [{"dicom_results": ["seg"]}, {"stow_url": "https://archive.north.example/dicom-web/"}]
)
def test_a_kind_or_an_address_that_is_none_is_refused(path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        load(path, changed(**changes))
