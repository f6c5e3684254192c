import pytest

from rayhook.deploy.demo.ledger import Act, LedgerFile, Outcome, read_ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_entries_come_back_in_their_order(path):
    ledger = LedgerFile(path, clock=iter((1.0, 2.0)).__next__)
    ledger.note(Act.RETRIEVED, Outcome.SENT, "study", study="1.2", request_id="one")
    ledger.note(Act.WRITTEN, Outcome.CREATED, "Observation", identifier="a.b", conditional=True)
    first, second = read_ledger(path)
    assert (first.at, first.act, first.study, first.request_id) == (1.0, Act.RETRIEVED, "1.2", "one")
    assert (second.at, second.outcome, second.identifier, second.conditional) == (
        2.0,
        Outcome.CREATED,
        "a.b",
        True,
    )


def test_another_process_goes_on_in_the_same_file(path):
    for study in ("1.2", "1.3"):
        LedgerFile(path).note(Act.RETRIEVED, Outcome.SENT, "study", study=study)
    assert [entry.study for entry in read_ledger(path)] == ["1.2", "1.3"]
