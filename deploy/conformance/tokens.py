"""JWTs that a service must not let in: forged, skewed, incomplete, or meant for somebody else.

Spec: CDS Hooks 2.0.1, "Trusting CDS Clients"; RFC 7515, 7518, 7519; RFC 8725
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from joserfc import jwt
from joserfc.jwk import ECKey

from rayhook.deploy.conformance.target import JSONObject, Target


@dataclass(frozen=True, slots=True)
class Forgery:
    """A name for the report, the requirement it is about, and how to make the token for an endpoint."""

    name: str
    requirement: str
    token: Callable[[Target, str], str]


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(header: JSONObject, claims: JSONObject, signature: str = "") -> str:
    parts = [base64url(json.dumps(part).encode()) for part in (header, claims)]
    return ".".join([*parts, signature])


def _claim(name: str, requirement: str, **changes: object) -> Forgery:
    return Forgery(name, requirement, lambda target, path: target.token(path, **changes))


def _later(name: str, requirement: str, **seconds: float) -> Forgery:
    """Times are relative to the moment the token is made."""

    def token(target: Target, path: str) -> str:
        now = time.time()
        return target.token(path, **{claim: now + offset for claim, offset in seconds.items()})

    return Forgery(name, requirement, token)


def _without(claim: str) -> Forgery:
    def token(target: Target, path: str) -> str:
        claims = {name: value for name, value in target.claims(path).items() if name != claim}
        return _resigned(target, target.header(), claims)

    return Forgery(f"no {claim}", "R69", token)


def _header(name: str, requirement: str, **changes: object) -> Forgery:
    def token(target: Target, path: str) -> str:
        header = {key: value for key, value in target.header(**changes).items() if value is not None}
        return _resigned(target, header, target.claims(path))

    return Forgery(name, requirement, token)


def _resigned(target: Target, header: JSONObject, claims: JSONObject) -> str:
    """Sign by hand: a library would refuse most of these headers."""
    head, body, _ = unsigned(header, claims).split(".")
    whole = f"{head}.{body}"
    return f"{whole}.{_signature(target, whole)}"


def _signature(target: Target, signing_input: str) -> str:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    private = target.signer.private_key
    data = signing_input.encode()
    if isinstance(private, EllipticCurvePrivateKey):
        size = (private.key_size + 7) // 8
        pair = decode_dss_signature(private.sign(data, ECDSA(hashes.SHA384())))
        return base64url(b"".join(number.to_bytes(size) for number in pair))
    assert isinstance(private, RSAPrivateKey)
    return base64url(private.sign(data, padding.PKCS1v15(), hashes.SHA384()))


def _audience(name: str, change: Callable[[str], object]) -> Forgery:
    def token(target: Target, path: str) -> str:
        return target.token(path, aud=change(f"{target.audience}{path}"))

    return Forgery(f"aud: {name}", "R70", token)


def _hmac(algorithm: str, digest: str) -> Forgery:
    """The public key's text used as a secret."""

    def token(target: Target, path: str) -> str:
        secret = target.signer.as_pem(private=False)
        head, body, _ = unsigned(target.header(alg=algorithm), target.claims(path)).split(".")
        mac = hmac.new(secret, f"{head}.{body}".encode(), getattr(hashlib, digest)).digest()
        return f"{head}.{body}.{base64url(mac)}"

    return Forgery(f"{algorithm} keyed with the public key", "R75", token)


def _none(spelling: str) -> Forgery:
    return Forgery(
        f"alg {spelling}",
        "R75",
        lambda target, path: unsigned(target.header(alg=spelling), target.claims(path)),
    )


def _other_key(target: Target, path: str) -> str:
    key = ECKey.generate_key("P-384", {"kid": str(target.signer.kid)})
    header = {"alg": "ES384", "kid": target.signer.kid, "typ": "JWT"}
    return jwt.encode(header, target.claims(path), key, algorithms=["ES384"])


def _brought_key(target: Target, path: str) -> str:
    key = ECKey.generate_key("P-384", {"kid": str(target.signer.kid)})
    header = target.header(alg="ES384", jwk=key.as_dict(private=False))
    return jwt.encode(header, target.claims(path), key, algorithms=["ES384"])


