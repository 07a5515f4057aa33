"""Event sequences: ``rstore es …``."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import typer

from rstore.cli.arguments import Commands
from rstore.cli.connection import store_of
from rstore.cli.exact import json_text
from rstore.cli.kinds import EndOption, KeyArgument, KeysArgument, StartOption, timestamp
from rstore.cli.output import print_values
from rstore.core.command import Failure
from rstore.core.names import check_key
from rstore.core.operators import OPERATORS, UNARY

es = Commands("Event sequences.")


@es.command("list")
def es_list(context: typer.Context) -> None:
    """Print the key of every event sequence."""
    with store_of(context) as store:
        print_values(*store.eventsequences())


@es.command("apply")
def es_apply(
    context: typer.Context,
    key: KeyArgument,
    changes: Annotated[
        list[str],
        typer.Argument(
            metavar="CHANGE",
            help="ITEM=JSON sets, ITEM:OPERATOR=JSON applies an operator, and ITEM:delitem, ITEM:neg and ITEM:not_ "
            "take no value. What stands behind the last colon is the operator.",
        ),
    ],
    t: Annotated[
        int | None,
        typer.Option(parser=timestamp, metavar="T", help="POSIX milliseconds; now by default.", show_default=False),
    ] = None,
) -> None:
    """Record events at one timestamp, all or none, and print the new state."""
    events: dict[str, Any] = {}
    for change in changes:
        try:
            item, event = _change(change)
        except ValueError as error:
            raise typer.BadParameter(str(error), ctx=context, param_hint="'CHANGE'") from None
        if item in events:
            reason = f"item {item!r} occurs twice in one call"
            raise typer.BadParameter(reason, ctx=context, param_hint="'CHANGE'")
        events[item] = event
    with store_of(context, write=True) as store:
        print_values(store.apply(key, events, t))


@es.command("current")
def es_current(context: typer.Context, key: KeyArgument) -> None:
    """Print the current state."""
    with store_of(context) as store:
        print_values(_present(store.current(key), key))


@es.command("past")
def es_past(
    context: typer.Context,
    key: KeyArgument,
    t: Annotated[int, typer.Argument(parser=timestamp, metavar="T", help="POSIX milliseconds.")],
) -> None:
    """Print the state as of a time."""
    with store_of(context) as store:
        print_values(_present(store.past(key, t), key))


@es.command("events")
def es_events(context: typer.Context, key: KeyArgument, start: StartOption = None, end: EndOption = None) -> None:
    """Print events, one [timestamp, item, operator, value] per line."""
    with store_of(context) as store:
        events = _present(store.events(key, start, end), key)
    print_values(*[[t, item, op.__name__, value] for t, item, op, value in events])


@es.command("prune")
def es_prune(
    context: typer.Context,
    keys: KeysArgument,
    remove: Annotated[bool, typer.Option(help="Remove sequences whose state is empty.")] = True,
) -> None:
    """Delete the events that the current state no longer needs."""
    with store_of(context, write=True) as store:
        store.prune(*keys, remove=remove)


def _change(text: str) -> tuple[str, tuple[Any, ...]]:
    """The item of a change, and its operator with the value if it takes one. Raises ValueError if it is malformed."""
    left, equals, value = text.partition("=")
    item, colon, op = left.rpartition(":")
    if not colon:
        item, op = left, "setitem"
        if not equals:
            raise ValueError(f"not a change: {text[:60]!r}; write ITEM=JSON, ITEM:OPERATOR=JSON or ITEM:delitem")
    elif op not in OPERATORS:
        alike = [name for name in OPERATORS if name[:2] == op[:2]]
        nearest = difflib.get_close_matches(op, alike, n=1, cutoff=0.4)
        meant = f"did you mean {nearest[0]}? " if nearest else ""
        raise ValueError(
            f"there is no operator {op[:60]!r}: {meant}the operators are {', '.join(OPERATORS)}; "
            f"to set an item with a colon in its name, write {left[:60]}:setitem=JSON"
        )
    check_key(item, "item")
    function = OPERATORS[op]
    if op in UNARY:
        if equals:
            raise ValueError(f"{op} takes no value: write {left[:60]}")
        return item, (function,)
    if not equals:
        raise ValueError(f"{op} needs a value: write {left[:60]}=JSON")
    return item, (function, json_text(value))


def _present(state: Any, key: str) -> Any:
    if state is None:
        raise Failure(f"no such event sequence, or it has no event until then: {key!r}")
    return state
