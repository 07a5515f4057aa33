"""Event sequences: what each operation means.

A sequence is a record. Its head counts; lane 0 holds its events, in order of timestamp and item, and by item; lane 1
holds one row for each item that is present, with what its current chain of events (see :mod:`rstore.core.folding`)
comes to. So the current state, and an apply that follows the last one, cost what the state costs, however long the
history. A chain whose events are all JSON is *plain* and is folded here, event by event as they come; any other is
*sealed* to the service, which follows its operators' names and hands its events out.

The events of a sequence are all sealed, or none is: no client could read a mix. Only a sequence from before this rule
may hold one; it can still be read, pruned and written to.

History is only ever appended to, except by an apply in the past and by prune. Both change ``Meta.rewrites``, so that
a reader that needs more than one query knows whether what it read belongs together. Resealing an event changes the
bytes of its sealed value and leaves it the same event.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from rstore.core.encodings import Encoding, InvalidJSON, Value, check_numbers, parse_json, render_json
from rstore.core.folding import present_after
from rstore.core.names import InvalidName, check_key
from rstore.core.operators import ASSIGNING, OPERATORS, UNARY, JsonValue, UnfoldableEvent, apply_json
from rstored.backends.abc import (
    Commit,
    DeleteRecord,
    DeleteRow,
    Head,
    HeadRead,
    Kind,
    Place,
    PutHead,
    PutRow,
    Query,
    Row,
    RowOrder,
    RowScan,
    Slice,
    Write,
)
from rstored.engine.batching import Storage
from rstored.engine.listing import list_page
from rstored.engine.model import Change, Page, PruneResult, Reseal, SequenceInfo, State, StoredEvent
from rstored.engine.namespaces import admit
from rstored.engine.once import Answers, Once, answers_of
from rstored.engine.timestamps import TIMESTAMP_MAX, TIMESTAMP_MIN, from_sort_key, sort_key
from rstored.engine.values import check_value
from rstored.limits import Limits
from rstored.problems import Problem

__all__ = ["EventSequences"]

_EVENTS: Final = 0
_ITEMS: Final = 1

_PAGE_EVENTS_MAX: Final = 1_000
_PAGE_BYTES_MAX: Final = 2**20
_LONG_BYTES: Final = 4_096
_TURN_SECONDS: Final = 0.01
_TRIES_MAX: Final = 10
_EVENT_OVERHEAD_BYTES: Final = 32


class _Meta(msgspec.Struct, array_like=True, frozen=True):
    """The head of a sequence. ``size`` is what reading its state costs in bytes.

    ``sealed``: whether its events are. None if an older version wrote it, or if some are and some are not.
    """

    revision: int
    last: int
    events: int
    present: int
    size: int
    rewrites: int
    sealed: bool | None = None


class _EventRow(msgspec.Struct, array_like=True, frozen=True):
    """An event's value in lane 0; without a value, which is a unary operator's, it has no encoding and no data."""

    op: str
    encoding: int | None
    data: bytes


class _ItemRow(msgspec.Struct, array_like=True, frozen=True):
    """An item's current chain in lane 1: its first and last timestamp, its number of events and their bytes.

    ``data`` holds the folded JSON of a plain chain, or the one value of a sealed chain of length 1; else it is empty
    and the chain is read from lane 0.
    """

    start: int
    last: int
    length: int
    size: int
    plain: bool
    encoding: int
    data: bytes

    @property
    def read_from_events(self) -> bool:
        return not self.plain and self.length > 1


class _Applied(NamedTuple):
    """What is remembered of an apply's answer: its state is that of then, and can be read again."""

    timestamp: int
    revision: int


_decode_meta: Final = msgspec.msgpack.Decoder(_Meta).decode
_decode_event: Final = msgspec.msgpack.Decoder(_EventRow).decode
_decode_item: Final = msgspec.msgpack.Decoder(_ItemRow).decode
_decode_applied: Final = msgspec.msgpack.Decoder(_Applied).decode
_pack: Final = msgspec.msgpack.Encoder().encode

_APPLIED: Final[Answers[State | _Applied]] = Answers(
    lambda answer: _pack(_Applied(answer.timestamp, answer.revision)), _decode_applied
)
_COUNT: Final = answers_of(int)
_NOTHING: Final = answers_of(type(None))


