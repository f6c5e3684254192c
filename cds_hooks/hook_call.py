"""A call that was understood: its caller known, its form checked, its patient the same wherever one is named."""

from collections.abc import Mapping
from dataclasses import dataclass

from rayhook.auth.principal import CDSClientPrincipal
from rayhook.cds_hooks.contexts import Context
from rayhook.cds_hooks.dependencies import CDSDependencies
from rayhook.cds_hooks.json_body import parse_json
from rayhook.cds_hooks.models import HookRequest, read
from rayhook.cds_hooks.prefetch import Fetcher
from rayhook.cds_hooks.services import Service
from rayhook.cds_hooks.trust import Attempt, check_token_patient, fhir_base_url
from rayhook.fhir.client import FHIRClient
from rayhook.fhir.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Received:
    """A request's body, and when it was there (monotonic): time limits count from then."""

    body: bytes
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    service: Service
    principal: CDSClientPrincipal
    request: HookRequest
    context: Context
    base_url: str
    fetcher: Fetcher | None


def read_call(
    dependencies: CDSDependencies, hooks: Mapping[str, Service], attempt: Attempt, received: Received
) -> Call:
    """Return the call of one of `hooks`; `attempt` learns on the way what is known of it.

    Raises InvalidRequest that names the member at fault, IdentityConflict for a token of another patient.
    """
    request = read(parse_json(received.body), HookRequest)
    if request.hook not in hooks:
        allowed = " or ".join(sorted(hooks))
        raise InvalidRequest(f"hook must be {allowed} for this service", expression="hook")
    service = hooks[request.hook]
    context = read(request.context, service.context, under="context")
    attempt.patient_id, attempt.user_id = context.patient_id, context.user_id
    check_token_patient(request.fhir_authorization, context.patient_id)
    base_url = fhir_base_url(request, attempt.principal.ehr)
    return Call(
        service=service,
        principal=attempt.principal,
        request=request,
        context=context,
        base_url=base_url,
        fetcher=_fetcher(dependencies, request, attempt.principal, base_url, received.at),
    )


def _fetcher(
    dependencies: CDSDependencies,
    request: HookRequest,
    principal: CDSClientPrincipal,
    base_url: str,
    received_at: float,
) -> Fetcher | None:
    """Spec: CDS Hooks 2.0.1, "Passing the Access Token": without a token nothing is fetched."""
    if request.fhir_authorization is None:
        return None
    client = FHIRClient(
        dependencies.transport,
        base_url,
        principal.ehr.fhir_origins,
        request.fhir_authorization.access_token,
    )
    return Fetcher(client, dependencies.pool, received_at + dependencies.fetch_s)