def _changed(target: Target, path: str) -> str:
    head, _, signature = target.token(path).split(".")
    body = base64url(json.dumps(target.claims(path)).encode())
    return f"{head}.{body}.{signature}"


def _cut(target: Target, path: str) -> str:
    return ".".join(target.token(path).split(".")[:2]) + "."


def _zeros(target: Target, path: str) -> str:
    return ".".join([*target.token(path).split(".")[:2], base64url(bytes(96))])


def _twice(target: Target, path: str) -> str:
    """Two readers of a claim given twice could see two different tokens."""
    body = json.dumps(target.claims(path))
    doubled = f'{{"iss": "https://other.example", {body[1:]}'
    head = base64url(json.dumps(target.header()).encode())
    whole = f"{head}.{base64url(doubled.encode())}"
    return f"{whole}.{_signature(target, whole)}"


FORGERIES: tuple[Forgery, ...] = (
    *(_none(spelling) for spelling in ("none", "None", "NONE", "")),
    _hmac("HS256", "sha256"),
    _hmac("HS384", "sha384"),
    _hmac("HS512", "sha512"),
    _header("alg ES256 over an ES384 signature", "R72", alg="ES256"),
    _header("alg RS512", "R72", alg="RS512"),
    _header("alg as a number", "R68", alg=384),
    _header("no alg", "R68", alg=None),
    _header("no kid", "R68", kid=None),
    _header("another kid", "R72", kid="another"),
    _header("kid as a path", "R72", kid="../../etc/passwd"),
    _header("no typ", "R68", typ=None),
    _header("typ at+jwt", "R68", typ="at+jwt"),
    _header("a critical header", "R68", crit=["exp"]),
    _header("b64 false", "R68", b64=False),
    _header("jku elsewhere", "R71", jku="https://evil.example/jwks.json"),
    _header("jku with a script", "R71", jku="javascript:alert(1)"),
    _header("x5u elsewhere", "R71", x5u="https://evil.example/chain.pem"),
    _header("x5c brought along", "R71", x5c=["MIIB"]),
    Forgery("jwk brought along", "R71", _brought_key),
    Forgery("another key under the known kid", "R72", _other_key),
    Forgery("changed claims", "R72", _changed),
    Forgery("no signature", "R72", _cut),
    Forgery("a signature of zeros", "R72", _zeros),
    Forgery("iss given twice", "R72", _twice),
    *map(_without, ("iss", "aud", "exp", "iat", "jti")),
    _claim("another iss", "R71", iss="https://evil.example"),
    _claim("iss with a trailing slash more", "R71", iss="https://evil.example/"),
    _claim("iss as a list", "R71", iss=["https://evil.example"]),
    _audience("another service", lambda _: "https://rayhook.example/cds-services/another"),
    _audience("the path below", lambda url: f"{url}/feedback"),
    _audience("a trailing slash", lambda url: f"{url}/"),
    _audience("a query", lambda url: f"{url}?a=b"),
    _audience("in capitals", lambda url: str(url).upper()),
    _audience("the base URL", lambda url: str(url).partition("/cds-services")[0]),
    _audience("among others", lambda url: [url, "https://other.example"]),
    _audience("an empty list", lambda _: []),
    _audience("a number", lambda _: 1),
    _later("expired a second ago", "R72", exp=-1),
    _later("expires an hour ahead", "R72", exp=3600),
    _later("issued an hour ahead", "R72", iat=3600, exp=3660),
    _later("not good yet", "R72", nbf=600),
    _claim("exp as text", "R69", exp="soon"),
    _claim("exp true", "R69", exp=True),
    _claim("iat as text", "R69", iat="now"),
    _claim("jti empty", "R69", jti=""),
    _claim("jti a number", "R69", jti=7),
    _claim("jti of a thousand characters", "R69", jti="j" * 1000),
    Forgery("no JWT at all", "R72", lambda _target, _path: "not-a-token"),
    Forgery("five parts", "R72", lambda target, path: f"{target.token(path)}.a.b"),
)


def forgeries(requirement: str | None = None) -> Iterator[Forgery]:
    return (one for one in FORGERIES if requirement in {None, one.requirement})