class _Chain(NamedTuple):
    """A chain of events being followed: its row, and the folded value as far as ``row.data`` is not yet its text."""

    row: _ItemRow
    json: JsonValue | None = None

    @classmethod
    def begun(cls, event: StoredEvent) -> _Chain:
        """The chain that a setitem begins."""
        assert event.value is not None
        t, (encoding, data) = event.timestamp, event.value
        return cls(_ItemRow(t, t, 1, _event_size(event), encoding is Encoding.JSON, encoding, data))

    def extended(self, event: StoredEvent, bytes_max: int | None) -> _Chain:
        """The chain with one more event, of an operator that neither begins nor ends one. Raises UnfoldableEvent.

        Without ``bytes_max``, the most that the folded text may have, it becomes a sealed one.
        """
        row, value = self.row, event.value
        json: JsonValue | None = None
        if row.plain and bytes_max is not None and (value is None or value.encoding is Encoding.JSON):
            current = self.json or _json_value(row.data)
            operand = None if value is None else _json_value(value.data)
            json = apply_json(event.op, current, operand, bytes_max=bytes_max)
        size = row.size + _event_size(event)
        plain = json is not None
        return _Chain(_ItemRow(row.start, event.timestamp, row.length + 1, size, plain, Encoding.JSON, b""), json)

    def stored(self) -> _ItemRow:
        """The row to store."""
        return self.row if self.json is None else msgspec.structs.replace(self.row, data=render_json(self.json.value))


