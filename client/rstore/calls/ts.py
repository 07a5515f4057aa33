"""The calls for time series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic

import msgspec

from rstore.calls.answers import bare_media_type, json_body, malformed, problem_code, raise_refusal
from rstore.calls.call import Answer, Call, Head, Reader, T, Whole, whole
from rstore.calls.etags import condition
from rstore.calls.listings import Page, key_list, size_list
from rstore.calls.requests import ACCEPT_JSON, once, query_string, target_of
from rstore.calls.shapes import BASE64, Int64, NonNegative, value_in
from rstore.core.encodings import Value
from rstore.core.frames import FrameReader
from rstore.core.media_types import JSON_MEDIA_TYPE, POINTS_MEDIA_TYPE
from rstore.core.memory import Spend
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.points import InvalidPoints, Points

_INTEGER_BYTES: Final = 48
_POINT_BYTES: Final = 152
_INT64_CHARACTERS: Final = 21
_POINTS_BODY: Final = ((b"content-type", POINTS_MEDIA_TYPE.encode()), (b"accept", JSON_MEDIA_TYPE.encode()))
_ACCEPT_POINTS: Final = ((b"accept", POINTS_MEDIA_TYPE.encode()),)


class Removed(msgspec.Struct):
    """How many points or events a DELETE removed."""

    removed: NonNegative


class _PointShape(msgspec.Struct):
    point: list[msgspec.Raw]


class _MissingShape(msgspec.Struct):
    missing: list[Int64]


class _CompleteShape(msgspec.Struct):
    complete: bool


class _PointCountShape(msgspec.Struct):
    points: NonNegative


_POINT: Final = msgspec.json.Decoder(_PointShape)
_TIMESTAMP: Final = msgspec.json.Decoder(Int64)
_MISSING: Final = msgspec.json.Decoder(_MissingShape)
_COMPLETE: Final = msgspec.json.Decoder(_CompleteShape)
_POINT_COUNT: Final = msgspec.json.Decoder(_PointCountShape)
_REMOVED: Final = msgspec.json.Decoder(Removed)


def list_keys(namespace: str, cursor: str | None = None) -> Call[Page[str]]:
    """One page of the keys of the series."""
    return key_list(namespace, "ts", cursor)


def list_sizes(namespace: str, cursor: str | None = None) -> Call[Page[tuple[str, int]]]:
    """One page of the keys of the series, each with its number of points."""
    return size_list(namespace, "ts", cursor)


def read(
    namespace: str,
    key: str,
    unpack: Callable[[Points], list[T]],
    *,
    start: int | None,
    end: int | None,
    n: int | None,
    freq: int | None,
) -> Call[list[T]]:
    """The points from ``start`` to ``end``. ``unpack`` turns each frame of them into a list as it arrives."""
    low = INT64_MIN if start is None else start
    high = INT64_MAX if end is None else end

    def reader(head: Head, spend: Spend) -> Reader[list[T]]:
        if head.status != 200:
            return Whole(raise_refusal, head, spend)
        if bare_media_type(head) != POINTS_MEDIA_TYPE:
            malformed("it is not of the points form", head)
        return _PointsReader(unpack, low, high, n, freq or 1, spend)

    query = query_string(start=start, end=end, n=n, freq=freq)
    return Call("GET", target_of(namespace, "ts", key, "range", query), reader, _ACCEPT_POINTS)


def read_stored(
    namespace: str, key: str, *, start: int, end: int | None = None, n: int | None = None
) -> Call[list[Points]]:
    """The points from ``start`` to ``end`` as they are stored, in parts."""
    return read(namespace, key, lambda points: [points], start=start, end=end, n=n, freq=None)


def end_point(namespace: str, key: str, which: str) -> Call[tuple[int, Value] | None]:
    """The ``first`` or ``last`` point, or None if there is no point."""

    def decode(answer: Answer) -> tuple[int, Value] | None:
        if problem_code(answer, 404) == "series-not-found":
            return None
        point = json_body(answer, _POINT, 200).point
        if len(point) not in (2, 3):
            malformed("a point has two or three members", answer.head)
        try:
            label = BASE64.decode(point[2]) if len(point) == 3 else "json"
            return _TIMESTAMP.decode(point[0]), value_in(point[1], label)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            malformed("a point is malformed", answer.head)

    return Call("GET", target_of(namespace, "ts", key, which), whole(decode), ACCEPT_JSON)


def missing(namespace: str, key: str, start: int, end: int | None, freq: int) -> Call[list[int]]:
    """The timestamps of the grid ``start, start+freq, …`` that have no point."""

    def decode(answer: Answer) -> list[int]:
        last = INT64_MAX if end is None else end
        if len(answer.body) > 1_024 + _INT64_CHARACTERS * max((last - start) // freq + 1, 0):
            malformed("there are more timestamps than were asked for", answer.head)
        missing = json_body(answer, _MISSING, 200).missing
        answer.spend(_INTEGER_BYTES * len(missing))
        ascending = all(map(int.__lt__, missing, missing[1:]))
        if not ascending or any((t - start) % freq or not start <= t <= last for t in missing):
            malformed("it names timestamps that are not on the grid", answer.head)
        return missing

    query = query_string(start=start, end=end, freq=freq)
    return Call("GET", target_of(namespace, "ts", key, "missing", query), whole(decode), ACCEPT_JSON)


def complete(namespace: str, key: str, start: int, end: int | None, freq: int) -> Call[bool]:
    """Whether every timestamp of the grid has a point."""
    query = query_string(start=start, end=end, freq=freq)
    target = target_of(namespace, "ts", key, "complete", query)
    return Call("GET", target, whole(lambda answer: json_body(answer, _COMPLETE, 200).complete), ACCEPT_JSON)


def extend(namespace: str, key: str, frames: bytes, *, unchanged: tuple[int, int, str] | None = None) -> Call[int]:
    """Add or replace the points in ``frames``. The answer is how many points the service took.

    With ``unchanged`` it does so only if the points from the first timestamp to the second still have this digest.
    """
    start, end, digest = unchanged or (None, None, None)
    headers = _POINTS_BODY + once()
    if digest is not None:
        headers += ((b"if-match", condition(digest).encode()),)
    target = target_of(namespace, "ts", key, "range", query_string(start=start, end=end))
    return Call("POST", target, whole(lambda answer: json_body(answer, _POINT_COUNT, 200).points), headers, frames)


def remove(namespace: str, key: str, start: int | None, end: int | None) -> Call[Removed]:
    """Remove the points from ``start`` to ``end``."""
    target = target_of(namespace, "ts", key, "range", query_string(start=start, end=end))
    headers = ACCEPT_JSON + once()
    return Call("DELETE", target, whole(lambda answer: json_body(answer, _REMOVED, 200)), headers)


class _PointsReader(Generic[T]):
    """Reads frames as they arrive, and checks that they are the ones that the call asks for."""

    def __init__(
        self, unpack: Callable[[Points], list[T]], low: int, high: int, n: int | None, step: int, spend: Spend
    ) -> None:
        self._frames = FrameReader(before_decoding=self._count_frame)
        self._unpack = unpack
        self._next = low
        self._high = high
        self._n = n
        self._step = step
        self._spend = spend
        self._count = 0
        self._points: list[T] = []

    def feed(self, chunk: bytes, /) -> None:
        try:
            for points in self._frames.feed(chunk):
                self._take(points)
        except InvalidPoints as error:
            malformed(str(error))

    def _count_frame(self, count: int, size: int) -> None:
        """Refuse a frame that says it holds too many points, or whose columns take too much memory."""
        self._count += count
        if self._n is not None and self._count > self._n:
            malformed("there are more points than were asked for")
        self._spend(size + _POINT_BYTES * count)

    def _take(self, points: Points) -> None:
        times = points.timestamps
        if not len(times):
            return
        if times[0] < self._next or times[-1] > self._high:
            malformed("points are out of order or outside the range asked for")
        if self._step > 1 and not all(map(self._step.__le__, map(int.__sub__, times[1:], times))):
            malformed("points are closer to each other than `freq`")
        self._next = times[-1] + self._step
        self._points += self._unpack(points)

    def finish(self) -> list[T]:
        try:
            self._frames.finish()
        except InvalidPoints as error:
            malformed(str(error))
        return self._points
