"""A real PostgreSQL over TCP, with TLS and passwords: Debian's, as the one of the wheel is built without TLS."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import trustme

from tests.ports import free_port

ADMINISTRATOR = "administrator"
PASSWORD = "of-the-administrator"
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
max_connections = 40
shared_buffers = 32MB
"""


@dataclass(frozen=True)
class PostgreSQL:
    """`authority` is the file of the authority that the server's certificate, for `localhost`, is from."""

    folder: Path
    binaries: Path
    port: int
    authority: Path
    strangers: Path

    def url(self, database: str, *, role: str = ADMINISTRATOR, password: str | None = PASSWORD) -> str:
        """Return a URL that is as secure as production has to have it."""
        login = role if password is None else f"{role}:{password}"
        return f"{self.origin(login)}/{database}?sslmode=verify-full&sslrootcert={self.authority}"

    def origin(self, login: str, host: str = "localhost") -> str:
        return f"postgresql://{login}@{host}:{self.port}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is what a crash is: nothing is written, and the next start recovers from the log."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.binaries / program, *arguments],
            check=True,
            user=_user(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )

    def _prepare(self) -> None:
        (self.folder / "password").write_text(PASSWORD)
        if _user() is not None:
            _give(self.folder)
        options = ("-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync")
        password = f"--pwfile={self.folder / 'password'}"
        self._run("initdb", "-D", str(self.data), "-U", ADMINISTRATOR, password, *options)
        authority, stranger = trustme.CA(), trustme.CA()
        certificate = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(self.authority)
        stranger.cert_pem.write_to_path(self.strangers)
        certificate.private_key_pem.write_to_path(self.data / "server.key")
        (self.data / "server.crt").write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
        (self.data / "server.key").chmod(0o600)
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(_CONFIGURATION.format(port=self.port))
        (self.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        if _user() is not None:
            _give(self.folder)


def binaries() -> Path | None:
    """Return the newest installed, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def running(programs: Path) -> Iterator[PostgreSQL]:
    folder = Path(tempfile.mkdtemp(prefix="rayhook-postgresql-"))
    server = PostgreSQL(folder, programs, free_port(), folder / "authority.pem", folder / "strangers.pem")
    server._prepare()
    server.start()
    try:
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder)


def _user() -> str | None:
    """PostgreSQL does not run as root; the package has made a user for it."""
    return "postgres" if os.geteuid() == 0 else None


def _give(folder: Path) -> None:
    owner = pwd.getpwnam("postgres")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.pw_uid, owner.pw_gid)
