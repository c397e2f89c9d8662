"""
What the documents say is what the code does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from celery import Celery

import omni_tasks
from omni_tasks.core import durations
from omni_tasks.core.model import Circuit, Override, Permit, Request, Word
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import Told
from omni_tasks.embedded import start_server
from omni_tasks.errors import ConfigurationError
from omni_tasks.integration.eta import ETA_HEADER
from omni_tasks.integration.held import (
    CIRCUIT_HEADER,
    HELD_SINCE_HEADER,
    HOLDS_HEADER,
    SUCCEEDS_HEADER,
    TICKET_HEADER,
)
from omni_tasks.integration.holding import DEADLINE_HEADER, PROPERTIES_HEADER, QUEUE_HEADER
from omni_tasks.integration.ledger import Ledger
from omni_tasks.integration.lot import Lot
from omni_tasks.integration.store_lot import StoreLot
from omni_tasks.integration.task import CircuitBreakerTask
from omni_tasks.integration.virtual import VirtualCarrier
from omni_tasks.settings import READY_CIRCUITS, ResilienceConfiguration
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import connect
from omni_tasks.store.schema import (
    alerts_key,
    circuit_keys,
    command_key,
    history_keys,
    hold_key,
    list_key,
    monitor_key,
    revoked_key,
)
from omni_tasks.tied import spawn_tied
from tests.acceptance.test_crashes import POINTS
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.worker import ROOT, Worker

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

Row = dict[str, str]


def tables(page: Path) -> Iterator[list[Row]]:
    """
    Read the tables of a page: a list of rows each, column heading -> cell without back-ticks around it.
    """
    for block in re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        heading, _, *rows = lines
        names = [cell.strip("`") for cell in heading]
        yield [dict(zip(names, (re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in row), strict=True)) for row in rows]


def table(page: Path, *columns: str) -> list[Row]:
    """
    Find the one table of a page that has these columns, and no others.
    """
    [found] = [rows for rows in tables(page) if rows and tuple(rows[0]) == columns]
    return found


def ids(page: Path) -> str:
    """
    Name a page in the report of a test.
    """
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------- README: the code


def fenced(page: Path, language: str) -> list[str]:
    """
    Read the code blocks of a page.
    """
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


README = ROOT / "README.md"
README_BROKER = "redis://127.0.0.1:6379/0"


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """
    Replace what a test cannot take as it is; each must be there.
    """
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def write_shop(folder: Path, changes: Mapping[str, str]) -> dict[str, str]:
    """
    Save README's application under the name that it gives itself.

    Returns:
        The environment it runs in.
    """
    [code] = fenced(README, "python")
    assert code.startswith("# shop.py\n")
    (folder / "shop.py").write_text(replaced(code, changes))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def command(program: str, **changes: str) -> list[str]:
    """
    Find README's one command that starts like this, ready to run with this Python.
    """
    lines = "".join(fenced(README, "sh")).splitlines()
    [words] = [shlex.split(line, comments=True) for line in lines if line.startswith(program)]
    words = [replaced(word, {old: new for old, new in changes.items() if old in word}) for word in words]
    return [sys.executable, "-m", *words] if words[0] == "celery" else [sys.executable, *words[1:]]


def test_readme_code_can_be_pasted(tmp_path: Path) -> None:
    """README's application imports without a server, and has its task, guarded by a circuit that is configured."""
    environment = write_shop(tmp_path, {})
    look = "import json, shop; shop.app.finalize(); print(json.dumps([shop.fetch.name, shop.fetch.circuit]))"
    told = subprocess.check_output([sys.executable, "-W", "error", "-c", look], env=environment, cwd=tmp_path)
    assert json.loads(told) == ["shop.fetch", "supplier"]


