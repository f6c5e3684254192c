"""Whether a request that acts came from one of our own pages."""

from typing import Final

from fastapi import Request

from rayhook.fhir.errors import Forbidden

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})


def require_own_page(request: Request, public_base_url: str) -> None:
    """The session cookie is sent from other sites too: a form of theirs must not act.

    Spec: Fetch Metadata, `Sec-Fetch-Site`; RFC 6454 `Origin`
    """
    site = request.headers.get("Sec-Fetch-Site")
    own = site == "same-origin" if site is not None else request.headers.get("Origin") == public_base_url
    if not own:
        raise Forbidden("the request did not come from a page of this service", code="cross_site_request")
