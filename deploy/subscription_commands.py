"""`rayhook subscription ...`: our Subscriptions to new studies, in the EHRs themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rayhook.deploy.account_commands import AGENT
from rayhook.fhir.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from rayhook.auth.registry import EHR
    from rayhook.inference.subscription_upkeep import SubscriptionUpkeep

app = typer.Typer(
    no_args_is_help=True, help="Make, list and delete Rayhook's Subscriptions to new studies in an EHR."
)

EHRId = Annotated[str, typer.Option("--ehr", metavar="ID", help="The EHR's id in the registry.")]

out = Console()


@app.command("create")
def create(ehr: EHRId) -> None:
    """Have the EHR notify Rayhook of new studies; a Subscription that is there and in order stays.

    Run it with the service up and with its settings: the EHR shakes hands at once. The service renews it.
    """
    with _opened(ehr) as (upkeep, known):
        made, is_new = upkeep.create(known, agent=AGENT)
    act = "made" if is_new else "there already"
    out.print(f"Subscription/{made.get('id')} is {act}, {made.get('status')}", highlight=False)


@app.command("list")
def list_subscriptions(ehr: EHRId) -> None:
    """Print the Subscriptions that the EHR has for Rayhook, and what was heard of them."""
    from rayhook.inference.arrival_source import SourceKind, sources_of

    with _opened(ehr) as (upkeep, known):
        found = upkeep.at(known).ours()
        with upkeep.reading() as session:
            rows = {row.name: row for row in sources_of(session, known.id, SourceKind.SUBSCRIPTION)}
    table = Table("id", "status", "topic", "end", "events heard", "last heard")
    for one in found:
        row = rows.get(str(one.get("id")))
        count = "" if row is None or row.complete is None else str(row.complete)
        last = "never" if row is None or row.heard_at is None else _moment(row.heard_at)
        table.add_row(*(str(one.get(name, "")) for name in ("id", "status", "criteria", "end")), count, last)
    out.print(table)


@app.command("delete")
def delete(
    ehr: EHRId,
    subscription_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Id of the Subscription; all of Rayhook's otherwise.")
    ] = None,
) -> None:
    """Delete one of Rayhook's Subscriptions in the EHR, or all of them."""
    with _opened(ehr) as (upkeep, known):
        ids = [str(one.get("id")) for one in upkeep.at(known).ours()]
        if subscription_id is not None and subscription_id not in ids:
            raise NotFound("the EHR has no such Subscription of Rayhook's", code="subscription_not_found")
        for id_ in ids if subscription_id is None else [subscription_id]:
            upkeep.delete(known, id_, agent=AGENT)
            out.print(f"Subscription/{id_} is deleted", highlight=False)


def _moment(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S}"


@contextmanager
def _opened(ehr_id: str) -> "Iterator[tuple[SubscriptionUpkeep, EHR]]":
    from rayhook.auth.registry import load_registry
    from rayhook.deploy.backend_tokens import backend_tokens
    from rayhook.deploy.maintenance import Installation
    from rayhook.deploy.settings import load_settings
    from rayhook.fhir.transport import Transport
    from rayhook.inference.authority import Authority
    from rayhook.inference.subscription_upkeep import SubscriptionUpkeep

    settings = load_settings()
    registry = load_registry(settings.ehr_registry, development=settings.development)
    ehr = registry.by_id(ehr_id)
    if ehr is None or ehr.arrivals.subscription is None or ehr.backend is None:
        raise InvalidRequest(
            "the registry has no EHR of this id with [ehr.subscription] and [ehr.backend]",
            code="subscription_not_registered",
        )
    transport = Transport(
        ca_bundle=settings.ca_bundle,
        allow_loopback_http=settings.development,
        private_origins=registry.private_origins,
    )
    try:
        with Installation.opened(settings) as installation:
            database, keyring, audit = installation.database, installation.keyring, installation.audit
            tokens = backend_tokens(transport, keyring, database.sessions, audit)
            upkeep = SubscriptionUpkeep(
                registry=registry,
                sessions=database.sessions,
                reading=database.reading,
                keyring=keyring,
                audit=audit,
                transport=transport,
                authority=Authority(tokens),
                public_base_url=settings.public_base_url,
            )
            yield upkeep, ehr
    finally:
        transport.close()