def free_port() -> int:
    """
    A TCP port that nobody listens on.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """
    Whether somebody listens on *port*.
    """
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.acceptance
def test_readme_story_is_true(tmp_path: Path) -> None:
    """README's commands: a result; three failures with the server down; a fourth task held until it is up again."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    send = command("python -c", **{"http://127.0.0.1:8000/": url})
    serve = command("python -m http.server", **{"8000": str(port)})
    inspect = command("celery -A shop inspect")
    assert command("celery -A shop worker")[1:] == ["-m", "celery", "-A", "shop", "worker"]
    with start_server() as server:
        environment = write_shop(
            tmp_path, {README_BROKER: server.url, '"recovery_timeout": 20': '"recovery_timeout": 4'}
        )
        dependency = spawn_tied(serve, cwd=tmp_path)
        eventually(lambda: answers(port), within=20, what="README's server answers")
        worker = Worker(environment, tmp_path, app="shop")

        def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

        try:
            assert run(send).stdout.strip() == "200"
            dependency.kill()
            dependency.wait()
            assert ["URLError" in run(send).stderr for _ in range(3)] == [True] * 3
            with subprocess.Popen(send, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as fourth:
                eventually(lambda: '"held": 1' in run(inspect).stdout, within=20, what="the fourth is held")
                assert fourth.poll() is None
                dependency = spawn_tied(serve, cwd=tmp_path)
                told, _ = fourth.communicate(timeout=40)
            assert told.strip() == "200"
        finally:
            dependency.kill()
            dependency.wait()
            worker.stop()


def test_readme_teaches_every_name() -> None:
    """README's names are the public ones, all but the errors that only say what is wrong; so are the signals."""
    rows = table(README, "Name", "What it is")
    words = [word for row in rows for word in re.split(r"`, `", row["Name"].strip("`"))]
    names = {re.sub(r"\(.*", "", word).lstrip("@").removeprefix("omni_tasks.") for word in words}
    assert names == set(omni_tasks.__all__) - {
        "ConfigurationError",
        "OmniTasksError",
        "ParkingError",
        "StoreError",
        "UnknownCircuitError",
    }
    [signals] = [row["What it is"] for row in rows if row["Name"] == "omni_tasks.signals"]
    assert sorted(re.findall(r"`(\w+)`", signals)) == sorted(omni_tasks.signals.__all__)


# ---------------------------------------------------------------- settings

OPTIONS = table(DOCS / "settings.md", "Option", "Environment", "Default", "Range", "Meaning")
CIRCUIT_OPTIONS = table(DOCS / "settings.md", "Option", "Default", "Range", "Meaning")


def defaults_of(kind: type) -> dict[str, Any]:
    """
    Read a data class's defaults.
    """
    missing = dataclasses.MISSING
    return {
        f.name: f.default if f.default is not missing else None if f.default_factory is missing else f.default_factory()
        for f in dataclasses.fields(kind)
    }


def in_words(default: object) -> str:
    """
    Write a default as the tables do.
    """
    if default is None:
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_every_option_is_documented() -> None:
    """docs/settings.md has a row for every option of the settings and of a circuit, in the code's order."""
    assert tuple(row["Option"] for row in OPTIONS) == ResilienceConfiguration.option_names()
    assert tuple(row["Option"] for row in CIRCUIT_OPTIONS) == CircuitBreakerConfig.option_names()


def test_documented_defaults_are_the_defaults() -> None:
    """The defaults in docs/settings.md are those that the code takes when nothing is set."""
    wanted = defaults_of(ResilienceConfiguration) | {"circuits": "the four below"}
    assert {row["Option"]: row["Default"] for row in OPTIONS} == {name: in_words(v) for name, v in wanted.items()}
    wanted = defaults_of(CircuitBreakerConfig) | {"name": "required"}
    assert {row["Option"]: row["Default"] for row in CIRCUIT_OPTIONS} == {name: str(v) for name, v in wanted.items()}
    loaded = ResilienceConfiguration.load({}, {})
    assert all(
        in_words(getattr(loaded, row["Option"])) == row["Default"] for row in OPTIONS if row["Option"] != "circuits"
    )


def bounds(row: Row) -> list[str]:
    """
    Read a range's two ends; nothing when it is not one of numbers.
    """
    found = re.fullmatch(r"([0-9.]+) - ([0-9.]+)", row["Range"])
    return list(found.groups()) if found else []


NUMBERS = [row for row in OPTIONS if bounds(row)]
CIRCUIT_NUMBERS = [row for row in CIRCUIT_OPTIONS if bounds(row)]


def beyond(row: Row) -> list[str]:
    """
    Give a number below a row's range, and one above it.
    """
    least, most = bounds(row)
    below = float(least) - 0.0005 if takes_fractions(row) else int(least) - 1
    return [str(below), str(int(float(most)) + 1)]


def takes_fractions(row: Row) -> bool:
    """
    Whether an option is a float.
    """
    return "." in row["Default"] or "." in row["Range"]


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row["Option"])
def test_environment_variable_takes_the_documented_range(row: Row) -> None:
    """A variable is read, up to both ends of its range; beyond them it is refused by its own name."""
    for value in bounds(row):
        settings = ResilienceConfiguration.load({}, {row["Environment"]: value})
        assert getattr(settings, row["Option"]) == float(value)
        assert ResilienceConfiguration.load({f"omni_{row['Option']}": value}, {}) == settings
    for value in beyond(row):
        with pytest.raises(ConfigurationError, match=f"^{row['Environment']} must be "):
            ResilienceConfiguration.load({}, {row["Environment"]: value})


