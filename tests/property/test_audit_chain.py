"""An attacker owns the database file and knows the code; the keyring and the anchor file are out of reach."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayhook.audit.chain import verify
from rayhook.audit.events import AuditKind, Outcome
from rayhook.audit.leaf import GENESIS, event_hash
from rayhook.audit.merkle import leaf_hash
from rayhook.audit.models import AUDIT_EVENT
from rayhook.audit.record import AuditEntry, AuditLog
from rayhook.audit.report import ChainReport, ProblemKind
from rayhook.auth.keys import Keyring
from rayhook.deploy.database import create_database, migrate

COLUMNS = tuple(AUDIT_EVENT.columns.keys())
CONTENT = tuple(name for name in COLUMNS if name not in {"seq", "hash", "mac"})
EXAMPLES = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
entries = st.builds(
    AuditEntry,
    kind=st.sampled_from(AuditKind),
    outcome=st.sampled_from(Outcome),
    ehr_id=st.none() | st.sampled_from(["north", "south"]),
    agent=st.none() | words,
    patient_id=st.none() | words,
    entities=st.lists(words, max_size=3).map(tuple),
    detail=st.dictionaries(words, words, max_size=3),
    request_id=st.sampled_from(["request-1", "request-2"]),
)
logs = st.lists(entries, min_size=3, max_size=12)


@dataclass(frozen=True)
class Installation:
    keyring: Keyring
    template: Path


@dataclass(frozen=True)
class Log:
    """A log on disk with its last checkpoint signed after the last event."""

    folder: Path
    keyring: Keyring

    @property
    def database(self) -> Path:
        return self.folder / "rayhook.sqlite3"

    def write(self, batches: list[list[AuditEntry]]) -> None:
        database = create_database(f"sqlite:///{self.database}")
        audit = AuditLog(self.keyring, anchor=self.folder / "anchor.jsonl")
        for batch in batches:
            with database.sessions() as session:
                for entry in batch:
                    audit.record(session, entry)
                audit.checkpoint(session)
                session.commit()
        database.close()

    def report(self, *, with_keyring: bool = False) -> ChainReport:
        database = create_database(f"sqlite:///{self.database}")
        with database.reading() as session:
            report = verify(
                session,
                self.keyring.audit_public_key,
                self.folder / "anchor.jsonl",
                keyring=self.keyring if with_keyring else None,
            )
        database.close()
        return report

    def rows(self) -> list[dict]:
        with closing(sqlite3.connect(self.database)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM audit_event ORDER BY seq")]

    def replace(self, rows: list[dict]) -> None:
        """Write the whole table anew, without its triggers and keys."""
        with closing(sqlite3.connect(self.database)) as connection:
            connection.execute("DROP TABLE audit_event")
            connection.execute(f"CREATE TABLE audit_event ({', '.join(COLUMNS)})")
            marks = ", ".join(f":{name}" for name in COLUMNS)
            connection.executemany(f"INSERT INTO audit_event VALUES ({marks})", rows)
            connection.commit()

    def cut_checkpoints(self, size: int) -> None:
        with closing(sqlite3.connect(self.database)) as connection:
            connection.execute("DROP TRIGGER audit_checkpoint_no_delete")
            connection.execute("DELETE FROM audit_checkpoint WHERE size > ?", [size])
            connection.commit()


@pytest.fixture(scope="module")
def installation(tmp_path_factory) -> Installation:
    folder = tmp_path_factory.mktemp("installation")
    migrate(f"sqlite:///{folder / 'template.sqlite3'}")
    return Installation(Keyring.load_or_create(folder / "keyring.json"), folder / "template.sqlite3")


@contextmanager
def log_of(installation: Installation, *batches: list[AuditEntry]) -> Iterator[Log]:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), installation.keyring)
        shutil.copy(installation.template, log.database)
        log.write(list(batches))
        yield log


def rehashed(rows: list[dict], *, start: int = 0) -> list[dict]:
    """Return the rows numbered, linked and hashed again from index `start` on, as a careful forger would."""
    done: list[dict] = [dict(row) for row in rows[:start]]
    for row in rows[start:]:
        previous = done[-1]["hash"] if done else GENESIS
        new = {**row, "seq": len(done) + 1, "previous_hash": previous}
        done.append({**new, "hash": event_hash(new)})
    return done


def changed(value):
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, bytes):
        return value + b"x"
    return 1 if value is None else value + 1


@EXAMPLES
@given(batches=st.lists(logs, min_size=1, max_size=3))
def test_untouched_log_is_intact(installation, batches):
    with log_of(installation, *batches) as log:
        report = log.report(with_keyring=True)
    size = sum(map(len, batches))
    assert report == ChainReport(intact=True, size=size, sealed_size=size, problems=(), notes=())


@EXAMPLES
@given(entries=logs, data=st.data())
def test_edited_field_is_found_and_located(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    column = data.draw(st.sampled_from(CONTENT))
    with log_of(installation, entries) as log:
        rows = log.rows()
        rows[index][column] = changed(rows[index][column])
        log.replace(rows)
        report = log.report()
    assert [(problem.seq, problem.kind) for problem in report.problems] == [(index + 1, ProblemKind.EDITED)]


@EXAMPLES
@given(entries=logs, data=st.data())
def test_edited_field_with_recomputed_hash_is_found_and_located(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        rows[index]["kind"] = changed(rows[index]["kind"])
        rows[index]["hash"] = event_hash(rows[index])
        log.replace(rows)
        report = log.report()
    is_last = index == len(entries) - 1
    expected = ProblemKind.REGROWN if is_last else ProblemKind.REHASHED
    assert [(problem.seq, problem.kind) for problem in report.problems] == [(index + 1, expected)]


@EXAMPLES
@given(entries=logs, data=st.data())
def test_edited_event_with_all_hashes_after_it_recomputed_is_found(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        rows[index]["outcome"] += 1
        log.replace(rehashed(rows, start=index))
        report = log.report()
    assert [(problem.seq, problem.kind) for problem in report.problems] == [
        (len(entries), ProblemKind.REGROWN)
    ]


@EXAMPLES
@given(entries=logs, data=st.data())
def test_edited_hash_is_found(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    value = data.draw(st.sampled_from(["", "zz", GENESIS, None, 5, b"x"]))
    with log_of(installation, entries) as log:
        rows = log.rows()
        rows[index]["hash"] = value
        log.replace(rows)
        report = log.report()
    assert report.problems[0].seq == index + 1
    assert report.problems[0].kind is ProblemKind.EDITED


@EXAMPLES
@given(entries=logs, data=st.data())
def test_deletion_in_the_middle_is_found_and_located(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 2))
    with log_of(installation, entries) as log:
        rows = log.rows()
        del rows[index]
        log.replace(rows)
        report = log.report()
    assert [(problem.seq, problem.kind) for problem in report.problems] == [(index + 1, ProblemKind.DELETED)]


@EXAMPLES
@given(entries=logs, data=st.data(), is_rehashed=st.booleans())
def test_deletion_in_the_middle_with_renumbering_is_found(installation, entries, data, is_rehashed):
    index = data.draw(st.integers(0, len(entries) - 2))
    with log_of(installation, entries) as log:
        rows = log.rows()
        del rows[index]
        renumbered = [{**row, "seq": seq} for seq, row in enumerate(rows, start=1)]
        log.replace(rehashed(rows) if is_rehashed else renumbered)
        report = log.report()
    assert not report.intact


@EXAMPLES
@given(entries=logs, data=st.data(), with_checkpoints=st.booleans())
def test_deletion_of_the_tail_is_found_and_located(installation, entries, data, with_checkpoints):
    kept = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries[:1], entries[1:]) as log:
        log.replace(log.rows()[:kept])
        if with_checkpoints:
            log.cut_checkpoints(kept)
        report = log.report()
    assert (kept + 1, ProblemKind.TRUNCATED) in [(problem.seq, problem.kind) for problem in report.problems]


@EXAMPLES
@given(entries=logs, regrown=logs, data=st.data())
def test_tail_that_was_cut_and_grown_again_by_the_service_is_found(installation, entries, regrown, data):
    """The service itself goes on after the cut, and signs what it finds: the older statements convict."""
    kept = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries) as log:
        log.replace(log.rows()[:kept])
        log.cut_checkpoints(kept)
        log.write([regrown + entries])
        report = log.report()
    assert (len(entries), ProblemKind.REGROWN) in [(problem.seq, problem.kind) for problem in report.problems]


@EXAMPLES
@given(entries=logs, data=st.data())
def test_tail_that_was_cut_and_grown_again_by_a_forger_is_found(installation, entries, data):
    kept = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        forged = [{**row, "recorded_at": changed(row["recorded_at"])} for row in rows[kept:]]
        log.replace(rehashed(rows[:kept] + forged, start=kept))
        report = log.report()
    assert not report.intact


@EXAMPLES
@given(entries=logs, data=st.data(), is_rehashed=st.booleans())
def test_insertion_is_found(installation, entries, data, is_rehashed):
    index = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        forged = {**rows[index], "recorded_at": changed(rows[index]["recorded_at"])}
        rows.insert(index, {**forged, "hash": event_hash(forged)})
        log.replace(rehashed(rows) if is_rehashed else rows)
        report = log.report()
    assert not report.intact


@EXAMPLES
@given(entries=logs, data=st.data())
def test_insertion_after_the_last_checkpoint_is_found_with_the_keyring(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        log.replace(rehashed([*rows, rows[index]], start=len(rows)))
        report = log.report(with_keyring=True)
    assert [(problem.seq, problem.kind) for problem in report.problems] == [
        (len(entries) + 1, ProblemKind.FORGED)
    ]


@EXAMPLES
@given(entries=logs, data=st.data())
def test_duplicate_is_found(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    place = data.draw(st.integers(1, len(entries)))
    with log_of(installation, entries) as log:
        rows = log.rows()
        rows.insert(place, rows[index])
        log.replace(rows)
        report = log.report()
    assert report.problems[0].kind in {ProblemKind.DUPLICATED, ProblemKind.INSERTED}


@EXAMPLES
@given(entries=logs, data=st.data())
def test_duplicate_at_the_end_is_found_and_named(installation, entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        log.replace([*rows, {**rows[index], "seq": len(rows) + 1}])
        report = log.report()
    assert [(problem.seq, problem.kind) for problem in report.problems] == [
        (len(entries) + 1, ProblemKind.DUPLICATED)
    ]


@EXAMPLES
@given(entries=logs, data=st.data())
def test_swapped_events_are_found_and_named(installation, entries, data):
    first = data.draw(st.integers(0, len(entries) - 2))
    second = data.draw(st.integers(first + 1, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        rows[first], rows[second] = {**rows[second], "seq": first + 1}, {**rows[first], "seq": second + 1}
        log.replace(rows)
        report = log.report()
    found = {(problem.seq, problem.kind) for problem in report.problems}
    assert found >= {(first + 1, ProblemKind.REORDERED), (second + 1, ProblemKind.REORDERED)}


@EXAMPLES
@given(entries=logs, data=st.data())
def test_swapped_contents_with_all_hashes_recomputed_are_found(installation, entries, data):
    first = data.draw(st.integers(0, len(entries) - 2))
    second = data.draw(st.integers(first + 1, len(entries) - 1))
    with log_of(installation, entries) as log:
        rows = log.rows()
        rows[first], rows[second] = rows[second], rows[first]
        log.replace(rehashed(rows))
        report = log.report()
    assert not report.intact


@given(
    event=st.fixed_dictionaries(
        {
            name: st.none() | words | st.integers(-(2**53) + 1, 2**53 - 1) | st.binary(max_size=9)
            for name in CONTENT
        }
    )
)
def test_hashed_text_is_that_of_rfc_8785(event):
    event["seq"] = 7
    plain = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in event.items()
        if value is not None or name not in {"client_id", "context_sealed"}
    }
    assert event_hash(event) == leaf_hash(rfc8785.dumps(plain)).hex()
