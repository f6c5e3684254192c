import contextlib
import gzip
import zlib
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.fhir.errors import InvalidRequest, UpstreamError
from rayhook.fhir.wire import decoded, encode_headers, parse_url, retry_after_s

hosts = st.from_regex(r"\A[a-z][a-z0-9]{0,8}(\.[a-z][a-z0-9]{0,5}){0,3}\Z")
codings = st.sampled_from([("gzip", gzip.compress), ("deflate", zlib.compress)])


@given(
    st.sampled_from(["http", "https"]),
    hosts,
    st.none() | st.integers(1, 65535),
    st.text(st.characters(blacklist_categories=["Cc", "Cs", "Z"], blacklist_characters="\\#")),
)
def test_parts_are_those_of_the_url(scheme, host, port, path):
    url = parse_url(f"{scheme}://{host}{'' if port is None else f':{port}'}/{path}")
    assert (url.scheme, url.host) == (scheme, host)
    assert url.port == (port or {"http": 80, "https": 443}[scheme])
    assert url.target.isascii()


@given(st.sampled_from(["http", "https"]), hosts, st.integers(1, 65535))
def test_origin_is_its_own_origin(scheme, host, port):
    origin = parse_url(f"{scheme}://{host}:{port}/x").origin
    assert parse_url(origin).origin == origin


@given(st.text(alphabet="https:/@\\.?#[]evilxampl0%2\t\n "))
def test_accepted_urls_have_the_host_that_others_see(text):
    """A parser differential is how a token gets to another host."""
    with contextlib.suppress(InvalidRequest):
        assert parse_url(text).host.strip("[]") == urlsplit(text).hostname


@given(codings, st.binary(max_size=5000), st.integers(1, 200))
def test_coded_bodies_come_back(coding, data, size):
    name, encode = coding
    coded = encode(data)
    chunks = [coded[start : start + size] for start in range(0, len(coded), size)]
    assert b"".join(decoded(chunks, {"content-encoding": name}, max_bytes=5000)) == data


@given(codings, st.binary(min_size=1, max_size=5000), st.data())
def test_no_more_than_the_cap_comes_out(coding, data, draw):
    name, encode = coding
    cap = draw.draw(st.integers(0, len(data) - 1))
    out = []
    with pytest.raises(UpstreamError):
        out.extend(decoded([encode(data)], {"content-encoding": name}, max_bytes=cap))
    assert sum(map(len, out)) <= cap


@given(codings, st.binary(min_size=1, max_size=500), st.data())
def test_a_cut_coding_is_never_taken_for_whole(coding, data, draw):
    name, encode = coding
    coded = encode(data)
    cut = coded[: draw.draw(st.integers(0, len(coded) - 1))]
    with pytest.raises(UpstreamError):
        b"".join(decoded([cut], {"content-encoding": name}, max_bytes=500))


@given(st.dictionaries(st.text(), st.text()))
def test_no_header_smuggles_a_line(headers):
    with contextlib.suppress(InvalidRequest):
        for name, value in encode_headers(headers):
            assert not set(name + value) & {*b"\r\n\x00"}


@given(st.text() | st.from_regex(r"\AMon, \d{2} Jan \d{4} \d{2}:\d{2}:\d{2} [+-]\d{4,30}\Z"))
def test_any_retry_after_is_seconds_or_nothing(text):
    seconds = retry_after_s({"retry-after": text})
    assert seconds is None or seconds >= 0
