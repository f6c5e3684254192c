"""The registry's tables of who may tell of new studies, and the secrets that they name."""

import pytest

from rayhook.auth.arrival_sources import SecretFile
from rayhook.auth.registry import load_registry
from rayhook.fhir.errors import InvalidRequest, ServiceUnavailable

EHR = """
[[ehr]]
id = "north"
name = "North"
fhir_base_urls = ["https://fhir.north.example/r4"]
[ehr.cds_client]
issuer = "https://north.example"
jwks_url = "https://north.example/jwks"
"""
SUBSCRIPTION = """
[ehr.subscription]
topic = "https://fhir.north.example/topics/imaging"
secret_file = "/etc/rayhook/north"
"""
SENDER = """
[[ehr.dicom_sender]]
id = "router"
secret_file = "/etc/rayhook/router"
"""
POLL = """
[[ehr.pacs_poll]]
id = "pacs"
dicomweb_url = "https://pacs.north.example/dicom-web"
"""


def load(tmp_path, text):
    path = tmp_path / "ehrs.toml"
    path.write_text(text)
    return load_registry(path, development=False)


def test_without_a_table_nothing_announces_itself(tmp_path):
    (ehr,) = load(tmp_path, EHR)
    assert (ehr.arrivals.subscription, ehr.arrivals.senders, ehr.arrivals.polled) == (None, (), ())


def test_what_is_not_said_has_its_default(tmp_path):
    (ehr,) = load(tmp_path, EHR + SUBSCRIPTION + SENDER + POLL)
    found = ehr.arrivals
    assert (found.subscription.heartbeat_s, found.subscription.lifetime_s) == (300, 30 * 86_400)
    assert (found.polled[0].every_s, found.polled[0].days, found.polled[0].token_required) == (60.0, 2, False)


def test_images_may_be_fetched_from_a_pacs_that_is_polled(tmp_path):
    (ehr,) = load(tmp_path, EHR + POLL)
    assert "https://pacs.north.example" in ehr.image_origins


@pytest.mark.parametrize(("mode", "is_refused"), [(0o644, True), (0o640, False), (0o600, False)])
def test_production_refuses_a_secret_that_everybody_may_read(tmp_path, mode, is_refused):
    secret = tmp_path / "router"
    secret.write_text("s" * 32)
    secret.chmod(mode)
    text = EHR + SENDER.replace("/etc/rayhook/router", str(secret))
    if is_refused:
        with pytest.raises(InvalidRequest) as refused:
            load(tmp_path, text)
        assert "ehr[0].dicom_sender[0].secret_file" in str(refused.value.expression)
    else:
        assert load(tmp_path, text).dicom_sender("router") is not None


def test_a_sender_is_found_by_its_id(tmp_path):
    registry = load(tmp_path, EHR + SENDER)
    ehr, sender = registry.dicom_sender("router")
    assert (ehr.id, sender.id, registry.dicom_sender("other")) == ("north", "router", None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            SUBSCRIPTION.replace("https://fhir.north.example/topics/imaging", "imaging"),
            "ehr[0].subscription.topic",
        ),
        (SUBSCRIPTION.replace("/etc/rayhook/north", "north"), "ehr[0].subscription.secret_file"),
        (SUBSCRIPTION + 'filter = "Patient?name=x"', "ehr[0].subscription.filter"),
        (SENDER.replace("router", "a b", 1), "ehr[0].dicom_sender[0].id"),
        (SENDER.replace("/etc/rayhook/router", ""), "ehr[0].dicom_sender[0].secret_file"),
        (SENDER + SENDER, "ehr.dicom_sender.id"),
        (POLL + POLL, "ehr[0].pacs_poll.id"),
        (POLL.replace("https://", "http://"), "ehr[0].pacs_poll[0].dicomweb_url"),
    ],
)
def test_what_may_not_be_is_refused_by_its_key(tmp_path, text, key):
    with pytest.raises(InvalidRequest) as refused:
        load(tmp_path, EHR + text)
    assert refused.value.expression == key


@pytest.mark.parametrize(
    "text",
    [
        SUBSCRIPTION + "heartbeat_s = 0",
        SUBSCRIPTION + "lifetime_days = 0",
        SUBSCRIPTION + "secret = 'x'",
        POLL + "every_s = 0.5",
        POLL + "days = 32",
    ],
)
def test_numbers_have_bounds_and_keys_are_known(tmp_path, text):
    with pytest.raises(InvalidRequest):
        load(tmp_path, EHR + text)


OLD, NEW = "old-" + "a" * 32, "new-" + "b" * 32


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "secret"
    path.write_text(f"# ours\n{OLD}\n\n{NEW}\n")
    return SecretFile(path)


def test_every_secret_of_the_file_is_good(file):
    assert (file.admits(OLD), file.admits(NEW)) == (True, True)


@pytest.mark.parametrize("shown", ["", "# ours", OLD[:-1], OLD + " ", OLD.upper(), f"{OLD}\n{NEW}", "é" * 40])
def test_anything_else_is_not(file, shown):
    assert not file.admits(shown)


def test_the_last_one_is_handed_out(file):
    assert file.newest() == NEW


@pytest.mark.parametrize("content", ["", "# nothing\n", "short\n", f"{OLD}\nshort\n", "with spaces " * 5])
def test_a_file_without_a_fit_secret_lets_nobody_in(tmp_path, content):
    path = tmp_path / "secret"
    path.write_text(content)
    with pytest.raises(ServiceUnavailable):
        SecretFile(path).admits(content.strip())


def test_a_file_that_is_not_there_lets_nobody_in(tmp_path):
    with pytest.raises(ServiceUnavailable):
        SecretFile(tmp_path / "none").admits(OLD)
