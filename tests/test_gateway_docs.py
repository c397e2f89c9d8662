"""
What docs/gateways.md and docs/workers.md say is what the gateways and the workers do.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from omni_tasks.gateways import PROVIDERS, Article, GatewayConfig
from omni_tasks.gateways.wire import LARGEST_ANSWER
from tests.support.classification import TABLE
from tests.support.worker import ROOT
from workers.app import PRIORITIES, app
from workers.prompts import CONFIG_KEYS, read_prompts
from workers.settings import Settings

GATEWAYS = (ROOT / "docs" / "gateways.md").read_text()
WORKERS = (ROOT / "docs" / "workers.md").read_text()


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """
    Read the table whose heading starts so: the first cell, without back-ticks, to the others.
    """
    [block] = re.findall(rf"^\| {heading} \|.*\n\| ---.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_classification_is_the_tests_own() -> None:
    """
    The table has each row that the tests walk, in their order, and no other.
    """
    [block] = re.findall(r"^\| Seen \|.*\n\| ---.*\n((?:\|.*\n)+)", GATEWAYS, re.MULTILINE)
    assert block.splitlines() == [row.in_docs for row in TABLE]


def test_every_option_of_a_gateway_is_documented() -> None:
    """
    Each option is there with its default.
    """
    documented = rows(GATEWAYS, "Option")
    defaults = {field.name: field.default for field in dataclasses.fields(GatewayConfig)}
    assert list(documented) == list(defaults)
    del documented["system_prompt"]
    assert {option: cells[0].strip("`") for option, cells in documented.items()} == {
        option: str(default) for option, default in defaults.items() if option != "system_prompt"
    }


def test_what_an_article_has_is_documented() -> None:
    """
    Each of its fields is named, and the size at which an answer is refused.
    """
    assert [field.name for field in dataclasses.fields(Article) if f"`{field.name}`" not in GATEWAYS] == []
    assert f"{LARGEST_ANSWER // 2**20} MiB" in GATEWAYS


def test_every_provider_has_its_circuit_and_queue() -> None:
    """
    Each provider is in both tables, and each queue is one that a worker serves.
    """
    assert {f"ai_providers:{name}" for name in PROVIDERS} < set(rows(GATEWAYS, "Circuit"))
    assert set(rows(WORKERS, "Queue")) == {queue.name for queue in app.conf.task_queues}


def test_every_variable_of_the_workers_is_documented() -> None:
    """
    Each variable that is read is there with its default, and no other.
    """
    source = (ROOT / "workers" / "settings.py").read_text()
    documented = rows(WORKERS, "Variable")
    assert set(documented) == set(re.findall(r'read\("([A-Z_]+)"', source))
    found = Settings.from_environment({})
    assert documented["ARTICLES_PROVIDER"][0].strip("`") == found.provider
    assert documented["DEFAULT_TIMEOUT"][0].strip("`") == str(found.call_timeout)
    assert documented["DEFAULT_MAX_RETRIES"][0].strip("`") == str(found.max_retries)
    assert documented["CELERY_BROKER_URL"][0].strip("`") == found.broker_url


def test_every_key_of_a_prompt_is_documented(tmp_path: Path) -> None:
    """
    A line may have the documented keys, and is told of them when it has another.
    """
    (tmp_path / "p.jsonl").write_text(json.dumps({"other": 1}) + "\n")
    [bad] = read_prompts(tmp_path / "p.jsonl").bad
    assert bad.reason.endswith(", ".join(rows(WORKERS, "Key")))
    assert re.findall(r"`([a-z_]+)`", rows(WORKERS, "Key")["config"][0]) == list(CONFIG_KEYS)
    assert all(f"`{word}`" in WORKERS or f"--priority {word}" in WORKERS for word in PRIORITIES)
