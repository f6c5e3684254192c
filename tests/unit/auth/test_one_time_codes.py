"""Codes of authenticator apps against the RFC's own vectors, and recovery codes."""

from base64 import b32encode
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree as ET

import pytest

from rayhook.auth.one_time_codes import (
    current_code,
    enrolment_uri,
    matching_step,
    new_recovery_codes,
    new_secret,
    qr_svg,
    qr_text,
    recovery_digest,
)

# RFC 6238 appendix B, SHA-1, cut to six digits.
SECRET = b32encode(b"12345678901234567890").decode()
VECTORS = [
    (59, "287082"),
    (1111111109, "081804"),
    (1111111111, "050471"),
    (1234567890, "005924"),
    (2000000000, "279037"),
    (20000000000, "353130"),
]


@pytest.mark.parametrize(("now", "code"), VECTORS)
def test_the_code_is_that_of_the_standard(now, code):
    assert current_code(SECRET, now) == code


@pytest.mark.parametrize(("now", "code"), VECTORS)
def test_the_step_of_the_code_is_found(now, code):
    assert matching_step(SECRET, code, now=now, last_step=-1) == now // 30


@pytest.mark.parametrize(("drift", "found"), [(-61, False), (-30, True), (0, True), (30, True), (61, False)])
def test_one_step_of_drift_is_forgiven(drift, found):
    now = 1_000_000_005
    step = matching_step(SECRET, current_code(SECRET, now + drift), now=now, last_step=-1)
    assert (step is not None) == found


def test_a_step_that_was_used_is_refused():
    now = 1_000_000_005
    assert matching_step(SECRET, current_code(SECRET, now), now=now, last_step=now // 30) is None


def test_an_earlier_step_than_one_that_was_used_is_refused():
    now = 1_000_000_005
    assert matching_step(SECRET, current_code(SECRET, now - 30), now=now, last_step=now // 30) is None


def test_blanks_in_a_code_do_not_matter():
    assert matching_step(SECRET, "287 082", now=59, last_step=-1) == 1


@pytest.mark.parametrize("code", ["", "28708", "2870822", "abcdef", "٢٨٧٠٨٢", "287082\n", "0x4619a"])
def test_what_is_no_code_is_refused(code):
    assert matching_step(SECRET, code, now=59, last_step=-1) is None


def test_secrets_are_of_160_bits_and_differ():
    secrets = {new_secret() for _ in range(100)}
    assert (len(secrets), {len(one) for one in secrets}) == (100, {32})


def test_the_uri_says_all_that_an_app_needs():
    parts = urlsplit(enrolment_uri(SECRET, account_name="officer@hospital.example"))
    assert (parts.scheme, parts.netloc, parts.path) == (
        "otpauth",
        "totp",
        "/Rayhook:officer%40hospital.example",
    )
    assert parse_qs(parts.query) == {"secret": [SECRET], "issuer": ["Rayhook"]}


def test_the_qr_code_is_an_svg_without_a_style_of_its_own():
    root = ET.fromstring(qr_svg(enrolment_uri(SECRET, account_name="officer")))
    assert root.tag.endswith("svg")
    assert not any("style" in element.attrib for element in root.iter())


def test_the_qr_code_is_drawn_for_a_terminal():
    lines = qr_text(enrolment_uri(SECRET, account_name="officer")).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set("".join(lines)) <= set("█▀▄ ")


def test_recovery_codes_are_ten_that_differ():
    codes = new_recovery_codes()
    assert len({recovery_digest(code) for code in codes} - {None}) == 10


@pytest.mark.parametrize("spelling", ["{}", " {} ", "{}".replace("-", "")])
def test_a_recovery_code_may_be_spelt_as_people_do(spelling):
    code = new_recovery_codes()[0]
    assert recovery_digest(spelling.format(code).upper()) == recovery_digest(code)


@pytest.mark.parametrize("text", ["", "abcd-efgh", "abcd-efgh-ijkl-mno1", "a" * 17, "287082"])
def test_what_is_no_recovery_code_has_no_digest(text):
    assert recovery_digest(text) is None
