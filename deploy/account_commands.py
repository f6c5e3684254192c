"""`rayhook account ...`: the staff's local accounts, from the command line of the machine that holds the keyring."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayhook.auth.roles import Role

if TYPE_CHECKING:
    from rayhook.smart_app.account_acts import AccountActs

app = typer.Typer(no_args_is_help=True, help="Keep the local accounts of the staff.")

AGENT = "rayhook command line"

Name = Annotated[str, typer.Argument(help="Name of the account: letters, digits and . _ @ + -")]
Roles = Annotated[
    list[Role],
    typer.Option("--role", help="administrator, compliance_officer or model_manager; may be repeated."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]
BaseURL = Annotated[
    str,
    typer.Option(
        envvar="RAYHOOK_PUBLIC_BASE_URL", help="Base URL of the service, for the invitation's link."
    ),
]
_BASE_URL = "http://127.0.0.1:8000"

out = Console()


@app.command("create")
def create(
    name: Name,
    roles: Roles,
    *,
    invite: Annotated[
        bool, typer.Option("--invite", help="Print a link, good once and for a day, instead of a password.")
    ] = False,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    data_dir: DataDir = None,
    base_url: BaseURL = _BASE_URL,
) -> None:
    """Make an account, before the first start too. Prints once what its authenticator app needs."""
    from rayhook.auth.one_time_codes import enrolment_uri, qr_text
    from rayhook.deploy.accounts import opened_accounts
    from rayhook.deploy.logging import configure_logging
    from rayhook.deploy.settings import LogFormat

    configure_logging(level="WARNING", log_format=LogFormat.CONSOLE)
    with opened_accounts(data_dir, make=True) as acts:
        if invite:
            account, token = acts.create(name, roles, agent=AGENT)
            _print_invitation(account.name, token, base_url)
            return
        password = _read_password(from_stdin=password_stdin)
        enrolled = acts.create_enrolled(name, roles, password, agent=AGENT)
    uri = enrolment_uri(enrolled.secret, account_name=enrolled.account.name)
    sys.stdout.write(f"{qr_text(uri)}\n")
    out.print(f"[bold]For the authenticator app, shown once:[/bold] {uri}", soft_wrap=True, highlight=False)
    out.print("[bold]Recovery codes, each good once:[/bold]")
    for code in enrolled.recovery_codes:
        out.print(f"  {code}", highlight=False)


@app.command("list")
def list_accounts(data_dir: DataDir = None) -> None:
    """Print the accounts, their roles and their last sign-in; the reading is itself recorded."""
    from rayhook.deploy.accounts import opened_accounts

    table = Table("name", "roles", "state", "last sign-in")
    with opened_accounts(data_dir) as acts:
        for account in acts.all(agent=AGENT):
            state = "disabled" if account.disabled else "active" if account.enrolled else "invited"
            last = account.signed_in_at
            moment = "never" if last is None else f"{datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M:%S}"
            table.add_row(account.name, ", ".join(sorted(account.roles)), state, moment)
    out.print(table)


@app.command("disable")
def disable(name: Name, data_dir: DataDir = None) -> None:
    """Close an account and end its sessions."""
    with _account(name, data_dir) as (acts, account_id):
        acts.disable(account_id, agent=AGENT)
    out.print("[green]disabled[/green]")


@app.command("enable")
def enable(name: Name, data_dir: DataDir = None) -> None:
    """Open a closed account again; its password and authenticator app are what they were."""
    with _account(name, data_dir) as (acts, account_id):
        acts.enable(account_id, agent=AGENT)
    out.print("[green]enabled[/green]")


@app.command("reset")
def reset(name: Name, data_dir: DataDir = None, base_url: BaseURL = _BASE_URL) -> None:
    """Void an account's password, app and recovery codes, end its sessions, and print a new invitation."""
    with _account(name, data_dir) as (acts, account_id):
        account, token = acts.reset(account_id, agent=AGENT)
    _print_invitation(account.name, token, base_url)


@app.command("roles")
def give_roles(name: Name, roles: Roles, data_dir: DataDir = None) -> None:
    """Give an account these roles, and no other; its next request has them."""
    with _account(name, data_dir) as (acts, account_id):
        account = acts.give_roles(account_id, roles, agent=AGENT)
    out.print(", ".join(sorted(account.roles)))


@contextmanager
def _account(name: str, data_dir: Path | None) -> Iterator[tuple["AccountActs", str]]:
    from rayhook.deploy.accounts import opened_accounts

    with opened_accounts(data_dir) as acts:
        yield acts, acts.named(name).id


def _read_password(*, from_stdin: bool) -> str:
    """Never from the command line, which other users of the machine can read."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


def _print_invitation(name: str, token: str, base_url: str) -> None:
    out.print(f"Invitation for {name}, good once and for 24 hours, shown once:", highlight=False)
    out.print(f"{base_url}/sign-in/enrol/{token}", soft_wrap=True, highlight=False)
