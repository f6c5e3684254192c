import threading

import pytest

from rayhook.fhir.correlation import request_id
from rayhook.fhir.errors import UpstreamTimeout
from rayhook.inference.read_ahead import read_ahead


def test_everything_comes_in_order():
    files = [bytes([n]) * 10 for n in range(100)]
    assert list(read_ahead((one for one in files), max_bytes=50)) == files


def test_a_file_larger_than_the_budget_comes_too():
    files = [b"x" * 100, b"y" * 100]
    assert list(read_ahead((one for one in files), max_bytes=10)) == files


def test_an_error_comes_after_what_came_before_it():
    def files():
        yield b"one"
        raise UpstreamTimeout("the PACS did not answer in time")

    ahead = read_ahead(files(), max_bytes=100)
    assert next(ahead) == b"one"
    with pytest.raises(UpstreamTimeout):
        next(ahead)


def test_the_fetcher_does_not_wait_for_the_reader():
    fetched = threading.Event()

    def files():
        yield b"one"
        yield b"two"
        fetched.set()

    ahead = read_ahead(files(), max_bytes=100)
    next(ahead)
    assert fetched.wait(timeout=10)
    ahead.close()


def test_no_more_than_the_budget_waits():
    fetched = []

    def files():
        for n in range(20):
            fetched.append(n)
            yield bytes(10)

    ahead = read_ahead(files(), max_bytes=30)
    next(ahead)
    ahead.close()
    assert len(fetched) <= 6


def test_closing_closes_the_source():
    closed = threading.Event()

    def files():
        try:
            while True:
                yield b"more"
        finally:
            closed.set()

    ahead = read_ahead(files(), max_bytes=10)
    next(ahead)
    ahead.close()
    assert closed.is_set()


def test_the_request_id_goes_along():
    def files():
        yield request_id.get().encode()

    token = request_id.set("request-1")
    try:
        assert list(read_ahead(files(), max_bytes=10)) == [b"request-1"]
    finally:
        request_id.reset(token)
