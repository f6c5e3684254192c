import threading

import pytest

from rayhook.smart_app.image_cache import RecentlyUsed


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_was_used_last_stays():
    kept = RecentlyUsed[str](max_size=2, life_s=10)
    for key in ("a", "b"):
        kept.put(key, key)
    kept.get("a")
    kept.put("c", "c")
    assert [kept.get(key) for key in ("a", "b", "c")] == ["a", None, "c"]


def test_sizes_are_bounded_together():
    kept = RecentlyUsed[bytes](max_size=10, life_s=10)
    kept.put("a", b"6", size=6)
    kept.put("b", b"5", size=5)
    assert (kept.get("a"), kept.get("b")) == (None, b"5")


def test_what_is_too_large_is_not_kept_and_drops_nothing_else():
    kept = RecentlyUsed[bytes](max_size=10, life_s=10)
    kept.put("a", b"6", size=6)
    kept.put("b", b"11", size=11)
    assert (kept.get("a"), kept.get("b")) == (b"6", None)


def test_a_value_is_forgotten_in_time():
    clock = Clock()
    kept = RecentlyUsed[str](max_size=2, life_s=10, clock=clock)
    kept.put("a", "a")
    clock.now = 10.0
    assert kept.get("a") is None


def test_what_many_want_at_once_is_made_once():
    kept, made, release = RecentlyUsed[int](max_size=2, life_s=10), [], threading.Event()

    def make() -> int:
        release.wait(5)
        made.append(1)
        return len(made)

    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(kept.get_or_make("a", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join(5)
    assert (answers, made) == ([1, 1, 1, 1], [1])


def test_a_failure_is_not_kept():
    kept = RecentlyUsed[int](max_size=2, life_s=10)

    def fail() -> int:
        raise ValueError

    with pytest.raises(ValueError):
        kept.get_or_make("a", fail)
    assert kept.get_or_make("a", lambda: 7) == 7
