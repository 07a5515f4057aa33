"""Event sequences: the operations."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from rstore.core.encodings import Encoding
from rstore.core.folding import present_after
from rstore.core.names import InvalidName, check_key
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.operators import OPERATORS, UNARY, UnfoldableEvent
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
    RowScan,
    Slice,
)
from rstored.engine.batching import Storage
from rstored.engine.es.chains import Chain, NeedsClient, Refolding, chain_start
from rstored.engine.es.plans import (
    PRUNED,
    Places,
    Pruned,
    check_revision,
    prune_plan,
    read_state,
    reseal_plan,
    sealed_after,
)
from rstored.engine.es.rows import (
    EVENTS_LANE,
    ITEMS_LANE,
    ItemRow,
    Meta,
    at,
    chain_of,
    chain_scans,
    decode_meta,
    event_row,
    item_scan,
    next_page,
    pack,
    paged,
    rewritten,
    same_history,
    state_of,
    state_rows,
    state_size,
    stored_event,
)
from rstored.engine.listing import list_page
from rstored.engine.model import Change, Page, PruneResult, Reseal, SequenceInfo, State, StoredEvent
from rstored.engine.namespaces import ensure_namespace
from rstored.engine.once import Answers, Once, answers_of
from rstored.engine.values import check_value
from rstored.limits import Limits
from rstored.problems import Problem

__all__ = ["EventSequences"]

_TURN_SECONDS: Final = 0.01
_TRIES_MAX: Final = 10


class _Applied(NamedTuple):
    """What is remembered of an apply's answer. The state at its timestamp can be read again."""

    timestamp: int
    revision: int


_decode_applied: Final = msgspec.msgpack.Decoder(_Applied).decode
_APPLIED: Final[Answers[State | _Applied]] = Answers(
    lambda answer: pack(_Applied(answer.timestamp, answer.revision)), _decode_applied
)
_COUNT: Final = answers_of(int)
_NOTHING: Final = answers_of(type(None))


