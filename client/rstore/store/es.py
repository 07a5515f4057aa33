"""Event sequences: the operations."""

from __future__ import annotations

import bisect
import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, overload

from rstore import calls
from rstore.calls import SPENDING, Steps
from rstore.calls.arguments import Name
from rstore.calls.es import StoredEvent, StoredState
from rstore.core.bounds import UnfoldableEvent
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import (
    StoreConflictError,
    StoreDecryptionError,
    StoreEncodingError,
    StoreError,
    StoreIntegrityError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.folding import apply_event, fold
from rstore.core.memory import Spend
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.operators import OPERATOR_NAMES, OPERATORS, UNARY
from rstore.sealing import EventContext, new_apply_id
from rstore.store.bare import BareStore, TransportT, contradiction, part_of_a_write
from rstore.store.operation import Operation, operation

State: TypeAlias = "dict[str, Any]"
"""The items of a sequence and their values."""

_OpenedEvent: TypeAlias = "tuple[int, str, str, Any]"
"""Timestamp, item, the operator's name, and the value as Python has it."""

_APPLY_ROUNDS_MAX: Final = 100


class _Change(NamedTuple):
    """A change to an item: the operator's name, and the value, None for a unary operator."""

    item: str
    op: str
    value: Value | None


class _Current(Protocol):
    @overload
    def __call__(self, key: str, withtimestamp: Literal[False] = False) -> State | None: ...
    @overload
    def __call__(self, key: str, withtimestamp: Literal[True]) -> tuple[int | None, State] | None: ...
    @overload
    def __call__(self, key: str, withtimestamp: bool) -> State | tuple[int | None, State] | None: ...


class _CurrentAwaited(Protocol):
    @overload
    async def __call__(self, key: str, withtimestamp: Literal[False] = False) -> State | None: ...
    @overload
    async def __call__(self, key: str, withtimestamp: Literal[True]) -> tuple[int | None, State] | None: ...
    @overload
    async def __call__(self, key: str, withtimestamp: bool) -> State | tuple[int | None, State] | None: ...


class _Past(Protocol):
    @overload
    def __call__(self, key: str, t: int, withtimestamp: Literal[False] = False) -> State | None: ...
    @overload
    def __call__(self, key: str, t: int, withtimestamp: Literal[True]) -> tuple[int | None, State] | None: ...
    @overload
    def __call__(self, key: str, t: int, withtimestamp: bool) -> State | tuple[int | None, State] | None: ...


class _PastAwaited(Protocol):
    @overload
    async def __call__(self, key: str, t: int, withtimestamp: Literal[False] = False) -> State | None: ...
    @overload
    async def __call__(self, key: str, t: int, withtimestamp: Literal[True]) -> tuple[int | None, State] | None: ...
    @overload
    async def __call__(self, key: str, t: int, withtimestamp: bool) -> State | tuple[int | None, State] | None: ...


class EventSequences(BareStore[TransportT]):
    """The operations on event sequences."""

    @operation
    def apply(self, key: Name, changes: Mapping[Name, Any], t: int | None = None) -> Steps[Any]:
        """Record one event for each item in ``changes``, all or none, and return the new current state.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            changes: The change of each item: a value to set, ``(operator, value)``, or ``(operator,)`` for an
                operator that takes no value. The operators are twelve functions of the module ``operator``
                (:data:`rstore.core.operators.OPERATORS`). A value that has another function in this place is set by
                ``(operator.setitem, value)``. At most 1,000 changes unless the service has another limit; with none,
                nothing is recorded.
            t: The timestamp of the events, in POSIX milliseconds. It may lie in the past. None: now, or just after
                the last event if that is later.

        Returns:
            The current state, a dict in order of item. Without changes it is None if there is no such sequence.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreIntegrityError: An event cannot be applied, ``t`` already has events, or ``t`` is needed because the
                last event is too far ahead of this machine's clock. Nothing was stored.
            StoreConflictError: Other clients changed the sequence again and again. Nothing was stored.
            StoreRequestError: A change is malformed, or names another function. Nothing was stored.
            StoreError: If ``done`` of the error is True, the events were recorded, and only the answer is missing.

        Example:
            >>> import operator
            >>> store.apply("basket", {"apples": 3, "pears": 1})
            {'apples': 3, 'pears': 1}
            >>> store.apply("basket", {"apples": (operator.add, 2), "pears": (operator.delitem,)})
            {'apples': 5}
        """
        self._check_writable()
        spend = yield SPENDING
        parts = [self._change(item, change) for item, change in changes.items()]
        if not parts:
            return (yield from self._answered(key, (yield from calls.es.current(self.namespace, key)), spend))
        if self._codec.sealer is None and all(
            part.value is None or part.value.encoding is Encoding.JSON for part in parts
        ):
            try:
                state = yield from calls.es.apply(self.namespace, key, parts, timestamp=t)
            except StoreConflictError as error:
                # The service asks for a revision where the item's earlier values are for the client to fold.
                if error.code != "revision-conflict":
                    raise
            else:
                with _carried_out():
                    return self._folded(state, self._opened(key, state.events, spend), spend)
        return (yield from self._apply_checked(key, parts, t, spend))

    @Operation[_Current, _CurrentAwaited]
    def current(self, key: Name, withtimestamp: bool = False) -> Steps[Any]:
        """The current state of a sequence, or None if there is no such sequence.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            withtimestamp: Return the timestamp of the last event too.

        Returns:
            The state, a dict in order of item. With ``withtimestamp`` the pair ``(t, state)``, in which ``t`` is in
            POSIX milliseconds. In a store with a key it is the timestamp of the last event that opens, and None if
            :meth:`prune` has left no event.

        Raises:
            StoreDecryptionError: An event does not open with the keys of this store, or the store has none.
            StoreIntegrityError: An event cannot be applied to what the events before it made.
            StoreProtocolError: The service serves events that contradict each other.

        Example:
            >>> state = store.apply("basket", {"pears": 1, "apples": 3}, t=1_700_000_000_000)
            >>> store.current("basket", withtimestamp=True)
            (1700000000000, {'apples': 3, 'pears': 1})
        """
        state = yield from calls.es.current(self.namespace, key)
        return (yield from self._answered(key, state, (yield SPENDING), withtimestamp))

    @Operation[_Past, _PastAwaited]
    def past(self, key: Name, t: int, withtimestamp: bool = False) -> Steps[Any]:
        """The state of a sequence as of ``t``, or None if it had no event until then.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            t: The time in POSIX milliseconds, inclusive.
            withtimestamp: Return the timestamp of the last event until ``t`` too.

        Returns:
            As :meth:`current`.

        Raises:
            StoreDecryptionError, StoreIntegrityError, StoreProtocolError: As :meth:`current`.

        Example:
            >>> state = store.apply("basket", {"apples": 3}, t=1_000)
            >>> state = store.apply("basket", {"apples": 5}, t=2_000)
            >>> store.past("basket", 1_500)
            {'apples': 3}
        """
        state = yield from calls.es.past(self.namespace, key, t)
        return (yield from self._answered(key, state, (yield SPENDING), withtimestamp))

    @operation
    def events(
        self,
        key: Name,
        start: int | None = None,
        end: int | None = None,
        ops: Iterable[Callable[..., Any]] | None = None,
    ) -> Steps[list[tuple[int, str, Callable[..., Any], Any]] | None]:
        """The events of a sequence in order of timestamp, then item; None if there is no such sequence.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            start: The first timestamp in POSIX milliseconds, inclusive. None: from the first event on.
            end: The last timestamp, inclusive. None: up to the last event.
            ops: Functions of the module ``operator``. Only events of these are returned. None: every event.

        Returns:
            A list of events ``(timestamp, item, operator, value)``, or None. The value of an operator that takes none
            is None.

        Raises:
            StoreDecryptionError, StoreProtocolError: As :meth:`current`.
            StoreRequestError: Another function is among ``ops``.

        Example:
            >>> import operator
            >>> state = store.apply("basket", {"apples": 3}, t=1_000)
            >>> state = store.apply("basket", {"apples": (operator.add, 2)}, t=2_000)
            >>> store.events("basket", ops=[operator.add])
            [(2000, 'apples', <built-in function add>, 2)]
        """
        names = None
        if ops is not None:
            names = frozenset(_operator_name(function, f"ops[{index}]") for index, function in enumerate(ops))
        if names is not None and not names:
            return None if (yield from calls.es.current(self.namespace, key)) is None else []
        found = yield from calls.es.events(self.namespace, key, start=start, end=end, ops=names)
        if found is None:
            return None
        spend = yield SPENDING
        return [(t, item, OPERATORS[op], value) for t, item, op, value in self._opened(key, found, spend)]

    @operation
    def prune(self, *keys: Name, remove: bool = True) -> Steps[None]:
        """Delete every event that the current state no longer needs. The past of these sequences is gone.

        A key that is not there does no harm.

        Args:
            *keys: The keys, each 1 to 512 bytes of UTF-8 without NUL.
            remove: Remove a sequence whose state has no item.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreError: The service failed. If ``outcome_unknown`` of the error is True, some sequences may be pruned.

        Example:
            >>> for count in range(3):
            ...     state = store.apply("basket", {"apples": count})
            >>> store.prune("basket")
            >>> len(store.events("basket"))
            1
        """
        self._check_writable()
        for number, key in enumerate(keys):
            with part_of_a_write(number):
                yield from calls.es.prune(self.namespace, key, remove=remove)

    @operation
    def eventsources(self) -> Steps[list[str]]:
        """The keys of all event sequences, in order. ``eventsequences`` is another name of this method.

        Returns:
            A list of the keys.

        Example:
            >>> state = store.apply("basket", {"apples": 3})
            >>> store.eventsources()
            ['basket']
        """
        return (yield from self._names(functools.partial(calls.es.list_keys, self.namespace)))

    eventsequences = eventsources

    def _change(self, item: str, change: Any) -> _Change:
        """A change as the caller gives it to :meth:`apply`, with its value encoded."""
        function = change[0] if isinstance(change, tuple | list) and change else change
        if not callable(function):
            return _Change(item, "setitem", self._codec.dump(change))
        op = _operator_name(function, "an operator in changes")
        operands = change[1:] if type(change) is tuple else None
        if op in UNARY:
            if operands is None or len(operands) > 1 or (operands and operands[0] is not None):
                raise StoreRequestError(f"in changes the operator {op} takes no value: ({op},)", code="invalid-body")
            return _Change(item, op, None)
        if operands is None or len(operands) != 1:
            raise StoreRequestError(f"in changes the operator {op} needs one value: ({op}, value)", code="invalid-body")
        return _Change(item, op, self._codec.dump(operands[0]))

    def _opened(
        self, key: str, events: Iterable[StoredEvent], spend: Spend, refused: bytes | None = None
    ) -> list[_OpenedEvent]:
        """The events with their values as Python has them.

        The events of one apply have one timestamp, and the apply with the id ``refused`` has no event. Events that
        contradict this are authentic all the same: the service has kept attempts that it said it refused.
        """
        namespace = self.namespace
        times: dict[bytes, int] = {}
        opened = []
        for t, item, op, stored in events:
            place = EventContext(namespace, key, t, item, op)
            value, apply_id = self._codec.restore_event(stored, place, spend)
            if apply_id is not None and times.setdefault(apply_id, t) != t:
                raise StoreProtocolError(
                    f"the service serves one apply at {times[apply_id]} and at {t}: it kept an attempt that it refused"
                )
            if apply_id is not None and apply_id == refused:
                raise contradiction(f"the service refused this apply, and serves its events at {t} all the same")
            opened.append((t, item, op, value))
        return opened

    def _folded(self, state: StoredState, opened: list[_OpenedEvent], spend: Spend) -> dict[str, Any]:
        """The state, in order of item: what the service folded, and what the client folds out of the opened events."""
        if self._codec.sealer is not None and state.items:
            raise StoreDecryptionError(
                "the sequence has items that are not sealed, and a store with a key takes no value on trust"
            )
        items = {item: self._codec.load(value, spend) for item, value in state.items.items()}
        try:
            items |= fold(opened, self._folding_bounds, spend)
        except UnfoldableEvent as error:
            raise _unfoldable(error) from None
        return dict(sorted(items.items()))

    def _answered(self, key: str, state: StoredState | None, spend: Spend, withtimestamp: bool = False) -> Steps[Any]:
        """What :meth:`current` and :meth:`past` return for a state of the service's."""
        if state is None:
            return None
        opened = self._opened(key, state.events, spend)
        folded = self._folded(state, opened, spend)
        return ((yield from self._last_timestamp(key, state, opened, spend)), folded) if withtimestamp else folded

    def _last_timestamp(
        self,
        key: str,
        state: StoredState,
        opened: list[_OpenedEvent],
        spend: Spend,
        refused: bytes | None = None,
    ) -> Steps[int | None]:
        """The timestamp of a state's last event, or None if it has no event.

        With a key it is that of the last event that opens, whatever the service says. ``opened`` are the state's
        events.
        """
        last = opened[-1][0] if opened else None
        if self._codec.sealer is None or last == state.timestamp:
            return state.timestamp
        # The last event deleted an item, or one that came later has replaced it, or prune has erased it.
        for start in (state.timestamp, INT64_MIN if last is None else last + 1):
            found = yield from calls.es.events(self.namespace, key, start=start, end=state.timestamp)
            if found:
                return self._opened(key, found, spend, refused)[-1][0]
        return last

    def _apply_checked(
        self, key: str, parts: list[_Change], timestamp: int | None, spend: Spend
    ) -> Steps[dict[str, Any]]:
        """Apply what the service cannot fold: check it here, and write on the condition that nobody has written since.

        With a key, the client chooses the timestamp, because it is authenticated. The service may keep what it says
        it refuses. So the client sends the same bytes again, unless an event that opens is in the way of their
        timestamp. All attempts have one apply id, by which readers see that they are one apply.
        """
        namespace, sealer = self.namespace, self._codec.sealer
        apply_id = new_apply_id()
        now = time.time_ns() // 1_000_000
        t = now if timestamp is None and sealer is not None else timestamp
        sent, sealed_for = parts, None
        before: StoredState | None = None
        for _ in range(_APPLY_ROUNDS_MAX):
            state = yield from calls.es.current(namespace, key)
            if state is not None and state == before:
                raise contradiction(
                    "the service refused this apply as the sequence had changed, and serves it as before"
                )
            before = state
            opened = [] if state is None else self._opened(key, state.events, spend, apply_id)
            folded = {} if state is None else self._folded(state, opened, spend)
            if sealer is not None and state is not None and t is not None and (not opened or t <= state.timestamp):
                # The last event has to open. Otherwise nobody who can read the others could read what is added here.
                last = yield from self._last_timestamp(key, state, opened, spend, apply_id)
                if timestamp is None and last is not None and last >= t:
                    t = self._following(last, now)
            try:
                if state is not None and t is not None and t <= state.timestamp:
                    for part in parts:
                        history = yield from calls.es.events(namespace, key, item=part.item)
                        folded.pop(part.item, None)
                        event = (t, part.item, part.op, self._operand(part, spend))
                        changed = _with_event(event, self._opened(key, history or [], spend, apply_id))
                        folded |= fold(changed, self._folding_bounds, spend)
                else:
                    for part in parts:
                        apply_event(folded, part.item, part.op, self._operand(part, spend), self._folding_bounds, spend)
            except UnfoldableEvent as error:
                # Of two mistakes the service names the timestamp first, and so does this.
                if timestamp is not None and (yield from calls.es.events(namespace, key, start=t, end=t)):
                    raise StoreIntegrityError("the timestamp already has events", code="timestamp-taken") from None
                raise _unfoldable(error) from None
            if sealer is not None and t is not None and t != sealed_for:
                sent, sealed_for = self._sealed(key, t, parts, apply_id), t
            try:
                yield from calls.es.apply(
                    namespace, key, sent, timestamp=t, revision=0 if state is None else state.revision
                )
            except StoreConflictError as error:
                if error.code != "revision-conflict":
                    raise
            except StoreIntegrityError as error:
                if sealer is not None and error.code == "timestamp-taken":
                    there = yield from calls.es.events(namespace, key, start=t, end=t)
                    if not self._opened(key, there or [], spend, apply_id):
                        raise contradiction("the service says that the timestamp has events, and serves none") from None
                raise
            else:
                return dict(sorted(folded.items()))
        raise StoreConflictError(
            "other clients kept changing the sequence; nothing was stored", code="revision-conflict"
        )

    def _following(self, last: int, now: int) -> int:
        """The timestamp after the last event's."""
        if last == INT64_MAX:
            raise StoreIntegrityError(
                "the last event has the greatest possible timestamp, so none can follow it: give an earlier t",
                code="timestamp-taken",
            )
        if last - now > self._ahead_seconds_max * 1_000:
            raise StoreIntegrityError(
                f"the sequence's last event, at {last}, is more than {self._ahead_seconds_max:.0f} seconds ahead of"
                " this machine's clock: give the t to apply at"
            )
        return last + 1

    def _sealed(self, key: str, t: int, parts: list[_Change], apply_id: bytes) -> list[_Change]:
        """The changes with their values sealed for ``t``."""
        seal, namespace = self._codec.seal_event, self.namespace
        return [
            part._replace(value=seal(part.value, EventContext(namespace, key, t, part.item, part.op), apply_id))
            for part in parts
        ]

    def _operand(self, part: _Change, spend: Spend) -> Any:
        """A change's value as a reader will get it. It is never the caller's own object."""
        return None if part.value is None else self._codec.load(part.value, spend)


def _with_event(event: _OpenedEvent, history: list[_OpenedEvent]) -> list[_OpenedEvent]:
    """The events of an item with one more among them, in order of time."""
    at = bisect.bisect([t for t, *_ in history], event[0])
    return [*history[:at], event, *history[at:]]


@contextlib.contextmanager
def _carried_out() -> Iterator[None]:
    """An error that is raised in here says that the write was carried out before."""
    try:
        yield
    except StoreError as error:
        error.done = True
        raise
    except Exception as error:
        # The `_load` of a subclass may raise anything.
        failure = StoreEncodingError(f"the answer could not be decoded: {type(error).__name__}")
        failure.done = True
        raise failure from error


def _operator_name(function: Callable[..., Any], what: str) -> str:
    try:
        return OPERATOR_NAMES[function]
    except (KeyError, TypeError):  # An object that is not hashable raises TypeError.
        raise StoreRequestError(
            f"{what} is one of these functions of the module operator: {', '.join(OPERATORS)};"
            " a value that has another function in this place is set by (operator.setitem, value)",
            code="invalid-parameter",
        ) from None


def _unfoldable(error: UnfoldableEvent) -> StoreIntegrityError:
    return StoreIntegrityError(str(error), code="unfoldable-event")
