"""``/ts``: the shapes of its bodies, and the parameters of its queries."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct
from pydantic import Field

from rstored.api.parameters import Count, EndParameter, Int64, Query, StartParameter, Step

Point = Annotated[
    list[Raw],
    Meta(
        min_length=2,
        max_length=3,
        description='`[timestamp, value]`, or `[timestamp, "base64", encoding]` (msgpack: bytes)',
    ),
]


class PointList(Struct, forbid_unknown_fields=True):
    """Points, each `[timestamp, value]` or `[timestamp, data, encoding]`."""

    points: list[Point]


class PointBody(Struct):
    """One point."""

    point: Point


class PointCount(Struct):
    """How many points were sent."""

    points: int


class RemovedPoints(Struct):
    """How many points were removed."""

    removed: int


class MissingTimestamps(Struct):
    """The timestamps of the grid that have no point."""

    missing: list[int]


class Completeness(Struct):
    """Whether every timestamp of the grid has a point."""

    complete: bool


class SeriesItem(Struct):
    """A series in a listing: its number of points, and its first and last timestamp."""

    key: str
    points: int
    first: int
    last: int


class SeriesList(Struct):
    """A page of series, in key order."""

    items: list[SeriesItem]
    cursor: str | None


class RangeQuery(Query):
    """The parameters of a range."""

    start: StartParameter = None
    end: EndParameter = None
    n: Count | None = Field(default=None, description="at most this many points")
    freq: Step | None = Field(
        default=None,
        description="keep the first point, then each point that is at least this much after the last one kept",
    )
    order: Literal["asc", "desc"] = Field(default="asc", description="by timestamp; `desc` begins at the end")


class SpanQuery(Query):
    """The parameters of a removal, and of a conditional write."""

    start: StartParameter = None
    end: EndParameter = None


class GridQuery(Query):
    """The parameters of a test for completeness."""

    start: Int64 = Field(description="first timestamp of the grid", examples=[1700000000])
    end: Int64 | None = Field(
        default=None, description="the grid ends at or before this timestamp; by default that of the last point"
    )
    freq: Step = Field(description="step of the grid, at least 1", examples=[3600])
