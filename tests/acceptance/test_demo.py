"""
The demo as its reader sees it: what it prints, how it ends, what it leaves behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from rich.console import Console

from demo.calls import Call
from demo.ledger import Ending, settle
from demo.moment import Chapter, Moment
from demo.plan import Plan
from demo.screen import picture
from demo.sentence import say
from demo.timeline import Second, Timeline
from omni_tasks.embedded import start_server
from tests.support.eventually import eventually
from tests.support.stopwatch import used_by_others

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]
LAST_LINE = re.compile(r"demo: sent=200 succeeded=200 failed=0 lost=0 duplicated=0 held=(\d+) dead_calls=(\d+)")
SMALL = ("--articles", "60", "--outage", "5")


def environment(**extra: str) -> dict[str, str]:
    """
    Ours, without a server of the machine that runs the tests, with *extra*.
    """
    return {name: value for name, value in os.environ.items() if name != "OMNI_REDIS_URL"} | extra


def command(runs: Path, *options: str) -> list[str]:
    """
    The demo's command line, its run folder below *runs*.
    """
    return [sys.executable, "-m", "demo", "--runs", str(runs), *options]


def run_demo(runs: Path, *options: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """
    Run the demo to its end, piped.
    """
    return subprocess.run(
        command(runs, *options),
        cwd=ROOT,
        env=environment(**extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """
    Those that still run; one that waits to be collected does not.
    """
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def demo_at_work(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """
    A demo whose provider has just died, and every process that it has started.
    """
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(command(tmp_path, *SMALL), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        for line in process.stdout:
            if re.search(r"held +[1-9]", line):
                break
        started = psutil.Process(process.pid).children(recursive=True)
        # Server, guard, provider, beat, worker, four in its pool.
        assert len(started) == 9, [" ".join(each.cmdline()) for each in started]
        yield process, started


def test_the_main_job(tmp_path: Path) -> None:
    """
    Piped, the demo ends with its ledger line and status 0 within 60 s, in plain text, its logs where it said.
    """
    started, others = time.monotonic(), used_by_others()
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    # What the machine has done for others meanwhile is not the demo's time.
    assert time.monotonic() - started < 60 + used_by_others() - others
    assert done.stderr == ""

    last = LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert last is not None
    held, dead_calls = int(last[1]), int(last[2])
    assert held > 0
    assert dead_calls <= Plan().allowed_dead_calls(outage=16.0)

    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert "circuit open" in done.stdout

    (folder,) = tmp_path.iterdir()
    assert f"full logs in {folder / 'logs'}" in done.stdout.splitlines()
    assert {log.stem for log in (folder / "logs").iterdir()} == {
        "beat",
        "demo",
        "embedded-server",
        "provider",
        "worker",
    }
    assert len(list((folder / "articles").glob("*.md"))) == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_leaves_no_process(
    demo_at_work: tuple[subprocess.Popen[str], list[psutil.Process]], number: signal.Signals
) -> None:
    """
    SIGINT or SIGTERM in the middle of the outage: status 130, every process that was started is gone.
    """
    process, started = demo_at_work
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "demo: interrupted; every process that it had started has ended"
    assert alive(started) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is a Linux facility")
def test_killed_it_leaves_no_process(demo_at_work: tuple[subprocess.Popen[str], list[psutil.Process]]) -> None:
    """
    SIGKILL to the demo itself ends every process that it had started, the worker's pool included.
    """
    process, started = demo_at_work
    process.kill()
    process.communicate()
    eventually(lambda: not alive(started), within=5, what="the end of every process")


def test_on_a_named_server_it_leaves_what_it_found(tmp_path: Path) -> None:
    """
    With OMNI_REDIS_URL the demo runs on that server beside other keys, and removes its own afterwards.
    """
    with start_server() as server, redis.Redis.from_url(server.url) as client:
        client.rpush("articles", "somebody's own message")
        client.rpush("celery", "somebody's own message")
        done = run_demo(tmp_path, *SMALL, OMNI_REDIS_URL=server.url)
        assert done.returncode == 0, done.stdout + done.stderr
        left = set(client.keys())
        # kombu's own book of queues that are gone; it forgets them by itself.
        assert left - {b"_kombu.binding_deadlines"} == {b"articles", b"celery"}
        assert client.llen("articles") == client.llen("celery") == 1


def test_a_named_server_that_does_not_answer(tmp_path: Path) -> None:
    """
    With OMNI_REDIS_URL that nothing listens on: one line without the password, status 2, no folder.
    """
    done = run_demo(tmp_path, OMNI_REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("demo: OMNI_REDIS_URL: redis://127.0.0.1:1/0 does not answer")
    assert "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []


MOMENT = Moment(
    chapter=Chapter.OUTAGE,
    elapsed=12.3,
    circuit="open",
    degraded=False,
    failures=5,
    failure_threshold=5,
    retry_after=1.4,
    total=200,
    done=63,
    failed=0,
    running=0,
    held=137,
    dead_calls=8,
    seconds=(Second(12, 0, provider_down=False, circuit="closed"), Second(1, 4, provider_down=True, circuit="open")),
)


def test_the_sentence_names_what_waits_and_the_next_probe() -> None:
    """
    In the outage the sentence counts the waiting articles and the seconds to the next probe.
    """
    assert say(MOMENT) == "The provider is down; 137 articles wait; next probe in 2 s."


@pytest.mark.parametrize("chapter", Chapter)
@pytest.mark.parametrize("circuit", ["closed", "open", "half_open", None])
@pytest.mark.parametrize("degraded", [False, True])
def test_every_sentence_fits(chapter: Chapter, circuit: str | None, degraded: bool) -> None:  # noqa: FBT001 - parameter
    """
    In each chapter and state the sentence has at most 63 characters, so that 80 columns show all of it.
    """
    moment = replace(MOMENT, chapter=chapter, circuit=circuit, degraded=degraded, retry_after=119.0, done=0, held=200)
    assert 20 < len(say(moment)) <= 63


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_picture_stands_still(width: int) -> None:
    """
    From the first second to the last the picture has the same height, below 24 lines, and fits the terminal.
    """
    heights = set()
    for past in (1, 30, 300):
        console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
        lines = console.render_lines(picture(replace(MOMENT, seconds=MOMENT.seconds[1:] * past), width))
        heights.add(len(lines))
        assert not any("…" in segment.text for line in lines for segment in line)
    assert len(heights) == 1
    assert heights.pop() < 24


def test_a_second_has_the_calls_that_arrived_in_it() -> None:
    """
    The timeline counts calls by the second of their arrival, apart for a provider that is well or down.
    """
    timeline = Timeline()
    timeline.look(0.5, provider_down=False, circuit="closed")
    timeline.look(1.2, provider_down=True, circuit="half_open")
    timeline.look(1.4, provider_down=True, circuit="open")
    # No look at the third second yet: it is taken to be like the one before.
    calls = [Call(at, 0.0, "t", mode) for at, mode in ((100.1, "ok"), (100.9, "ok"), (101.5, "reset"))]
    assert timeline.seconds(calls, started=100.0, elapsed=2.1) == (
        Second(2, 0, provider_down=False, circuit="closed"),
        Second(0, 1, provider_down=True, circuit="half_open"),
        Second(0, 0, provider_down=True, circuit="open"),
    )


def test_the_ledger_believes_nobody_alone() -> None:
    """
    A SUCCESS without a file is lost, a second article for one task is a duplicate, an unknown caller a stranger.
    """
    plan = Plan(articles=40)
    endings = {
        "a": Ending("SUCCESS", "a", holds=2),
        "b": Ending("SUCCESS", "b"),
        "c": Ending("FAILURE", "c"),
        "d": Ending("PENDING", "d"),
    }
    calls = [Call(0.0, 0.0, trace, "ok", 200) for trace in ("a", "a", "b", "who")]
    calls += [Call(0.0, 0.0, "c", "error500", 500)] * (plan.allowed_dead_calls(outage=15.0) + 1)
    ledger = settle(plan, endings=endings, calls=calls, files={"a"}, most_held=2, outage=15.0, drain=1.0, whole=9.0)
    assert ledger.summary() == "demo: sent=4 succeeded=1 failed=1 lost=2 duplicated=1 held=1 dead_calls=15"
    assert ledger.objections() == [
        "3 of 4 articles are missing",
        "1 tasks failed",
        "2 tasks were lost",
        "1 articles were written twice",
        "2 tasks were seen held at one time, but only 1 say so",
        "15 calls reached the dead provider, 14 may",
        "1 calls belong to no task",
    ]


def test_the_prompts_are_two_hundred_different_ones() -> None:
    """
    The file that ships with the demo has 200 prompts, no two alike.
    """
    prompts = (ROOT / "demo" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(prompts) == len(set(prompts)) == 200
    assert all(prompt.strip() == prompt != "" for prompt in prompts)
