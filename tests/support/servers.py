"""
Servers that are more than one: a primary with its replica and sentinel, three nodes of a cluster.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from subprocess import Popen

import redis

from omni_tasks.embedded import find_binary
from omni_tasks.tied import spawn_tied
from tests.support.eventually import eventually

__all__ = ["HOST", "Watched", "cluster", "free_port", "server", "watched"]

HOST = "127.0.0.1"

#: Seconds a group of servers may take to agree.
_PATIENCE = 30.0


def free_port() -> int:
    """
    A port nobody listens on; below those the kernel hands out, so that the cluster's bus port, 10,000 up, exists.
    """
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1] - 20_000
            try:
                bus.bind((HOST, port + 10_000))
            except OSError:
                continue
            return int(port)


@contextmanager
def server(folder: Path, *options: str, port: int) -> Iterator[Popen[bytes]]:
    """
    Run one server with *options* in *folder*.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        command = [str(find_binary()), *options, "--port", str(port), "--bind", HOST, "--dir", str(folder)]
        process = spawn_tied(command, output=log)
    try:
        with redis.Redis(HOST, port, socket_timeout=1.0) as client:
            eventually(lambda: process.poll() is not None or _answers(client), within=_PATIENCE, what=f"port {port}")
        assert process.poll() is None, (folder / "log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[list[tuple[int, Popen[bytes]]]]:
    """
    Run a cluster without replicas.

    Yields:
        Port and process of each node.
    """
    with ExitStack() as stack:
        started = []
        for number in range(nodes):
            port = free_port()
            options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--save", "", "--appendonly", "no"]
            options += ["--cluster-require-full-coverage", "no"]
            started.append((port, stack.enter_context(server(folder / f"node{number}", *options, port=port))))
        clients = [stack.enter_context(redis.Redis(HOST, port)) for port, _ in started]
        for number, client in enumerate(clients):
            first, last = 16384 * number // nodes, 16384 * (number + 1) // nodes - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER", "MEET", HOST, started[0][0])
        for client in clients:
            eventually(partial(_agrees, client, nodes), within=_PATIENCE, what="the cluster agrees")
        yield started


def _agrees(client: redis.Redis, nodes: int) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    text = "".join(f"{name}:{value}\n" for name, value in info.items()) if isinstance(info, dict) else str(info)
    return "cluster_state:ok" in text and f"cluster_known_nodes:{nodes}" in text and "cluster_slots_ok:16384" in text


class Watched:
    """
    A primary, its replica, and the sentinel that watches them under the name ``circuits``.
    """

    def __init__(self, sentinel: int, servers: Sequence[tuple[int, Popen[bytes]]]) -> None:
        """
        Know the *sentinel*'s port, and port and process of the *servers*, the primary first.
        """
        self.sentinel = sentinel
        self.servers = servers

    def is_replicated(self) -> bool:
        """
        Whether the replica has everything the primary has written.
        """
        with redis.Redis(HOST, self.servers[0][0]) as primary, redis.Redis(HOST, self.servers[1][0]) as replica:
            behind, ahead = replica.info("replication"), primary.info("replication")
            linked = behind.get("master_link_status") == "up"
            return linked and int(behind["slave_repl_offset"]) >= int(ahead["master_repl_offset"])

    @property
    def url(self) -> str:
        """
        Where the store is, for settings.
        """
        return f"redis+sentinel://{HOST}:{self.sentinel}/circuits/0"


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """
    Run them.
    """
    ports = [free_port() for _ in range(3)]
    primary, replica, sentinel = ports
    # Without the delay in which further replicas could join the first one's synchronisation.
    plain = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
    with ExitStack() as stack:
        servers = [(primary, stack.enter_context(server(folder / "primary", *plain, port=primary)))]
        follows = ["--replicaof", f"{HOST} {primary}"]
        servers.append((replica, stack.enter_context(server(folder / "replica", *plain, *follows, port=replica))))
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor circuits {HOST} {primary} 1\n"
            "sentinel down-after-milliseconds circuits 500\n"
            "sentinel failover-timeout circuits 2000\n"
        )
        stack.enter_context(server(folder / "sentinel", str(settings), "--sentinel", port=sentinel))
        with redis.Redis(HOST, sentinel, decode_responses=True) as client:
            eventually(
                lambda: any("slave" in found["flags"] for found in client.sentinel_slaves("circuits")),
                within=_PATIENCE,
                what="the sentinel knows the replica",
            )
        found = Watched(sentinel, servers)
        eventually(found.is_replicated, within=_PATIENCE, what="the replica has what the primary has")
        yield found
