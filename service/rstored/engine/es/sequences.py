"""Event sequences: the operations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Generator, Sequence
from typing import Any, Final

from rstore.core.encodings import Encoding
from rstore.core.names import InvalidName, check_key
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.operators import OPERATORS, UNARY
from rstored.backends.abc import Commit, DeleteRecord, HeadRead, Kind, Place, Query, RowScan
from rstored.engine.batching import Storage
from rstored.engine.es.applying import APPLIED, Applied, apply_plan
from rstored.engine.es.plans import PRUNED, Places, Pruned, check_revision, prune_plan, reseal_plan
from rstored.engine.es.reading import current_state, event_pages, past_state
from rstored.engine.es.rows import EVENTS_LANE, at, decode_meta, item_scan, paged
from rstored.engine.listing import list_page
from rstored.engine.model import Change, Page, PruneResult, Reseal, SequenceInfo, State, StoredEvent
from rstored.engine.once import Once, answers_of
from rstored.engine.values import check_value
from rstored.limits import Limits
from rstored.problems import Problem

_COUNT: Final = answers_of(int)
_NOTHING: Final = answers_of(type(None))


class EventSequences:
    """The operations on event sequences. Namespaces and keys are already checked; timestamps are int64."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._limits = limits
        self._clock = clock
        self._once = Once(storage, limits, clock)

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

        def plan(heads: Places) -> Generator[Query, list[Any], Commit[State | Applied]]:
            return (yield from apply_plan(heads, place, changes, timestamp, revision, now, self._limits))

        request = "apply", changes, timestamp, revision
        answer = await self._once.update((place,), plan, write_id, request, APPLIED)
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
        """Raise ``batch-too-large`` if a call may not have this many events. Call it before reading them."""
        limit = self._limits.events_per_call_max
        if events > limit:
            raise Problem.beyond("batch-too-large", f"the call has {events} events", limit)

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

    async def current(self, namespace: str, key: str) -> State | None:
        """The current state, or None if there is no such sequence."""
        return await current_state(self._storage, Place(namespace, Kind.ES, key))

    async def past(self, namespace: str, key: str, t: int) -> State | None:
        """The state as of ``t``; None if there is no such sequence, or no event until then.

        It reads all events until ``t``. The revision in the state is the current one.
        """
        return await past_state(self._storage, self._limits, Place(namespace, Kind.ES, key), t)

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
        return event_pages(self._storage, scan, found, ops, n)

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

    def _check_reseals(self, reseals: Sequence[Reseal]) -> None:
        self.check_count(len(reseals))
        known: set[tuple[int, str]] = set()
        for index, reseal in enumerate(reseals):
            if reseal[:2] in known:
                raise Problem("invalid-body", "an event occurs twice in one call", pointer=f"/events/{index}")
            known.add(reseal[:2])
            check_value(reseal.value, self._limits, pointer=f"/events/{index}/value")


def _check_name(name: str, what: str, pointer: str) -> None:
    try:
        check_key(name, f"the {what}")
    except InvalidName as error:
        raise Problem("invalid-body", str(error), pointer=pointer) from None
