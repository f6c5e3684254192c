"""`rayhook audit ...`: verify, prove, read, export and keep the audit trail."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayhook.audit.export import ExportFormat

if TYPE_CHECKING:
    from rayhook.audit.checkpoint import Witness
    from rayhook.audit.report import ChainReport
    from rayhook.deploy.audit_desk import AuditDesk
    from rayhook.deploy.storage_settings import StorageSettings

app = typer.Typer(no_args_is_help=True, help="Verify, prove, read, export and keep the audit trail.")
hold = typer.Typer(no_args_is_help=True, help="Legal holds: what they name is not purged.")
app.add_typer(hold, name="hold")

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]
PublicKey = Annotated[
    Path | None,
    typer.Option(exists=True, help="PEM file of the pinned key; the installation's own otherwise."),
]
From = Annotated[
    datetime | None, typer.Option("--from", help="First day, or moment in UTC.", show_default=False)
]
To = Annotated[
    datetime | None, typer.Option("--to", help="Day or moment in UTC up to which, not itself included.")
]

out = Console()


@app.command("verify")
def verify(
    data_dir: DataDir = None,
    public_key: PublicKey = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|s3://BUCKET/PREFIX",
            help="Another copy of the anchor file, kept elsewhere, or the anchor under S3's object lock.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A file of statements kept elsewhere: an anchor file, a printed digest, a proof. Of another copy "
            "of the log too: it shows whether the two went apart. May be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check the whole audit trail. Exit status 1 if anything was changed, removed, added, reordered or rewritten."""
    settings = _settings(data_dir)
    witness = None if anchor is None else _witness(anchor, settings)
    if public_key is not None and not settings.keyring_path.exists():
        from rayhook.deploy.audit_desk import verify_elsewhere

        report = verify_elsewhere(settings, public_key, anchor=witness, checkpoints=checkpoint or ())
    else:
        with _desk(data_dir) as desk:
            report = desk.verify(public_key, anchor=witness, checkpoints=checkpoint or ())
    if as_json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
    else:
        _print_report(report)
    raise typer.Exit(0 if report.intact else 1)


@app.command("list")
def list_events(
    data_dir: DataDir = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the newest events.")] = 50,
) -> None:
    """Print the newest audit events; the reading is itself recorded."""
    with _desk(data_dir) as desk:
        events = desk.recent_events(limit)
    table = Table("seq", "recorded", "outcome", "patient", "agent", box=None, padding=(0, 1))
    table.add_column("kind", no_wrap=True)
    for event in events:
        table.add_row(
            str(event.seq),
            f"{event.recorded_at:%Y-%m-%d %H:%M:%S}",
            event.outcome.name.lower(),
            event.patient_id,
            event.agent,
            event.kind,
        )
    out.print(table)


@app.command("public-key")
def public_key(data_dir: DataDir = None) -> None:
    """Print the key that checkpoints are verified with, to be kept outside the installation."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    with _desk(data_dir) as desk:
        key = desk.installation.keyring.audit_public_key
    sys.stdout.write(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@app.command("digest")
def digest(data_dir: DataDir = None) -> None:
    """Sign the log as it is, and print the statement with a QR code, to be printed and filed."""
    import segno

    from rayhook.audit.checkpoint import printed

    with _desk(data_dir) as desk:
        checkpoint = desk.digest()
    line = printed(checkpoint)
    head = checkpoint.tree_head
    sys.stdout.write(f"{line}\n\n{head.size} events on {head.signed_at}\n\n")
    segno.make(line, error="m").terminal(out=sys.stdout, compact=True)


@app.command("prove")
def prove(
    seq: Annotated[int, typer.Argument(min=1, help="The event's number.")],
    output: Annotated[Path, typer.Option("--out", dir_okay=False, help="File to write the proof to.")],
    data_dir: DataDir = None,
    since: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A statement kept from before: prove also that the log only grew since then.",
        ),
    ] = None,
) -> None:
    """Make the proof that an event is in the log; it holds without the database, and its values stay sealed."""
    with _desk(data_dir) as desk:
        proof = desk.prove(seq, since=since)
    output.write_text(proof.to_json() + "\n")
    out.print(f"the proof of event {seq} is in {output}", soft_wrap=True)


@app.command("check-proof")
def check_proof(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The proof.")],
    key: Annotated[Path, typer.Option("--public-key", exists=True, help="PEM file of the pinned key.")],
) -> None:
    """Check a proof on any machine. Exit status 1 if it does not hold."""
    from rayhook.audit.proof import Proof
    from rayhook.deploy.audit_desk import read_public_key

    proof = Proof.from_json(path.read_bytes())
    _end(
        proof.problems(read_public_key(key)),
        f"event {proof.seq} is in the log of {proof.checkpoint.tree_head.size} events",
    )


@app.command("export")
def export(
    output: Annotated[
        Path, typer.Option("--out", dir_okay=False, help="File to write; the manifest is beside it.")
    ],
    *,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="How to write the events.")
    ] = ExportFormat.NDJSON,
    since: From = None,
    until: To = None,
    data_dir: DataDir = None,
    base_url: Annotated[
        str,
        typer.Option(envvar="RAYHOOK_PUBLIC_BASE_URL", help="Base URL of the service, for the FHIR form."),
    ] = "http://127.0.0.1:8000",
) -> None:
    """Write events, opened, to a file with a signed manifest; the export is itself recorded."""
    from rayhook.audit.review import AuditSearch
    from rayhook.deploy.audit_desk import manifest_path

    wanted = AuditSearch(since=_utc(since), until=_utc(until))
    with _desk(data_dir) as desk:
        manifest = desk.export(output, form=form, wanted=wanted, made_at=datetime.now(UTC), address=base_url)
    out.print(f"{manifest.count} events are in {output}, told by {manifest_path(output)}", soft_wrap=True)


@app.command("check-export")
def check_export(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The exported file.")],
    key: Annotated[Path, typer.Option("--public-key", exists=True, help="PEM file of the pinned key.")],
) -> None:
    """Check an export by the manifest beside it, on any machine. Exit status 1 if it does not hold."""
    from rayhook.audit.export import check_export as problems_of
    from rayhook.deploy.audit_desk import manifest_path, read_public_key

    problems = problems_of(path, manifest_path(path).read_bytes(), read_public_key(key))
    _end(problems, "the file is what was exported")


@app.command("purge")
def purge(
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Replace events past their retention by a signed tombstone, except for what a legal hold keeps."""
    with _desk(data_dir) as desk:
        plan = desk.purge(now=datetime.now(UTC), dry_run=dry_run)
    verb = "would be" if dry_run else "were"
    span = "" if plan.first_seq is None else f" (numbers {plan.first_seq} to {plan.last_seq})"
    out.print(f"{plan.count} events {verb} purged{span}; {plan.held} expired ones are held: {plan.policy}")


