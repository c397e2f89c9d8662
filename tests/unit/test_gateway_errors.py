"""
The gateways' errors, the waits they carry, and what a wrong configuration is told.
"""

from __future__ import annotations

import dataclasses
import pickle
from email.utils import formatdate
from typing import Any

import celery
import pytest
from celery.backends.base import Backend

from omni_tasks import ConfigurationError, OmniTasksError
from omni_tasks.gateways import (
    GatewayConfig,
    GatewayConfigError,
    GatewayInputError,
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
    errors,
    generate_article_openai,
)
from omni_tasks.gateways.config import DEEPSEEK, OPENAI
from omni_tasks.gateways.retry_after import LONGEST_WAIT, read_retry_after

KEY = "sk-canary-4711"
NOW = 1_800_000_000.0

PROVIDER_ERRORS = [
    ProviderUnavailable,
    ProviderRateLimited,
    ProviderQuotaExhausted,
    ProviderAuthError,
    ProviderRejected,
    ProviderBadResponse,
]

OUTCOMES = {ProviderRejected: "ignored", GatewayConfigError: "ignored", GatewayInputError: "ignored"}


def test_every_error_is_in_these_tests() -> None:
    """
    A new error class cannot be added without being tested here.
    """
    tested = {ProviderError, *PROVIDER_ERRORS, GatewayConfigError, GatewayInputError}
    assert {kind.__name__ for kind in tested} == set(errors.__all__) - {"RETRYABLE_ERRORS"}


@pytest.mark.parametrize("kind", PROVIDER_ERRORS)
def test_pickling_keeps_every_field(kind: type[ProviderError]) -> None:
    """
    A provider's error crosses a process border whole.
    """
    error = kind("openai: HTTP 503", "openai", status=503, retry_after=20.0, request_id="req_1")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "openai: HTTP 503"


@pytest.mark.parametrize("kind", PROVIDER_ERRORS)
def test_a_json_result_backend_keeps_every_field(kind: type[ProviderError]) -> None:
    """
    A provider's error comes back from Celery's JSON results as it was raised.
    """
    with celery.Celery(set_as_current=False) as app:
        backend = Backend(app=app, serializer="json")
        error = kind("openai: HTTP 429", "openai", 429, 1.5, "req_2")
        stored = backend.decode(backend.encode(backend.prepare_exception(error)))
        copy = backend.exception_to_python(stored)
    assert type(copy) is kind
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    "error", [GatewayConfigError("timeout", -1, "above 0"), GatewayInputError("prompt must be text")]
)
def test_pickling_keeps_a_callers_mistake(error: OmniTasksError) -> None:
    """
    The errors for wrong arguments survive pickling as well.
    """
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), copy.args) == (type(error), str(error), error.args)


@pytest.mark.parametrize("kind", [*PROVIDER_ERRORS, GatewayConfigError, GatewayInputError])
def test_each_error_says_how_a_circuit_counts_it(kind: Any) -> None:
    """
    Only what is the caller's or the request's own is not held against the provider.
    """
    assert kind.circuit_outcome == OUTCOMES.get(kind, "failure")
    assert issubclass(kind, OmniTasksError)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("20", 20.0),
        (" 20 ", 20.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("3600", 3600.0),
        ("3601", LONGEST_WAIT),
        ("99999999", LONGEST_WAIT),
        ("9" * 32, LONGEST_WAIT),
        ("9" * 1_000_000, None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("\u0661\u0662", None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW, usegmt=True), 0.0),
        (formatdate(NOW + 1e6, usegmt=True), LONGEST_WAIT),
        (formatdate(NOW - 1, usegmt=True), None),
        ("Fri, 15 Jan 2027 08:01:00 -0000", 60.0),
        ("Fri, 15 Jan 2027 10:01:00 +0200", 60.0),
        ("Fri, 99 Jan 2027 08:00:00 GMT", None),
        ("Fri, 15 Jan 99999 08:00:00 GMT", None),
    ],
    ids=lambda value: str(value)[:40] or "empty",
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """
    Seconds and dates are read and clamped; anything else is as if it were not there.
    """
    assert read_retry_after({"retry-after": value}, now=NOW) == seconds


def test_a_dated_retry_after_counts_from_the_providers_clock() -> None:
    """
    A wrong local clock does not change how long a date asks to wait.
    """
    headers = {"retry-after": formatdate(NOW + 90, usegmt=True), "date": formatdate(NOW, usegmt=True)}
    assert read_retry_after(headers) == 90.0


