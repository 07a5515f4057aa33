"""``/ts``: time series. Points are sent and answered in five forms. Answers are streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from msgspec import Raw

from rstore.core.media_types import (
    CSV_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    MSGPACK_MEDIA_TYPE,
    NDJSON_MEDIA_TYPE,
    POINTS_MEDIA_TYPE,
)
from rstore.core.point_rows import Form, msgpack_rows, render_points
from rstore.core.points import InvalidPoints, Points
from rstored.api.answers import MsgpackArray, answer
from rstored.api.bodies import body_form
from rstored.api.conditions import IDEMPOTENCY_HEADER, IF_UNCHANGED_HEADER, digests_of, write_id_of
from rstored.api.operations import Answer, Content, Operations, json_content
from rstored.api.parameters import ListQuery, page_size, read_cursor, write_cursor
from rstored.api.point_bodies import read_points
from rstored.api.replies import Reply, content_type
from rstored.api.requests import Request
from rstored.api.shapes.ts import (
    Completeness,
    GridQuery,
    MissingTimestamps,
    PointBody,
    PointCount,
    PointList,
    RangeQuery,
    RemovedPoints,
    SeriesItem,
    SeriesList,
    SpanQuery,
)
from rstored.api.streams import closed
from rstored.engine.model import Stretch
from rstored.engine.values import points_problem
from rstored.problems import Problem
from rstored.threads import run_sized

operations: Final = Operations("ts", "Time series: int64 timestamps, any values.")

_POINTS: Final = {"points": [[1700000000, 21.5], [1700003600, 21.75], [1700007200, "3q2+7w==", "sealed"]]}
_FORMS: Final = {
    **json_content(PointList, _POINTS),
    NDJSON_MEDIA_TYPE: Content(None, "[1700000000,21.5]\n[1700003600,21.75]\n"),
    CSV_MEDIA_TYPE: Content(None, "timestamp,value,encoding\r\n1700000000,21.5,\r\n"),
    POINTS_MEDIA_TYPE: Content(None, "frames, as docs/points-format.md describes them"),
}
_FORM_NAMES: Final = tuple(_FORMS)
# The bytes that a timestamp counts as while many are gathered: those of its text. As a number it takes twice as many.
_TIMESTAMP_BYTES: Final = 20


@operations.add(
    "GET",
    "/ts/{key}/range",
    summary="Read points",
    answers={200: Answer("The points; an unknown series has none", _FORMS)},
    problems=("answer-too-large", "backend-unavailable"),
)
async def read_range(request: Request, query: RangeQuery) -> Reply:
    """The points from `start` to `end`, both inclusive, in the form that Accept asks for.

    The answer is streamed, except in msgpack, where the limits `answer_points_max` and `body_bytes_max` apply.
    """
    descending = query.order == "desc"
    parts = request.engine.ts.range(
        request.namespace,
        request.key,
        start=query.start,
        end=query.end,
        n=query.n,
        freq=query.freq,
        descending=descending,
    )
    if request.form == MSGPACK_MEDIA_TYPE:
        return Reply(200, (content_type(request.form),), await _whole(request, parts, descending=descending))
    form = Form(request.form)
    media_type = f"{request.form}; charset=utf-8" if form is Form.CSV else request.form
    headers = (content_type(media_type),)
    return Reply(200, headers, _rendered(parts, form, descending=descending))


@operations.add(
    "POST",
    "/ts/{key}/range",
    summary="Add or replace points",
    answers={200: Answer("All points are stored", json_content(PointCount, {"points": 3}))},
    problems=(
        "malformed-body",
        "invalid-body",
        "invalid-value",
        "nesting-too-deep",
        "value-too-large",
        "batch-too-large",
        "precondition-failed",
        "sealed-only",
        "backend-unavailable",
        "storage-full",
    ),
    body=_FORMS,
    headers=IF_UNCHANGED_HEADER | IDEMPOTENCY_HEADER,
)
async def extend(request: Request, query: SpanQuery) -> Reply:
    """Write points, in any order, all or none. A point replaces the stored one with its timestamp. Of two points with
    the same timestamp in the body, the last counts.

    `start` and `end` need If-Match. Then all points must be between them, and they are stored only if the present
    points between them have the digest in If-Match.
    """
    unchanged = _unchanged(request, query)
    form = Form(body_form(request, _FORM_NAMES))
    limits = request.state.limits
    body = await request.body(frames=form is Form.FRAMES)
    # Compressed points may become as large as an uncompressed body may be.
    bounds = {"points_max": limits.points_per_call_max, "bytes_max": max(limits.body_bytes_max, len(body))}
    await request.begin_turn(len(body))
    try:
        points = await run_sized(len(body), read_points, body, form, **bounds)
    except InvalidPoints as error:
        raise points_problem(error) from None
    # The body is not needed while the points are written.
    del body
    count = await request.engine.ts.extend(
        request.namespace, request.key, points, unchanged=unchanged, write_id=write_id_of(request)
    )
    return answer(request, PointCount(count))


@operations.add(
    "DELETE",
    "/ts/{key}/range",
    summary="Remove points",
    answers={200: Answer("The points are removed", json_content(RemovedPoints, {"removed": 24}))},
    problems=("backend-unavailable",),
    headers=IDEMPOTENCY_HEADER,
)
async def remove(request: Request, query: SpanQuery) -> Reply:
    """Remove the points from `start` to `end`, both inclusive, or all if neither is given. A series without points does
    not exist."""
    removed = await request.engine.ts.remove(
        request.namespace, request.key, start=query.start, end=query.end, write_id=write_id_of(request)
    )
    return answer(request, RemovedPoints(removed))


@operations.add(
    "GET",
    "/ts/{key}/first",
    summary="Read the first point",
    answers={200: Answer("The point", json_content(PointBody, {"point": [1700000000, 21.5]}))},
    problems=("series-not-found", "backend-unavailable"),
)
async def first(request: Request) -> Reply:
    """The point with the smallest timestamp."""
    return _one_point(request, await request.engine.ts.first(request.namespace, request.key))


@operations.add(
    "GET",
    "/ts/{key}/last",
    summary="Read the last point",
    answers={200: Answer("The point", json_content(PointBody, {"point": [1700003600, 21.75]}))},
    problems=("series-not-found", "backend-unavailable"),
)
async def last(request: Request) -> Reply:
    """The point with the greatest timestamp."""
    return _one_point(request, await request.engine.ts.last(request.namespace, request.key))


@operations.add(
    "GET",
    "/ts/{key}/missing",
    summary="List timestamps without a point",
    answers={200: Answer("The missing timestamps", json_content(MissingTimestamps, {"missing": [1700007200]}))},
    problems=("answer-too-large", "backend-unavailable"),
)
async def missing(request: Request, query: GridQuery) -> Reply:
    """The timestamps among `start`, `start + freq`, … up to `end` that have no point."""
    found = await request.engine.ts.missing(
        request.namespace,
        request.key,
        start=query.start,
        end=query.end,
        freq=query.freq,
        counted=lambda count: request.hold(count * _TIMESTAMP_BYTES),
    )
    return answer(request, MissingTimestamps(found))


@operations.add(
    "GET",
    "/ts/{key}/complete",
    summary="Tell whether no point is missing",
    answers={200: Answer("Whether the series is complete", json_content(Completeness, {"complete": True}))},
    problems=("answer-too-large", "backend-unavailable"),
)
async def complete(request: Request, query: GridQuery) -> Reply:
    """True if each of `start`, `start + freq`, … up to `end` has a point."""
    found = await request.engine.ts.iscomplete(
        request.namespace, request.key, start=query.start, end=query.end, freq=query.freq
    )
    return answer(request, Completeness(found))


@operations.add(
    "GET",
    "/ts",
    summary="List series",
    answers={
        200: Answer(
            "A page of series",
            json_content(
                SeriesList,
                {"items": [{"key": "t/oslo", "points": 2, "first": 1700000000, "last": 1700003600}], "cursor": None},
            ),
        )
    },
    problems=("backend-unavailable",),
)
async def list_series(request: Request, query: ListQuery) -> Reply:
    """Series in key order. Send the `cursor` of one page to get the next; it is null on the last page."""
    page = await request.engine.ts.list(
        request.namespace,
        match=query.match,
        prefix=query.prefix,
        after=read_cursor(query.cursor),
        limit=page_size(query, request.state.limits),
    )
    items = [SeriesItem(info.key, info.points, info.first, info.last) for info in page.items]
    return answer(request, SeriesList(items, write_cursor(page.cursor)))


async def _rendered(parts: AsyncIterator[Points], form: Form, *, descending: bool) -> AsyncGenerator[bytes, None]:
    """The body, chunk by chunk. Opening, separator and closing are never chunks of their own."""
    waiting = form.opening
    async with closed(parts):
        async for points in parts:
            yield waiting + render_points(points, form, descending=descending)
            waiting = form.separator
    # If there was no point, the opening has not been sent yet, and no separator is needed.
    end = (waiting if waiting == form.opening else b"") + form.closing
    if end:
        yield end


async def _whole(request: Request, parts: AsyncIterator[Points], *, descending: bool) -> bytes:
    """The msgpack body. It cannot be streamed, because it begins with the number of points."""
    array = MsgpackArray("points", request)
    async with closed(parts):
        async for points in parts:
            # The rows get no name, because they would then stay until the next page. They take ten times their bytes.
            array.extend(msgpack_rows(points)[:: -1 if descending else 1])
    return array.body()


def _unchanged(request: Request, query: SpanQuery) -> Stretch | None:
    digests = digests_of(request)
    if digests is not None:
        return Stretch(query.start, query.end, digests)
    for name in ("start", "end"):
        if getattr(query, name) is not None:
            raise Problem("invalid-parameter", f"{name} needs If-Match: send both or neither", parameter=name)
    return None


def _one_point(request: Request, points: Points | None) -> Reply:
    if points is None:
        raise Problem("series-not-found", "there is no such series in this namespace")
    if request.form == JSON_MEDIA_TYPE:
        return answer(request, {"point": Raw(render_points(points, Form.JSON))})
    return answer(request, {"point": msgpack_rows(points)[0]})
