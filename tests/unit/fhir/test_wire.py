import gzip
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rayhook.fhir.errors import InvalidRequest, UpstreamError
from rayhook.fhir.wire import Headers, decoded, encode_headers, parse_url, retry_after_s


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://ehr.example/fhir", "https://ehr.example"),
        ("HTTPS://EHR.Example:443/fhir", "https://ehr.example"),
        ("https://ehr.example:8443", "https://ehr.example:8443"),
        ("http://localhost:80/", "http://localhost"),
        ("https://ehr.example?x=@y", "https://ehr.example"),
        ("https://[2001:DB8:0:0::1]:8443/x", "https://[2001:db8::1]:8443"),
    ],
)
def test_origin_is_normalised(url, origin):
    assert parse_url(url).origin == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ehr.example/fhir",
        "//ehr.example/fhir",
        "ftp://ehr.example/",
        "file:///etc/passwd",
        "https://",
        "https:///fhir",
        "https://user@ehr.example/",
        "https://ehr.example@evil.example/",
        "https://ehr.example\\@evil.example/",
        "https://ehr.example\\.evil.example/",
        "https://ehr.example./",
        "https://-ehr.example/",
        "https://ehr.example:/",
        "https://ehr.example:0/",
        "https://ehr.example:65536/",
        "https://ehr.example:+443/",
        "https://ehr.example/a b",
        "https://ehr.example/a\r\nX: y",
        "https://ehr.example/a\x00",
        "https://ehr.example\n",
        " https://ehr.example",
        "https://ehr_example/",
        "https://bücher.example/",
        "https://ehr。example/",
        "https://[::1/",
        "https://[1]/",
        "https://[fe80::1%25eth0]/",
        "https://ehr.example:443.evil.example/",
    ],
)
def test_other_urls_are_refused(url):
    with pytest.raises(InvalidRequest):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://e.example", "/"),
        ("https://e.example/a?b=c#d", "/a?b=c"),
        ("https://e.example?b", "/?b"),
        ("https://e.example/a%20b", "/a%20b"),
        ("https://e.example/ä|b", "/%C3%A4%7Cb"),
    ],
)
def test_target_is_what_goes_on_the_wire(url, target):
    assert parse_url(url).target == target


def test_headers_are_found_in_any_case():
    assert Headers([(b"Content-Type", b"a/b")])["CONTENT-TYPE"] == "a/b"


def test_repeated_headers_are_joined():
    assert Headers([(b"Link", b"a"), (b"link", b"b")])["link"] == "a, b"


@pytest.mark.parametrize(
    "headers", [{"a": "b\nc"}, {"a": "b\r\nX: y"}, {"a b": "c"}, {"a": " b"}, {"a": "ä"}]
)
def test_header_injection_is_refused(headers):
    with pytest.raises(InvalidRequest):
        encode_headers(headers)


def test_header_refusal_does_not_repeat_the_value():
    with pytest.raises(InvalidRequest) as caught:
        encode_headers({"authorization": "Bearer secret\n"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("120", 120), ("", None), ("soon", None), ("-1", None)]
)
def test_retry_after_seconds(text, seconds):
    assert retry_after_s({"retry-after": text}) == seconds


def test_retry_after_date():
    text = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < retry_after_s({"retry-after": text}) <= 30


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("identity", bytes), ("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP ", gzip.compress)],
)
def test_content_coding_is_undone(coding, encode):
    data = b"payload" * 100_000
    pieces = decoded([encode(data)], {"content-encoding": coding}, max_bytes=len(data))
    assert b"".join(pieces) == data


def test_coding_split_at_every_byte():
    coded = gzip.compress(b"payload")
    pieces = decoded([coded[i : i + 1] for i in range(len(coded))], {"content-encoding": "gzip"}, max_bytes=7)
    assert b"".join(pieces) == b"payload"


@pytest.mark.parametrize(
    "coded",
    [gzip.compress(b"payload")[:-4], b"not gzip at all", gzip.compress(b"a") + b"trailing", b""],
    ids=["truncated", "other", "trailing", "empty"],
)
def test_damaged_coding_is_refused(coded):
    with pytest.raises(UpstreamError, match="damaged"):
        b"".join(decoded([coded], {"content-encoding": "gzip"}, max_bytes=100))


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
def test_coding_not_asked_for_is_refused(coding):
    with pytest.raises(UpstreamError, match="not asked for"):
        b"".join(decoded([b""], {"content-encoding": coding}, max_bytes=100))


def test_declared_length_over_the_cap_is_refused_unread():
    def unread():
        pytest.fail("the body was read")
        yield b""

    with pytest.raises(UpstreamError, match="larger"):
        next(decoded(unread(), {"content-length": "101"}, max_bytes=100))


def test_bomb_is_met_early():
    bomb = zlib.compress(bytes(64 * 1024 * 1024))
    pieces = decoded([bomb], {"content-encoding": "deflate"}, max_bytes=1_000_000)
    passed = []
    with pytest.raises(UpstreamError, match="larger"):
        passed.extend(map(len, pieces))
    assert sum(passed) <= 1_000_000
