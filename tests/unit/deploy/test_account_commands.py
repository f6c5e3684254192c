"""`rayhook account` as a person runs it, over an installation of its own."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rayhook.auth.one_time_codes import current_code
from rayhook.deploy.accounts import opened_accounts
from rayhook.deploy.demo.staff import FILE, NAMES, demo_staff, read_demo_staff
from rayhook.fhir.errors import InvalidRequest

PASSWORD = "purple lantern seven orchard"


def account(folder: Path, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayhook.deploy.cli", "account", *arguments, "--data-dir", str(folder)],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"HOME": os.environ["HOME"], "PATH": os.environ["PATH"], "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation that was never started, with its first administrator."""
    folder = tmp_path_factory.mktemp("installation")
    made = account(
        folder, "create", "ada.hale", "--role", "administrator", "--password-stdin", typed=f"{PASSWORD}\n"
    )
    assert made.returncode == 0, made.stderr
    (folder / "made.txt").write_text(made.stdout)
    return folder


def test_the_first_account_comes_with_all_that_its_person_needs(folder):
    told = (folder / "made.txt").read_text()
    assert re.search(r"otpauth://totp/Rayhook:ada.hale\?secret=[A-Z2-7]{32}", told)
    assert len(re.findall(r"[a-z2-7]{4}(?:-[a-z2-7]{4}){3}", told)) == 10


def test_neither_password_nor_secret_is_told_twice(folder):
    told = account(folder, "list").stdout
    assert "ada.hale" in told
    assert "otpauth" not in told


def test_an_invitation_is_a_link_of_the_service(folder):
    made = account(
        folder,
        "create",
        "olga.price",
        "--role",
        "compliance_officer",
        "--invite",
        "--base-url",
        "https://rayhook.example",
    )
    assert re.search(r"https://rayhook\.example/sign-in/enrol/[\w-]{43}\n", made.stdout)


@pytest.mark.parametrize(
    ("arguments", "typed", "code"),
    [
        (
            ["create", "x.weak", "--role", "administrator", "--password-stdin"],
            "password1234\n",
            "password_refused",
        ),
        (["create", "x.role", "--role", "radiologist", "--invite"], "", "role_unknown"),
        (["create", "a b", "--role", "administrator", "--invite"], "", "account_name_malformed"),
        (["create", "ada.hale", "--role", "administrator", "--invite"], "", "conflict"),
        (["disable", "ada.hale"], "", "last_administrator"),
        (["reset", "nobody.here"], "", "account_unknown"),
    ],
)
def test_what_cannot_be_ends_with_one_line_and_status_2(folder, arguments, typed, code):
    run = account(folder, *arguments, typed=typed)
    assert (run.returncode, run.stderr.startswith(f"rayhook: {code}:")) == (2, True)


def test_listing_makes_no_installation(tmp_path):
    assert account(tmp_path / "none", "list").returncode == 2
    assert not (tmp_path / "none").exists()


def test_nothing_is_opened_where_no_installation_is(tmp_path):
    with pytest.raises(InvalidRequest), opened_accounts(tmp_path):
        pass


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with opened_accounts(folder, make=True):
        pass
    demo_staff(folder)
    return folder


def test_the_demo_has_one_account_a_role(demo):
    assert {one.name: one.role for one in read_demo_staff(demo / FILE)} == {
        name: role.value for name, role in NAMES.items()
    }


def test_the_demos_secrets_are_for_its_owner_only(demo):
    assert stat.S_IMODE((demo / FILE).stat().st_mode) == 0o600


def test_the_demos_accounts_stay_at_the_next_start(demo):
    assert demo_staff(demo) == read_demo_staff(demo / FILE)


def test_a_demo_whose_file_was_lost_gets_new_passwords(demo):
    before = read_demo_staff(demo / FILE)
    (demo / FILE).unlink()
    after = demo_staff(demo)
    assert {one.name for one in after} == {one.name for one in before}
    assert not {one.password for one in after} & {one.password for one in before}


def test_the_demos_passwords_are_not_those_of_another_demo(demo, tmp_path):
    with opened_accounts(tmp_path, make=True):
        pass
    assert not {one.secret for one in demo_staff(tmp_path)} & {
        one.secret for one in read_demo_staff(demo / FILE)
    }


def test_a_demo_account_shows_codes_of_its_secret(demo):
    assert all(re.fullmatch(r"\d{6}", current_code(one.secret, 0)) for one in read_demo_staff(demo / FILE))
