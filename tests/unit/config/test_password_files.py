"""Passwords of Redis and PostgreSQL in files: they reach the URLs, and every fault names its key."""

from pathlib import Path

import pytest
from redis.connection import parse_url
from sqlalchemy import make_url

from ingest.config.reader import load_config
from ingest.config.serialization import format_as_toml
from ingest.errors import ConfigError

SECRET = "p@ss/w:rd#%é"


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\nanother line\n")
    return path


def read(folder: Path, queue: str = "", ledger: str = "", environ: dict[str, str] | None = None):
    file = folder / "ingest.toml"
    file.write_text(f"[queue]\n{queue}\n[ledger]\n{ledger}\n")
    return load_config(file, environ=environ or {})


@pytest.mark.parametrize(
    ("url", "user"),
    [("redis://cache:6379/2", None), ("rediss://ingest@cache", "ingest"), ("unix:///run/redis.sock", None)],
)
def test_the_password_of_redis_comes_from_the_file(
    tmp_path: Path, password: Path, url: str, user: str | None
) -> None:
    config = read(tmp_path, f'url = "{url}"\npassword_file = "password"')
    found = parse_url(config.queue.url)
    assert (found["password"], found.get("username")) == (SECRET, user)
    assert SECRET not in repr(config)


def test_the_password_of_postgresql_comes_from_a_file_that_the_environment_names(
    tmp_path: Path, password: Path
) -> None:
    config = read(
        tmp_path,
        ledger='url = "postgresql+psycopg://ingest@db:5433/ingest?sslmode=verify-full"',
        environ={"INGEST_LEDGER__PASSWORD_FILE": str(password)},
    )
    url = make_url(config.ledger_url)
    assert (url.username, url.password, url.host, url.port) == ("ingest", SECRET, "db", 5433)
    assert url.query == {"sslmode": "verify-full"}


def test_the_shown_configuration_names_the_file_and_can_be_read_again(tmp_path: Path, password: Path) -> None:
    config = read(
        tmp_path,
        'url = "redis://cache:6379/2"\npassword_file = "password"',
        'url = "postgresql+psycopg://ingest@db/ingest"\npassword_file = "password"',
    )
    shown = format_as_toml(config)
    assert SECRET not in shown
    assert 'url = "redis://cache:6379/2"' in shown
    (tmp_path / "again.toml").write_text(shown)
    again = load_config(tmp_path / "again.toml", environ={})
    assert (again.queue, again.ledger) == (config.queue, config.ledger)


@pytest.mark.parametrize(
    ("queue", "ledger", "cause"),
    [
        ('password_file = "password"', "", "queue.password_file: queue.url names no server"),
        (
            'url = "redis://:x@cache"\npassword_file = "password"',
            "",
            "queue.password_file: queue.url has a password too",
        ),
        (
            "",
            'url = "postgresql+psycopg://db/x"\npassword_file = "password"',
            "ledger.password_file: ledger.url names no user",
        ),
        (
            'url = "redis://cache"\npassword_file = "gone"',
            "",
            "queue.password_file: {0}/gone cannot be read: No such",
        ),
        (
            'url = "redis://cache"\npassword_file = "empty"',
            "",
            "queue.password_file: {0}/empty has a first line of 0",
        ),
        ('url = "redis://cache"\npassword_file = "."', "", "queue.password_file: {0} is not a regular file"),
    ],
)
def test_a_password_file_that_cannot_be_used_is_a_fault(
    tmp_path: Path, password: Path, queue: str, ledger: str, cause: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, queue, ledger)
    assert [fault.startswith(cause.format(tmp_path)) for fault in caught.value.faults] == [True]
