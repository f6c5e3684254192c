import threading
from dataclasses import replace

import pytest

from rayhook.auth.bearer import BearerTokens
from rayhook.auth.registry import EHRRegistry, SMARTClient
from rayhook.auth.roles import Role
from rayhook.fhir.errors import Unauthenticated, UpstreamError

from .conftest import jwks_of, signed

AUDIENCE = "https://rayhook.example.org/fhir/R4"
WELL_KNOWN = "/fhir/.well-known/smart-configuration"


@pytest.fixture
def base(key_server):
    return f"{key_server.base_url}/fhir"


@pytest.fixture
def ehr(ehr, base):
    smart = SMARTClient(client_id="rayhook", issuer=base, scopes=("openid",), introspection=True)
    return replace(ehr, fhir_base_urls=(base,), smart=smart)


@pytest.fixture
def make(transport, keyring, jwks, clock, ehr, key_server, ec_key, base):  # noqa: PLR0917
    """Return tokens of these EHRs, the one whose server answers by default."""
    origin = key_server.base_url
    key_server.answer(
        WELL_KNOWN,
        {
            "issuer": base,
            "jwks_uri": f"{origin}/auth/jwks.json",
            "authorization_endpoint": f"{origin}/auth/authorize",
            "token_endpoint": f"{origin}/auth/token",
            "introspection_endpoint": f"{origin}/auth/introspect",
            "grant_types_supported": ["authorization_code"],
            "code_challenge_methods_supported": ["S256"],
            "capabilities": [],
        },
    )
    key_server.answer("/auth/jwks.json", jwks_of(ec_key))

    def make(*ehrs, **how):
        return BearerTokens(
            registry=EHRRegistry(ehrs or (ehr,)),
            transport=transport,
            keyring=keyring,
            jwks=jwks,
            audience=AUDIENCE,
            clock=clock,
            **how,
        )

    return make


@pytest.fixture
def says(key_server, clock):
    """Let the issuer say this of any token."""

    def says(**answer):
        active = {
            "active": True,
            "scope": "patient/Observation.rs",
            "client_id": "app",
            "exp": int(clock()) + 300,
            "patient": "p1",
        }
        key_server.answer("/auth/introspect", {**active, **answer})

    return says


def test_the_holder_is_whom_the_issuer_names(make, says, ehr):
    says(fhirUser="Practitioner/7")
    user = make().holder("Bearer opaque")
    assert (user.ehr, user.patient_id, user.fhir_user) == (ehr, "p1", "Practitioner/7")
    assert user.roles == {Role.CLINICIAN}


def test_a_token_is_asked_about_once_in_half_a_minute(make, says, key_server, clock):
    says()
    tokens = make()
    for _ in range(3):
        tokens.holder("Bearer opaque")
        clock.advance(9)
    assert key_server.count("/auth/introspect") == 1
    clock.advance(4)
    tokens.holder("Bearer opaque")
    assert key_server.count("/auth/introspect") == 2


def test_a_token_is_not_known_beyond_its_end(make, says, clock):
    says(exp=int(clock()) + 5)
    tokens = make()
    tokens.holder("Bearer opaque")
    clock.advance(6)
    with pytest.raises(Unauthenticated) as refusal:
        tokens.holder("Bearer opaque")
    assert refusal.value.code == "token_expired"