def with_option(row: Row, value: str) -> CircuitBreakerConfig:
    """
    Make a circuit with one option set.
    """
    # With these, every option alone may take every value of its range.
    room = {"slow_call_duration": 1.0, "window_seconds": 60.0}
    option: dict[str, Any] = {row["Option"]: float(value) if takes_fractions(row) else int(value)}
    return CircuitBreakerConfig(name="x", **room | option)


@pytest.mark.parametrize("row", CIRCUIT_NUMBERS, ids=lambda row: row["Option"])
def test_circuit_takes_the_documented_range(row: Row) -> None:
    """An option of a circuit is taken up to both ends of its range, and refused beyond them."""
    for value in bounds(row):
        with_option(row, value)
    for value in beyond(row):
        with pytest.raises(ConfigurationError, match=f"^{row['Option']} must be "):
            with_option(row, value)


OTHER_VALUES = {
    "enable_resilience": "false",
    "enable_resilience_metrics": "no",
    "enable_resilience_logging": "0",
    "redis_url": "unix:///tmp/redis.sock",
    "key_prefix": "p" * 64,
    "circuits": '{"shop": {}}',
    "on_hold_expired": "dead_letter",
    "pause_queues": '{"articles": "ai_providers"}',
    "parking": "store",
    "alert_sinks": "log, proj.alerts:page",
    "alert_private_addresses": "yes",
    "webhook_secret": "hush",
    "pushgateway_url": "http://127.0.0.1:9091",
    "exporter_host": "0.0.0.0",  # noqa: S104 - only read
    "log_format": "console",
    "log_celery": "on",
    "store_policy": "refuse",
}


def test_other_environment_variables_are_read() -> None:
    """The variables that are not numbers have the documented names too."""
    rows = {row["Option"]: row["Environment"] for row in OPTIONS if not bounds(row)}
    assert rows.keys() == OTHER_VALUES.keys()
    unset = ResilienceConfiguration.load({}, {})
    for option, variable in rows.items():
        settings = ResilienceConfiguration.load({}, {variable: OTHER_VALUES[option]})
        assert getattr(settings, option) != getattr(unset, option), variable


def test_the_documented_refusal_is_the_refusal() -> None:
    """The example of a refused setting in docs/settings.md is what the code says."""
    [example] = fenced(DOCS / "settings.md", "")[:1]
    with pytest.raises(ConfigurationError) as refused:
        ResilienceConfiguration.load({}, {"DEFAULT_FAILURE_THRESHOLD": "0"})
    assert example.strip() == f"omni_tasks: {refused.value}"


@pytest.mark.parametrize("page", [README, DOCS / "settings.md"], ids=ids)
def test_documented_circuits_are_the_ready_ones(page: Path) -> None:
    """The circuits that are there without any configuration are those of the table."""
    [rows] = [rows for rows in tables(page) if rows and "Key" in rows[0] and "monitor_interval" in rows[0]]
    said = {
        row["Key"]: (row.get("name") or row["Name"], *(float(row[option]) for option in list(row)[2:])) for row in rows
    }
    assert said == {key: tuple(entry.values()) for key, entry in READY_CIRCUITS.items()}
    loaded = ResilienceConfiguration.load({}, {}).circuits
    assert {key: config.name for key, config in loaded.items()} == {key: name for key, (name, *_) in said.items()}


def test_readme_variables_have_the_documented_defaults() -> None:
    """README's variables are those that have no OMNI_ in front, with the defaults of docs/settings.md."""
    said = {
        row["Environment variable"]: row["Default"] for row in table(README, "Environment variable", "Default", "Today")
    }
    wanted = {row["Environment"]: row["Default"] for row in OPTIONS if not row["Environment"].startswith("OMNI_")}
    assert said == wanted


def test_documented_task_attributes_are_the_defaults() -> None:
    """A task's own settings have the documented names and defaults."""
    [rows] = [
        rows for rows in tables(DOCS / "settings.md") if rows and list(rows[0]) == ["Attribute", "Default", "Meaning"]
    ][:1]
    said = {row["Attribute"]: row["Default"].strip('"') for row in rows}
    assert said == {name: str(getattr(CircuitBreakerTask, name)) for name in said}
    assert "circuit" in said


# ---------------------------------------------------------------- Redis

SCHEMA = DOCS / "redis-schema.md"
FIELDS = table(SCHEMA, "Field", "Type, unit", "Meaning", "Who writes")


