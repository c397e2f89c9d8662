"""
A script's header says what the script does: it is read against the code, against its twin and against the calls.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest
import redis

from omni_tasks.core import durations, held, model, ramp
from omni_tasks.core.model import Override, Permit, Request, Word
from omni_tasks.core.outcome import SUCCESS
from omni_tasks.core.quiet import Told
from omni_tasks.core.wire import Policy
from omni_tasks.store import base
from omni_tasks.store.redis import RedisStore
from omni_tasks.store.schema import STANDALONE, VERBS, script_text
from tests.support.stand import CONFIG

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "omni_tasks").glob("*/lua/*.lua"))
PRELUDE = ROOT / "omni_tasks" / "store" / "lua" / "_prelude.lua"

#: Commands whose work grows with the whole server, or whose keys nobody can declare.
FORBIDDEN = {"KEYS", "SCAN", "HSCAN", "SSCAN", "ZSCAN", "EVAL", "EVALSHA", "FLUSHDB", "FLUSHALL", "RANDOMKEY"}

PERMIT = Permit("p", "g", 1, probe=False)
TOLD = Told(gen="g", epoch=1, running={"p": 0}, succeeded=1, took_ms=3, durations=durations.written([3]))
KEYED = replace(CONFIG, name=f"{CONFIG.name}:key")

#: One call of each verb; no argument contains a blank.
CALLS: dict[str, Callable[[RedisStore], object]] = {
    "acquire": lambda store: store.acquire(CONFIG, Request(permit_id="p", ticket="g:1")),
    "settle": lambda store: store.settle(CONFIG, PERMIT, SUCCESS),
    "tally": lambda store: store.tally(CONFIG, TOLD),
    "draw": lambda store: store.draw(CONFIG, 7),
    "force": lambda store: store.force(CONFIG, Override.AUTO, Word(op_id="o"), ttl_ms=5),
    "reset": lambda store: store.reset(CONFIG, Word(op_id="o")),
    "snapshot": lambda store: store.read([CONFIG]),
    "forget": lambda store: (store.acquire(KEYED, Request(permit_id="k")), store.forget(KEYED)),
}


@dataclass(frozen=True)
class Lua:
    """
    One file, cut into header and code.
    """

    path: Path
    header: str
    code: str

    @classmethod
    def of(cls, path: Path) -> Lua:
        """
        Cut the file.
        """
        text = path.read_text()
        found = re.match(r"(?:#![^\n]*\n)?--\[\[\n(.*?)\n\]\]\n(.*)", text, re.DOTALL)
        assert found, f"{path.name} does not open with a header"
        return cls(path, found[1], re.sub(r"--[^\n]*", "", found[2]))

    @property
    def sections(self) -> dict[str, str]:
        """
        The paragraphs that open with a capital word: ``Returns``, ``Writes`` and the like.
        """
        return dict(re.findall(r"^ {2}([A-Z][a-z]+) +(.+(?:\n {3,}.*)*)", self.header, re.MULTILINE))

    def declared(self, table: str) -> tuple[set[int], bool]:
        """
        The indices of KEYS or ARGV that the header names, and whether the last is open-ended.
        """
        indices: set[int] = set()
        for first, more in re.findall(rf"^ {{2}}{table}\[(\d+)(\.\.\d+|\+)?\]  +\S", self.header, re.MULTILINE):
            last = int(more.removeprefix("..")) if more.startswith("..") else int(first)
            indices |= set(range(int(first), last + 1))
        return indices, f"{table}[{max(indices, default=0)}+]" in self.header

    def used(self, table: str) -> set[int]:
        """
        The indices of KEYS or ARGV that the code uses by number.
        """
        return {int(index) for index in re.findall(rf"\b{table}\[(\d+)\]", self.code)}

    @property
    def reply(self) -> list[str]:
        """
        The values a list reply is said to hold; a list within it is one of them.
        """
        shape = self.sections["Returns"].splitlines()[0]
        return re.sub(r"\{[^{}]*\}", "list", shape.removeprefix("{").removesuffix("}")).split(",")

    def commands(self) -> list[tuple[str, str]]:
        """
        Every command of the code, with its first argument.
        """
        return re.findall(r"\bcall\(\s*'([A-Z]+)'\s*,?\s*([^,)\s]*)", self.outside_call)

    @property
    def outside_call(self) -> str:
        """
        The code without the function that every command goes through.
        """
        return re.sub(r"^local function call\(command, key.*?^end$", "", self.code, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def lua(request: pytest.FixtureRequest) -> Lua:
    """
    Each script.
    """
    return Lua.of(request.param)


def test_every_script_is_in_these_tests() -> None:
    """
    The store's folder holds its verbs, the readers and the prelude, and nothing else.
    """
    there = {path.stem for path in FILES if path.parent == PRELUDE.parent}
    assert there == {*VERBS, *STANDALONE, "_prelude"}
    assert set(CALLS) == {*VERBS, *STANDALONE}


def test_the_header_is_complete(lua: Lua) -> None:
    """
    A header opens with the file's name and tells keys, arguments, reply, effects, cost and twin.
    """
    assert lua.header.startswith(f"  {lua.path.stem.removeprefix('_')}: ")
    assert {"Returns", "Writes", "Cost", "Mirrors"} <= lua.sections.keys()
    assert lua.declared("KEYS")[0]
    assert lua.declared("ARGV")[0]


@pytest.mark.parametrize("table", ["KEYS", "ARGV"])
def test_the_header_names_what_the_code_uses(lua: Lua, table: str) -> None:
    """
    Keys and arguments are declared without a gap up to the last one used; only an open end is used by a variable.
    """
    indices, open_ended = lua.declared(table)
    assert indices == set(range(1, len(indices) + 1))
    assert lua.used(table) <= indices
    by_variable = re.findall(rf"\b{table}\[[^\d\]]+\]|#{table}\b|unpack\({table}\)", lua.code)
    assert open_ended or not by_variable


def test_commands_touch_declared_keys_only(lua: Lua) -> None:
    """
    Every command names a declared key and none walks the server.
    """
    commands = lua.commands()
    assert len(commands) == len(re.findall(r"\bcall\(", lua.outside_call))
    assert {command for command, _ in commands} & FORBIDDEN == set()
    assert [pair for pair in commands if pair[0] != "TIME" and not pair[1].startswith("KEYS[")] == []


def test_reading_the_time_is_said(lua: Lua) -> None:
    """
    Who asks the server for the time says so; the verbs leave it to the prelude.
    """
    asks = any(command == "TIME" for command, _ in lua.commands())
    assert asks == ("TIME" in lua.header)
    assert not asks or lua.path.stem not in VERBS


def test_the_twin_exists(lua: Lua) -> None:
    """
    What a script says it mirrors is there.
    """
    named = re.findall(r"(omni_tasks/[\w/]+)\.py(?:: ([\w.]+))?", lua.sections["Mirrors"])
    assert named
    for path, name in named:
        module = importlib.import_module(path.replace("/", "."))
        assert not name or attrgetter(name)(module)


@pytest.mark.parametrize(
    ("module", "file", "names"),
    [
        (ramp, PRELUDE, {"CALL", "BUCKET_MS", "CUT_PAUSE_MS", "CUT_PERCENT", "CEILING_PERCENT", "CREEP_PERMILLE"}),
        (ramp, PRELUDE, {"FASTEST_MPS"}),
        (model, PRELUDE, {"FOREVER_MS"}),
        (base, PRELUDE, {"LOG_LENGTH"}),
        (held, PRELUDE.with_name("draw.lua"), {"DRAWN_MS"}),
    ],
    ids=["ramp", "fastest", "forever", "log", "drawn"],
)
def test_numbers_are_the_same_on_both_sides(module: ModuleType, file: Path, names: set[str]) -> None:
    """
    A constant has one value in Lua and in Python.
    """
    found: dict[str, float] = {}
    for left, right in re.findall(r"^local ([A-Z_]+(?:, [A-Z_]+)*) = ([\d., e]+)$", file.read_text(), re.MULTILINE):
        found.update(zip(left.split(", "), map(float, right.split(", ")), strict=True))
    assert {name: found.get(name) for name in names} == {name: getattr(module, name) for name in names}


def test_tables_are_the_same_on_both_sides() -> None:
    """
    The order of a policy's numbers, the ranges of durations and the names of the operator's words are one.
    """

    def table(file: Path, name: str) -> list[str]:
        [found] = re.findall(rf"^local {name} = \{{(.*?)\}}", file.read_text(), re.MULTILINE | re.DOTALL)
        return [word.strip(" \n'") for word in found.split(",") if word.strip()]

    numbers = re.findall(r"(\w+) = n\[(\d+)\]", PRELUDE.read_text())
    assert numbers == [(name, str(number)) for number, name in enumerate(Policy._fields, 1)]
    assert f"is_numbers(c.policy, {len(numbers)})" in PRELUDE.read_text()
    assert table(PRELUDE.with_name("settle.lua"), "BOUNDS_MS") == [str(bound) for bound in durations.BOUNDS_MS]
    actions = [f"{override.value} = '{action}" for override, action in model.ACTIONS.items()]
    assert table(PRELUDE.with_name("force.lua"), "ACTIONS") == actions


def test_the_ramp_has_one_function_on_each_side() -> None:
    """
    Each rule of the ramp is a function of the same name in the prelude.
    """
    functions = set(re.findall(r"^local function (\w+)", PRELUDE.read_text(), re.MULTILINE))
    assert {name for name in ramp.__all__ if name.islower()} <= functions


@pytest.mark.parametrize("verb", CALLS)
def test_calls_pass_what_the_header_asks_for(verb: str, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    On the wire a call has as many keys and arguments as the header names, and the reply as many values.
    """
    lua, store = Lua.of(PRELUDE.with_name(f"{verb}.lua")), RedisStore(redis_client, prefix=key_prefix)
    CALLS[verb](store)
    with redis_client.monitor() as monitor:
        CALLS[verb](store)
        words: list[str] = []
        sha = redis_client.script_load(script_text(verb))
        while words[:2] != ["EVALSHA", sha] or key_prefix not in words[3]:
            words = str(monitor.next_command()["command"]).split(" ")
    keys, arguments = len(lua.declared("KEYS")[0]), len(lua.declared("ARGV")[0])
    assert words[2] == str(keys)
    assert len(words) == 3 + keys + arguments
    reply = redis_client.evalsha(words[1], keys, *words[3:])
    assert isinstance(reply, list)
    assert len(reply) == len(lua.reply)
