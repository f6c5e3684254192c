"""The one way to a Redis client: bounded waits, and TLS that is checked."""

import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rayhook.fhir.errors import InvalidRequest

_SCHEMES: Final = frozenset({"redis", "rediss", "unix"})
_TIMEOUT_S: Final = 1.0
_ALIVE_EVERY_S: Final = 15


def connect(
    url: str, *, ca_bundle: Path | None = None, timeout_s: float = _TIMEOUT_S, retries: int = 1
) -> redis.Redis:
    """Return a client of the server at `url`, which need not be there yet; safe to share between threads.

    `rediss` URLs: at least TLS 1.2, the certificate and the name in it checked against `ca_bundle`, or the
    system's authorities. Raises InvalidRequest for a URL that is not one of Redis.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        raise InvalidRequest(
            "the URL must begin with redis://, rediss:// or unix://",
            code="invalid_setting",
            expression="RAYHOOK_REDIS_URL",
        )
    options: dict[str, object] = {}
    if urlsplit(url).scheme == "rediss":
        options = {
            "ssl_ca_certs": None if ca_bundle is None else str(ca_bundle),
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }
    try:
        client: redis.Redis = redis.Redis.from_url(
            url,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            health_check_interval=_ALIVE_EVERY_S,
            # A restarted server closes every pooled connection: one try more finds it.
            retry=Retry(NoBackoff(), retries),
            client_name="rayhook",
            **options,
        )
    except ValueError as error:
        raise InvalidRequest(
            "not a Redis URL", code="invalid_setting", expression="RAYHOOK_REDIS_URL"
        ) from error
    return client