def test_documented_fields_are_the_fields() -> None:
    """docs/redis-schema.md has a row for every field of a circuit's hash, in the code's order."""
    wanted = [f.name for f in dataclasses.fields(Circuit) if f.name not in {"calls", "probes"}]
    assert [row["Field"] for row in FIELDS] == wanted
    assert all("ms" in row["Type, unit"] for row in FIELDS if row["Field"].endswith("_ms"))


def test_documented_keys_are_the_keys() -> None:
    """docs/redis-schema.md has a row for every key, and no other."""
    said = [
        row["Key"].replace("<", "").replace(">", "")
        for row in table(SCHEMA, "Key", "Type", "What it holds", "Who writes")
    ]
    client = connect("redis://127.0.0.1:1/0", timeout=1.0)
    lot = Lot(client, prefix="{prefix}", remember=1.0)
    ledger = Ledger(client, prefix="{prefix}", remember=1.0)
    assert ledger.key == lot._superseded
    claims = StoreLot(client, VirtualCarrier(Celery()), ledger, prefix="{prefix}")._keys("key")[2]
    circuit = [*circuit_keys("{prefix}", "name"), list_key("{prefix}", "name")]
    assert ledger.index == lot._index
    lots = [*lot._keys("key"), claims, lot._deadlines("key"), lot._superseded, lot._index]
    monitor = [monitor_key("{prefix}", name) for name in ("seen", "tick", "delivered", "outbox:sink", "due:sink")]
    ours = [revoked_key("{prefix}"), command_key("{prefix}", "digest"), hold_key("{prefix}", "words")]
    assert said == [*circuit, *lots, *ours, *history_keys("{prefix}", "name"), alerts_key("{prefix}"), *monitor]


def test_documented_headers_are_the_headers() -> None:
    """The headers of a held message are those of the table."""
    said = [row["Header"] for row in table(SCHEMA, "Header", "Meaning")]
    assert said == [
        CIRCUIT_HEADER, HOLDS_HEADER, HELD_SINCE_HEADER, TICKET_HEADER, SUCCEEDS_HEADER, ETA_HEADER, QUEUE_HEADER,
        PROPERTIES_HEADER, DEADLINE_HEADER,
    ]  # fmt: skip


def test_documented_writers_write() -> None:
    """Over many random walks, exactly the documented verbs have changed each field."""
    seen: dict[str, set[str]] = {row["Field"]: set() for row in FIELDS}
    for seed in range(40):
        for verb, changed in _walk(random.Random(seed)):
            for field in changed & seen.keys():
                seen[field].add(verb)
    assert {field: sorted(verbs) for field, verbs in seen.items()} == {
        row["Field"]: sorted(row["Who writes"].split(", ")) for row in FIELDS
    }


def _walk(rng: random.Random, steps: int = 500) -> Iterator[tuple[str, set[str]]]:
    """
    Ask one circuit this and that.

    Yields:
        Each verb, and the fields that it changed.
    """
    clock = Clock()
    store = MemoryStore(clock)
    config = CircuitBreakerConfig(
        name="walk",
        failure_threshold=rng.choice([1, 2, 3]),
        failure_rate_threshold=rng.choice([None, 0.9]),
        slow_call_duration=0.1,
        recovery_timeout=0.5,
        half_open_max_calls=2,
        success_threshold=2,
        probe_lease=0.3,
        call_lease=5.0,
        version=1,
    )
    permits: list[Permit] = []
    before: dict[str, Any] = dataclasses.asdict(Circuit())
    for step in range(steps):
        clock.advance(rng.choice([0, 1, 100, 300, 501, 501, 2000, -50, -3000]))
        # Whoever comes first begins the circuit.
        often = [40, 40, 8, 12, 3, 1] if step else None
        verb = rng.choices(["acquire", "settle", "tally", "draw", "force", "reset"], often)[0]
        if verb == "tally":
            told = Told(
                gen=rng.choice([before["gen"], "lost"]),
                epoch=before["epoch"],
                running={f"p{step}": 0},
                succeeded=1,
                slow=1,
                took_ms=100,
                durations=durations.written([100]),
            )
            store.tally(config, told)
        elif verb == "acquire":
            permit = store.acquire(config, Request(permit_id=f"p{step}", paced=rng.random() < 0.5)).permit
            permits += [permit] if permit else []
        elif verb == "settle" and permits:
            permit = permits.pop() if rng.random() < 0.9 else permits[0]
            outcome = rng.choices(list(Outcome), [5, 4, 1])[0]
            store.settle(config, permit, Report(outcome, duration_ms=rng.choice([0, 100]), reason="auth"))
        elif verb == "draw":
            store.draw(config, rng.choice([0, 3]))
        elif verb == "force":
            store.force(config, rng.choice(list(Override)), Word(op_id=f"o{step}"), ttl_ms=rng.choice([0, 100]))
        elif verb == "reset":
            store.reset(config, Word(op_id=f"r{step}"))
        after = dataclasses.asdict(store.read([config])[0].circuit)
        yield verb, {field for field, value in after.items() if value != before[field]}
        before = after


