"""`rayhook conformance`: what an integrator runs against a deployment."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rayhook.fhir.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="Check a running deployment against a specification.")

_STYLES = {"failed": "red", "passed": "green", "skipped": "yellow", "unseen": "dim"}


@app.callback()
def conformance() -> None:
    """Keep `cds` a command of its own, where there is but one."""


@app.command()
def cds(
    *,
    base_url: Annotated[str, typer.Option(help="Base URL of the deployment, without /cds-services.")],
    issuer: Annotated[str, typer.Option(help="`iss` of a registered test client.")] = "",
    key: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="That client's private key: a JWK with its kid."),
    ] = None,
    audience: Annotated[
        str | None, typer.Option(help="Base URL for `aud`, where a proxy hides the deployment's own.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="`tenant` of the client's tokens, where it has any.")
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="JSON body of a patient-view call, for cards on real results."
        ),
    ] = None,
    ca_bundle: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="PEM file to check the TLS certificate with."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check CDS Hooks requirement by requirement. Exit status 1 if a MUST does not hold.

    Without a key only what needs no client is checked. A patient "conformance-check" without images is asked about;
    no analysis is begun.
    """
    import ssl

    import httpx

    from rayhook.deploy.conformance.report import run_checks, summary
    from rayhook.deploy.conformance.target import Target

    base = base_url.rstrip("/")
    trust = ssl.create_default_context(cafile=None if ca_bundle is None else str(ca_bundle))
    with httpx.Client(base_url=base, timeout=10, verify=trust, trust_env=False) as client:
        target = Target(
            client=client,
            audience=(audience or base).rstrip("/"),
            issuer=issuer,
            key=None if key is None else _read_key(key),
            tenant=tenant,
            request=None if request is None else _read(request),
        )
        results = run_checks(target)
    counts = summary(results)
    if as_json:
        told = {"base_url": base, "summary": counts, "requirements": [result.json() for result in results]}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        _print(results, counts)
    raise typer.Exit(1 if any(result.is_breach for result in results) else 0)


def _print(results: list[Any], counts: dict[str, int]) -> None:
    table = Table("id", "level", "result", "checks", "requirement", box=None, padding=(0, 1))
    for result in results:
        style = _STYLES[result.outcome]
        detail = f"\n[dim]{result.detail}[/dim]" if result.detail else ""
        table.add_row(
            result.requirement.id,
            result.requirement.level,
            f"[{style}]{result.outcome}[/{style}]",
            str(result.checks or ""),
            f"{result.requirement.text}{detail}",
        )
    console = Console()
    console.print(table)
    console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON", code="invalid_argument") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} is not a JSON object", code="invalid_argument")
    return value


def _read_key(path: Path) -> Any:
    from joserfc.errors import JoseError
    from joserfc.jwk import import_key

    try:
        found = import_key(_read(path))
    except (JoseError, ValueError) as error:
        raise InvalidRequest(f"{path} is not a JWK", code="invalid_argument") from error
    if not found.is_private or not found.kid:
        raise InvalidRequest(f"{path} has to be a private key with a kid", code="invalid_argument")
    return found
