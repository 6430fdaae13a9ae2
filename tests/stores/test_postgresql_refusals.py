"""A PostgreSQL that cannot be used: one sentence with cause and remedy, at the start, and never a word of the URL."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Certificates, make_certificates
from support.postgres_process import PostgresProcess, free_port, postgres
from support.postgres_stores import store_at
from support.records import running

from calibrator.errors import ConfigurationError, StoreError
from calibrator.stores.postgresql_url import CONNECT_LIMIT_S, parse_url

PASSWORD = "hush-7a"
PLAIN = {"sslmode": "disable"}  # asyncpg tries twice otherwise, and leaves the first connection to the event loop


# ------------------------------------------------------------------------------------------------------------ the URL
REFUSED_URLS = {
    "another scheme": (f"mysql://u:{PASSWORD}@h/db", "does not begin with postgresql://"),
    "no scheme": (f"u:{PASSWORD}@h/db", "does not begin with postgresql://"),
    "a slash in the password": (f"postgresql://u:{PASSWORD}/x@h/db", "%2F"),
    "an at sign in the password": (f"postgresql://u:{PASSWORD}@x@h/db", "%40"),
    "a hash in the password": (f"postgresql://u:{PASSWORD}#x@h/db", "%23"),
    "a question mark in the password": (f"postgresql://u:{PASSWORD}?x@h/db", "%3F"),
    "a port in words": (f"postgresql://u:{PASSWORD}@h:{PASSWORD}/db", "a port that is no number"),
    "a question mark in the password, and a parameter": (f"postgresql://u:{PASSWORD}?x@h/db?a=b", "%3F"),
    "half a parameter": (f"postgresql://u:{PASSWORD}@h/db?sslmode", "cannot be read"),
    "a broken address": (f"postgresql://u:{PASSWORD}@[::1/db", "cannot be read"),
    "a protection we cannot give": (f"postgresql://u:{PASSWORD}@h/db?channel_binding=require", "'channel_binding'"),
    "a limit in words": (f"postgresql://u:{PASSWORD}@h/db?connect_timeout=soon", "connect_timeout that is no number"),
}


@pytest.mark.parametrize("case", REFUSED_URLS)
def test_a_url_that_is_none_is_refused_and_not_repeated(case: str) -> None:
    url, words = REFUSED_URLS[case]
    with pytest.raises(ConfigurationError, match=r"^The database URL that store\.postgresql refers to ") as refusal:
        parse_url(url)
    assert words in str(refusal.value)
    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"postgresql://u:{PASSWORD}@h:5433/db", "the database db at h:5433"),
        (f"postgres://u:{PASSWORD}@a,b:5433/db%20x", "the database db x at a,b:5433"),
        (f"postgresql://u:{PASSWORD}@[::1]:5433/db", "the database db at [::1]:5433"),
        (f"postgresql://u:{PASSWORD}@/?host=/run/pg&dbname=db", "the database db at /run/pg"),
        ("postgresql://", "the database (of the same name as its user) at this machine"),
    ],
)
def test_messages_name_place_and_database_and_nothing_else(url: str, name: str) -> None:
    address = parse_url(url)
    assert address.name == name
    assert PASSWORD not in repr(address)
    assert parse_url(url).connect_limit_s == CONNECT_LIMIT_S


def test_limits_and_authorities_join_what_the_url_says() -> None:
    plain, more = "postgresql://u@h/db", "postgresql://u@h/db?connect_timeout=2&application_name=x"
    assert parse_url(more).dsn == f"{plain}?application_name=x"
    assert parse_url(more).connect_limit_s == 2.0
    assert parse_url(f"{plain}?connect_timeout=60").connect_limit_s == CONNECT_LIMIT_S
    assert parse_url(plain, "/ca.pem").dsn == f"{plain}?sslmode=verify-full&sslrootcert=%2Fca.pem"
    assert parse_url(f"{plain}?sslmode=verify-ca", "/ca.pem").dsn == f"{plain}?sslmode=verify-ca&sslrootcert=%2Fca.pem"


# --------------------------------------------------------------------------------------------------------- the server
@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def strict_server(certificates: Certificates) -> Iterator[PostgresProcess]:
    """Asks `guest` for a password, and speaks TLS."""
    access = "host all guest 127.0.0.1/32 scram-sha-256"
    with postgres(access=access, certificate=certificates) as server:
        server.execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'", "postgres")
        yield server


def refusal(url: str, ca_file: str | None = None) -> str:
    async def work() -> None:
        store = store_at(url, ca_file)
        try:
            await store.open()
        finally:
            await store.close()
            assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    with pytest.raises(StoreError) as caught:
        asyncio.run(work())
    return str(caught.value)


def test_a_place_where_no_server_is(tmp_path: Path) -> None:
    nowhere = refusal(f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/db")
    assert "The database db at 127.0.0.1:" in nowhere
    assert "cannot be reached (Connect call failed" in nowhere or "Connection refused" in nowhere
    assert "host and port in the URL that store.postgresql refers to." in nowhere
    unknown = refusal(f"postgresql://u:{PASSWORD}@nowhere.invalid/db")
    assert "cannot be reached (" in unknown
    assert "cannot be reached" in refusal(f"postgresql://u:{PASSWORD}@/db?host={tmp_path}")
    assert PASSWORD not in nowhere + unknown


def test_wrong_credentials(strict_server: PostgresProcess) -> None:
    at = f"@127.0.0.1:{strict_server.port}/postgres"
    for wrong in (f"postgresql://guest:{PASSWORD}x{at}", f"postgresql://guest{at}"):
        said = refusal(wrong)
        assert "refuses our credentials" in said or "closed the connection" in said
        assert "Correct user and password in the URL that store.postgresql refers to" in said
        assert PASSWORD not in said


def test_no_such_database_and_no_such_user(strict_server: PostgresProcess) -> None:
    said = refusal(strict_server.url("nosuch", **PLAIN))
    assert 'does not exist (database "nosuch" does not exist). Create it' in said
    url = strict_server.url("postgres", **PLAIN).replace("//postgres@", "//nobody@")
    assert 'refuses our credentials (role "nobody" does not exist).' in refusal(url)


def test_missing_rights_at_the_start_and_later(strict_server: PostgresProcess) -> None:
    name = strict_server.new_database()
    url = strict_server.url(name).replace("//postgres@", f"//guest:{PASSWORD}@")
    said = refusal(url)
    assert "does not give this user the rights it needs (permission denied for schema public)." in said
    assert "Grant it USAGE and CREATE on the schema" in said

    async def later() -> None:
        store = store_at(url)
        await store.open()
        try:
            await store.save_sweep(running("s1"))
            await asyncio.to_thread(strict_server.execute, "REVOKE INSERT, UPDATE ON sweeps FROM guest", name)
            with pytest.raises(StoreError, match=r"does not give this user the rights it needs \(permission denied"):
                await store.save_sweep(running("s2"))
            assert await store.sweep("s1") == running("s1")
        finally:
            await store.close()

    strict_server.execute("GRANT CREATE ON SCHEMA public TO guest", name)
    asyncio.run(later())


def test_parameters_that_the_server_does_not_take(strict_server: PostgresProcess) -> None:
    name = strict_server.new_database()
    assert "does not know a parameter of the URL" in refusal(strict_server.url(name, **PLAIN, no_such_setting="1"))
    assert "does not take a parameter of the URL" in refusal(strict_server.url(name, **PLAIN, work_mem="much"))
    assert "cannot be reached as asked for" in refusal(strict_server.url(name, sslmode="maybe"))
    assert "has no schema that we may use" in refusal(strict_server.url(name, **PLAIN, search_path="nosuch"))


# ----------------------------------------------------------------------------------------------------------------- TLS
# asyncpg leaves the socket of a handshake that failed to the garbage collector, which must find it here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_known_authority_is_enough_and_an_unknown_one_is_refused(
    strict_server: PostgresProcess, certificates: Certificates, tmp_path: Path
) -> None:
    name = strict_server.new_database()

    async def encrypted() -> object:
        store = store_at(strict_server.url(name), certificates.ca)
        await store.open()
        try:
            async with store._database.reading() as connection:
                asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                return (await connection.exec_driver_sql(asked)).scalar()
        finally:
            await store.close()

    assert asyncio.run(encrypted()) is True
    (tmp_path / "other").mkdir()
    said = refusal(strict_server.url(name), make_certificates(tmp_path / "other").ca)
    assert "shows a certificate that we do not trust (" in said
    assert "Give its authorities in store.ca_file" in said
    other_name = strict_server.url(name).replace("127.0.0.1", "localhost")
    assert "shows a certificate that we do not trust (Hostname mismatch" in refusal(other_name, certificates.ca)
    assert "sslmode=verify-full wants store.ca_file" in refusal(strict_server.url(name, sslmode="verify-full"))
    gc.collect()


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(
    postgres_server: PostgresProcess, certificates: Certificates
) -> None:
    said = refusal(postgres_server.url("postgres"), certificates.ca)
    assert "does not speak TLS with us" in said
    assert "Correct sslmode" in said