class _Refolding:
    """How much one apply in the past may still fold anew: whoever else writes waits for it."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._left = events_max

    def spend(self, chain: _Chain | None = None) -> None:
        """Count an event, and more than once if what its chain comes to is long. Raises UnfoldableEvent at the end."""
        self._left -= 1 if chain is None or chain.json is None else 1 + chain.json.size // _LONG_BYTES
        if self._left < 0:
            raise UnfoldableEvent(
                f"more than {self._events_max} events would have to be folded anew, or fewer with long values:"
                " apply it at a later timestamp, or at none"
            )


class _NeedsClient(Exception):
    """An event would continue, unchecked, a chain that only a client can fold."""


class _Touched(NamedTuple):
    """What an apply does to an item: its row before and after, None where it is absent."""

    before: _ItemRow | None
    after: _ItemRow | None


_Places: TypeAlias = Mapping[Place, Head | None]


class EventSequences:
    """The operations on event sequences. Namespaces and keys are already checked; timestamps are int64."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._limits = limits
        self._clock = clock
        self._once = Once(storage, limits, clock)

    # --- writing -------------------------------------------------------------------------------------------

    async def apply(
        self,
        namespace: str,
        key: str,
        changes: Sequence[Change],
        *,
        timestamp: int | None = None,
        revision: int | None = None,
        write_id: str | None = None,
    ) -> State | None:
        """Record one event per change, all at one timestamp, or none; returns the whole new state.

        ``timestamp`` None is ``max(now, last + 1)``; one in the past is taken if it has no events yet and all that
        follows can still be folded. ``revision`` is the one that the sequence must be at, 0 meaning that it must not
        exist. An apply with a ``write_id`` happens once: a repeat answers timestamp and revision of then, and the state
        as of that timestamp. No changes at all record nothing and answer the current state, None if the key is unknown.

        An event that would continue a chain that only a client can fold, and has no value or a JSON one, needs a
        ``revision``: it says that a client has checked what the service cannot.

        Raises Problem ``invalid-body``, ``batch-too-large``, ``value-too-large``, ``invalid-value``,
        ``nesting-too-deep``, ``sealed-only``, ``sealing-mismatch``, ``revision-conflict`` (with ``revision`` and
        ``timestamp``), ``timestamp-taken`` or ``unfoldable-event`` (with ``item``); those about one change have a
        ``pointer`` to it.
        """
        self._check(changes, timestamp)
        if not changes:
            current = await self.current(namespace, key)
            _check_revision(revision, *((0, 0) if current is None else (current.revision, current.timestamp)))
            return current
        place = Place(namespace, Kind.ES, key)
        now = self._clock()

        def plan(heads: _Places) -> Generator[Query, list[Any], Commit[State | _Applied]]:
            return (yield from self._apply(heads, place, changes, timestamp, revision, now))

        request = "apply", changes, timestamp, revision
        answer = await self._once.update((place,), plan, write_id, request, _APPLIED)
        if isinstance(answer, State):
            return answer
        try:
            state = await self.past(namespace, key, answer.timestamp) or State(0, 0, {}, [])
        except Problem as problem:
            # This apply was carried out. No answer may call it refused.
            raise Problem("backend-unavailable", f"the apply was carried out, but: {problem.detail}") from None
        return state._replace(timestamp=answer.timestamp, revision=answer.revision)

    def check_count(self, events: int) -> None:
        """Raise ``batch-too-large`` if a call may not have so many events; to be asked before they are looked at."""
        limit = self._limits.events_per_call_max
        if events > limit:
            raise Problem("batch-too-large", f"{events} events in one call; at most {limit} are allowed", limit=limit)

    def _check(self, changes: Sequence[Change], timestamp: int | None) -> None:
        self.check_count(len(changes))
        if timestamp is not None and not TIMESTAMP_MIN <= timestamp <= TIMESTAMP_MAX:
            raise Problem("invalid-body", "the timestamp is not a 64-bit integer", pointer="/timestamp")
        items: set[str] = set()
        for index, (item, op, value) in enumerate(changes):
            pointer = f"/events/{index}"
            _check_name(item, "item", f"{pointer}/item")
            if item in items:
                raise Problem("invalid-body", "an item occurs twice in one call", pointer=f"{pointer}/item")
            items.add(item)
            if op not in OPERATORS:
                raise Problem(
                    "invalid-body", f"no such operator: use one of {', '.join(OPERATORS)}", pointer=f"{pointer}/op"
                )
            if value is None and op not in UNARY:
                raise Problem("invalid-body", f"{op} needs a value", pointer=f"{pointer}/value")
            if value is not None and op in UNARY and value.encoding is not Encoding.SEALED:
                raise Problem("invalid-body", f"{op} takes no value, or a sealed one", pointer=f"{pointer}/value")
            if value is not None:
                check_value(value, self._limits, pointer=f"{pointer}/value")
                limit = self._limits.state_bytes_max
                if value.encoding is Encoding.JSON and len(value.data) > limit:
                    detail = f"the value has {len(value.data)} bytes; at most {limit} are folded"
                    raise Problem("value-too-large", detail, limit=limit, pointer=f"{pointer}/value")

    def _apply(
        self,
        heads: _Places,
        place: Place,
        changes: Sequence[Change],
        timestamp: int | None,
        revision: int | None,
        now: int,
    ) -> Generator[Query, list[Any], Commit[State | _Applied]]:
        """The plan of :meth:`apply`, for one change or more."""
        head = heads[place]
        meta = _Meta(0, 0, 0, 0, 0, now) if head is None else _decode_meta(head.meta)
        rows: dict[str, _ItemRow] = {}
        if head is not None:
            found: list[Slice[Row]] = yield (RowScan(place, _ITEMS),)
            rows = {row.sort.decode(): _decode_item(row.value) for row in found[0].items}
        _check_revision(revision, meta.revision, meta.last)

        # An event without a value proves nothing either, so to a policy it is one that is not sealed.
        encodings = [Encoding.JSON if change.value is None else change.value.encoding for change in changes]
        writes = admit(heads, place.namespace, encodings)
        sealed = yield from _sealed_after(place, meta, encodings)
        t, in_order = yield from self._timestamp(place, None if head is None else meta, timestamp, now)
        events = [StoredEvent(t, *change) for change in changes]
        refolding = _Refolding(self._limits.refolded_events_max)
        touched: dict[str, _Touched] = {}
        for index, event in enumerate(events):
            row = rows.get(event.item)
            # A client that names the revision, or sends what only a client reads, has folded what the service cannot.
            checked = revision is not None or (event.value is not None and event.value.encoding is not Encoding.JSON)
            try:
                if in_order:
                    after = self._followed(None if row is None else _Chain(row), event, checked=checked)
                    new_row = None if after is None else after.stored()
                else:
                    new_row = yield from self._refolded(place, row, event, checked, refolding)
            except _NeedsClient:
                raise Problem(
                    "revision-conflict",
                    "only a client can fold this item: fold it there first, and send the revision that you folded",
                    revision=meta.revision,
                    timestamp=meta.last,
                    item=event.item,
                    pointer=f"/events/{index}",
                ) from None
            except UnfoldableEvent as error:
                error.item = event.item
                raise Problem("unfoldable-event", str(error), item=event.item, pointer=f"/events/{index}") from None
            touched[event.item] = _Touched(row, new_row)

        meta = _Meta(
            revision=meta.revision + 1,
            last=t if in_order else meta.last,
            events=meta.events + len(events),
            present=meta.present + sum((new is not None) - (old is not None) for old, new in touched.values()),
            size=meta.size + sum(_state_size(new) - _state_size(old) for old, new in touched.values()),
            rewrites=meta.rewrites + (not in_order),
            sealed=sealed,
        )
        if meta.size > self._limits.sequence_bytes_max:
            limit = self._limits.sequence_bytes_max
            raise Problem(
                "value-too-large",
                f"the state would be read from {meta.size} bytes; at most {limit} are allowed:"
                " delete items, or set the items again whose events the service cannot fold",
                limit=limit,
            )
        writes.append(PutHead(place, Head(_pack(meta))))
        writes += (PutRow(place, _EVENTS, _event_row(event)) for event in events)
        for item, (old, new) in touched.items():
            if new is None:
                rows.pop(item, None)
                writes.append(DeleteRow(place, _ITEMS, item.encode()))
            elif new != old:
                rows[item] = new
                writes.append(PutRow(place, _ITEMS, Row(item.encode(), _pack(new))))
        return Commit(writes, (yield from _state(place, meta, rows, events)))

    def _timestamp(
        self, place: Place, meta: _Meta | None, timestamp: int | None, now: int
    ) -> Generator[Query, list[Any], tuple[int, bool]]:
        """The timestamp of an apply, and whether it is after all others."""
        if meta is None:
            return now if timestamp is None else timestamp, True
        if timestamp is None:
            if meta.last == TIMESTAMP_MAX:
                raise Problem(
                    "timestamp-taken",
                    "the last event has the greatest possible timestamp, so none can follow it: give an earlier one",
                )
            return max(now, meta.last + 1), True
        if timestamp > meta.last:
            return timestamp, True
        found: list[Slice[Row]] = yield (RowScan(place, _EVENTS, *_at(timestamp), limit=1),)
        if found[0].items:
            raise Problem("timestamp-taken", "the timestamp already has events", pointer="/timestamp")
        return timestamp, False

    def _followed(self, chain: _Chain | None, event: StoredEvent, *, checked: bool = True) -> _Chain | None:
        """The item's chain after an event, None if it is then absent. Raises UnfoldableEvent.

        Unless a client has ``checked`` the event, raises _NeedsClient if that takes more than operators' names.
        """
        if not present_after(event.op, chain is not None):
            return None
        if chain is None or event.op == "setitem":
            return _Chain.begun(event)
        longer = chain.extended(event, self._limits.state_bytes_max)
        if not (checked or longer.row.plain):
            raise _NeedsClient
        return longer

    def _refolded(
        self, place: Place, row: _ItemRow | None, event: StoredEvent, checked: bool, refolding: _Refolding
    ) -> Generator[Query, list[Any], _ItemRow | None]:
        """The item's row after an event among or before its others. Raises as :meth:`_followed` does."""
        t, item, op, _ = event
        chain: _Chain | None = None
        if op != "setitem":
            start = (
                row.start if row is not None and row.start < t else (yield from _chain_start(place, item, t, refolding))
            )
            if start is not None:
                scan: RowScan | None = _paged(_item_scan(place, item, start, t))
                while scan is not None:
                    (found,) = yield (scan,)
                    for earlier in map(_stored_event, found.items):
                        chain = self._followed(chain, earlier)
                        refolding.spend(chain)
                    scan = _next_page(scan, found)
        chain = self._followed(chain, event, checked=checked)
        scan = _paged(_item_scan(place, item, t, TIMESTAMP_MAX))
        while scan is not None:
            (found,) = yield (scan,)
            for later in map(_stored_event, found.items):
                if later.op == "setitem":
                    return row
                try:
                    chain = self._followed(chain, later, checked=checked)
                except UnfoldableEvent as error:
                    raise UnfoldableEvent(f"a later event could no longer be applied: {error.reason}") from None
                if chain is None:
                    return row
                refolding.spend(chain)
            scan = _next_page(scan, found)
        return None if chain is None else chain.stored()

    # --- resealing -----------------------------------------------------------------------------------------

    async def reseal(self, namespace: str, key: str, reseals: Sequence[Reseal], *, write_id: str | None = None) -> None:
        """Put sealed values in the place of sealed values, all or none; nothing else of the events changes.

        An event that has its new value already is left as it is, so this may be repeated. The sequence's revision
        stays, and so does ``rewrites``: to a reader of several pages it is the same history, whichever value it finds.
        Raises Problem ``batch-too-large``, ``value-too-large`` or ``invalid-body``, ``sequence-not-found``, or
        ``precondition-failed`` if an event is not there or has another value; with a ``pointer`` to the event.
        """
        self._check_reseals(reseals)
        place = Place(namespace, Kind.ES, key)

        def plan(heads: _Places) -> Generator[Query, list[Any], Commit[None]]:
            return (yield from _resealed(heads, place, reseals, self._limits.sequence_bytes_max))

        await self._once.update((place,), plan, write_id, ("reseal", reseals), _NOTHING)

    def _check_reseals(self, reseals: Sequence[Reseal]) -> None:
        self.check_count(len(reseals))
        known: set[tuple[int, str]] = set()
        for index, reseal in enumerate(reseals):
            if reseal[:2] in known:
                raise Problem("invalid-body", "an event occurs twice in one call", pointer=f"/events/{index}")
            known.add(reseal[:2])
            check_value(reseal.value, self._limits, pointer=f"/events/{index}/value")

    # --- reading -------------------------------------------------------------------------------------------

    async def current(self, namespace: str, key: str) -> State | None:
        """The state now, or None if there is no such sequence."""
        place = Place(namespace, Kind.ES, key)
        for _ in range(_TRIES_MAX):
            head, found = await self._storage.read(HeadRead(place), RowScan(place, _ITEMS))
            if head is None:
                return None
            meta = _decode_meta(head.meta)
            rows = {row.sort.decode(): _decode_item(row.value) for row in found.items}
            events = await self._chain_events(place, meta, rows)
            if events is not None:
                return _state_of(meta.last, meta.revision, rows, events)
        raise _rewritten()

    async def past(self, namespace: str, key: str, t: int) -> State | None:
        """The state as of ``t``; None if there is no such sequence, or no event until then.

        Costs what the events until ``t`` cost. Its revision is that of now.
        """
        place = Place(namespace, Kind.ES, key)
        for _ in range(_TRIES_MAX):
            (head,) = await self._storage.read(HeadRead(place))
            if head is None:
                return None
            meta = _decode_meta(head.meta)
            if t >= meta.last:
                return await self.current(namespace, key)
            replayed = await self._replayed(place, meta, t)
            if replayed is None:
                continue
            last, rows = replayed
            if last is None:
                return None
            limit = self._limits.sequence_bytes_max
            if sum(map(_state_size, rows.values())) > limit:
                detail = f"the state at that time is read from more than {limit} bytes: read its events instead"
                raise Problem("answer-too-large", detail, limit=limit)
            events = await self._chain_events(place, meta, rows)
            if events is not None:
                return _state_of(last, meta.revision, rows, events)
        raise _rewritten()

    async def _replayed(self, place: Place, meta: _Meta, t: int) -> tuple[int | None, dict[str, _ItemRow]] | None:
        """The last timestamp until ``t`` and the items' rows then; None if history was rewritten meanwhile."""
        chains: dict[str, _Chain] = {}
        last: int | None = None
        scan: RowScan | None = _paged(RowScan(place, _EVENTS, high=_at(t)[1]))
        while scan is not None:
            head, found = await self._storage.read_in_turn(HeadRead(place), scan)
            if not _same_history(head, meta):
                return None
            started = time.perf_counter()
            for event in map(_stored_event, found.items):
                if time.perf_counter() - started > _TURN_SECONDS:
                    # Long values may take their time, which is not to be taken from others.
                    await self._storage.turns.take()
                    started = time.perf_counter()
                last = event.timestamp
                chain = chains.get(event.item)
                if chain is None and event.op != "setitem":
                    continue  # Prune has begun to erase this chain, from its start.
                try:
                    chain = self._followed(chain, event)
                except UnfoldableEvent:
                    # It was folded under a larger limit; the client may still fold it.
                    chain = chain and chain.extended(event, None)
                if chain is None:
                    del chains[event.item]
                else:
                    chains[event.item] = chain
            scan = _next_page(scan, found)
        return last, {item: chain.stored() for item, chain in chains.items()}

    async def _chain_events(self, place: Place, meta: _Meta, rows: Mapping[str, _ItemRow]) -> list[StoredEvent] | None:
        """The events of the chains that the rows do not hold; None if history was rewritten meanwhile."""
        events: list[StoredEvent] = []
        for scans in _chain_scans(place, rows):
            head, *results = await self._storage.read_in_turn(HeadRead(place), *scans)
            if not _same_history(head, meta):
                return None
            for found in results:
                events += map(_stored_event, found.items)
        return events

    async def events(
        self,
        namespace: str,
        key: str,
        *,
        start: int | None = None,
        end: int | None = None,
        ops: Collection[str] | None = None,
        item: str | None = None,
        n: int | None = None,
    ) -> AsyncIterator[list[StoredEvent]] | None:
        """Lists of events in order of timestamp, then item; None if there is no such sequence.

        From ``start`` to ``end``, both inclusive; only of the operators ``ops`` and of ``item``; the first ``n`` of
        these. Between two lists others may write: their events are then there or not, but none comes twice or out
        of order.
        """
        place = Place(namespace, Kind.ES, key)
        low = TIMESTAMP_MIN if start is None else start
        high = TIMESTAMP_MAX if end is None else end
        whole = RowScan(place, _EVENTS, _at(low)[0], _at(high)[1])
        scan = _paged(whole if item is None else _item_scan(place, item, low, high))
        head, found = await self._storage.read_in_turn(HeadRead(place), scan)
        if head is None:
            return None
        return self._pages(scan, found, ops, n)

    async def _pages(
        self, scan: RowScan, found: Slice[Row], ops: Collection[str] | None, n: int | None
    ) -> AsyncIterator[list[StoredEvent]]:
        """The events of a scan, of which the first page is found already."""
        left = n
        while left is None or left > 0:
            events = [event for event in map(_stored_event, found.items) if ops is None or event.op in ops][:left]
            if events:
                yield events
            if left is not None:
                left -= len(events)
            following = _next_page(scan, found)
            if following is None:
                return
            scan = following
            (found,) = await self._storage.read_in_turn(scan)

    # --- deleting ------------------------------------------------------------------------------------------

    async def prune(self, namespace: str, key: str, *, remove: bool = True, write_id: str | None = None) -> PruneResult:
        """Delete every event that the current state does not need; with ``remove`` a sequence of no items altogether.

        Works in steps, each of which leaves the current state as it is; a state in the past may be gone. Without
        ``remove`` a sequence of no items stays, without events. One that does not exist has nothing to prune.
        """
        place = Place(namespace, Kind.ES, key)
        step = _Pruned(0, False, None)
        while True:
            before = step

            def plan(heads: _Places) -> Generator[Query, list[Any], Commit[_Pruned]]:
                return (yield from _prune(heads, place, before, remove))  # noqa: B023 - run before the next turn

            step = await self._once.update((place,), plan, write_id, ("prune", remove), _PRUNED)
            if step.low is None:
                return PruneResult(step.pruned, step.removed)

    async def delete(self, namespace: str, key: str, *, write_id: str | None = None) -> int:
        """Delete the sequence; returns how many events it had, 0 if there is none."""
        place = Place(namespace, Kind.ES, key)

        def plan(heads: _Places) -> Generator[Query, list[Any], Commit[int]]:
            head = heads[place]
            if head is None:
                return Commit((), 0)
            return Commit((DeleteRecord(place),), _decode_meta(head.meta).events)
            yield

        return await self._once.update((place,), plan, write_id, ("delete",), _COUNT)

    # --- listing -------------------------------------------------------------------------------------------

    async def list(
        self,
        namespace: str,
        *,
        match: str | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1_000,
    ) -> Page[SequenceInfo]:
        """A page of sequences in key order; see :func:`~rstored.engine.listing.list_page`."""
        page = await list_page(self._storage, namespace, Kind.ES, match=match, prefix=prefix, after=after, limit=limit)
        infos = []
        for key, head in page.items:
            meta = _decode_meta(head.meta)
            infos.append(SequenceInfo(key, meta.events, meta.revision, meta.last, meta.present))
        return Page(infos, page.cursor)


