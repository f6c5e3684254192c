"""`rayhook keys encryption ...`: the rotation of the keys that stored values are sealed by."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from rayhook.deploy.encryption_desk import EncryptionDesk, KeyReport
    from rayhook.deploy.sealed_columns import SealedColumn

app = typer.Typer(no_args_is_help=True, help="Rotate the keys that stored values are sealed by.")

_MINUTE_S = 60.0

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]
KeyId = Annotated[int, typer.Argument(metavar="KEY", help="The key's id, as `status` prints it.")]

out = Console()
err = Console(stderr=True)


@app.command("status")
def status(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the keys: their state, how many stored values need each, and how often it has sealed."""
    from rayhook.auth.encryption import MAX_USES

    with _desk(data_dir) as desk:
        report = desk.report()
    if as_json:
        content = {
            "keys": [_as_json(key) for key in report.keys],
            "data_keys": report.data_keys,
            "unknown": report.unknown,
        }
        sys.stdout.write(json.dumps(content) + "\n")
        return
    table = Table("key", "state", "added", "may seal from", "values", "of these hashed", "files", "uses")
    for key in report.keys:
        one = key.status
        share = key.uses / MAX_USES
        worn = f" [red]({share:.0%} of its limit: rotate)[/red]" if key.is_worn else ""
        times = (_moment(one.added_at), _moment(one.ready_at))
        table.add_row(
            str(one.key_id),
            one.state,
            *times,
            str(key.values),
            str(key.hashed),
            str(key.files),
            f"{key.uses}{worn}",
        )
    out.print(table)
    out.print(f"{report.data_keys} values are under data keys of patients and of the log", highlight=False)
    if report.unknown:
        out.print(f"[red]{report.unknown} values are under no key of this keyring[/red]", highlight=False)


@app.command("add")
def add(
    data_dir: DataDir = None,
    grace_minutes: Annotated[
        float,
        typer.Option(
            min=1.0, max=60.0 * 24 * 30, help="How long until every process surely has the new file."
        ),
    ] = 60.0,
) -> None:
    """Add a key that opens at once and does not seal yet. Bring the file to every machine that has a copy."""
    with _desk(data_dir) as desk:
        key = desk.add(distribution_s=grace_minutes * _MINUTE_S)
    out.print(f"key {key.key_id} may be promoted from {_moment(key.ready_at)} on", highlight=False)


@app.command("promote")
def promote(data_dir: DataDir = None) -> None:
    """Let the added key seal from now on. Refused until every process surely has it."""
    with _desk(data_dir) as desk:
        key = desk.promote()
    out.print(
        f"key {key.key_id} seals from now on; `reencrypt` brings older values under it", highlight=False
    )


@app.command("reencrypt")
def reencrypt(
    data_dir: DataDir = None,
    rows_per_second: Annotated[
        float, typer.Option(min=1.0, help="How many values to seal anew in a second at most.")
    ] = 2000.0,
) -> None:
    """Seal everything anew that an older key has sealed, while the service runs. Killed, it goes on where it was.

    Exit status 1 if something is left that could not be opened.
    """
    with _desk(data_dir) as desk, _progress() as progress:
        task = progress.add_task("sealing anew", total=None)

        def told(column: "SealedColumn", rows: int) -> None:
            progress.update(task, description=f"sealing anew: {column}", advance=rows)

        done = desk.reencrypt(rows_per_s=rows_per_second, told=told)
    out.print(f"{done.rewritten} values were sealed anew", highlight=False)
    if done.left:
        out.print(
            f"[red]{done.left} are left, {done.refused} of them could not be opened[/red]", highlight=False
        )
    raise typer.Exit(1 if done.left else 0)


@app.command("disable")
def disable(key_id: KeyId, data_dir: DataDir = None) -> None:
    """Let an old key open nothing more. Refused while a stored value needs it; can be taken back."""
    with _desk(data_dir) as desk:
        desk.disable(key_id)
    out.print(f"key {key_id} is disabled", highlight=False)


@app.command("enable")
def enable(key_id: KeyId, data_dir: DataDir = None) -> None:
    """Let a disabled key open again what it sealed."""
    with _desk(data_dir) as desk:
        desk.enable(key_id)
    out.print(f"key {key_id} opens again", highlight=False)


@app.command("destroy")
def destroy(
    key_id: KeyId,
    account: Annotated[str, typer.Option(help="Your account: an administrator's or a compliance officer's.")],
    *,
    proof_stdin: Annotated[
        bool, typer.Option("--proof-stdin", help="Read password and code from standard input, a line each.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Destroy a disabled key for ever. It takes two people within a day: the first asks, the second does it.

    Backups from before `reencrypt` can then not be read any more.
    """
    from rayhook.deploy.key_approval import approver

    with _desk(data_dir) as desk:
        password, code = _proof(from_stdin=proof_stdin)
        person = approver(desk.installation, account, password=password, code=code)
        is_destroyed = desk.destroy(key_id, person)
    if is_destroyed:
        out.print(f"key {key_id} is destroyed", highlight=False)
    else:
        out.print("asked for; somebody else has to give the same command within 24 hours", highlight=False)


@contextmanager
def _desk(data_dir: Path | None) -> "Iterator[EncryptionDesk]":
    from rayhook.deploy.encryption_desk import EncryptionDesk
    from rayhook.deploy.logging import configure_logging
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.settings import LogFormat
    from rayhook.deploy.storage_settings import StorageSettings

    configure_logging(level="WARNING", log_format=LogFormat.CONSOLE)
    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation:
        yield EncryptionDesk(installation)


def _proof(*, from_stdin: bool) -> tuple[str, str]:
    """Never from the command line, which other users of the machine can read."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n"), sys.stdin.readline().strip()
    return str(typer.prompt("Password", hide_input=True)), str(typer.prompt("Code of the app")).strip()


def _as_json(key: "KeyReport") -> dict[str, Any]:
    one = key.status
    return {
        "key_id": one.key_id,
        "state": one.state.value,
        "added_at": one.added_at,
        "ready_at": one.ready_at,
        "promoted_at": one.promoted_at,
        "values": key.values,
        "hashed_values": key.hashed,
        "files": key.files,
        "uses": key.uses,
        "is_worn": key.is_worn,
        "destruction_requested_at": key.destruction_requested_at,
    }


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:.0f}"))
    return Progress(*columns, TimeElapsedColumn(), console=err, transient=True)
