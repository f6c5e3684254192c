"""A JWT is let in if, and only if, a few lines that anybody can read say so."""

import time
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey

from rayhook.auth.jose import read_key_set
from rayhook.auth.jwks import JWKSCache
from rayhook.auth.registry import EHR, CDSClient, EHRRegistry
from rayhook.auth.tokens import verify_cds_client
from rayhook.deploy.database import create_database, migrate
from rayhook.fhir.errors import Unauthenticated
from rayhook.fhir.transport import Transport

AUDIENCE = "https://rayhook.example.org/cds-services/rayhook-patient-view"
ISSUER = "https://ehr.example.org"
KEY = ECKey.generate_key("P-384", {"kid": "k"})
NOW = float(int(time.time()))
EHR_ = EHR(
    "a",
    "A",
    ("https://fhir.example.org",),
    CDSClient(ISSUER, keys=read_key_set({"keys": [KEY.as_dict(private=False)]}), tenants=frozenset({"t"})),
)

offsets = st.integers(-700, 700) | st.sampled_from([0, 1, -1, 29, 30, 31, 299, 300, 301, 330, 331])
audiences = st.sampled_from(
    [AUDIENCE, [AUDIENCE], [AUDIENCE, "b"], f"{AUDIENCE}/", AUDIENCE.upper(), "", [], None, 1]
)
junk = st.none() | st.booleans() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)


@pytest.fixture(scope="module")
def verify(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('tokens') / 'tokens.sqlite3'}"
    migrate(url)
    database, transport = create_database(url), Transport()
    jwks, registry = JWKSCache(transport), EHRRegistry((EHR_,))

    def accepts(claims):
        token = jwt.encode({"alg": "ES384", "kid": "k", "typ": "JWT"}, claims, KEY, algorithms=["ES384"])
        try:
            verify_cds_client(
                f"Bearer {token}",
                audience=AUDIENCE,
                registry=registry,
                jwks=jwks,
                sessions=database.unsynced,
                clock=lambda: NOW,
            )
        except Unauthenticated:
            return False
        return True

    yield accepts
    jwks.close()
    transport.close()
    database.close()


def fresh(**changes):
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": NOW,
        "exp": NOW + 60,
        "jti": str(uuid.uuid4()),
        "tenant": "t",
    }
    return claims | changes


BOUNDED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@BOUNDED
@given(exp=offsets, iat=offsets, nbf=st.none() | offsets, aud=audiences)
def test_times_and_audience(verify, exp, iat, nbf, aud):
    claims = fresh(exp=NOW + exp, iat=NOW + iat, aud=aud) | ({} if nbf is None else {"nbf": NOW + nbf})
    is_good = (
        0 < exp <= 330
        and exp - iat <= 300
        and max(iat, iat if nbf is None else nbf) <= 30
        and aud in (AUDIENCE, [AUDIENCE])
    )
    assert verify(claims) == is_good


@BOUNDED
@given(name=st.sampled_from(["iss", "aud", "exp", "iat", "jti", "tenant"]), value=junk)
def test_a_claim_of_another_form_is_never_let_in(verify, name, value):
    is_good = name == "jti" and isinstance(value, str) and value != ""
    assert verify(fresh(**{name: value if not is_good else value + str(uuid.uuid4())})) == is_good


@BOUNDED
@given(jtis=st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_each_jti_is_good_once(verify, jtis):
    run = uuid.uuid4()
    let_in = [verify(fresh(jti=f"{run}-{jti}")) for jti in jtis]
    assert let_in == [jti not in jtis[:position] for position, jti in enumerate(jtis)]