# --- pieces of plans ---------------------------------------------------------------------------------------


class _Pruned(NamedTuple):
    """A prune up to a step; ``low`` is where the next one begins, or None at the end."""

    pruned: int
    removed: bool
    low: bytes | None


_PRUNED: Final[Answers[_Pruned]] = Answers(
    lambda step: _pack(step) if step.low is None else None, msgspec.msgpack.Decoder(_Pruned).decode
)


def _prune(heads: _Places, place: Place, before: _Pruned, remove: bool) -> Generator[Query, list[Any], Commit[_Pruned]]:
    head = heads[place]
    if head is None:
        return Commit((), before._replace(low=None))
    meta = _decode_meta(head.meta)
    if remove and meta.present == 0:
        return Commit((DeleteRecord(place),), _Pruned(before.pruned + meta.events, True, None))
    found: Slice[Row]
    (found,) = yield (RowScan(place, _EVENTS, before.low, limit=_PAGE_EVENTS_MAX, bytes_max=_PAGE_BYTES_MAX),)
    items = {row.sort[8:] for row in found.items}
    results: list[Slice[Row]] = yield tuple(RowScan(place, _ITEMS, item, item) for item in items)
    starts = {row.sort: _decode_item(row.value).start for result in results for row in result.items}
    writes: list[Write] = [
        DeleteRow(place, _EVENTS, row.sort)
        for row in found.items
        if (start := starts.get(row.sort[8:])) is None or from_sort_key(row.sort[:8]) < start
    ]
    pruned = len(writes)
    if pruned:
        left = msgspec.structs.replace(meta, events=meta.events - pruned, rewrites=meta.rewrites + 1)
        writes.append(PutHead(place, Head(_pack(left))))
    low = found.items[-1].sort + b"\0" if found.more else None
    return Commit(writes, _Pruned(before.pruned + pruned, False, low))


