"""The tests' patients carry one word; whatever a test prints or logs is searched for it, and so are all log files.

What a page or an answer holds is for who may see it. What is printed or logged is for everybody.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

WORD = "QZCANARY"
_NAMES = ("*.jsonl", "*.log", "*.out", "core*")
_SPELLINGS = rb"qzcanary|q\0z\0c\0a\0n\0a\0r\0y\0|717a63616e617279|515a43414e415259"
_PRINTED = re.compile(_SPELLINGS, re.IGNORECASE)
_LOGGED = re.compile(_SPELLINGS + rb"|eyj[\w-]{10,}\.eyj[\w-]{10,}\.", re.IGNORECASE)  # and no JWT either
FOUND = 16
"""The exit status of pytest where something told of a patient, whatever else has failed."""
_LEAKS = pytest.StashKey[list[str]]()


def in_output(report: pytest.TestReport) -> str | None:
    """Return what a test has printed beside the word, None where it said nothing of a patient."""
    for name, content in report.sections:
        if not name.endswith(report.when):
            continue  # what an earlier phase printed was looked at then
        found = _PRINTED.search(content.encode())
        if found is not None:
            return f"{name} says of a patient: {_around(content.encode(), found)}"
    return None


def search_logs(session: pytest.Session) -> None:
    """Search what this process's tests left; a process of xdist tells the one that started it."""
    config = session.config
    found = config.stash.setdefault(_LEAKS, [])
    if hasattr(config, "workerinput"):
        config.workeroutput["leaks"] = [*found, *in_files(config._tmp_path_factory.getbasetemp())]
        return
    if config.getoption("dist", "no") == "no" and hasattr(config, "_tmp_path_factory"):
        found += in_files(config._tmp_path_factory.getbasetemp())
    if found and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        session.exitstatus = FOUND


def told_by(config: pytest.Config, leaks: list[str]) -> None:
    config.stash.setdefault(_LEAKS, []).extend(leaks)


def summary(reporter: pytest.TerminalReporter) -> None:
    for one in reporter.config.stash.get(_LEAKS, []):
        reporter.write_line(f"FAILED: something says of a patient: {one}", red=True)


def in_files(folder: Path) -> Iterator[str]:
    for pattern in _NAMES:
        for path in folder.rglob(pattern):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found = _LOGGED.search(content)
                if found is not None:
                    yield f"{path}: {_around(content, found)}"


def _around(content: bytes, found: re.Match[bytes]) -> str:
    return repr(content[max(0, found.start() - 120) : found.end() + 60])
