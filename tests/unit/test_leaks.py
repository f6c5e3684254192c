"""That the suite's own search would find what it looks for."""

from types import SimpleNamespace

import pytest

from tests import leaks


def report(content: str) -> SimpleNamespace:
    return SimpleNamespace(when="call", sections=[("Captured stdout call", content)])


def spelt(word: str) -> dict[str, bytes]:
    return {
        "as it is": word.encode(),
        "small": word.lower().encode(),
        "UTF-16": word.encode("utf-16-le"),
        "hexadecimal": word.encode().hex().encode(),
        "a token": b"Bearer eyJhbGciOiJFUzM4NCJ9.eyJpc3MiOiJodHRwcyJ9.c2ln",
    }


@pytest.mark.parametrize("spelling", spelt("x"))
def test_a_log_that_says_it_is_found(tmp_path, spelling):
    folder = tmp_path / "not-a-real-one"
    folder.mkdir()
    (folder / "service.txt").write_bytes(b"started\n" + spelt(leaks.WORD)[spelling] + b"\n")
    assert not list(leaks.in_files(folder))
    renamed = (folder / "service.txt").rename(folder / "service.log")
    found = list(leaks.in_files(folder))
    renamed.unlink()  # the search at the session's end would find it too
    assert len(found) == 1


def test_what_is_printed_is_found():
    assert leaks.in_output(report(f"read {leaks.WORD} of the study"))
    assert leaks.in_output(report("read 8 images")) is None


def test_what_was_printed_in_another_phase_is_not_told_twice():
    printed = report(leaks.WORD)
    printed.when = "teardown"
    assert leaks.in_output(printed) is None