def _resealed(
    heads: _Places, place: Place, reseals: Sequence[Reseal], sequence_bytes_max: int
) -> Generator[Query, list[Any], Commit[None]]:
    """The plan of :meth:`EventSequences.reseal`."""
    head = heads[place]
    if head is None:
        raise Problem("sequence-not-found", "there is no such sequence in this namespace")
    meta = _decode_meta(head.meta)
    items = sorted({reseal.item.encode() for reseal in reseals})
    sorts = [sort_key(reseal.timestamp) + reseal.item.encode() for reseal in reseals]
    results: list[Slice[Row]] = yield (
        *(RowScan(place, _EVENTS, sort, sort) for sort in sorts),
        *(RowScan(place, _ITEMS, item, item) for item in items),
    )
    rows = {row.sort: _decode_item(row.value) for found in results[len(sorts) :] for row in found.items}
    before = dict(rows)
    writes: list[Write] = []
    for index, (reseal, found) in enumerate(zip(reseals, results, strict=False)):
        event = _stored_event(found.items[0]) if found.items else None
        if event is not None and (event.op, event.value) == (reseal.op, reseal.value):
            continue  # This very reseal came before, and its answer was lost.
        if event is None or not _is_replaced(event, reseal):
            detail = "the event is not there, or its sealed value is another one: read it again"
            raise Problem("precondition-failed", detail, pointer=f"/events/{index}")
        new = event._replace(value=reseal.value)
        writes.append(PutRow(place, _EVENTS, _event_row(new)))
        item = reseal.item.encode()
        row = rows.get(item)
        if row is not None and row.start <= reseal.timestamp:
            size = row.size + _event_size(new) - _event_size(event)
            # A chain of one event has its value in the item's row as well.
            data = row.data if row.read_from_events else reseal.value.data
            rows[item] = msgspec.structs.replace(row, size=size, data=data)
    for item, row in rows.items():
        if row != before[item]:
            writes.append(PutRow(place, _ITEMS, Row(item, _pack(row))))
    size = meta.size + sum(_state_size(rows[item]) - _state_size(before[item]) for item in rows)
    if size != meta.size:
        if size > max(sequence_bytes_max, meta.size):
            detail = f"the state would be read from {size} bytes, at most {sequence_bytes_max} are allowed"
            raise Problem("value-too-large", detail, limit=sequence_bytes_max)
        writes.append(PutHead(place, Head(_pack(msgspec.structs.replace(meta, size=size)))))
    return Commit(writes, None)


