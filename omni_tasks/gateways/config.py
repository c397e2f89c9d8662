"""
Which provider is asked, and how.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal
from urllib.parse import urlsplit

from omni_tasks.gateways.errors import GatewayConfigError

__all__ = ["DEEPSEEK", "OPENAI", "PROVIDERS", "GatewayConfig", "Provider", "is_text"]

APIS = ("chat", "responses")

# Characters, where it is part of a circuit's key, with the provider's name in front.
LONGEST_MODEL = 180

DEFAULT_SYSTEM_PROMPT = (
    "You are an experienced editor. Write one complete, well structured article in Markdown "
    "for the request that follows: a title, an introduction, sections, a conclusion."
)

# What an HTTP header can carry: anything else would fail inside the HTTP
# library and read as an outage of the provider.
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """
    One OpenAI-compatible provider.

    Attributes:
        name: In errors, results and logs.

        default_url: Base URL when neither the configuration nor the environment gives one.

        default_model: Likewise for the model.

        length_option: What the provider calls the most tokens of an answer, in chat completions.

        responses: Whether it has the responses API as well.
    """

    name: str
    default_url: str
    default_model: str
    length_option: str
    responses: bool

    def variable(self, option: str) -> str:
        """
        Name the environment variable of *option*, as in ``OPENAI_API_KEY``.
        """
        return f"{self.name}_{option}".upper()


OPENAI = Provider(
    name="openai",
    default_url="https://api.openai.com/v1",
    default_model="gpt-5.4-mini",
    length_option="max_completion_tokens",
    responses=True,
)
DEEPSEEK = Provider(
    name="deepseek",
    default_url="https://api.deepseek.com",
    default_model="deepseek-chat",
    length_option="max_tokens",
    responses=False,
)

#: Every provider there is, by name.
PROVIDERS = {provider.name: provider for provider in (OPENAI, DEEPSEEK)}


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """
    How to ask for an article.

    Attributes:
        model: The provider's name of the model.  ``None``: ``<PROVIDER>_MODEL``, else the provider's default.

        temperature: 0.0-2.0; ``None`` leaves it to the provider (some models take no other value).

        max_tokens: Most tokens of the answer, >= 1; ``None`` leaves it to the provider.

        connect_timeout: Seconds for the connection, > 0, at most *timeout*.

        timeout:
            Seconds for the whole call, 0 < timeout <= 3600, on this process's monotonic
            clock.  Bytes that trickle in do not extend it.

        base_url: ``http(s)://host/path``.  ``None``: ``<PROVIDER>_BASE_URL``, else the provider's own.

        api_key:
            ``None``: ``<PROVIDER>_API_KEY``.  Not in ``repr``, and dropped by pickling: a
            process that unpickles the configuration reads its own environment.

        system_prompt: What the model is told before the prompt.

        api: ``"chat"`` for chat completions, ``"responses"`` for the responses API.

        stream: Whether the answer is to come in pieces; the result is the same, whole and checked.

        circuit_per_model: Whether the model has a circuit of its own, ``ai_providers:<provider>:<model>``.
    """

    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    connect_timeout: float = 5.0
    timeout: float = 30.0
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    api: Literal["chat", "responses"] = "chat"
    stream: bool = False
    circuit_per_model: bool = False

    def __post_init__(self) -> None:
        """
        Refuse what cannot work, before anything is sent.

        Raises:
            GatewayConfigError: Names the option and what it allows.
        """
        _number("timeout", self.timeout, low=0, high=3600, low_allowed=False)
        _number("connect_timeout", self.connect_timeout, low=0, high=self.timeout, low_allowed=False)
        if self.temperature is not None:
            _number("temperature", self.temperature, low=0, high=2)
        if self.max_tokens is not None and not (type(self.max_tokens) is int and self.max_tokens >= 1):
            raise GatewayConfigError("max_tokens", self.max_tokens, "a whole number >= 1")
        for option in ("model", "system_prompt"):
            value = getattr(self, option)
            if value is not None and not (isinstance(value, str) and value.strip() and is_text(value)):
                raise GatewayConfigError(option, value, "text that is not empty")
        _check_circuit(self)
        if self.api not in APIS:
            raise GatewayConfigError("api", self.api, f"one of {', '.join(APIS)}")
        for option in ("stream", "circuit_per_model"):
            if type(getattr(self, option)) is not bool:
                raise GatewayConfigError(option, getattr(self, option), "True or False")
        if self.base_url is not None:
            _check_url("base_url", self.base_url)
        if self.api_key is not None:
            _check_key("api_key", self.api_key)

    def __getstate__(self) -> dict[str, object]:
        """
        Leave the key out of every pickle.
        """
        return {**self.__dict__, "api_key": None}

    @classmethod
    def of(cls, value: GatewayConfig | Mapping[str, object]) -> GatewayConfig:
        """
        Take a configuration, or a mapping with the same keys.

        Raises:
            GatewayConfigError: A key is unknown, or a value is wrong.
        """
        if isinstance(value, GatewayConfig):
            return value
        if not isinstance(value, Mapping):
            raise GatewayConfigError("config", type(value).__name__, "a GatewayConfig or a mapping")
        known = [each.name for each in fields(cls)]
        for key in value:
            if key not in known:
                raise GatewayConfigError("config key", key, f"one of {', '.join(known)}")
        return cls(**value)  # type: ignore[arg-type]  # __post_init__ checks each value

    def at(self, provider: Provider) -> GatewayConfig:
        """
        Make of this the configuration for *provider*: everything but what only this one's provider understands.
        """
        api: Literal["chat", "responses"] = self.api if provider.responses else "chat"
        return replace(self, model=None, base_url=None, api_key=None, api=api)

    def resolved(self, provider: Provider, environ: Mapping[str, str] = os.environ) -> GatewayConfig:
        """
        Fill in what is not set from the environment, then from the provider's defaults.

        Returns:
            A configuration whose ``model``, ``base_url`` and ``api_key`` are set.

        Raises:
            GatewayConfigError: There is no key, or a variable's value is wrong.
        """
        # An empty variable is what a compose file passes for one that is not set.
        found = {option: environ.get(provider.variable(option), "").strip() for option in ("api_key", "base_url")}
        if self.api_key is None:
            if not found["api_key"]:
                raise GatewayConfigError(provider.variable("api_key"), None, f"set to your {provider.name} key")
            _check_key(provider.variable("api_key"), found["api_key"])
        if self.base_url is None and found["base_url"]:
            _check_url(provider.variable("base_url"), found["base_url"])
        model = environ.get(provider.variable("model"), "").strip()
        return replace(
            self,
            api_key=self.api_key or found["api_key"],
            base_url=self.base_url or found["base_url"] or provider.default_url,
            model=self.model or model or provider.default_model,
        )


def is_text(value: str) -> bool:
    """
    Tell text from binary data that was read as text: a NUL, or half a surrogate pair, which UTF-8 cannot carry.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _check_circuit(config: GatewayConfig) -> None:
    """
    Refuse a model whose name cannot be part of a circuit's key, where it has to be.
    """
    model = config.model or ""
    if config.circuit_per_model and (len(model) > LONGEST_MODEL or not model.isprintable()):
        raise GatewayConfigError("model", model[:LONGEST_MODEL], f"up to {LONGEST_MODEL} printable characters")


def _number(option: str, value: object, *, low: float, high: float, low_allowed: bool = True) -> None:
    """
    Refuse what is not a number between *low* and *high*.
    """
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
        and (low_allowed or value > low)
    )
    if not fits:
        raise GatewayConfigError(option, value, f"a number {'from' if low_allowed else 'above'} {low} up to {high}")


def _check_url(option: str, value: object) -> None:
    """
    Refuse what is not an HTTP address; one with a password in it is not shown.
    """
    allowed = "an address like https://host/v1, without user or password"
    if not isinstance(value, str):
        raise GatewayConfigError(option, value, allowed)
    try:
        parts = urlsplit(value)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if "@" in value:
        raise GatewayConfigError(option, "***", allowed)
    if not fits or not value.isprintable() or " " in value:
        raise GatewayConfigError(option, value, allowed)


def _check_key(option: str, value: object) -> None:
    """
    Refuse a key that no header can carry, without showing it.
    """
    if not (isinstance(value, str) and _KEY.fullmatch(value)):
        raise GatewayConfigError(option, "***", "printable ASCII without spaces")
