import pytest

from rayhook.inference.delivery import awaits_delivery
from rayhook.inference.results import DeliveryState, StoredResult
from tests.unit.inference.samples import analysed, reference


def stored(state: DeliveryState, detail: str | None = None) -> StoredResult:
    return StoredResult(
        "r1", "j1", "ehr", "p1", reference(), analysed(), (), state, detail, created_at=1000.0
    )


@pytest.mark.parametrize(("now", "awaits"), [(1030.0, False), (1061.0, True)])
def test_a_delivery_without_an_end_was_cut_off_after_a_minute(now, awaits):
    assert awaits_delivery(stored(DeliveryState.PENDING), now=now) is awaits


def test_what_the_ehr_has_awaits_nothing():
    assert not awaits_delivery(stored(DeliveryState.DELIVERED), now=9e9)
