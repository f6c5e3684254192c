"""`rayhook model performance`: how people's answers agree with the models."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rayhook.inference.performance import Tally

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the installation; RAYHOOK_DATA_DIR otherwise.", file_okay=False)
]

out = Console()


def performance(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print how often people agree with the models, by week and EHR; groups too small are left out."""
    from rayhook.audit.events import AuditKind
    from rayhook.audit.record import AuditEntry
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.storage_settings import StorageSettings
    from rayhook.inference.held_out import load_held_out
    from rayhook.inference.performance import FEWEST, measure, score_shifts
    from rayhook.inference.registry import load_models

    settings = StorageSettings() if data_dir is None else StorageSettings(data_dir=data_dir)
    with Installation.opened(settings) as installation, installation.database.sessions() as session:
        found = measure(session)
        shifts = score_shifts(session, installation.keyring, load_held_out(load_models()))
        installation.audit.record(
            session, AuditEntry(AuditKind.INFERENCE_PERFORMANCE_READ, agent="rayhook command line")
        )
        session.commit()
    if as_json:
        told = {
            "suppressed_below": FEWEST,
            "models": [asdict(one) for one in found],
            "score_shifts": [asdict(one) for one in shifts],
        }
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    table = Table("model", "version", "finding", "answered", "agreed", "marked, not seen", "missed", "PPV")
    for one in found:
        table.add_row(one.model_id, one.model_version, one.finding, *_cells(one.total))
    out.print(table)
    for shift in shifts:
        out.print(
            f"{shift.model_id} {shift.model_version}: stability index {shift.psi:.2f} over {shift.scores} scores"
        )


def _cells(tally: "Tally") -> tuple[str, ...]:
    if tally.is_suppressed:
        return ("too few", "", "", "", "")
    ppv = (
        "too few"
        if tally.ppv is None
        else f"{tally.ppv.value:.2f} ({tally.ppv.low:.2f}-{tally.ppv.high:.2f})"
    )
    return (str(tally.answered), str(tally.agreed), str(tally.overridden), str(tally.missed), ppv)
