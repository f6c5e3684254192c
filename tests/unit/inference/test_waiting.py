import threading
import time

import pytest
from sqlalchemy import event

from rayhook.inference import claims
from rayhook.inference.waiting import EndWatch

from .test_claims import desk, keyring  # noqa: F401 - fixtures


@pytest.fixture
def watch(desk):  # noqa: F811
    made = EndWatch(desk.database.reading)
    yield made
    made.close()


def test_an_end_in_another_process_is_seen(desk, watch):  # noqa: F811
    desk.ask()
    claimed = desk.take().job
    threading.Timer(0.1, desk.fail, [claimed]).start()
    assert watch.wait(claimed.id, 5.0)


def test_a_job_that_is_put_off_is_not_waited_for(desk, watch):  # noqa: F811
    desk.ask()
    claimed = desk.take().job
    options = {"until": desk.now + 60, "code": "code", "message": "why", "clock": desk.clock}
    desk(claims.put_off, claimed, **options)
    begin = time.monotonic()
    assert watch.wait(claimed.id, 5.0)
    assert time.monotonic() - begin < 1.0


def test_an_end_in_this_process_is_told_at_once(desk):  # noqa: F811
    """Whoever looks by itself would need a while: here nobody does."""
    watch = EndWatch(desk.database.reading)
    watch._thread = threading.current_thread()  # no thread of its own is started
    desk.ask()
    claimed = desk.take().job

    def end():
        desk.fail(claimed)
        watch.tell(claimed.id)

    threading.Timer(0.1, end).start()
    assert watch.wait(claimed.id, 5.0)


def test_twenty_who_wait_cost_one_query_at_a_time(desk, watch):  # noqa: F811
    ids = [desk.ask(f"key-{number}") for number in range(20)]
    queries = []
    event.listen(desk.database.engine, "before_cursor_execute", lambda *given: queries.append(given[2]))
    threads = [threading.Thread(target=watch.wait, args=(id_, 1.0)) for id_ in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    selects = [query for query in queries if query.startswith("SELECT")]
    assert len(selects) < 20 + 1.0 / 0.04 + 5