# ---------------------------------------------------------------- the repository

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_FILE = re.compile(r"`((?:[\w.*-]+/)+[\w.*-]*|[\w-]+\.(?:py|lua))`")


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the repository, and every picture, is there."""
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [*DOCS.rglob("*.md"), README, ROOT / "ARCHITECTURE.md"], ids=ids)
def test_named_files_exist(page: Path) -> None:
    """Every file or folder that a page names is in the repository or in the package."""
    folders = [ROOT, ROOT / "omni_tasks", *(ROOT / "omni_tasks").rglob("lua")]
    named = set(_FILE.findall(page.read_text()))
    assert {name for name in named if not any(list(folder.glob(name.rstrip("/"))) for folder in folders)} == set()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_count_that_drifts(page: Path) -> None:
    """No page counts tests, files, modules or lines: nobody would keep the number right."""
    things = r"(?:tests|test cases|files|modules|functions|scripts|lines(?: of code)?|commits)"
    assert re.findall(rf"\b\d[\d,.]* (?:\w+ )?{things}\b", page.read_text()) == []


def test_architecture_has_the_layers() -> None:
    """ARCHITECTURE.md draws the layers that import-linter checks, in their order."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    package, applications = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    joined = [layer.replace(" | ", "   ").replace(" : ", " with ") for layer in [*applications[:-1], *package]]
    [drawing] = fenced(ROOT / "ARCHITECTURE.md", "")
    drawn = [line for line in drawing.splitlines() if "──" not in line]
    assert len(drawn) == len(joined)
    assert [
        line for line, layer in zip(drawn, joined, strict=True) if not re.match(rf"{re.escape(layer)}  ", line)
    ] == []


def test_decisions_are_numbered_and_whole() -> None:
    """The decisions are numbered without a gap, in name and title, and each has its four parts."""
    parts = ["Context", "Choice", "What we gave up", "How we would notice that it was wrong"]
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for number, page in enumerate(pages, start=1):
        assert page.read_text().startswith(f"# {number}. ")
        assert re.findall(r"^\*\*(.+?)\.\*\*", page.read_text(), re.MULTILINE) == parts


def test_pictures_are_whole() -> None:
    """Every picture is SVG that can be read, says in words what it shows, and takes nothing from elsewhere."""
    pictures = sorted((DOCS / "img").glob("*.svg"))
    assert pictures
    for picture in pictures:
        root = ET.fromstring(picture.read_text())  # noqa: S314 - our own files
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert {"title", "desc"} <= names
        assert not names & {"image", "script", "foreignObject", "style"}


INVARIANTS = [row for page in tables(DOCS / "invariants.md") for row in page]


def test_every_invariant_is_listed() -> None:
    """
    The page has each number once, in order.
    """
    expected = [f"{kind}{number}" for kind, last in (("I", 23), ("T", 12), ("R", 20)) for number in range(1, last + 1)]
    assert [row["Number"] for row in INVARIANTS] == expected


@pytest.mark.parametrize("row", INVARIANTS, ids=lambda row: row["Number"])
def test_every_invariant_is_shown_by_tests_that_exist(row: Row) -> None:
    """
    Each invariant names at least one test, and every test it names is there.
    """
    named = re.findall(r"([\w/]+\.py)::(\w+)", row["Shown by"])
    assert named, f"{row['Number']} is shown by no test"
    for file, test in named:
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), (file, test)


def test_documented_points_of_a_kill_are_the_tested_ones() -> None:
    """
    ARCHITECTURE.md has a row for each, and says where there is no such moment.
    """
    columns = ("Killed", "Redis: runs a task, lost", "RabbitMQ: runs a task, lost")
    rows = {row["Killed"]: list(row.values())[1:] for row in table(ROOT / "ARCHITECTURE.md", *columns)}
    assert rows == {
        point: ["1, 0" if broker in brokers else "no such moment" for broker in ("redis", "rabbitmq")]
        for point, brokers in POINTS.items()
    }
