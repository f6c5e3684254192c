"""`rayhook patient ...`: the erasure of a patient, by two people."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rayhook.deploy.erasures import ErasureUpkeep
    from rayhook.deploy.maintenance import Installation

app = typer.Typer(no_args_is_help=True, help="Erase patients, by two people.")

Account = Annotated[str, typer.Option(help="Your account: an administrator's or a compliance officer's.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]
ProofStdin = Annotated[
    bool,
    typer.Option(
        "--proof-stdin",
        help="Read password and code, and for `shred` the patient's id once more, from standard input, a line each.",
    ),
]

out = Console()


@app.command("shred")
def shred(
    ehr: Annotated[str, typer.Option(help="The EHR that the patient is of.")],
    patient: Annotated[str, typer.Option(help="The patient's id in that EHR.")],
    reason: Annotated[str, typer.Option(help="Why; a case number, for example.")],
    account: Account,
    *,
    with_audit: Annotated[
        bool,
        typer.Option(
            "--with-audit",
            help="Also what the audit trail says of the patient, before its retention is over.",
        ),
    ] = False,
    proof_stdin: ProofStdin = False,
    data_dir: DataDir = None,
) -> None:
    """Destroy the patient's key: nobody can read anything of the patient any more, in no copy that this one reaches.

    It takes two people: the first asks, the second gives the same command with their own account. It cannot be undone.
    """
    from rayhook.deploy.key_approval import approver
    from rayhook.inference.erasure import ErasurePatient

    wanted = ErasurePatient(ehr, patient)
    with _opened(data_dir) as (installation, upkeep):
        lines = _proof(from_stdin=proof_stdin)
        person = approver(installation, account, password=next(lines), code=next(lines))
        erasures = upkeep.erasures
        with installation.database.sessions() as session:
            waiting = erasures.waiting_for(session, wanted)
            jobs, results = erasures.holdings(session, wanted)
        out.print(f"{jobs} analyses and {results} results of this patient", highlight=False)
        _confirm(patient, lines)
        if waiting is None:
            with installation.database.sessions() as session:
                id_ = erasures.ask(session, wanted, reason=reason, takes_audit=with_audit, agent=person.agent)
                session.commit()
            out.print(
                f"erasure {id_} is asked for; somebody else has to give the same command", highlight=False
            )
            return
        with installation.database.sessions() as session:
            done = erasures.confirm(session, waiting.id, agent=person.agent)
            session.commit()
        upkeep.told(done)
    out.print(
        f"erased: {len(done.key_ids)} keys destroyed, {len(done.count.results)} results", highlight=False
    )


@app.command("withdraw")
def withdraw(
    id_: Annotated[str, typer.Argument(metavar="ID")],
    account: Account,
    *,
    proof_stdin: ProofStdin = False,
    data_dir: DataDir = None,
) -> None:
    """Withdraw an erasure that waits for its second person."""
    from rayhook.deploy.key_approval import approver

    with _opened(data_dir) as (installation, upkeep):
        lines = _proof(from_stdin=proof_stdin)
        person = approver(installation, account, password=next(lines), code=next(lines))
        with installation.database.sessions() as session:
            upkeep.erasures.withdraw(session, id_, agent=person.agent)
            session.commit()
    out.print(f"erasure {id_} is withdrawn", highlight=False)


@app.command("list")
def list_erasures(data_dir: DataDir = None) -> None:
    """Print the erasures by id, EHR, state and times; who the patients were is on the page for it."""
    with _opened(data_dir) as (installation, upkeep), installation.database.reading() as session:
        found = upkeep.erasures.listed(session)
    for one in found:
        decided = "" if one.decided_at is None else f", decided {_day(one.decided_at)}"
        audit = ", with the audit" if one.takes_audit else ""
        line = f"{one.id} of {one.ehr_id}: {one.state.value}{audit}, asked for {_day(one.asked_at)}{decided}"
        out.print(line, highlight=False, soft_wrap=True)


@contextmanager
def _opened(data_dir: Path | None) -> "Iterator[tuple[Installation, ErasureUpkeep]]":
    from rayhook.deploy.erasures import open_erasures
    from rayhook.deploy.logging import configure_logging
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.settings import LogFormat
    from rayhook.deploy.storage_settings import StorageSettings

    configure_logging(level="WARNING", log_format=LogFormat.CONSOLE)
    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation:
        yield (
            installation,
            open_erasures(settings, installation.database, installation.keyring, installation.audit),
        )


def _proof(*, from_stdin: bool) -> Iterator[str]:
    """Yield password, code and confirmation; never from the command line, which others on the machine can read."""
    if from_stdin:
        yield from (line.strip() for line in sys.stdin)
        return
    yield str(typer.prompt("Password", hide_input=True))
    yield str(typer.prompt("Code of the app")).strip()
    yield str(typer.prompt("Type the patient's id again: this cannot be undone")).strip()


def _confirm(patient: str, lines: Iterator[str]) -> None:
    if next(lines, None) != patient:
        raise typer.BadParameter("is not what was typed to confirm it", param_hint="--patient")


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
