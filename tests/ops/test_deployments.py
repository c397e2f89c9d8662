"""
The ways to run it: Compose, systemd, Kubernetes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from celery.bin.celery import celery
from click.testing import CliRunner

from omni_tasks.cli import main as omni
from tests.support.watchtower import OPS
from tests.support.worker import ROOT
from workers import app as workers

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
MANIFESTS: list[dict[str, Any]] = [
    manifest for path in sorted(OPS.glob("kubernetes/*.yaml")) for manifest in yaml.safe_load_all(path.read_text())
]
PROGRAMS = {"celery": celery, "omni": omni}
UNITS = sorted(OPS.glob("systemd/*.service"))

#: systemd-analyze's own scale, tenths: 0 is closed, 100 open.
MOST_EXPOSED = 20


def deployments() -> dict[str, dict[str, Any]]:
    """
    Give the pods' templates by the name of their deployment.
    """
    return {each["metadata"]["name"]: each["spec"] for each in MANIFESTS if each["kind"] == "Deployment"}


@pytest.mark.parametrize("name", COMPOSE)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    """
    Every service of Compose runs without capabilities, is published on this machine only, and tells how it is.

    RabbitMQ alone writes beside its volumes.
    """
    service = COMPOSE[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name != "rabbitmq")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    # Of the worker the image says it; beat answers nobody.
    assert "healthcheck" in service or name == "worker"


def test_compose_mounts_what_is_there() -> None:
    """
    Every file and folder of this repository that a service mounts exists.
    """
    mounts = [volume.split(":")[0] for service in COMPOSE.values() for volume in service.get("volumes", [])]
    local = [mount for mount in mounts if mount.startswith("./")]
    assert local
    assert [mount for mount in local if not (ROOT / mount).exists()] == []


def test_the_image_is_built_from_what_is_there() -> None:
    """
    What the Dockerfile copies exists and is sent to the builder; the image runs as a user and says how it is.
    """
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in lines if re.match(r"COPY (?!--)", line) for word in line.split()[1:-1]]
    assert [word for word in copied if not (ROOT / word).exists() or word.split("/")[0] not in sent] == []
    assert {word.split("/")[0] for word in copied} == sent
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


def test_one_image_of_this_version_runs_everywhere() -> None:
    """
    Compose builds, and Kubernetes runs, the image of the project's version.
    """
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    built = {service["image"] for service in COMPOSE.values() if "build" in service}
    run = {each["template"]["spec"]["containers"][0]["image"] for each in deployments().values()}
    assert built == run == {f"omni-tasks:{version}"}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_a_manifest_fits_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    """
    Kubernetes knows every field; KEDA's own kind, which it does not know, scales the workers by the articles' queues.
    """
    if manifest["kind"] != "ScaledObject":
        kubernetes_validate.validate(manifest, "1.33", strict=True)
        return
    spec = manifest["spec"]
    assert spec["scaleTargetRef"]["name"] in deployments()
    # Nobody but a worker brings held tasks back.
    assert spec["minReplicaCount"] >= 1
    queues = {queue.name for queue in workers.conf.task_queues} - {"celery"}
    assert {trigger["metadata"]["listName"] for trigger in spec["triggers"]} == queues


@pytest.mark.parametrize("name", deployments())
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    """
    Every container runs as a user without rights, on a file system that it cannot write, with bounds.
    """
    pod = deployments()[name]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_there_is_one_beat() -> None:
    """
    An update ends the old beat before it starts the new one.
    """
    beat = deployments()["omni-tasks-beat"]
    assert beat["replicas"] == 1
    assert beat["strategy"] == {"type": "Recreate"}


def commands() -> set[tuple[str, ...]]:
    """
    Give the words of every command of the package's or Celery's that is run anywhere.
    """
    lines = re.findall(r"^ExecStart=(.+)$", "\n".join(unit.read_text() for unit in UNITS), re.MULTILINE)
    found = [
        *(service.get("command", ()) for service in COMPOSE.values()),
        *(each["template"]["spec"]["containers"][0]["command"] for each in deployments().values()),
        *(line.removeprefix("/opt/omni/bin/").split() for line in lines),
    ]
    return {tuple(words) for words in found if words and words[0] in PROGRAMS}


@pytest.mark.parametrize("words", sorted(commands()), ids=" ".join)
def test_a_command_is_one_that_the_program_takes(words: tuple[str, ...]) -> None:
    """
    Every command of a service, a unit or a pod has options that its program knows.
    """
    # Asked for help, it reads every option and starts nothing.
    done = CliRunner().invoke(PROGRAMS[words[0]], [*words[1:], "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_sound_and_hardened(unit: Path, tmp_path: Path) -> None:
    """
    Systemd's own programs find no mistake in the unit, and little that it could do beyond its work.
    """
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI"):
            pytest.fail("no systemd-analyze: install systemd")
        pytest.skip("no systemd-analyze")
    for program in ("celery", "omni"):
        (tmp_path / program).touch(mode=0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/omni/bin/", f"{tmp_path}/"))
    for arguments in (["verify", "--man=no"], ["security", "--offline=true", f"--threshold={MOST_EXPOSED}"]):
        done = subprocess.run(
            ["systemd-analyze", *arguments, copy], capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
