"""`rayhook database ...`: roles, schema and state of the database, by who administers it."""

import json
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from rayhook.deploy.database_roles import Role
    from rayhook.deploy.storage_settings import StorageSettings

app = typer.Typer(no_args_is_help=True, help="Prepare, migrate and check the database.")

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]
ServiceRole = Annotated[str, typer.Option(help="Role that the service and its workers connect as.")]
AuditRole = Annotated[str, typer.Option(help="Role that only reads the audit.")]

out = Console()


@app.command("prepare")
def prepare(
    service_role: ServiceRole = "rayhook_service",
    audit_role: AuditRole = "rayhook_audit",
    service_password_file: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="File of the service role's password; made where it is not there."),
    ] = None,
    audit_password_file: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="File of the audit role's password; made where it is not there."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make the roles on PostgreSQL and give each what it needs, as the tables' owner; may be run again.

    RAYHOOK_DATABASE_OWNER_URL says where, and as whom; DATABASE_URL otherwise.
    """
    from rayhook.deploy import database_roles

    settings = _settings(data_dir)
    url = _postgresql(settings)
    wanted = (
        (database_roles.service_role(service_role), service_password_file),
        (database_roles.audit_role(audit_role), audit_password_file),
    )
    passwords = {role: _password(file) for role, file in wanted}
    made = _prepared(url, settings, passwords)
    for role in passwords:
        out.print(f"{role.name}: {'made' if role in made else 'was there'}, granted", highlight=False)


@app.command("migrate")
def migrate(
    service_role: ServiceRole = "rayhook_service",
    audit_role: AuditRole = "rayhook_audit",
    data_dir: DataDir = None,
) -> None:
    """Bring the schema up to date, as the tables' owner, and grant the roles what is new in it.

    RAYHOOK_DATABASE_OWNER_URL says where, and as whom; DATABASE_URL otherwise. Processes of this release and of
    the one before it may go on working meanwhile.
    """
    from rayhook.deploy import database
    from rayhook.deploy.database_roles import audit_role as as_audit
    from rayhook.deploy.database_roles import service_role as as_service

    settings = _settings(data_dir)
    url = _owner_url(settings)
    database.migrate(url.render_as_string(hide_password=False), settings.connection_settings)
    if url.get_backend_name() == "postgresql":
        _grant_to_known(url, settings, (as_service(service_role), as_audit(audit_role)))
    out.print(f"the schema is {database.SCHEMA_REVISION}", highlight=False)


@app.command("check")
def check(
    service_role: ServiceRole = "rayhook_service",
    audit_role: AuditRole = "rayhook_audit",
    processes: Annotated[
        int, typer.Option(min=1, help="Processes of the service and of its workers, on all machines.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Check the database at DATABASE_URL: schema, roles, TLS, connections. Exit status 1 if something is wrong."""
    from rayhook.deploy import database_check, database_roles
    from rayhook.deploy.database import parse_url

    settings = _settings(data_dir)
    roles = (database_roles.service_role(service_role), database_roles.audit_role(audit_role))
    findings = database_check.check(
        parse_url(settings.resolved_database_url), settings.connection_settings, roles, processes=processes
    )
    if as_json:
        told = [{"subject": one.subject, "ok": one.ok, "text": one.text} for one in findings]
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        table = Table("", "subject", "found")
        for one in findings:
            table.add_row("[green]ok[/green]" if one.ok else "[red]wrong[/red]", one.subject, one.text)
        out.print(table)
    raise typer.Exit(0 if all(one.ok for one in findings) else 1)


def _settings(data_dir: Path | None) -> "StorageSettings":
    from rayhook.deploy.storage_settings import StorageSettings

    return StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)


def _owner_url(settings: "StorageSettings") -> "URL":
    from rayhook.deploy.database import parse_url
    from rayhook.deploy.storage_settings import OwnerSettings

    return parse_url(OwnerSettings().database_owner_url or settings.resolved_database_url)


def _postgresql(settings: "StorageSettings") -> "URL":
    from rayhook.fhir.errors import InvalidRequest

    url = _owner_url(settings)
    if url.get_backend_name() != "postgresql":
        raise InvalidRequest("there are roles on PostgreSQL only", code="no_roles", expression="DATABASE_URL")
    return url


def _password(path: Path | None) -> str | None:
    from rayhook.deploy.postgresql import read_password

    if path is None:
        return None
    try:
        with open(path, "x", opener=_private) as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        pass
    return read_password(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _prepared(url: "URL", settings: "StorageSettings", passwords: "dict[Role, str | None]") -> "set[Role]":
    """Return the roles that were made; all is done, or nothing."""
    from rayhook.deploy.database import administering
    from rayhook.deploy.database_roles import grant, make
    from rayhook.deploy.schema import require_owner

    with administering(url, settings.connection_settings) as connection:
        require_owner(connection)
        made = {role for role, password in passwords.items() if make(connection, role, password)}
        grant(connection, passwords)
    return made


def _grant_to_known(url: "URL", settings: "StorageSettings", roles: "Iterable[Role]") -> None:
    from rayhook.deploy.database import administering
    from rayhook.deploy.database_roles import exists, grant

    with administering(url, settings.connection_settings) as connection:
        known = [role for role in roles if exists(connection, role)]
        if known:
            grant(connection, known)
