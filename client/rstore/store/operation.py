"""One definition of each operation, for two ways to carry it out.

An operation is a generator that yields calls, gets their answers, and returns its result. As a method of a class that
is :class:`Blocking` it returns that result. As a method of a class that is :class:`Awaited` it is awaited.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from rstore.calls import Steps
from rstore.calls.arguments import Signature

P = ParamSpec("P")
T = TypeVar("T")
BlockingT = TypeVar("BlockingT")
AwaitedT = TypeVar("AwaitedT")


class Blocking:
    """A class whose operations return their results."""

    def _run(self, steps: Steps[T]) -> T:
        """Carry out an operation."""
        raise NotImplementedError


class Awaited:
    """A class whose operations are awaited."""

    async def _run(self, steps: Steps[T]) -> T:
        """Carry out an operation."""
        raise NotImplementedError


class Operation(Generic[BlockingT, AwaitedT]):
    """A method: of the first type where the object is :class:`Blocking`, of the second where it is :class:`Awaited`.

    ``@Operation[Blocks, Awaits]`` turns a generator of calls into one whose result depends on its arguments, as the two
    protocols say. :func:`operation` does so for every other generator.
    """

    def __init__(self, steps: Callable[..., Steps[Any]]) -> None:
        # Python names it to whoever calls the method wrongly. The class in which it stands would only puzzle.
        steps.__qualname__ = steps.__name__
        checked = Signature(steps).checked

        def blocking(store: Blocking, /, *args: Any, **kwargs: Any) -> Any:
            arguments, options = checked(args, kwargs)
            return store._run(steps(store, *arguments, **options))  # noqa: SLF001

        async def awaited(store: Awaited, /, *args: Any, **kwargs: Any) -> Any:
            arguments, options = checked(args, kwargs)
            return await store._run(steps(store, *arguments, **options))  # noqa: SLF001

        self.steps = steps
        self.__doc__ = steps.__doc__
        self._blocking: Any = _dressed(blocking, steps)
        self._awaited: Any = _dressed(awaited, steps)

    @overload
    def __get__(self, store: Blocking, owner: type[Blocking]) -> BlockingT: ...
    @overload
    def __get__(self, store: Awaited, owner: type[Awaited]) -> AwaitedT: ...
    @overload
    def __get__(self, store: None, owner: type[Any]) -> Any: ...
    def __get__(self, store: Any, owner: Any) -> Any:
        if issubclass(owner, Blocking):
            return self._blocking.__get__(store, owner)
        return self._awaited.__get__(store, owner) if issubclass(owner, Awaited) else self


def operation(
    steps: Callable[Concatenate[Any, P], Steps[T]],
) -> Operation[Callable[P, T], Callable[P, Coroutine[Any, Any, T]]]:
    """Turn a generator of calls into a method with the same parameters."""
    return Operation(steps)


def _dressed(method: Callable[..., Any], steps: Callable[..., Any]) -> Callable[..., Any]:
    """The method with the name, signature and docstring of its steps. It returns what the steps return."""
    functools.update_wrapper(method, steps)
    returned = steps.__annotations__["return"].removeprefix("Steps[").removesuffix("]")
    signature = inspect.signature(steps)
    method.__annotations__ = {**steps.__annotations__, "return": returned}
    method.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
    return method
