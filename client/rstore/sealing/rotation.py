"""Rotation: it seals every sealed value of a namespace again, with the first key, while others read and write.

A rotation goes through pairs, points and events page by page. It leaves a value alone if the envelope names the first
key already, so a rotation that was interrupted is run again. It writes each page on the condition that nobody has
changed the page since it was read. If somebody has, it writes the halves of the page, and reads a value again that
fails alone. A rotation is a generator of calls, as every operation is, and does no I/O.
"""

from __future__ import annotations

import dataclasses
import functools
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from rstore import calls
from rstore.calls import Call, Steps
from rstore.calls.listings import Page, check_follows
from rstore.core.encodings import Encoding, Value, render_json
from rstore.core.errors import StoreDecryptionError, StoreError, StoreProtocolError
from rstore.core.frames import encode
from rstore.core.numeric import INT64_MIN
from rstore.core.points import Points, digest
from rstore.sealing import Context, EventContext, PairContext, PointContext, Sealer, key_id_of

T = TypeVar("T")
Kind: TypeAlias = Literal["kv", "ts", "es"]

UNROTATED_LISTED_MAX: Final = 1_000
_KEYS_COUNTED_MAX: Final = 1_000
ROUNDS_MAX: Final = 100
_ROWS_FIRST: Final = 64
_ROWS_MAX: Final[dict[Kind, int]] = {"ts": 4_000, "es": 1_000}
_PAGE_BYTES: Final = 4 * 2**20
_NOTHING: Final = Value(Encoding.JSON, b"null")
_CHANGED: Final = frozenset({"precondition-failed", "sequence-not-found"})
_TOO_MUCH: Final = frozenset({"body-too-large", "batch-too-large", "value-too-large", "batch-not-atomic"})


class Unrotated(NamedTuple):
    """A sealed value that a rotation left as it was.

    Attributes:
        place: Where the value is: its namespace and key, and for a point or an event its timestamp and more.
        reason: Why it was left.

    Example:
        >>> Unrotated(PairContext("default", "color"), "the sealed value is cut short").place.key
        'color'
    """

    place: Context
    reason: str


@dataclasses.dataclass(slots=True)
class Rotation:
    """What a rotation has found and done, as :meth:`Store.rotate` returns it. It counts values: pairs, points, events.

    Attributes:
        resealed: Values that are under the first key now, and were under another one.
        current: Values that were under the first key before.
        stale: Values under another key. Only ``check`` leaves such values.
        unsealed: Values that are not sealed. They stay so.
        failed: Values that could not be opened or written.
        keys: The number of values by the id of their key: ``unknown`` for what is not an envelope, and ``other`` for
            every id after the first 1,000.
        unrotated: Where the first 1,000 of the failed values are, and why they failed.
        done: The number of values that the rotation has come to, by kind: ``kv``, ``ts``, ``es``.
        total: The number of values that there were at the start, by kind.

    Example:
        >>> Rotation(resealed=3, failed=1).complete
        False
    """

    resealed: int = 0
    current: int = 0
    stale: int = 0
    unsealed: int = 0
    failed: int = 0
    keys: dict[str, int] = dataclasses.field(default_factory=dict)
    unrotated: list[Unrotated] = dataclasses.field(default_factory=list)
    done: dict[Kind, int] = dataclasses.field(default_factory=lambda: {"kv": 0, "ts": 0, "es": 0})
    total: dict[Kind, int] = dataclasses.field(default_factory=lambda: {"kv": 0, "ts": 0, "es": 0})

    @property
    def complete(self) -> bool:
        """Whether every sealed value is under the first key."""
        return not (self.stale or self.failed)


class _Cell(NamedTuple):
    """A stored value. A write of it is on the condition that ``seen`` holds: an ETag, or the points that were read."""

    place: Any
    value: Value
    seen: Any = None

    def same_as(self, other: _Cell) -> bool:
        """Whether the condition of a write of the other cell holds for this one too."""
        return self.value == other.value and (not isinstance(self.place, PairContext) or self.seen == other.seen)


class _Resealed(NamedTuple):
    cell: _Cell
    value: Value


def rotate(
    namespace: str,
    sealer: Sealer,
    *,
    check: bool,
    progress: Callable[[Rotation], object] | None,
) -> Steps[Rotation]:
    """Seal every value of the namespace with the sealer's first key. With ``check``, only count."""
    rotating = _Rotating(namespace, sealer, check, progress)
    try:
        return (yield from rotating.steps())
    except StoreError as error:
        error.outcome_unknown |= rotating.rotation.resealed > 0
        raise


