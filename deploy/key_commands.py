"""`rayhook keys ...`: the keys by which EHRs know our SMART and backend client."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rayhook.auth.client_keys import ClientKeyStatus

app = typer.Typer(no_args_is_help=True, help="Show and rotate the keys of the SMART client.")

_HOUR_S = 3600.0

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]

out = Console()


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """Print the client keys: which sign, which will sign next, and which are still published."""
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.settings import StorageSettings

    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation:
        _print(installation.keyring.client_key_statuses())


@app.command("rotate-client")
def rotate_client(
    data_dir: DataDir = None,
    grace_hours: Annotated[
        float,
        typer.Option(min=1.0, max=24.0 * 90, help="How long the keys that signed so far stay published."),
    ] = 24.0,
) -> None:
    """Let the next client keys sign, make new next ones, and keep the old ones published for a while.

    A running service takes them up by itself. EHRs that read our JWK Set by its URL need nothing done;
    one that holds a copy has to be given the new set before the next rotation.
    """
    from rayhook.audit.events import AuditKind
    from rayhook.audit.record import AuditEntry
    from rayhook.auth.key_rotation import rotate_client_keys
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.settings import StorageSettings

    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation, installation.database.sessions() as session:
        following = " ".join(
            key.kid for key in installation.keyring.client_key_statuses() if key.state == "next"
        )
        entry = AuditEntry(
            AuditKind.AUTH_CLIENT_KEYS_ROTATED, agent="rayhook command line", detail={"kid": following}
        )
        installation.audit.record(session, entry)
        statuses = rotate_client_keys(installation.keyring_file, grace_s=grace_hours * _HOUR_S)
        session.commit()
    _print(statuses)


def _print(statuses: "tuple[ClientKeyStatus, ...]") -> None:
    table = Table("kid", "algorithm", "state", "published until")
    for key in statuses:
        until = "" if key.until is None else f"{datetime.fromtimestamp(key.until, UTC):%Y-%m-%d %H:%M} UTC"
        table.add_row(key.kid, key.algorithm, key.state, until)
    out.print(table)
