"""`rayhook keys ...`: custody and rotation of the installation's keys."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayhook.deploy.encryption_commands import app as encryption

if TYPE_CHECKING:
    from rayhook.auth.client_keys import ClientKeyStatus
    from rayhook.deploy.keyring_custody import Custody

app = typer.Typer(no_args_is_help=True, help="Show, rotate, wrap and list the installation's keys.")
app.add_typer(encryption, name="encryption")

_HOUR_S = 3600.0

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]
KMSKey = Annotated[
    str,
    typer.Option(
        metavar="aws-kms://ARN", help="The AWS KMS key; RAYHOOK_KMS_KEY has to name it from then on."
    ),
]

out = Console()


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """Print the client keys: which sign, which will sign next, and which are still published."""
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.storage_settings import StorageSettings

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
    from rayhook.deploy.storage_settings import StorageSettings

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


@app.command("wrap")
def wrap(kms_key: KMSKey, data_dir: DataDir = None) -> None:
    """Put a plain keyring under a KMS key. Set RAYHOOK_KMS_KEY afterwards: a service without it will not start."""
    with _custody(data_dir) as custody:
        custody.wrap(kms_key)
    out.print(f"the keyring is wrapped; set RAYHOOK_KMS_KEY={kms_key}", soft_wrap=True, highlight=False)


@app.command("rewrap")
def rewrap(
    data_dir: DataDir = None,
    kms_key: Annotated[
        str | None, typer.Option(metavar="aws-kms://ARN", help="Another KMS key than RAYHOOK_KMS_KEY.")
    ] = None,
) -> None:
    """Put a wrapped keyring under a new data key, of the same KMS key or of another."""
    with _custody(data_dir) as custody:
        custody.rewrap(kms_key)
    if kms_key is not None:
        out.print(f"set RAYHOOK_KMS_KEY={kms_key}", soft_wrap=True, highlight=False)
    out.print("the keyring is wrapped anew")


@app.command("unwrap")
def unwrap(
    *,
    into_a_plain_file: Annotated[
        bool,
        typer.Option(
            "--into-a-plain-file", help="Say that you mean it: the file then holds every key openly."
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Take the keyring out of its envelope. Remove RAYHOOK_KMS_KEY afterwards."""
    from rayhook.fhir.errors import InvalidRequest

    if not into_a_plain_file:
        raise InvalidRequest(
            "the file would hold every key openly; add --into-a-plain-file", code="unwrap_not_meant"
        )
    with _custody(data_dir) as custody:
        custody.unwrap()
    out.print("the keyring is a plain file; remove RAYHOOK_KMS_KEY")


@app.command("inventory")
def inventory(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every use of cryptography: algorithm, key size, purpose, where, rotation, and what of quantum computers."""
    from rayhook.deploy.crypto_inventory import INVENTORY, as_json_text

    if as_json:
        sys.stdout.write(as_json_text() + "\n")
        return
    table = Table("use", "algorithm", "bits", "rotation", "post-quantum")
    for use in INVENTORY:
        table.add_row(use.purpose, use.algorithm, str(use.key_bits or ""), use.rotation, use.post_quantum)
    out.print(table)


@contextmanager
def _custody(data_dir: Path | None) -> "Iterator[Custody]":
    from rayhook.deploy.keyring_custody import Custody
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.storage_settings import StorageSettings

    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation:
        yield Custody(installation, settings)


def _print(statuses: "tuple[ClientKeyStatus, ...]") -> None:
    table = Table("kid", "algorithm", "state", "published until")
    for key in statuses:
        until = "" if key.until is None else f"{datetime.fromtimestamp(key.until, UTC):%Y-%m-%d %H:%M} UTC"
        table.add_row(key.kid, key.algorithm, key.state, until)
    out.print(table)
