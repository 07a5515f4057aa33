"""Checks of arguments. The annotations of a method say what it takes, and a wrong argument is refused before it begins.

:class:`Signature` reads the annotations of a function once. It then turns the arguments of each call into objects of
exactly these types (a subclass of ``str`` becomes a plain ``str``, an integer of numpy an ``int``), or raises
:class:`StoreRequestError`. It does not catch what the caller's own objects raise while it goes through them.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
import types
import typing
from collections import abc
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal, NoReturn, TypeAlias, Union

from rstore.core.errors import StoreRequestError
from rstore.core.names import InvalidName, check_key
from rstore.core.numeric import INT64_MAX, INT64_MIN, integer, plain_number, real
from rstore.core.points import Cells

_SECONDS_MAX: Final = 10**10
Check: TypeAlias = Callable[[Any, str], Any]
"""Takes an argument and its name. Returns the object to use for it, or raises StoreRequestError."""


def check_environment() -> None:
    """Raise for a variable of rstore's that is set and empty. To ignore an empty key would mean to write unsealed."""
    for name in sorted(os.environ):
        if name.startswith("RSTORE_") and not os.environ[name]:
            raise invalid(f"{name} is set and empty; give it a value, or unset it")


def check_flag(value: Any, what: str) -> bool:
    """True or False. No other object counts as one of them: the text "no" would count as True."""
    flag = plain_number(value)
    if not isinstance(flag, bool):
        refuse(what, "True or False", value)
    return flag


def check_int(value: Any, what: str, low: int = INT64_MIN) -> int:
    """An integer from ``low`` to ``2**63-1``."""
    found = integer(value)
    if found is None:
        refuse(what, "an int", value)
    if not low <= found <= INT64_MAX:
        least = "-2**63" if low == INT64_MIN else str(low)
        raise invalid(f"{what} is an int from {least} to 2**63-1")
    return found


def check_name(value: Any, what: str) -> str:
    """A key or another name: see :func:`rstore.core.names.check_key`."""
    if type(value) is not str:
        if not isinstance(value, str):
            refuse(_named(what), "a str", value, "invalid-key")
        value = str.__str__(value)
    try:
        return check_key(value, _named(what))
    except InvalidName as error:
        raise StoreRequestError(str(error), code="invalid-key") from None


def check_seconds(value: Any, what: str, *, zero: bool = True, most: int = _SECONDS_MAX) -> float:
    """A number of seconds, 0 or more (more than 0 if not ``zero``) and at most ``most``, by default three centuries."""
    seconds = real(value)
    if seconds is None:
        refuse(what, "a number of seconds", value)
    if not (seconds >= 0 if zero else seconds > 0) or seconds > most:
        least = "of 0 or more" if zero else "greater than 0"
        raise invalid(f"{what} is a number of seconds {least} and at most {most}")
    return seconds


def check_text(value: Any, what: str) -> str:
    """Text that can be sent."""
    if type(value) is not str:
        if not isinstance(value, str):
            refuse(what, "a str", value)
        value = str.__str__(value)
    text: str = value
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            reason = f"{what} contains a lone surrogate, so it has no UTF-8 form"
            raise invalid(reason) from None
    return text


def invalid(message: str) -> StoreRequestError:
    """The error for a wrong argument."""
    return StoreRequestError(message, code="invalid-parameter")


def refuse(what: str, expected: str, given: object, code: str = "invalid-parameter") -> NoReturn:
    """Raise the error for an argument of a wrong type. It names the type and never a value."""
    raise StoreRequestError(f"{what} is {expected}, not {type(given).__name__}", code=code)


def _anything(value: Any, what: str) -> Any:
    return value


def _check_callable(value: Any, what: str) -> Any:
    if not callable(value):
        refuse(what, "a function", value)
    return value


def _check_column(value: Any, what: str) -> list[Any] | Cells:
    if isinstance(value, Cells):
        return value
    # An array of Python or numpy turns into plain numbers much faster as a whole.
    tolist = getattr(value, "tolist", None)
    members: Any = _each(_anything)(value, what) if tolist is None else tolist()
    if not isinstance(members, list):
        refuse(what, "a list or another iterable", value)
    return members