def test_no_retry_after() -> None:
    """
    Without the header there is no wait.
    """
    assert read_retry_after({}, now=NOW) is None


def test_the_key_is_neither_shown_nor_pickled() -> None:
    """
    A configuration may be logged and sent without giving its key away.
    """
    config = GatewayConfig(api_key=KEY, model="m")
    assert KEY not in repr(config)
    pickled = pickle.dumps(config)
    assert KEY.encode() not in pickled
    assert pickle.loads(pickled) == dataclasses.replace(config, api_key=None)  # noqa: S301 - our own bytes


def test_what_is_not_set_comes_from_the_environment() -> None:
    """
    Given values win over variables, variables over the provider's defaults; an empty variable is none.
    """
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": " http://127.0.0.1:1/v1 ", "OPENAI_MODEL": ""}
    found = GatewayConfig().resolved(OPENAI, environ)
    assert (found.api_key, found.base_url, found.model) == (KEY, "http://127.0.0.1:1/v1", OPENAI.default_model)
    given = GatewayConfig(api_key="mine", base_url="http://127.0.0.1:2", model="m").resolved(OPENAI, environ)
    assert (given.api_key, given.base_url, given.model) == ("mine", "http://127.0.0.1:2", "m")


def test_the_providers_own_address_is_https() -> None:
    """
    Without any address given, the key goes to the provider itself, encrypted.
    """
    for provider in (OPENAI, DEEPSEEK):
        found = GatewayConfig(api_key=KEY).resolved(provider, {})
        assert found.base_url == provider.default_url
        assert provider.default_url.startswith("https://")


@pytest.mark.parametrize(("provider", "variable"), [(OPENAI, "OPENAI_API_KEY"), (DEEPSEEK, "DEEPSEEK_API_KEY")])
def test_a_missing_key_names_its_variable(provider: Any, variable: str) -> None:
    """
    Without a key the error says which variable to set.
    """
    with pytest.raises(GatewayConfigError, match=variable):
        GatewayConfig().resolved(provider, {})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": 3601}, "timeout"),
        ({"timeout": "30"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"connect_timeout": 31}, "connect_timeout"),
        ({"temperature": 2.1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"model": " "}, "model"),
        ({"model": "a\nb", "circuit_per_model": True}, "model"),
        ({"model": "x" * 181, "circuit_per_model": True}, "model"),
        ({"system_prompt": "\ud800"}, "system_prompt"),
        ({"base_url": "ftp://host"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://host:99999"}, "base_url"),
        ({"base_url": 5}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"modell": "m"}, "modell"),
    ],
)
def test_a_wrong_configuration_names_the_option(given: dict[str, object], named: str) -> None:
    """
    A wrong value is refused before anything is sent, with the option's name.
    """
    with pytest.raises(GatewayConfigError, match=rf"\b{named}\b") as caught:
        GatewayConfig.of(given)
    assert isinstance(caught.value, ConfigurationError)


@pytest.mark.parametrize("given", [{"api_key": f"{KEY}\n"}, {"base_url": f"http://user:{KEY}@host/v1"}])
def test_a_wrong_secret_is_not_shown(given: dict[str, object]) -> None:
    """
    A key or an address that is refused is not repeated in the error.
    """
    with pytest.raises(GatewayConfigError) as caught:
        GatewayConfig.of(given)
    assert KEY not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("prompt", "variation", "reason"),
    [
        ("", 0, "blanks"),
        (" \n", 0, "blanks"),
        (b"bytes", 0, "bytes"),
        (None, 0, "NoneType"),
        ("a\0b", 0, "binary"),
        ("\ud800", 0, "binary"),
        ("x" * 500_001, 0, "500001"),
        ("x", -1, "variation"),
        ("x", True, "variation"),
        ("x", "1", "variation"),
    ],
    ids=range(10),
)
def test_a_wrong_prompt_is_refused_before_the_circuit(prompt: Any, variation: Any, reason: str) -> None:
    """
    What no provider can make an article of is the caller's error, and is not sent.
    """
    config = GatewayConfig(api_key=KEY, base_url="http://127.0.0.1:1")
    with pytest.raises(GatewayInputError, match=reason):
        generate_article_openai(config, prompt, variation=variation)