class _Rotating:
    """A rotation under way."""

    def __init__(
        self,
        namespace: str,
        sealer: Sealer,
        check: bool,
        progress: Callable[[Rotation], object] | None,
    ) -> None:
        self._namespace = namespace
        self._sealer = sealer
        self._key_id = sealer.key_id
        self._check = check
        self._progress = progress
        self.rotation = Rotation()

    def steps(self) -> Steps[Rotation]:
        rotation, namespace = self.rotation, self._namespace
        info = yield from calls.namespaces.info(namespace)
        rotation.total["kv"] = 0 if info is None else info.kv
        series = functools.partial(calls.ts.list_sizes, namespace)
        sequences = functools.partial(calls.es.list_sizes, namespace)
        yield from self._each(series, functools.partial(self._counted, "ts"))
        yield from self._each(sequences, functools.partial(self._counted, "es"))
        yield from self._each(functools.partial(calls.kv.find, namespace, None), self._pairs)
        yield from self._each(series, functools.partial(self._records, "ts"))
        yield from self._each(sequences, functools.partial(self._records, "es"))
        return rotation

    def _each(
        self,
        page_after: Callable[[str | None], Call[Page[tuple[str, T]]]],
        visit: Callable[[list[tuple[str, T]]], Steps[None]],
    ) -> Steps[None]:
        """Visit every page of a listing. It keeps no name but the last."""
        last: str | None = None
        cursor: str | None = None
        while True:
            page = yield from _alone(page_after(cursor))
            names = ([] if last is None else [last]) + [name for name, _ in page.items]
            check_follows(page, names, cursor)
            yield from visit(page.items)
            if page.cursor is None:
                return
            last, cursor = names[-1] if names else None, page.cursor

    def _counted(self, kind: Kind, records: list[tuple[str, int]]) -> Steps[None]:
        self.rotation.total[kind] += sum(size for _, size in records)
        yield from ()

    def _pairs(self, pairs: list[tuple[str, calls.kv.StoredEntry]]) -> Steps[None]:
        places = [PairContext(self._namespace, key) for key, _ in pairs]
        cells = [_Cell(place, entry.value, entry.etag) for place, (_, entry) in zip(places, pairs, strict=True)]
        yield from self._settle("kv", cells)

    def _records(self, kind: Kind, records: list[tuple[str, int]]) -> Steps[None]:
        for key, _ in records:
            yield from self._record(kind, key)

    def _record(self, kind: Kind, key: str) -> Steps[None]:
        """The points of a series or the events of a sequence, in pages of some mebibytes."""
        low, count = INT64_MIN, _ROWS_FIRST
        last: Context | None = None
        again = 0
        while True:
            try:
                cells = yield from self._read(kind, key, start=low, n=count)
            except StoreProtocolError:
                # These values are larger than those before them, and together larger than an answer may be.
                if count == again + 1:
                    raise
                count = max(count // 8, again + 1)
                continue
            yield from self._settle(kind, [cell for cell in cells if last is None or cell.place > last])
            if len(cells) < count:
                return
            last = cells[-1].place
            low = cells[-1].place.timestamp
            # The next page begins at this timestamp again, since there may be more values at it.
            again = sum(cell.place.timestamp == low for cell in cells)
            fitting = _PAGE_BYTES * count // (1 + sum(len(cell.value.data) for cell in cells))
            count = max(min(fitting, 4 * count, _ROWS_MAX[kind]), again + 1)

    def _read(self, kind: Kind, key: str, **bounds: Any) -> Steps[list[_Cell]]:
        if kind == "ts":
            parts = yield from _alone(calls.ts.read_stored(self._namespace, key, **bounds))
            points = Points.from_values([(t, _as_value(value)) for part in parts for t, value in part])
            return [_Cell(PointContext(self._namespace, key, t), value, points) for t, value in points]
        events = yield from _alone(calls.es.events(self._namespace, key, **bounds))
        return [
            _Cell(EventContext(self._namespace, key, event.timestamp, event.item, event.op), event.value or _NOTHING)
            for event in events or []
        ]

    def _read_again(self, place: Any) -> Steps[list[_Cell]]:
        if isinstance(place, PairContext):
            found = yield from _alone(calls.kv.get(self._namespace, place.key))
            return [] if found is None else [_Cell(place, found.value, found.etag)]
        bounds = {"start": place.timestamp, "end": place.timestamp}
        if isinstance(place, EventContext):
            return (yield from self._read("es", place.key, **bounds, item=place.item))
        return (yield from self._read("ts", place.key, **bounds))

    def _write(self, group: list[_Resealed]) -> Call[Any]:
        namespace = self._namespace
        first, last = group[0].cell, group[-1].cell
        if isinstance(first.place, PairContext):
            sets = [(cell.place.key, value) for cell, value in group]
            return calls.kv.batch(namespace, sets=sets, if_match={cell.place.key: cell.seen for cell, _ in group})
        if isinstance(first.place, EventContext):
            reseals = [(*cell.place[2:], cell.value, value) for cell, value in group]
            return calls.es.reseal(namespace, first.place.key, reseals)
        start, end, seen = first.place.timestamp, last.place.timestamp, first.seen
        stretch = seen[bisect_left(seen.timestamps, start) : bisect_right(seen.timestamps, end)]
        points = Points.from_values([(cell.place.timestamp, value) for cell, value in group])
        return calls.ts.extend(namespace, first.place.key, encode(points), unchanged=(start, end, digest(stretch)))

    def _settle(self, kind: Kind, cells: list[_Cell]) -> Steps[None]:
        """Reseal the cells that need it. A cell that others write at the same time is tried again and again."""
        for cell in (yield from self._reseal(cells)):
            refused = [cell]
            for _ in range(ROUNDS_MAX):
                found = yield from self._read_again(cell.place)
                if found and found[0].same_as(refused[0]):
                    # Another attempt would only give the service another envelope of the same value.
                    self._fail(cell.place, "the service says that it has changed, and serves it as it was")
                    break
                refused = yield from self._reseal(found)
                if not refused:
                    break
            else:
                self._fail(cell.place, "others kept writing it")
        self.rotation.done[kind] += len(cells)
        if self._progress is not None:
            self._progress(self.rotation)

    def _reseal(self, cells: list[_Cell]) -> Steps[list[_Cell]]:
        """Reseal the cells that need it. Returns the cells that others have written since they were read."""
        resealed: list[_Resealed] = []
        for cell in filter(self._is_stale, cells):
            if self._check:
                self.rotation.stale += 1
                continue
            try:
                resealed.append(_Resealed(cell, self._sealer.reseal(cell.value, cell.place)))
            except StoreDecryptionError as error:
                self._fail(cell.place, str(error))
        changed: list[_Cell] = []
        groups = [resealed] if resealed else []
        while groups:
            group = groups.pop()
            try:
                yield from _alone(self._write(group))
            except StoreError as error:
                if error.code not in _CHANGED | _TOO_MUCH:
                    raise
                middle = len(group) // 2
                if middle:
                    groups += [group[middle:], group[:middle]]
                elif error.code in _CHANGED:
                    changed.append(group[0].cell)
                else:
                    self._fail(group[0].cell.place, str(error))
            else:
                self.rotation.resealed += len(group)
        return changed

    def _is_stale(self, cell: _Cell) -> bool:
        rotation = self.rotation
        if cell.value.encoding is not Encoding.SEALED:
            rotation.unsealed += 1
            return False
        key_id = key_id_of(cell.value) or "unknown"
        counted = key_id if key_id in rotation.keys or len(rotation.keys) < _KEYS_COUNTED_MAX else "other"
        rotation.keys[counted] = rotation.keys.get(counted, 0) + 1
        if key_id != self._key_id:
            return True
        rotation.current += 1
        return False

    def _fail(self, place: Context, reason: str) -> None:
        self.rotation.failed += 1
        if len(self.rotation.unrotated) < UNROTATED_LISTED_MAX:
            self.rotation.unrotated.append(Unrotated(place, reason))


def _alone(call: Call[T]) -> Call[T]:
    """The call with a budget of its own: the rotation keeps nothing of its answer when it makes the next call."""
    call.own_budget = True
    return call


def _as_value(value: Any) -> Value:
    """A value as it is, and a number of a column as its JSON text."""
    return value if isinstance(value, Value) else Value(Encoding.JSON, render_json(value))