def _is_replaced(event: StoredEvent, reseal: Reseal) -> bool:
    """Whether the event has the sealed value that ``reseal`` is to replace."""
    if event.op != reseal.op or event.value is None or event.value.encoding is not Encoding.SEALED:
        return False
    return hashlib.sha256(event.value.data).hexdigest() == reseal.replaces


def _sealed_after(place: Place, meta: _Meta, encodings: Sequence[Encoding]) -> Generator[Query, list[Any], bool | None]:
    """``_Meta.sealed`` after an apply of values of these encodings.

    Raises Problem ``sealing-mismatch`` if only some of the sequence's events would be sealed. A sequence that is mixed
    already takes anything: nobody can read all of it, and an event more may be what mends it.
    """
    kinds = [encoding is Encoding.SEALED for encoding in encodings]
    sealed = meta.sealed if meta.events else kinds[0]
    if sealed is None:
        # An older version wrote this head. The first and the last event are looked at, not all of the history.
        first = RowScan(place, _EVENTS, limit=1)
        results: list[Slice[Row]] = yield first, first._replace(descending=True)
        ends = {_decode_event(row.value).encoding == Encoding.SEALED for found in results for row in found.items}
        if len(ends) > 1:
            return None
        sealed = ends.pop()
    if (not sealed) in kinds:
        detail = (
            "the events of this sequence are sealed, and this one is not: give the client the key"
            if sealed
            else "the events of this sequence are not sealed, and this one is: use a client without a key"
        )
        raise Problem("sealing-mismatch", detail, pointer=f"/events/{kinds.index(not sealed)}")
    return sealed


