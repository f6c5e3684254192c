import logging

import pytest
import structlog

from rayhook.deploy.logging import configure_logging
from rayhook.deploy.settings import LogFormat


@pytest.fixture
def line(capsys):
    """Log one event as the service does, and return what stands in the log."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    configure_logging(level="INFO", log_format=LogFormat.JSON)

    def logged(**values):
        structlog.get_logger("test").info("something_happened", **values)
        return capsys.readouterr().err

    yield logged
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


@pytest.mark.parametrize("code", ["database_unavailable", "given-up", "timeout"])
def test_the_code_of_an_error_is_told(line, code):
    assert f'"code": "{code}"' in line(code=code)


@pytest.mark.parametrize("code", ["SplxlOBeZQQYbYS6WxSbIA", "a1b2c3d4e5f6", "x" * 65, 4711])
def test_what_may_be_an_authorization_code_is_not(line, code):
    logged = line(code=code)
    assert "[redacted]" in logged
    assert str(code) not in logged


@pytest.mark.parametrize("name", ["access_token", "authorization", "client_assertion", "id_token", "token"])
def test_a_token_is_not_logged_under_its_name(line, name):
    assert "opaque" not in line(**{name: "opaque"})


def test_a_token_is_not_logged_within_a_text(line):
    assert "s3cret" not in line(reason="it said Authorization: Bearer s3cret")