@app.command("rotate-key")
def rotate_key(data_dir: DataDir = None) -> None:
    """Let a new key sign checkpoints; the old one vouches for it. A running service takes it up."""
    with _desk(data_dir) as desk:
        desk.rotate_key()
    out.print("the new key signs from now on; the old public key still verifies the log")


@hold.command("add")
def hold_add(
    reason: Annotated[str, typer.Option(help="Why; a case number, for example.")],
    *,
    ehr: Annotated[str | None, typer.Option(help="The EHR of the patient or person.")] = None,
    patient: Annotated[str | None, typer.Option(help="Hold what was done with this patient's data.")] = None,
    user: Annotated[str | None, typer.Option(help="Hold what this person did.")] = None,
    first: Annotated[int | None, typer.Option("--first-seq", help="Hold events from this number.")] = None,
    last: Annotated[int | None, typer.Option("--last-seq", help="Hold events to this number.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Place a legal hold on a patient, a person or a range of events."""
    from rayhook.audit.retention import HoldSubject

    subject = HoldSubject(ehr_id=ehr, patient_id=patient, agent=user, first_seq=first, last_seq=last)
    with _desk(data_dir) as desk:
        id_ = desk.place_hold(subject, reason=reason, now=datetime.now(UTC))
    out.print(f"hold {id_} is in force")


@hold.command("release")
def hold_release(id_: Annotated[str, typer.Argument(metavar="ID")], data_dir: DataDir = None) -> None:
    """Release a legal hold."""
    with _desk(data_dir) as desk:
        desk.release_hold(id_, now=datetime.now(UTC))
    out.print(f"hold {id_} is released")


@hold.command("list")
def hold_list(data_dir: DataDir = None) -> None:
    """Print all legal holds, also those released."""
    with _desk(data_dir) as desk:
        holds = desk.holds()
    table = Table("id", "of", "reason", "placed", "released")
    for one in holds:
        released = "" if one.released_at is None else f"{one.released_at:%Y-%m-%d}"
        table.add_row(one.id, one.subject, one.reason, f"{one.placed_at:%Y-%m-%d}", released)
    out.print(table)


def _witness(anchor: str, settings: "StorageSettings") -> "Path | Witness":
    from rayhook.deploy.storage_settings import S3_ADDRESS

    if anchor.startswith("s3://"):
        from rayhook.deploy.s3 import anchor_at

        if re.fullmatch(S3_ADDRESS, anchor) is None:
            raise typer.BadParameter("must be s3://bucket/prefix", param_hint="--anchor")
        return anchor_at(anchor, kept_days=settings.longest_retention_days)
    if not Path(anchor).is_file():
        raise typer.BadParameter(f"file '{anchor}' does not exist", param_hint="--anchor")
    return Path(anchor)


def _settings(data_dir: Path | None) -> "StorageSettings":
    from rayhook.deploy.storage_settings import StorageSettings

    return StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)


@contextmanager
def _desk(data_dir: Path | None) -> Iterator["AuditDesk"]:
    from rayhook.deploy.audit_desk import AuditDesk
    from rayhook.deploy.maintenance import Installation

    settings = _settings(data_dir)
    with Installation.opened(settings) as installation:
        yield AuditDesk(installation, settings.retention_policy)


def _print_report(report: "ChainReport") -> None:
    verdict = "[green]intact[/green]" if report.intact else "[red]not intact[/red]"
    out.print(
        f"{verdict}: {report.size} events, {report.sealed_size} of them under a signed checkpoint, "
        f"{report.purged} purged under a signed tombstone"
    )
    for problem in report.problems:
        first, last = problem.span
        numbers = f"event {first}" if first == last else f"events {first} to {last}"
        out.print(f"[red]{numbers}[/red]: {problem.kind}")


def _end(problems: list[str], holds: str) -> None:
    for problem in problems:
        out.print(f"[red]{problem}[/red]")
    if not problems:
        out.print(f"[green]holds[/green]: {holds}")
    raise typer.Exit(1 if problems else 0)


def _utc(moment: datetime | date | None) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    return moment.replace(tzinfo=UTC)