def _each(check: Check) -> Check:
    def check_each(value: Any, what: str) -> list[Any]:
        # A text is an iterable of its characters, which is never what the caller means.
        try:
            items = None if isinstance(value, str | bytes) else iter(value)
        except TypeError:
            items = None
        if items is None:
            refuse(what, "a list or another iterable", value)
        return [check(item, f"{what}[{index}]") for index, item in enumerate(items)]

    return check_each


def _mapping(check: Check) -> Check:
    def check_mapping(value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, abc.Mapping):
            refuse(what, "a dict or another mapping", value)
        return {check(key, f"a key of {what}"): item for key, item in value.items()}

    return check_mapping


def _one_of(choices: tuple[Any, ...], other: Check | None = None) -> Check:
    """One of these values, or what the other check takes."""

    def check_choice(value: Any, what: str) -> Any:
        text = str.__str__(value) if isinstance(value, str) else None
        for choice in choices:
            if value is choice or (text is not None and text == choice):
                return choice
        if other is None:
            expected = " or ".join(map(repr, choices))
            raise invalid(f"{what} is {expected}")
        return other(value, what)

    return check_choice


def _text_or(other: Check) -> Check:
    return lambda value, what: (check_text if isinstance(value, str) else other)(value, what)


def _named(what: str) -> str:
    return f"the {what}" if what.isidentifier() else what


Name: TypeAlias = Annotated[str, check_name]
Count: TypeAlias = Annotated[int, functools.partial(check_int, low=0)]
Step: TypeAlias = Annotated[int, functools.partial(check_int, low=1)]
Seconds: TypeAlias = Annotated[float, check_seconds]
PositiveSeconds: TypeAlias = Annotated[float, functools.partial(check_seconds, zero=False)]
ColumnLike: TypeAlias = Annotated[Any, _check_column]
_CHECKS: Final[dict[Any, Check]] = {str: check_text, bool: check_flag, int: check_int, abc.Callable: _check_callable}


class Signature:
    """The parameters of a method after ``self``.

    >>> def method(self, key: Name, *, n: int | None = None): ...
    >>> Signature(method).checked(("roof",), {"n": 3})
    (['roof'], {'n': 3})
    >>> Signature(method).checked(("roof",), {"n": "3"})
    Traceback (most recent call last):
    rstore.StoreRequestError: n is an int, not str
    """

    __slots__ = ("_checks", "_named", "_names", "_rest")

    def __init__(self, method: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(method, include_extras=True)
        parameters = list(inspect.signature(method).parameters.values())[1:]
        self._named = {parameter.name: _check_of(hints[parameter.name]) for parameter in parameters}
        kinds = {parameter.name: parameter.kind for parameter in parameters}
        self._names = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        self._checks = [self._named[name] for name in self._names]
        self._rest = next((name for name, kind in kinds.items() if kind is inspect.Parameter.VAR_POSITIONAL), "")

    def checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """The objects to use for the arguments. Python itself says whether there are too many or too few."""
        # Every call of every operation comes through here, so no Python code runs for an argument but its check.
        done: list[Any] = list(map(operator.call, self._checks, args, self._names))
        if len(args) > len(done):
            check, rest = self._named.get(self._rest, _anything), args[len(done) :]
            if check is not _anything:
                rest = tuple(check(value, f"{self._rest}[{index}]") for index, value in enumerate(rest))
            done += rest
        if kwargs:
            kwargs = {name: self._named.get(name, _anything)(value, name) for name, value in kwargs.items()}
        return done, kwargs


def _check_of(annotation: Any) -> Check:
    """The check that an annotation stands for."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return _anything
    if origin is Annotated:
        check: Check = parts[1]
        return check
    if origin in (Union, types.UnionType):
        choices = [choice for part in parts if typing.get_origin(part) is Literal for choice in typing.get_args(part)]
        others = [part for part in parts if part is not type(None) and typing.get_origin(part) is not Literal]
        check = _check_of(others[-1])
        if len(others) == 2 and others[0] is str:
            check = _text_or(check)
        elif len(others) != 1:
            raise TypeError(f"no check for {annotation}")
        none = (None,) if type(None) in parts else ()
        return _one_of((*none, *choices), check)
    if origin is Literal:
        return _one_of(parts)
    if origin is abc.Mapping:
        return _mapping(_check_of(parts[0]))
    if origin is abc.Iterable:
        return _each(_check_of(parts[0]))
    if origin is tuple:
        # Points. There may be a million, so they are checked all at once.
        return _anything
    return _CHECKS[origin or annotation]
