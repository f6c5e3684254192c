import pytest
from pydantic import ValidationError

from rayhook.deploy.settings import Settings, load_model_settings, load_settings
from rayhook.fhir.errors import InvalidRequest


def development(**values):
    return Settings(environment="development", **values)


def test_production_is_the_default():
    assert not Settings().development


@pytest.mark.parametrize("url", ["ftp://host", "http://127.0.0.1/", "http://127.0.0.1?x=1", "rayhook"])
def test_public_base_url_is_canonical(url):
    with pytest.raises(ValidationError, match="public_base_url"):
        development(public_base_url=url)


def test_half_a_tls_pair_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="tls_certificate and tls_key"):
        development(tls_certificate=tmp_path / "certificate.pem")


def test_unknown_variable_is_refused(monkeypatch):
    monkeypatch.setenv("RAYHOOK_HOOK_WAIT", "0.3")
    with pytest.raises(InvalidRequest, match="RAYHOOK_HOOK_WAIT"):
        load_settings()


def test_a_refused_setting_is_named_with_its_rule(monkeypatch):
    monkeypatch.setenv("RAYHOOK_ENVIRONMENT", "development")
    monkeypatch.setenv("RAYHOOK_PORT", "99999")
    with pytest.raises(InvalidRequest, match=r"^RAYHOOK_PORT: Input should be less than or equal to 65535$"):
        load_settings()


def test_a_refused_setting_is_not_quoted(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://rayhook:secret@localhost/rayhook")
    monkeypatch.setenv("RAYHOOK_PUBLIC_BASE_URL", "secret://secret")
    with pytest.raises(InvalidRequest) as refusal:
        load_settings()
    assert "secret" not in str(refusal.value)


def test_database_defaults_to_sqlite_in_the_data_folder(tmp_path):
    assert development(data_dir=tmp_path).resolved_database_url == f"sqlite:///{tmp_path}/rayhook.sqlite3"


def test_database_url_is_honoured(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://rayhook@localhost/rayhook")
    assert development().resolved_database_url.startswith("postgresql+psycopg://")


@pytest.mark.parametrize("wait", [0, 0.46])
def test_hook_wait_leaves_room_below_half_a_second(wait):
    with pytest.raises(ValidationError, match="hook_wait_s"):
        development(hook_wait_s=wait)


@pytest.mark.parametrize(
    ("value", "ids"),
    [("", ()), ("mri-flair-tumour", ("mri-flair-tumour",)), (" mri-flair-tumour, ", ("mri-flair-tumour",))],
)
def test_models_are_named_with_commas(monkeypatch, value, ids):
    monkeypatch.setenv("RAYHOOK_MODELS", value)
    assert load_model_settings().models == ids


@pytest.mark.parametrize("load", [load_model_settings, lambda: load_settings(environment="development")])
def test_a_model_that_is_not_installed_is_refused_by_its_rule(monkeypatch, load):
    monkeypatch.setenv("RAYHOOK_MODELS", "mri-flair-tumour,another")
    with pytest.raises(InvalidRequest, match=r"^RAYHOOK_MODELS: every id has to be one that"):
        load()


def test_the_service_runs_the_models_that_its_environment_names(monkeypatch):
    monkeypatch.setenv("RAYHOOK_MODELS", "mri-flair-tumour")
    assert load_settings(environment="development").models == ("mri-flair-tumour",)
