"""
The application's settings, read from the environment and checked once.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from omni_tasks import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PROVIDER_NAMES", "REDIS_SCHEMES", "Settings"]

#: Those the gateways know; written out because importing the gateways takes half a second, and sending needs none.
PROVIDER_NAMES = ("openai", "deepseek")

REDIS_SCHEMES = ("redis", "rediss", "sentinel", "redis+socket", "valkey", "valkeys")

# Seconds.
LONGEST_CALL = 3600

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.ASCII | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    What the environment says.

    Attributes:
        broker_url: ``CELERY_BROKER_URL``.  Not in ``repr``: it may hold a password.

        result_backend: ``CELERY_RESULT_BACKEND``; default: the broker, when that is a Redis.

        articles_dir: ``ARTICLES_DIR``, absolute.  The worker writes articles here.

        call_timeout: ``DEFAULT_TIMEOUT``, seconds for one call to a provider, 0 < t <= 3600.

        max_retries: ``DEFAULT_MAX_RETRIES``, retries of a task after real failures, 0-1000.

        provider: ``ARTICLES_PROVIDER``, who writes an article that names nobody.

        fallbacks: ``ARTICLES_FALLBACKS``, divided by commas: who is asked, in turn, when that provider is down.
    """

    broker_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    result_backend: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    articles_dir: Path
    call_timeout: float = 30.0
    max_retries: int = 3
    provider: str = "openai"
    fallbacks: tuple[str, ...] = ()

    @property
    def providers(self) -> tuple[str, ...]:
        """
        Everybody who may be asked for an article that names nobody, the preferred one first.
        """
        return (self.provider, *self.fallbacks)

    @property
    def soft_time_limit(self) -> float:
        """
        Seconds after which an article task is interrupted: the deadlines of every provider in turn, and time to write.
        """
        return len(PROVIDER_NAMES) * self.call_timeout + 15

    @property
    def time_limit(self) -> float:
        """
        Seconds after which an article task's process is killed.
        """
        return self.soft_time_limit + 15

    @property
    def visibility_timeout(self) -> float:
        """
        Seconds after which a Redis broker gives a dead worker's message to another.

        A message may wait behind one running task and then run itself; twice
        that, so that no live worker's message is ever given away.
        """
        return 4 * self.time_limit

    @property
    def redis_broker(self) -> bool:
        """
        Tell whether the broker is a Redis.
        """
        return urlsplit(self.broker_url).scheme in REDIS_SCHEMES

    @property
    def redis_backend(self) -> bool:
        """
        Tell whether the result backend is a Redis: most others cannot be connected to as a broker can.
        """
        return urlsplit(self.result_backend).scheme in REDIS_SCHEMES

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """
        Read every variable; an empty one counts as not set.

        Raises:
            ConfigurationError: Names the variable, its value and what is allowed.
        """

        def read(name: str, default: str) -> str:
            return environ.get(name, "").strip() or default

        broker = _url("CELERY_BROKER_URL", read("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0"))
        backend = read("CELERY_RESULT_BACKEND", "")
        if not backend and urlsplit(broker).scheme not in REDIS_SCHEMES:
            raise ConfigurationError("CELERY_RESULT_BACKEND", None, "set when the broker is not a Redis")
        provider = _one_of("ARTICLES_PROVIDER", read("ARTICLES_PROVIDER", "openai"), PROVIDER_NAMES)
        others = tuple(name for name in PROVIDER_NAMES if name != provider)
        fallbacks = [name.strip() for name in read("ARTICLES_FALLBACKS", "").split(",") if name.strip()]
        return cls(
            broker_url=broker,
            result_backend=_url("CELERY_RESULT_BACKEND", backend or broker),
            articles_dir=_folder("ARTICLES_DIR", read("ARTICLES_DIR", "articles")),
            call_timeout=_seconds("DEFAULT_TIMEOUT", read("DEFAULT_TIMEOUT", "30.0")),
            max_retries=_whole("DEFAULT_MAX_RETRIES", read("DEFAULT_MAX_RETRIES", "3"), most=1000),
            provider=provider,
            # A name given twice counts once.
            fallbacks=tuple(dict.fromkeys(_one_of("ARTICLES_FALLBACKS", name, others) for name in fallbacks)),
        )


def _url(name: str, value: str) -> str:
    """
    Refuse what is not a URL; a password in it is not shown.
    """
    # Several, divided by semicolons, are the nodes of a Sentinel or a cluster.
    for each in value.split(";"):
        try:
            fits = bool(_SCHEME.fullmatch(each)) and urlsplit(each).port != 0
        except ValueError:
            fits = False
        if not fits:
            shown = re.sub(r"(//|^).*@", r"\1***@", value)
            raise ConfigurationError(name, shown, "a URL such as redis://127.0.0.1:6379/0")
    return value


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """
    Refuse a word that is not *allowed*.
    """
    if value not in allowed:
        raise ConfigurationError(name, value, f"one of {', '.join(allowed)}")
    return value


def _folder(name: str, value: str) -> Path:
    """
    Refuse a path that is something else than a folder.  Making it is left to the first article.
    """
    path = Path(value).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ConfigurationError(name, value, "a folder, or a path where one can be made")
    return path


def _seconds(name: str, value: str) -> float:
    """
    Read a duration.
    """
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    # NaN is in no interval.
    if not 0 < seconds <= LONGEST_CALL:
        raise ConfigurationError(name, value, f"seconds, above 0 and up to {LONGEST_CALL}")
    return seconds


def _whole(name: str, value: str, *, most: int) -> int:
    """
    Read a whole number from 0 to *most*.
    """
    if not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII) or int(value) > most:
        raise ConfigurationError(name, value, f"a whole number from 0 to {most}")
    return int(value)