def test_callers_at_once_ask_once(make, says, key_server):
    says()
    key_server.delay_s = 0.1
    tokens = make()
    threads = [threading.Thread(target=tokens.holder, args=("Bearer opaque",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert key_server.count("/auth/introspect") == 1


def test_no_more_holders_are_kept_than_said(make, says, key_server):
    says()
    tokens = make(max_holders=2)
    for token in ("one", "two", "three", "one"):
        tokens.holder(f"Bearer {token}")
    assert key_server.count("/auth/introspect") == 4


def test_no_token_is_kept(make, says):
    says()
    tokens = make()
    tokens.holder("Bearer opaque-secret")
    assert "opaque-secret" not in repr(vars(tokens))


def test_a_refusal_is_asked_again(make, says, key_server):
    says(active=False)
    tokens = make()
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            tokens.holder("Bearer opaque")
    assert key_server.count("/auth/introspect") == 2


def test_an_issuer_that_cannot_tell_lets_nobody_in(make, key_server):
    key_server.answer("/auth/introspect", {}, status=503)
    with pytest.raises(UpstreamError):
        make().holder("Bearer opaque")


@pytest.mark.parametrize("named", [None, AUDIENCE, [AUDIENCE, "x"], "ehr"])
def test_a_token_for_us_or_for_its_ehr_is_taken(make, says, base, named):
    says(aud=base if named == "ehr" else named)
    assert make().holder("Bearer opaque")


@pytest.mark.parametrize("named", ["https://other.example.org", ["https://other.example.org"], "", [], 7])
def test_a_token_for_another_is_refused(make, says, named):
    says(aud=named)
    with pytest.raises(Unauthenticated) as refusal:
        make().holder("Bearer opaque")
    assert refusal.value.code == "audience_wrong"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("Basic abc", "token_missing"),
        ("Bearer ", "token_missing"),
        (f"Bearer {'x' * 20_000}", "token_malformed"),
        ("Bearer tök", "token_malformed"),
    ],
)
def test_what_is_no_bearer_token_is_not_asked_about(make, says, key_server, authorization, code):
    says()
    with pytest.raises(Unauthenticated) as refusal:
        make().holder(authorization)
    assert (refusal.value.code, key_server.count("/auth/introspect")) == (code, 0)


def test_an_opaque_token_is_shown_to_nobody_where_two_might_have_issued_it(make, says, key_server, ehr):
    says()
    with pytest.raises(Unauthenticated) as refusal:
        make(ehr, replace(ehr, id="south")).holder("Bearer opaque")
    assert (refusal.value.code, key_server.count("/auth/introspect")) == ("issuer_unknown", 0)


class TestJWT:
    @pytest.fixture
    def ehr(self, ehr):
        return replace(ehr, smart=replace(ehr.smart, introspection=False, jwt_access_tokens=True))

    @pytest.fixture
    def claims(self, clock, base):
        now = int(clock())
        return {
            "iss": base,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 300,
            "sub": "7",
            "jti": "j1",
            "client_id": "app",
            "scope": "patient/Observation.rs",
            "patient": "p1",
            "fhirUser": "Practitioner/7",
        }

    def token(self, key, claims, **header):
        return f"Bearer {signed(key, claims, typ='at+jwt', **header)}"

    def test_the_holder_is_whom_the_claims_name(self, make, ec_key, claims, key_server):
        user = make().holder(self.token(ec_key, claims))
        assert (user.patient_id, user.fhir_user, str(user.scopes)) == (
            "p1",
            "Practitioner/7",
            "patient/Observation.rs",
        )
        assert key_server.count("/auth/introspect") == 0

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"aud": "https://other.example.org"}, "audience_wrong"),
            ({"aud": None}, "audience_wrong"),
            ({"exp": 1}, "token_expired"),
            ({"exp": None}, "claim_invalid"),
            ({"nbf": 9_999_999_999}, "token_early"),
            ({"iat": 9_999_999_999}, "token_early"),
            ({"scope": None}, "claim_invalid"),
            ({"client_id": ""}, "claim_invalid"),
            ({"patient": "../p2"}, "claim_invalid"),
            ({"iss": "https://other.example.org"}, "issuer_unknown"),
        ],
    )
    def test_a_claim_that_is_wrong_is_refused(self, make, ec_key, claims, change, code):
        with pytest.raises(Unauthenticated) as refusal:
            make().holder(self.token(ec_key, claims | change))
        assert refusal.value.code == code

    def test_a_key_of_nobody_is_refused(self, make, rsa_key, claims):
        with pytest.raises(Unauthenticated) as refusal:
            make().holder(self.token(rsa_key, claims))
        assert refusal.value.code == "key_unknown"

    def test_a_changed_token_is_refused(self, make, ec_key, claims):
        head, _, tail = self.token(ec_key, claims).split(".")
        _, other, _ = self.token(ec_key, claims | {"patient": "p2"}).split(".")
        with pytest.raises(Unauthenticated) as refusal:
            make().holder(f"{head}.{other}.{tail}")
        assert refusal.value.code == "signature_invalid"

    @pytest.mark.parametrize("kind", ["JWT", "id_token+jwt", None])
    def test_an_id_token_is_no_access_token(self, make, ec_key, claims, kind):
        header = {} if kind is None else {"typ": kind}
        with pytest.raises(Unauthenticated) as refusal:
            make().holder(f"Bearer {signed(ec_key, claims, **header)}")
        assert refusal.value.code == "introspection_unavailable"

    def test_where_both_are_registered_another_jwt_is_introspected(self, make, says, ec_key, claims, ehr):
        says()
        both = replace(ehr, smart=replace(ehr.smart, introspection=True))
        assert make(both).holder(f"Bearer {signed(ec_key, claims)}").fhir_user is None

    def test_each_issuer_is_known_by_its_name(self, make, ec_key, claims, ehr):
        other = replace(
            ehr,
            id="south",
            fhir_base_urls=("https://south.example.org",),
            smart=replace(ehr.smart, issuer="https://south.example.org"),
        )
        assert make(other, ehr).holder(self.token(ec_key, claims)).ehr.id == "north"


@pytest.mark.parametrize(
    ("scope", "roles"),
    [
        ("system/Observation.rs system/AuditEvent.rs", {Role.SERVICE}),
        ("patient/Observation.rs", frozenset()),
        ("user/Observation.rs", frozenset()),
        ("system/Observation.rs patient/Observation.rs", frozenset()),
    ],
)
def test_only_a_systems_token_is_a_services(make, says, scope, roles):
    says(scope=scope)
    assert make().holder("Bearer opaque").roles == roles
