"""Docstrings: their examples run in SDK and service, and those of what the SDK offers name every parameter."""

from __future__ import annotations

import doctest
import importlib
import inspect
import itertools
import pkgutil
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import rstore
import rstored
from rstore import AsyncStore, Store, StoreError

ADMIN = secrets.token_hex(16)
DICT_FACE = frozenset({"__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__", "__iter__"})
MODULES = ["rstore", *sorted(found.name for found in pkgutil.walk_packages(rstore.__path__, "rstore."))]
SERVICE = ["rstored", *sorted(found.name for found in pkgutil.walk_packages(rstored.__path__, "rstored."))]
PUBLIC = [getattr(rstore, name) for name in rstore.__all__]
STORES = (Store, AsyncStore)
CLASSES = [thing for thing in PUBLIC if isinstance(thing, type)]
RECORDS = [kind for kind in CLASSES if kind not in STORES and not issubclass(kind, StoreError)]


def methods_of(kind: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a store, and those by which it is like a dict."""
    return {
        name: member
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") or name in DICT_FACE
    }


METHODS = [
    pytest.param(method, id=f"{kind.__name__}.{name}") for kind in STORES for name, method in methods_of(kind).items()
]

Run = Callable[[Iterable[doctest.DocTest]], int]


@pytest.fixture(scope="module")
def admin(serve_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of a service that has tokens, with one that may administer everything."""
    dsn = f"sqlite:///{tmp_path_factory.mktemp('tokens') / 'store.db'}"
    with Store(serve_module(dsn, env={"RSTORED_ADMIN_TOKEN": ADMIN}).url, frozen=False, token=ADMIN) as store:
        yield store


@pytest.fixture
def run(service_url: str, namespace: str, admin: Store) -> Run:
    """``run(tests)`` runs examples, those of each docstring on an empty store, and returns their number."""
    numbers = itertools.count()

    def run_tests(tests: Iterable[doctest.DocTest]) -> int:
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        for test in tests:
            with Store(service_url, f"{namespace}-{next(numbers)}", frozen=False) as store:
                names = {"AsyncStore": AsyncStore, "Store": Store, "rstore": rstore}
                test.globs = {**test.globs, **names, "admin": admin, "store": store, "url": service_url}
                runner.run(test)
                store.discard()
        assert runner.failures == 0
        return runner.tries

    return run_tests


def examples_of(thing: Any) -> list[doctest.DocTest]:
    """The examples of a class without those of its methods, or of a function."""
    names = vars(importlib.import_module(thing.__module__))
    return doctest.DocTestFinder(recurse=False).find(thing, thing.__name__, globs=names)


def described_in(thing: Any) -> set[str]:
    """The names in the first section of a docstring: ``Args`` or ``Attributes``."""
    section = re.search(r"^(?:Args|Attributes):\n((?: {4}.*\n)+)", f"{inspect.getdoc(thing)}\n", re.MULTILINE)
    groups = re.findall(r"^ {4}(\*?\w[\w, ]*): ", section[1], re.MULTILINE) if section else []
    return {name for group in groups for name in group.lstrip("*").split(", ")}


def test_the_examples_of_every_module_run(run):
    found = [doctest.DocTestFinder().find(importlib.import_module(name)) for name in MODULES]
    tests = [[test for test in tests if test.examples] for tests in found]
    assert sum(map(bool, tests)) > 20
    assert run(itertools.chain.from_iterable(tests)) > 60


def test_the_examples_of_the_service_run():
    """They are of pure functions, so they need no store."""
    finder = doctest.DocTestFinder()
    tests = [test for name in SERVICE for test in finder.find(importlib.import_module(name), name) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test)
    assert runner.failures == 0
    assert {test.name.split(".")[1] for test in tests} >= {"api", "backends", "engine", "testing"}


@pytest.mark.parametrize("thing", [*STORES, *RECORDS, StoreError, rstore.generate_key, *METHODS])
def test_what_is_public_has_an_example_that_runs(thing, run):
    assert run(examples_of(thing)) > 0


@pytest.mark.parametrize("name", MODULES + SERVICE)
def test_every_module_says_what_it_is_for(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_public_class_says_what_it_is(kind):
    assert "__doc__" in vars(kind)
    assert len(inspect.getdoc(kind).splitlines()[0]) < 120


@pytest.mark.parametrize("kind", STORES)
def test_the_docstring_of_a_store_names_every_argument_of_its_constructor(kind):
    assert described_in(kind) == inspect.signature(kind).parameters.keys()


@pytest.mark.parametrize("kind", [*RECORDS, StoreError], ids=lambda kind: kind.__name__)
def test_the_docstring_of_a_record_names_its_attributes(kind):
    own = set(inspect.get_annotations(kind))
    assert described_in(kind) == (own | vars(StoreError("")).keys() if kind is StoreError else own)


@pytest.mark.parametrize("method", METHODS)
def test_the_docstring_of_a_method_names_its_parameters_and_what_it_returns(method):
    signature = inspect.signature(method)
    assert described_in(method) == signature.parameters.keys() - {"self"}
    assert "Steps" not in str(signature)
    if method.__name__ not in DICT_FACE:
        returns = signature.return_annotation != "None"
        assert returns == ("\nReturns:\n" in inspect.getdoc(method))
