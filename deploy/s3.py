"""The client of S3, made from its address and AWS's own variables."""

from rayhook.audit.s3_anchor import S3Anchor
from rayhook.fhir.errors import InvalidRequest

_TIMEOUT_S = 10


def anchor_at(address: str, *, kept_days: int) -> S3Anchor:
    """Return the anchor at `s3://bucket/prefix`.

    Region, credentials, certificate bundle and endpoint are found as every program of AWS finds them. Raises
    InvalidRequest where what they say cannot be used.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    config = Config(
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        max_pool_connections=16,
        retries={"mode": "standard", "total_max_attempts": 2},
        user_agent_extra="rayhook",
    )
    try:
        client = boto3.client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise InvalidRequest(
            f"the AWS_* variables cannot be used: {type(error).__name__}", code="bad_aws_settings"
        ) from error
    return S3Anchor(client, bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "", kept_days)
