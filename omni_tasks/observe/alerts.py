"""
From findings to episodes: what begins, what goes on, what has ended, and who is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from omni_tasks.observe.notification import Episode, Notification
from omni_tasks.observe.rules import RULES, Finding
from omni_tasks.observe.state import MonitorState

__all__ = ["MOST_AT_ONCE", "REFRESH_MS", "update"]

#: Most alerts of one rule that are told by themselves in one tick; with more of them, and as long as any of
#: those goes on, one summary tells of all.
MOST_AT_ONCE = 20

#: News, and the sinks that are told if it is new; None where a summary tells of it.
_Change: TypeAlias = tuple[Notification, Sequence[str] | None]

#: How long what is written about an episode stays as it is, ms, and most episodes that are written anew in one tick.
REFRESH_MS, _MOST_REFRESHED = 30_000, 200

#: Circuits named in a summary of many.
_EXAMPLES = 5


def update(  # noqa: PLR0913 - what a tick knows, by name
    state: MonitorState,
    findings: Iterable[Finding],
    *,
    judged: Collection[str],
    known: Collection[str],
    unknown: Collection[str] = (),
    sinks: Sequence[str],
    now_ms: int,
) -> Mapping[str, Episode]:
    """
    Bring the episodes in the store to what a tick has found.

    Args:
        state: Where they are kept.

        findings: All that should be going on with the circuits *judged*.

        judged: Circuits this tick has looked at.

        known: All circuits there are: what is told about others has ended.

        unknown: Rules that could not be asked: what they told before goes on.

        sinks: Names of the sinks that are told.

        now_ms: The store's clock.

    Returns:
        The episodes that had begun before and go on, by ``rule:circuit``.
    """
    before = state.episodes()
    found = {finding.field: finding for finding in findings}
    ended = [
        episode
        for field, episode in before.items()
        if episode.component
        and field not in found
        and episode.alert not in unknown
        and (episode.component in judged or episode.component not in known)
    ]
    over = {episode.field for episode in ended}
    quiet = {field for field, episode in before.items() if not episode.told and field not in over}
    changes: list[_Change] = [(_news(found[field], now_ms), sinks) for field in _stale(before, found, now_ms)]
    for rule in RULES:
        new = [finding for field, finding in found.items() if finding.alert == rule and field not in before]
        together = len(new) > MOST_AT_ONCE or f"{rule}:" in before
        changes += [(_news(finding, now_ms), None if together else sinks) for finding in new]
        components = sorted(field.partition(":")[2] for field in quiet if field.startswith(f"{rule}:"))
        components += [finding.component for finding in new] if together else []
        if components:
            changes.append((_news(_summary(rule, components), now_ms), sinks))
        elif f"{rule}:" in before:
            ended.append(before[f"{rule}:"])
    state.fire(changes, now_ms=now_ms)
    news = [(episode, Notification.about(episode, status="resolved", now_ms=now_ms)) for episode in ended]
    state.resolve([(episode, note, sinks if episode.told else ()) for episode, note in news], now_ms=now_ms)
    over = {episode.field for episode in ended}
    return {field: episode for field, episode in before.items() if field not in over}


def _stale(before: Mapping[str, Episode], found: Mapping[str, Finding], now_ms: int) -> list[str]:
    """
    The episodes to be refreshed now: not all at every tick, for there may be thousands.
    """
    stale = [field for field in found if field in before and now_ms - before[field].refreshed_ms >= REFRESH_MS]
    return sorted(stale, key=lambda field: before[field].refreshed_ms)[:_MOST_REFRESHED]


def _news(finding: Finding, now_ms: int) -> Notification:
    return Notification.firing(
        finding.alert,
        finding.component,
        severity=RULES[finding.alert].severity,
        summary=finding.summary,
        details=finding.details,
        now_ms=now_ms,
    )


def _summary(rule: str, components: Sequence[str]) -> Finding:
    examples = ", ".join(components[:_EXAMPLES])
    return Finding(
        alert=rule,
        component="",
        summary=f"{rule}: {len(components)} circuits, among them {examples}",
        details={"circuits": len(components), "examples": examples},
    )
