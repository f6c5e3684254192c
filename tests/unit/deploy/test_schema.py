"""A database of another release: what is done with it, on SQLite; on PostgreSQL see the integration tests."""

import pytest
from sqlalchemy import text

from rayhook.deploy.database import SCHEMA_REVISION, create_database, ensure_schema, migrate
from rayhook.deploy.schema import COMPATIBLE_SINCE
from rayhook.fhir.errors import Conflict


@pytest.fixture
def url(tmp_path):
    url = f"sqlite:///{tmp_path / 'rayhook.sqlite3'}"
    migrate(url)
    return url


def execute(url, *statements):
    database = create_database(url)
    with database.sessions() as session:
        found = [session.execute(text(statement)) for statement in statements][-1]
        rows = found.all() if found.returns_rows else []
        session.commit()
    database.close()
    return rows


def as_of_a_later_release(url, compatible_since):
    execute(
        url, "UPDATE alembic_version SET version_num = '9000'", f"PRAGMA user_version = {compatible_since}"
    )


def test_embedded_database_is_made_at_the_start(tmp_path):
    url = f"sqlite:///{tmp_path / 'new.sqlite3'}"
    ensure_schema(url)
    assert execute(url, "SELECT version_num FROM alembic_version") == [(SCHEMA_REVISION,)]


def test_database_says_which_release_it_works_with(url):
    assert execute(url, "PRAGMA user_version") == [(int(COMPATIBLE_SINCE),)]


def test_schema_of_the_next_release_is_worked_with_and_left_as_it_is(url):
    as_of_a_later_release(url, int(SCHEMA_REVISION))
    ensure_schema(url)
    migrate(url)
    assert execute(url, "SELECT version_num FROM alembic_version") == [("9000",)]


@pytest.mark.parametrize("compatible_since", [int(SCHEMA_REVISION) + 1, 0])
@pytest.mark.parametrize("start", [ensure_schema, migrate])
def test_schema_that_is_too_new_is_refused(url, compatible_since, start):
    as_of_a_later_release(url, compatible_since)
    with pytest.raises(Conflict) as refusal:
        start(url)
    assert refusal.value.code == "schema_too_new"
