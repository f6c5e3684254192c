from dataclasses import dataclass

from rayhook.cds_hooks.results import FinishedJob, ResultCache
from rayhook.inference.jobs import JobRow, JobState


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self):
        return self.now


def job(result_id):
    row = JobRow(
        id="j",
        key="k",
        state=JobState.DONE,
        attempts=1,
        error_code=None,
        error_message=None,
        retryable=False,
        result_id=result_id,
        request_id="r",
        created_at=0.0,
        updated_at=0.0,
    )
    return FinishedJob(row, None)


def test_a_job_is_found_by_its_key():
    cache = ResultCache()
    cache.keep("a", job("1"))
    assert (cache.find("a").row.result_id, cache.find("b")) == ("1", None)


def test_a_job_is_forgotten_after_a_minute():
    clock = Clock()
    cache = ResultCache(clock)
    cache.keep("a", job("1"))
    clock.now = 61.0
    assert cache.find("a") is None


def test_only_the_last_few_are_kept():
    cache = ResultCache()
    for number in range(300):
        cache.keep(str(number), job("1"))
    assert (cache.find("0"), cache.find("299").row.result_id) == (None, "1")


def test_what_was_compared_a_moment_ago_is_not_compared_again():
    clock = Clock()
    cache = ResultCache(clock)
    cache.keep("a", job("1"))
    clock.now = 0.9
    assert cache.to_compare(["a", "b"]) == frozenset()
    clock.now = 1.0
    assert cache.to_compare(["a", "b"]) == {"1"}


def test_what_is_as_it_was_is_kept():
    clock = Clock(1.0)
    cache = ResultCache(clock)
    cache.keep("a", job("1"))
    cache.compare(frozenset({"1"}), {"1": 0})
    assert cache.find("a") is not None
    assert cache.to_compare(["a"]) == frozenset()


def test_what_was_signed_in_another_process_is_forgotten():
    cache = ResultCache()
    cache.keep("a", job("1"))
    cache.keep("b", job("2"))
    cache.compare(frozenset({"1", "2"}), {"1": 2, "2": 0})
    assert (cache.find("a"), cache.find("b") is None) == (None, False)


def test_a_result_that_is_gone_is_forgotten():
    cache = ResultCache()
    cache.keep("a", job("1"))
    cache.compare(frozenset({"1"}), {})
    assert cache.find("a") is None