class _Touched(NamedTuple):
    """What an apply does to an item: its row before and after. None means that the item is absent."""

    before: ItemRow | None
    after: ItemRow | None


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
        """Record one event for each change, all at one timestamp, or none. Returns the whole new state.

        If ``timestamp`` is None, it is ``max(now, last + 1)``. A timestamp in the past is possible if it has no events
        yet, and all later events can still be folded. ``revision`` is the revision that the sequence must have, and 0
        means that it must not exist. An apply with a ``write_id`` happens once: a repeat returns the timestamp and the
        revision of the first attempt, and the state as of that timestamp. Without changes nothing is recorded, and the
        result is the current state, or None if the key is unknown.

        An event that has no value, or a JSON value, may continue a chain that only a client can fold. It then needs a
        ``revision``, which says that a client has checked what the service cannot check.

        Raises Problem ``invalid-body``, ``batch-too-large``, ``value-too-large``, ``invalid-value``,
        ``nesting-too-deep``, ``sealed-only``, ``sealing-mismatch``, ``revision-conflict`` (with ``revision`` and
        ``timestamp``), ``timestamp-taken`` or ``unfoldable-event`` (with ``item``). A problem with one change has a
        ``pointer`` to it.
        """
        self._check(changes, timestamp)
        if not changes:
            current = await self.current(namespace, key)
            check_revision(revision, *((0, 0) if current is None else (current.revision, current.timestamp)))
            return current
        place = Place(namespace, Kind.ES, key)
        now = self._clock()

        def plan(heads: Places) -> Generator[Query, list[Any], Commit[State | _Applied]]:
            return (yield from self._apply(heads, place, changes, timestamp, revision, now))

        request = "apply", changes, timestamp, revision
        answer = await self._once.update((place,), plan, write_id, request, _APPLIED)
        if isinstance(answer, State):
            return answer
        try:
            state = await self.past(namespace, key, answer.timestamp) or State(0, 0, {}, [])
        except Problem as problem:
            # This apply was carried out. No answer may call it refused.
            code = problem.code if problem.type.status >= 500 else "backend-unavailable"
            raise Problem(code, f"the apply was carried out, but: {problem.detail}") from None
        return state._replace(timestamp=answer.timestamp, revision=answer.revision)

    def check_count(self, events: int) -> None:
        """Raise ``batch-too-large`` if a call may not have so many events. Call it before reading them."""
        limit = self._limits.events_per_call_max
        if events > limit:
            raise Problem.beyond("batch-too-large", f"the call has {events} events", limit)

    def _check(self, changes: Sequence[Change], timestamp: int | None) -> None:
        self.check_count(len(changes))
        if timestamp is not None and not INT64_MIN <= timestamp <= INT64_MAX:
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
                    found = f"the value has {len(value.data)} bytes, and the service folds it"
                    raise Problem.beyond("value-too-large", found, limit, pointer=f"{pointer}/value")

    def _apply(
        self,
        heads: Places,
        place: Place,
        changes: Sequence[Change],
        timestamp: int | None,
        revision: int | None,
        now: int,
    ) -> Generator[Query, list[Any], Commit[State | _Applied]]:
        """The plan of :meth:`apply` for at least one change."""
        head = heads[place]
        meta = Meta(0, 0, 0, 0, 0, now) if head is None else decode_meta(head.meta)
        rows: dict[str, ItemRow] = {}
        if head is not None:
            found: list[Slice[Row]] = yield (RowScan(place, ITEMS_LANE),)
            rows = state_rows(meta, found[0])
        check_revision(revision, meta.revision, meta.last)

        # An event without a value proves no knowledge of the key, so to a policy it is not sealed.
        encodings = [Encoding.JSON if change.value is None else change.value.encoding for change in changes]
        writes = ensure_namespace(heads, place.namespace, encodings)
        sealed = yield from sealed_after(place, meta, encodings)
        t, in_order = yield from self._timestamp(place, None if head is None else meta, timestamp, now)
        events = [StoredEvent(t, *change) for change in changes]
        refolding = Refolding(self._limits.refolded_events_max)
        touched: dict[str, _Touched] = {}
        for index, event in enumerate(events):
            row = rows.get(event.item)
            # A client that gives the revision, or sends a value that only clients read, has folded the item itself.
            checked = revision is not None or (event.value is not None and event.value.encoding is not Encoding.JSON)
            try:
                if in_order:
                    after = self._followed(None if row is None else Chain(row), event, checked=checked)
                    new_row = None if after is None else after.stored()
                else:
                    new_row = yield from self._refolded(place, row, event, checked, refolding)
            except NeedsClient:
                raise Problem(
                    "revision-conflict",
                    "only a client can fold this item: fold it in the client, and send the revision that you folded",
                    revision=meta.revision,
                    timestamp=meta.last,
                    item=event.item,
                    pointer=f"/events/{index}",
                ) from None
            except UnfoldableEvent as error:
                error.item = event.item
                raise Problem("unfoldable-event", str(error), item=event.item, pointer=f"/events/{index}") from None
            touched[event.item] = _Touched(row, new_row)

        meta = Meta(
            revision=meta.revision + 1,
            last=t if in_order else meta.last,
            events=meta.events + len(events),
            present=meta.present + sum((new is not None) - (old is not None) for old, new in touched.values()),
            size=meta.size + sum(state_size(new) - state_size(old) for old, new in touched.values()),
            rewrites=meta.rewrites + (not in_order),
            sealed=sealed,
        )
        if meta.size > self._limits.sequence_bytes_max:
            limit = self._limits.sequence_bytes_max
            raise Problem.beyond(
                "value-too-large",
                f"the state would be read from {meta.size} bytes",
                limit,
                ": delete items, or set those again whose events the service cannot fold",
            )
        writes.append(PutHead(place, Head(pack(meta))))
        writes += (PutRow(place, EVENTS_LANE, event_row(event)) for event in events)
        for item, (old, new) in touched.items():
            if new is None:
                rows.pop(item, None)
                writes.append(DeleteRow(place, ITEMS_LANE, item.encode()))
            elif new != old:
                rows[item] = new
                writes.append(PutRow(place, ITEMS_LANE, Row(item.encode(), pack(new))))
        return Commit(writes, (yield from read_state(place, meta, rows, events)))

    def _timestamp(
        self, place: Place, meta: Meta | None, timestamp: int | None, now: int
    ) -> Generator[Query, list[Any], tuple[int, bool]]:
        """The timestamp of an apply, and whether it is later than all others."""
        if meta is None:
            return now if timestamp is None else timestamp, True
        if timestamp is None:
            if meta.last == INT64_MAX:
                raise Problem(
                    "timestamp-taken",
                    "the last event has the greatest possible timestamp, so none can follow it: give an earlier one",
                )
            return max(now, meta.last + 1), True
        if timestamp > meta.last:
            return timestamp, True
        found: list[Slice[Row]] = yield (RowScan(place, EVENTS_LANE, *at(timestamp), limit=1),)
        if found[0].items:
            raise Problem("timestamp-taken", "the timestamp already has events", pointer="/timestamp")
        return timestamp, False

    def _followed(self, chain: Chain | None, event: StoredEvent, *, checked: bool = True) -> Chain | None:
        """The chain of the item after an event; None if the item is absent then. Raises UnfoldableEvent.

        Raises NeedsClient if only a client can fold the chain, and no client has ``checked`` the event.
        """
        if not present_after(event.op, chain is not None):
            return None
        if chain is None or event.op == "setitem":
            return Chain.begun(event)
        longer = chain.extended(event, self._limits.state_bytes_max)
        if not (checked or longer.row.plain):
            raise NeedsClient
        return longer

    def _refolded(
        self, place: Place, row: ItemRow | None, event: StoredEvent, checked: bool, refolding: Refolding
    ) -> Generator[Query, list[Any], ItemRow | None]:
        """The row of the item after an event before or between its others. Raises what :meth:`_followed` raises."""
        t, item, op, _ = event
        chain: Chain | None = None
        if op != "setitem":
            start = (
                row.start if row is not None and row.start < t else (yield from chain_start(place, item, t, refolding))
            )
            if start is not None:
                scan: RowScan | None = paged(item_scan(place, item, start, t))
                while scan is not None:
                    (found,) = yield (scan,)
                    for earlier in map(stored_event, found.items):
                        chain = self._followed(chain, earlier)
                        refolding.spend(chain)
                    scan = next_page(scan, found)
        chain = self._followed(chain, event, checked=checked)
        scan = paged(item_scan(place, item, t, INT64_MAX))
        while scan is not None:
            (found,) = yield (scan,)
            for later in map(stored_event, found.items):
                if later.op == "setitem":
                    return row
                try:
                    chain = self._followed(chain, later, checked=checked)
                except UnfoldableEvent as error:
                    raise UnfoldableEvent(f"a later event could not be applied any more: {error.reason}") from None
                if chain is None:
                    return row
                refolding.spend(chain)
            scan = next_page(scan, found)
        return None if chain is None else chain.stored()

    # --- resealing -----------------------------------------------------------------------------------------

    async def reseal(self, namespace: str, key: str, reseals: Sequence[Reseal], *, write_id: str | None = None) -> None:
        """Replace sealed values by other sealed values, all or none. Nothing else of the events changes.

        An event that already has its new value stays as it is, so this may be repeated. The revision of the sequence
        does not change, and neither does ``rewrites``: a reader of several pages still reads the same history,
        whichever value it finds. Raises Problem ``batch-too-large``, ``value-too-large``, ``invalid-body``,
        ``sequence-not-found``, or ``precondition-failed`` if an event does not exist or has another value. The problem
        has a ``pointer`` to the event.
        """
        self._check_reseals(reseals)
        place = Place(namespace, Kind.ES, key)

        def plan(heads: Places) -> Generator[Query, list[Any], Commit[None]]:
            return (yield from reseal_plan(heads, place, reseals, self._limits.sequence_bytes_max))

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
        """The current state, or None if there is no such sequence."""
        place = Place(namespace, Kind.ES, key)
        for _ in range(_TRIES_MAX):
            head, found = await self._storage.read(HeadRead(place), RowScan(place, ITEMS_LANE))
            if head is None:
                return None
            meta = decode_meta(head.meta)
            rows = state_rows(meta, found)
            events = await self._chain_events(place, meta, rows)
            if events is not None:
                return state_of(meta.last, meta.revision, rows, events)
        raise rewritten()

    async def past(self, namespace: str, key: str, t: int) -> State | None:
        """The state as of ``t``; None if there is no such sequence, or no event until then.

        It reads all events until ``t``. The revision in the state is the current one.
        """
        place = Place(namespace, Kind.ES, key)
        for _ in range(_TRIES_MAX):
            (head,) = await self._storage.read(HeadRead(place))
            if head is None:
                return None
            meta = decode_meta(head.meta)
            if t >= meta.last:
                return await self.current(namespace, key)
            replayed = await self._replayed(place, meta, t)
            if replayed is None:
                continue
            last, rows = replayed
            if last is None:
                return None
            limit = self._limits.sequence_bytes_max
            if sum(map(state_size, rows.values())) > limit:
                detail = f"the state at that time is read from more than {limit} bytes: read the events instead"
                raise Problem("answer-too-large", detail, limit=limit)
            events = await self._chain_events(place, meta, rows)
            if events is not None:
                return state_of(last, meta.revision, rows, events)
        raise rewritten()

    async def _replayed(self, place: Place, meta: Meta, t: int) -> tuple[int | None, dict[str, ItemRow]] | None:
        """The last timestamp until ``t`` and the rows of the items then. None if the history was rewritten."""
        chains: dict[str, Chain] = {}
        last: int | None = None
        scan: RowScan | None = paged(RowScan(place, EVENTS_LANE, high=at(t)[1]))
        while scan is not None:
            head, found = await self._storage.read_in_turn(HeadRead(place), scan)
            if not same_history(head, meta):
                return None
            started = time.perf_counter()
            for event in map(stored_event, found.items):
                if time.perf_counter() - started > _TURN_SECONDS:
                    # Long values may take long. Others have their turns in between.
                    await self._storage.turns.take()
                    started = time.perf_counter()
                last = event.timestamp
                chain = chains.get(event.item)
                if chain is None and event.op != "setitem":
                    continue  # A prune has erased the start of this chain, and erases the rest.
                try:
                    chain = self._followed(chain, event)
                except UnfoldableEvent:
                    # It was folded when a limit was larger. A client may still fold it.
                    chain = chain and chain.extended(event, None)
                if chain is None:
                    del chains[event.item]
                else:
                    chains[event.item] = chain
            scan = next_page(scan, found)
        return last, {item: chain.stored() for item, chain in chains.items()}

    async def _chain_events(self, place: Place, meta: Meta, rows: Mapping[str, ItemRow]) -> list[StoredEvent] | None:
        """The events of the chains that are not in the rows; None if the history was rewritten meanwhile."""
        events: list[StoredEvent] = []
        for scans in chain_scans(place, rows):
            head, *results = await self._storage.read_in_turn(HeadRead(place), *(scan for _, scan in scans))
            if not same_history(head, meta):
                return None
            for (row, _), found in zip(scans, results, strict=True):
                events += chain_of(row, found)
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

        The events go from ``start`` to ``end``, both inclusive. ``ops`` and ``item`` select some of them, and ``n`` is
        the greatest number to return. Others may write between two lists. A reader may then see their events or not,
        but it sees no event twice or out of order.
        """
        place = Place(namespace, Kind.ES, key)
        low = INT64_MIN if start is None else start
        high = INT64_MAX if end is None else end
        whole = RowScan(place, EVENTS_LANE, at(low)[0], at(high)[1])
        scan = paged(whole if item is None else item_scan(place, item, low, high))
        head, found = await self._storage.read_in_turn(HeadRead(place), scan)
        if head is None:
            return None
        return self._pages(scan, found, ops, n)

    async def _pages(
        self, scan: RowScan, found: Slice[Row], ops: Collection[str] | None, n: int | None
    ) -> AsyncIterator[list[StoredEvent]]:
        """The events of a scan, whose first page is given."""
        left = n
        while left is None or left > 0:
            events = [event for event in map(stored_event, found.items) if ops is None or event.op in ops][:left]
            if events:
                yield events
            if left is not None:
                left -= len(events)
            following = next_page(scan, found)
            if following is None:
                return
            scan = following
            (found,) = await self._storage.read_in_turn(scan)

    # --- deleting ------------------------------------------------------------------------------------------

    async def prune(self, namespace: str, key: str, *, remove: bool = True, write_id: str | None = None) -> PruneResult:
        """Delete every event that the current state does not need. With ``remove``, delete a sequence without items.

        Each step keeps the current state, but states in the past may be lost. Without ``remove``, a sequence without
        items stays, and has no events. A sequence that does not exist has nothing to prune.
        """
        place = Place(namespace, Kind.ES, key)
        step = Pruned(0, False, None)
        while True:
            before = step

            def plan(heads: Places) -> Generator[Query, list[Any], Commit[Pruned]]:
                return (yield from prune_plan(heads, place, before, remove))  # noqa: B023 - run before the next turn

            step = await self._once.update((place,), plan, write_id, ("prune", remove), PRUNED)
            if step.low is None:
                return PruneResult(step.pruned, step.removed)

    async def delete(self, namespace: str, key: str, *, write_id: str | None = None) -> int:
        """Delete the sequence. Returns how many events it had; 0 if it does not exist."""
        place = Place(namespace, Kind.ES, key)

        def plan(heads: Places) -> Generator[Query, list[Any], Commit[int]]:
            head = heads[place]
            if head is None:
                return Commit((), 0)
            return Commit((DeleteRecord(place),), decode_meta(head.meta).events)
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
            meta = decode_meta(head.meta)
            infos.append(SequenceInfo(key, meta.events, meta.revision, meta.last, meta.present))
        return Page(infos, page.cursor)


def _check_name(name: str, what: str, pointer: str) -> None:
    try:
        check_key(name, f"the {what}")
    except InvalidName as error:
        raise Problem("invalid-body", str(error), pointer=pointer) from None
