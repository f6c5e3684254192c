"""That a second look is for a few failed tests, and for nothing else."""

from types import SimpleNamespace

import pytest

from tests import leaks
from tests.stalls import NAP_S, StallWatch
from tests.suite import FEW, suite

FAILED = int(pytest.ExitCode.TESTS_FAILED)


class Runs:
    """Stands for pytest: gives the exit statuses it was told, and keeps what it was asked."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.asked: list[list[str]] = []

    def __call__(self, arguments) -> int:
        self.asked.append(list(arguments))
        return self.statuses.pop(0)


def outcome(runs: Runs, failed: int = 1) -> int:
    return suite(["-n", "2"], run=runs, failed=lambda: [f"test_{number}" for number in range(failed)])


def test_what_passes_is_run_once():
    runs = Runs(0)
    assert (outcome(runs), len(runs.asked)) == (0, 1)


def test_a_failed_test_that_passes_by_itself_is_told_and_passes(capsys):
    assert outcome(Runs(FAILED, 0)) == 0
    assert "failed at first, and passed by themselves:\n  test_0" in capsys.readouterr().out


def test_a_test_that_fails_twice_fails():
    assert outcome(Runs(FAILED, FAILED)) == FAILED


def test_the_second_look_is_at_the_failed_ones_in_one_process():
    runs = Runs(FAILED, 0)
    outcome(runs)
    assert runs.asked[1][-7:] == [
        "-n", "0", "--dist", "no", "--last-failed", "--last-failed-no-failures", "none",
    ]  # fmt: skip


@pytest.mark.parametrize("failed", [0, FEW + 1])
def test_many_failures_and_none_that_is_named_are_not_looked_at_again(failed):
    runs = Runs(FAILED)
    assert (outcome(runs, failed), len(runs.asked)) == (FAILED, 1)


@pytest.mark.parametrize("status", [2, 3, 4, 5, leaks.FOUND])
def test_any_other_end_is_the_end(status):
    runs = Runs(status)
    assert (outcome(runs), len(runs.asked)) == (status, 1)


def a_watch(*late_s: float) -> StallWatch:
    """Return a watch that has seen naps of these delays, one after the other from zero on."""
    now = [0.0]
    delays = iter(late_s)

    def sleep(seconds: float) -> None:
        now[0] += seconds + next(delays)

    watch = StallWatch(lambda: now[0], sleep)
    for _ in late_s:
        watch.nap()
    return watch


def test_a_long_sleep_is_a_stall():
    assert a_watch(0.1, 5.0, 0.9).since(0) == [5.0]


def test_a_stall_before_the_test_is_none_of_its():
    assert a_watch(5.0, 0.0, 0.0).since(5.0 + NAP_S + 0.1) == []


def test_a_long_collection_of_garbage_is_told_as_such():
    now = iter([10.0, 12.5, 13.0])
    watch = StallWatch(lambda: next(now))
    watch.note_collection("start", {})
    watch.note_collection("stop", {})
    report = SimpleNamespace(duration=3.0, sections=[])
    watch.tell(report)
    assert report.sections == [("This process stood still", "collecting garbage for 2.5 s")]


def test_a_failed_test_tells_how_long_it_stood_still():
    report = SimpleNamespace(duration=6.0, sections=[])
    a_watch(0.0, 5.0).tell(report)
    assert report.sections == [("This process stood still", "5.0 s")]