def _check_revision(wanted: int | None, revision: int, last: int) -> None:
    if wanted is not None and wanted != revision:
        raise Problem("revision-conflict", f"the sequence is at revision {revision}", revision=revision, timestamp=last)


def _state(
    place: Place, meta: _Meta, rows: Mapping[str, _ItemRow], new: Sequence[StoredEvent] = ()
) -> Generator[Query, list[Any], State]:
    """The state of these rows, read within a plan; ``new`` are events that are not stored yet."""
    long = {item: row for item, row in rows.items() if row.read_from_events}
    events = [event for event in new if event.item in long and event.timestamp >= long[event.item].start]
    if long:
        results: list[Slice[Row]] = yield tuple(
            _item_scan(place, item, row.start, row.last) for item, row in long.items()
        )
        for found in results:
            events += map(_stored_event, found.items)
    return _state_of(meta.last, meta.revision, rows, events)


def _chain_start(place: Place, item: str, t: int, refolding: _Refolding) -> Generator[Query, list[Any], int | None]:
    """The timestamp of the setitem whose chain goes on until ``t``; None if the item is absent then."""
    end = t
    while end > TIMESTAMP_MIN:
        scan = _paged(_item_scan(place, item, TIMESTAMP_MIN, end - 1))
        found: Slice[Row]
        (found,) = yield (scan._replace(descending=True),)
        for event in map(_stored_event, found.items):
            if event.op in ASSIGNING:
                return event.timestamp if event.op == "setitem" else None
            end = event.timestamp
            refolding.spend()
        if not found.more:
            break
    return None


