"""The fixtures that every integration test stands on."""

import os
import socket

import psycopg
import pytest
from redis import Redis as RedisClient

from control_plane.bootstrap import Application
from tests.support import services

pytestmark = pytest.mark.integration


def test_postgresql_survives_a_crash_with_its_data() -> None:
    server = services.postgresql()
    url = server.url().replace("+psycopg", "")
    try:
        server.start()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("CHECKPOINT")
        server.restart(crash=True)
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT count(*) FROM kept").fetchone()
    finally:
        server.discard()

    assert row == (0,)
    assert not server.folder.exists()


def test_redis_survives_a_restart_with_its_data() -> None:
    server = services.redis()
    try:
        with RedisClient(port=server.start().port) as client:
            client.set("kept", "1")
        server.restart()
        with RedisClient(port=server.port) as client:
            kept = client.get("kept")
    finally:
        server.discard()

    assert kept == b"1"


def test_a_frozen_service_accepts_and_does_not_answer(redis_server: services.Redis) -> None:
    with redis_server.frozen(), socket.create_connection(("127.0.0.1", redis_server.port)) as peer:
        peer.settimeout(0.3)
        peer.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            peer.recv(16)

    with RedisClient(port=redis_server.port) as client:
        assert client.ping()


def test_a_killed_service_is_gone(mosquitto: services.Service) -> None:
    pid = mosquitto.pid
    mosquitto.kill()

    assert not services.answers(mosquitto.port)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert services.answers(mosquitto.start().port)


def test_each_test_gets_an_empty_database_with_every_table(app: Application) -> None:
    with app.database.reading() as tx:
        tables = set(app.database.engine.dialect.get_table_names(tx))
        count = tx.exec_driver_sql("SELECT count(*) FROM device").scalar()

    assert {"device", "rollout", "outbox"} <= tables
    assert count == 0


def test_a_missing_program_is_a_failure_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(services.PACKAGES, "no-such-server", "no-such-package")

    with pytest.raises(services.MissingServiceError, match="apt-get install no-such-package"):
        services.find("no-such-server")
