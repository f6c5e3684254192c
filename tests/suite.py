"""Run pytest; a few tests that fail are looked at once more, by themselves, and both outcomes are told.

Servers, browsers and deadlines are real here, and a machine that stands still for some seconds fails whichever test
waits just then. What a test has found stays found: a property's counter-example is kept and tried again, and a leak of
patient data is never looked at twice.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

FEW = 3
_ALONE = ("-n", "0", "--dist", "no", "--last-failed", "--last-failed-no-failures", "none")

Run = Callable[[Sequence[str]], int]


def suite(arguments: Sequence[str], *, run: Run, failed: Callable[[], list[str]]) -> int:
    """Return the exit status: 0 where every test has passed, at the second look where it needed one."""
    status = run(["--cache-clear", *arguments])
    if status != pytest.ExitCode.TESTS_FAILED:
        return status
    again = failed()
    if not 0 < len(again) <= FEW:
        return status
    _say(f"{len(again)} failed, and will be looked at once more, each without the others", again)
    status = run([*arguments, *_ALONE])
    if status == pytest.ExitCode.OK:
        _say("failed at first, and passed by themselves", again)
    return status


def _run(arguments: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode


def _failed() -> list[str]:
    path = Path(__file__).resolve().parent.parent / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return sorted(json.loads(path.read_text())) if path.exists() else []


def _say(what: str, tests: Sequence[str]) -> None:
    sys.stdout.write("\n  ".join((f"\n{what}:", *tests)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(suite(sys.argv[1:], run=_run, failed=_failed))