# --- rows and scans ----------------------------------------------------------------------------------------


def _check_name(name: str, what: str, pointer: str) -> None:
    try:
        check_key(name, f"the {what}")
    except InvalidName as error:
        raise Problem("invalid-body", str(error), pointer=pointer) from None


def _json_value(data: bytes) -> JsonValue:
    """A JSON value for an operator to compute with. Raises UnfoldableEvent."""
    try:
        check_numbers(data)
    except InvalidJSON as error:
        raise UnfoldableEvent(f"operators compute with doubles, and {error}") from None
    # What is stored was checked when it came, perhaps under another limit.
    return JsonValue.of(parse_json(data, nesting_max=sys.maxsize))


def _event_size(event: StoredEvent) -> int:
    return _EVENT_OVERHEAD_BYTES + (0 if event.value is None else len(event.value.data))


def _state_size(row: _ItemRow | None) -> int:
    """What an item adds to ``_Meta.size``."""
    if row is None:
        return 0
    return _EVENT_OVERHEAD_BYTES + len(row.data) if row.plain else row.size


def _event_row(event: StoredEvent) -> Row:
    t, item = sort_key(event.timestamp), event.item.encode()
    encoding, data = event.value or (None, b"")
    return Row(t + item, _pack(_EventRow(event.op, encoding, data)), item + b"\0" + t)


def _stored_event(row: Row) -> StoredEvent:
    stored = _decode_event(row.value)
    value = None if stored.encoding is None else Value(Encoding(stored.encoding), stored.data)
    return StoredEvent(from_sort_key(row.sort[:8]), row.sort[8:].decode(), stored.op, value)


def _at(t: int) -> tuple[bytes, bytes]:
    """Below and above the ``sort`` of every event at ``t``; UTF-8 has no byte FF."""
    key = sort_key(t)
    return key, key + b"\xff"


def _item_scan(place: Place, item: str, start: int, end: int) -> RowScan:
    """The events of an item from ``start`` to ``end``. Items hold no NUL, so none is within another's range."""
    name = item.encode() + b"\0"
    return RowScan(place, _EVENTS, name + sort_key(start), name + sort_key(end), RowOrder.BY)


def _chain_scans(place: Place, rows: Mapping[str, _ItemRow]) -> Iterator[list[RowScan]]:
    """The scans of the chains that the rows do not hold, in groups that find about a page of events together."""
    scans: list[RowScan] = []
    events = 0
    for item, row in rows.items():
        if row.read_from_events:
            scans.append(_item_scan(place, item, row.start, row.last))
            events += row.length
            if events >= _PAGE_EVENTS_MAX:
                yield scans
                scans, events = [], 0
    if scans:
        yield scans


def _paged(scan: RowScan) -> RowScan:
    return scan._replace(limit=_PAGE_EVENTS_MAX, bytes_max=_PAGE_BYTES_MAX)


def _next_page(scan: RowScan, found: Slice[Row]) -> RowScan | None:
    """The ascending scan that goes on after this page, None at the end."""
    if not found.more:
        return None
    position = found.items[-1].sort if scan.along is RowOrder.SORT else found.items[-1].by
    assert position is not None
    return scan._replace(low=position + b"\0")


def _same_history(head: Head | None, meta: _Meta) -> bool:
    """Whether all that was read with ``meta`` is still there; a sequence made anew starts at another number."""
    return head is not None and _decode_meta(head.meta).rewrites == meta.rewrites


def _state_of(last: int, revision: int, rows: Mapping[str, _ItemRow], events: Iterable[StoredEvent]) -> State:
    """The state of rows; ``events`` are those of the chains that rows do not hold."""
    items: dict[str, Value] = {}
    unfolded = [*events]
    for item, row in sorted(rows.items()):
        if row.plain:
            items[item] = Value(Encoding.JSON, row.data)
        elif not row.read_from_events:
            unfolded.append(StoredEvent(row.start, item, "setitem", Value(Encoding(row.encoding), row.data)))
    unfolded.sort(key=lambda event: event[:2])
    return State(last, revision, items, unfolded)


def _rewritten() -> Problem:
    return Problem("backend-unavailable", "the sequence's past is being rewritten; try again")
