import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, structlog
from rayhook.deploy.logging import configure_logging
from rayhook.deploy.settings import LogFormat
configure_logging(level="INFO", log_format=LogFormat.JSON)
for values in json.loads(sys.stdin.read()):
    structlog.get_logger("test").info("something_happened", **values)
"""
CODES = ["database_unavailable", "given-up", "timeout"]
NOT_CODES = ["SplxlOBeZQQYbYS6WxSbIA", "a1b2c3d4e5f6", "x" * 65, 4711]
TOKENS = ["access_token", "authorization", "client_assertion", "id_token", "token"]
SENTENCE = "it said Authorization: Bearer s3cret"


def logged(events):
    """Return what the service's log has of `events`, each as an object: in a process of its own, as pytest logs too."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(events), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in ended.stderr.splitlines()]


@pytest.fixture(scope="module")
def lines():
    events = [{"code": code} for code in CODES + NOT_CODES]
    events += [{name: "opaque"} for name in TOKENS]
    return logged([*events, {"reason": SENTENCE}])


def test_the_code_of_an_error_is_told(lines):
    assert [line["code"] for line in lines[: len(CODES)]] == CODES


def test_what_may_be_an_authorization_code_is_not(lines):
    found = lines[len(CODES) : len(CODES) + len(NOT_CODES)]
    assert [line["code"] for line in found] == ["[redacted]"] * len(NOT_CODES)


def test_a_token_is_not_logged_under_its_name(lines):
    found = lines[-len(TOKENS) - 1 : -1]
    assert [line[name] for name, line in zip(TOKENS, found, strict=True)] == ["[redacted]"] * len(TOKENS)


def test_a_token_is_not_logged_within_a_text(lines):
    assert "s3cret" not in lines[-1]["reason"]
