"""Errands that are tried again: what one courier meets with is not the others' business."""

import threading

from structlog.testing import capture_logs

from rayhook.deploy import late_deliveries
from rayhook.fhir.errors import ServiceUnavailable


def test_a_courier_that_fails_keeps_no_other_from_its_errands(monkeypatch):
    monkeypatch.setattr(late_deliveries, "_EVERY_S", 0.001)
    stopping, failures = threading.Event(), iter([KeyError("Doe^Jane"), ServiceUnavailable("the database")])

    def fails():
        raise next(failures)

    rounds = []

    def goes():
        rounds.append(1)
        if len(rounds) == 2:
            stopping.set()

    with capture_logs() as logs:
        late_deliveries.deliver_until((fails, goes), stopping)
    assert [told["code"] for told in logs] == ["KeyError", "service_unavailable"]
