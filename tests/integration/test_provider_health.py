"""
The health checks against a provider that is well, and against ones that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from omni_tasks.gateways import (
    GatewayConfigError,
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderUnavailable,
    health,
)
from tests.support.provider import RunningProvider

KEY = "sk-canary-4711"

CHECKS = {"OPENAI": health.openai, "DEEPSEEK": health.deepseek}


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    """
    One provider for all of them.
    """
    with RunningProvider() as running:
        yield running


@pytest.fixture(params=list(CHECKS))
def check(
    request: pytest.FixtureRequest, provider: RunningProvider, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """
    The check of one provider, which is at the test's address.
    """
    name: str = request.param
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(f"{name}_BASE_URL", provider.url)
    monkeypatch.setenv(f"{name}_API_KEY", KEY)
    return CHECKS[name]


def test_a_provider_that_is_well(provider: RunningProvider, check: Callable[[], None]) -> None:
    """
    It lists its models: nothing is raised, and no article was asked for.
    """
    provider.switch(mode="ok")
    check()
    assert provider.calls() == []


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("error401", ProviderAuthError),
        ("error503", ProviderUnavailable),
        ("reset", ProviderUnavailable),
        ("hang", ProviderUnavailable),
    ],
)
def test_a_provider_that_is_not(
    provider: RunningProvider,
    check: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    kind: type[ProviderError],
) -> None:
    """
    It fails as an article would have.
    """
    monkeypatch.setattr(health, "PATIENCE", 0.5)
    provider.switch(mode=mode)
    with pytest.raises(kind) as caught:
        check()
    assert caught.value.__context__ is None
    assert KEY not in repr(caught.value)


def test_something_else_at_its_address(
    provider: RunningProvider, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    An answer that is no list of models is not "well".
    """
    for name in CHECKS:
        monkeypatch.setenv(f"{name}_BASE_URL", provider.url.replace("/v1", "/healthz?"))
    with pytest.raises(ProviderBadResponse):
        check()


def test_without_a_key(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A key that is missing is told by its name.
    """
    for name in CHECKS:
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)
    with pytest.raises(GatewayConfigError, match="_API_KEY"):
        check()
