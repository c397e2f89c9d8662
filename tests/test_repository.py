"""
What must hold for the repository itself: its locks, its make targets, what its files may name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = [ROOT / "requirements" / name for name in ("run.txt", "dev.txt")]

# A lock, or a page that says how to install, must work behind any mirror.  In parts, for this file is searched too.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
    )
]

# One requirement of a lock: its first line up to the next one, continuation lines and comments included.
_ENTRY = re.compile(r"^(?=[A-Za-z0-9])", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")

# `make lock`, or a line "make lock ..." of an indented or fenced example.
_MAKE = re.compile(r"(?:`|^[ \t]*(?:\$ )?)make ([a-z][a-z-]*)", re.MULTILINE)


def committed() -> Iterator[Path]:
    """
    Give every file that is, or would be, committed: all but what .gitignore names.
    """
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line and line[0] != "#"]
    ignored.append(".git")
    folders = [ROOT]
    while folders:
        for path in folders.pop().iterdir():
            if any(fnmatch(path.name, pattern) for pattern in ignored):
                continue
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            elif path.is_file():
                yield path


def pins(lock: Path) -> dict[str, str]:
    """
    Give name and version of everything in *lock*.
    """
    entries = [Requirement(_first_line(entry)) for entry in _entries(lock)]
    return {canonicalize_name(entry.name): str(entry.specifier) for entry in entries}


def _entries(lock: Path) -> list[str]:
    """
    Cut a lock into its requirements.
    """
    return [entry for entry in _ENTRY.split(lock.read_text()) if entry]


def _first_line(entry: str) -> str:
    """
    Take a requirement without its hashes.
    """
    return entry.splitlines()[0].removesuffix("\\").strip()


def wanted(*extras: str) -> set[str]:
    """
    Give the names that pyproject.toml asks for, with those *extras* and the extras they name.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    names: set[str] = set()
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) == project["name"]:
            names |= wanted(*requirement.extras)
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def test_no_registry_is_named() -> None:
    """
    No file names a package registry: where packages come from is the machine's business.
    """
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in committed()
        for text in [path.read_bytes()]
        for host in REGISTRY_HOSTS
        if re.search(rb"(?<![\w-])" + re.escape(host.encode()) + rb"(?![\w-])", text)
    ]
    assert found == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_are_pinned_and_hashed(lock: Path) -> None:
    """
    Every line of a lock is one exact version with the hashes of its files.
    """
    entries = _entries(lock)
    loose = [
        _first_line(entry)
        for entry in entries
        if not _HASH.search(entry) or not re.match(r"[\w.-]+==[\w.+!-]+(?: ;.*)?$", _first_line(entry))
    ]
    assert entries
    assert loose == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_name_no_source(lock: Path) -> None:
    """
    A lock says what is installed, never from where.
    """
    options = [line for line in lock.read_text().splitlines() if line.startswith("-") or "://" in line]
    assert options == []


def test_locks_hold_what_the_project_asks_for() -> None:
    """
    A dependency added to pyproject.toml without `make lock` is noticed.
    """
    run, dev = map(pins, LOCKS)
    assert wanted("demo") - run.keys() == set()
    assert wanted("dev") - dev.keys() == set()


def test_the_demo_runs_on_the_tested_versions() -> None:
    """
    Whatever the demo's lock installs is in the tests' lock at the same version.
    """
    run, dev = map(pins, LOCKS)
    assert run.items() - dev.items() == set()


def test_documented_targets_exist() -> None:
    """
    Every `make` command that a document names is there.
    """
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        f"{path.relative_to(ROOT)}: make {target}"
        for path in committed()
        if path.suffix == ".md"
        for target in _MAKE.findall(path.read_text())
        if target not in targets
    }
    assert named == set()
