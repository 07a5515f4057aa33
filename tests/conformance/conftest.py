"""Fixtures of the conformance suite. ``subjects.py`` says what it runs over, ``backends.py`` on what."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import signature

import pytest
from tests.conformance.backends import BACKENDS
from tests.conformance.subjects import Case, Deployment, Driver, cases

from rstore import Store

# On these the store is closed, and every request carries a token: nothing else may be different.
_CLOSED = {"postgresql", "redis"}

_AVAILABLE = {name: backend.missing() for name, backend in BACKENDS.items()}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires(*features): run only over cases that have these features")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over every case that has the features it requires, or over every backend if it wants no case."""
    marks = {name: [pytest.mark.skip(reason)] if reason else [] for name, reason in _AVAILABLE.items()}
    # ``backend`` depends on ``case``, so that one is among the fixture names in any case.
    if not {"driver", "mapping"}.isdisjoint(metafunc.fixturenames) or "case" in signature(metafunc.function).parameters:
        required = {feature for mark in metafunc.definition.iter_markers("requires") for feature in mark.args}
        found = [case for case in cases(list(BACKENDS)) if required <= case.features]
        assert found, f"no case has {required}"
        parameters = [pytest.param(case, id=str(case), marks=marks[case.backend]) for case in found]
        metafunc.parametrize("case", parameters, scope="session")
    elif "deployment" in metafunc.fixturenames:
        parameters = [pytest.param(name, id=name, marks=marks[name]) for name in BACKENDS]
        metafunc.parametrize("backend", parameters, scope="session")


@pytest.fixture(scope="session")
def deployments(serve_session, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Deployment]:
    """The store of each backend that the session runs on, made when it is first asked for."""
    made: dict[str, Deployment] = {}

    def deployment(backend: str) -> Deployment:
        if backend not in made:
            dsn = BACKENDS[backend].fresh(tmp_path_factory.mktemp(backend))
            token = secrets.token_urlsafe(32) if backend in _CLOSED else None
            made[backend] = Deployment(dsn, token, serve_session)
        return made[backend]

    return deployment


@pytest.fixture
def backend(case: Case) -> str:
    """The backend of the case (or a parameter, for tests that want no case)."""
    return case.backend


@pytest.fixture
def deployment(deployments: Callable[[str], Deployment], backend: str, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A store of the backend, and the service processes on it. The SDK finds its token, if it has one, by itself."""
    deployment = deployments(backend)
    if deployment.token:
        monkeypatch.setenv("RSTORE_TOKEN", deployment.token)
    return deployment


_numbers = itertools.count(1)


@pytest.fixture
def fresh_namespace() -> Callable[[], str]:
    """Makes names that no test used before."""
    return lambda: f"n{next(_numbers)}-{secrets.token_hex(4)}"


@pytest.fixture
def namespace(fresh_namespace: Callable[[], str]) -> str:
    """A namespace that does not exist yet."""
    return fresh_namespace()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for all tests, since what is connected belongs to a loop."""
    return "asyncio"


@pytest.fixture(scope="session")
async def connected(case: Case, deployments: Callable[[str], Deployment], anyio_backend: str) -> AsyncIterator[Driver]:
    """The driver of this case, started once: the tests of a case stand together."""
    async with case.connect(deployments(case.backend)) as driver:
        yield driver


@pytest.fixture
async def driver(connected: Driver, deployment: Deployment) -> AsyncIterator[Driver]:
    """What opens subjects in this case."""
    async with connected.lent():
        yield connected


@pytest.fixture
async def store(case: Case, driver: Driver, namespace: str):
    """An empty subject, sealed in the cases that are."""
    return await driver.open(namespace, **({"key": case.key} if case.sealed else {}))


@pytest.fixture
def mapping(case: Case, deployment: Deployment, namespace: str) -> Iterator[Store]:
    """An empty Store, for its dict-like face."""
    with Store(deployment.url, namespace, case.key, frozen=False) as store:
        yield store
