"""Every limit of the service, with its default. ``/`` publishes them, and ``docs/operating.md`` explains them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rstore.core.memory import PAGE_ITEMS_MAX
from rstore.core.names import KEY_BYTES_MAX, NAMESPACE_LENGTH_MAX


class Limits(BaseModel):
    """Bounds on the size and the cost of one request, and on all requests together.

    A client is an address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_bytes_max: int = Field(default=KEY_BYTES_MAX, ge=1, le=KEY_BYTES_MAX)
    namespace_length_max: int = Field(default=NAMESPACE_LENGTH_MAX, ge=1, le=NAMESPACE_LENGTH_MAX)
    uri_bytes_max: int = Field(default=8192, ge=1024, description="request target, query included")
    value_bytes_max: int = Field(default=8 * 2**20, ge=1, description="one value")
    body_bytes_max: int = Field(default=32 * 2**20, ge=1, description="one request body")
    frames_bytes_max: int = Field(default=128 * 2**20, ge=1, description="one request body of points frames")
    nesting_max: int = Field(default=128, ge=1, le=256, description="arrays and objects within each other")
    batch_parts_max: int = Field(default=10_000, ge=1, description="gets, sets and deletes in one batch")
    points_per_call_max: int = Field(default=4_000_000, ge=1, description="points in one extend")
    events_per_call_max: int = Field(default=1_000, ge=1, description="events in one apply")
    page_size_max: int = Field(
        default=1_000, ge=1, le=PAGE_ITEMS_MAX, description="items on one page of a listing, at most 10,000"
    )
    page_bytes_max: int = Field(default=8 * 2**20, ge=1, description="values on one page, before the last")
    answer_points_max: int = Field(default=1_000_000, ge=1, description="points in one unstreamed answer")
    grid_steps_max: int = Field(default=10_000_000, ge=1, description="timestamps that `missing` may test")
    state_bytes_max: int = Field(default=8 * 2**20, ge=1, description="one item's folded value, as JSON")
    refolded_events_max: int = Field(
        default=10_000,
        ge=1,
        description="events that an apply in the past may fold again; long values count more",
    )
    sequence_bytes_max: int = Field(default=64 * 2**20, ge=1, description="what one sequence's state is read from")
    requests_per_second_max: int = Field(
        default=0, ge=0, description="requests of one token to one process in a second; 0: no limit"
    )
    failed_authentications_per_minute_max: int = Field(
        default=60, ge=1, description="unknown tokens from one client address in a minute"
    )
    write_id_retention_seconds: int = Field(
        default=1_200, ge=1, le=10**9, description="how long a repeated write is known"
    )
    header_bytes_max: int = Field(
        default=32 * 2**10, ge=1024, description="a request's head, request line included, or its trailers"
    )
    headers_max: int = Field(default=100, ge=10, description="header fields in one request")
    connections_max: int = Field(default=10_000, ge=1, description="open connections")
    connections_per_client_max: int = Field(
        default=5_000, ge=1, description="open connections of one client; a trusted proxy may have all"
    )
    requests_in_flight_max: int = Field(default=1_000, ge=1, description="requests under way")
    requests_in_flight_per_client_max: int = Field(default=500, ge=1, description="requests of one client under way")
    in_flight_bytes_max: int = Field(
        default=256 * 2**20, ge=1, description="bodies and unsent answers of all requests under way, those over 64 KiB"
    )
    in_flight_bytes_per_client_max: int = Field(
        default=192 * 2**20, ge=1, description="bodies and unsent answers of one client, those over 64 KiB"
    )
    idle_seconds_max: int = Field(
        default=75, ge=1, description="from a connection's start or last answer to the end of the next head"
    )
    body_seconds_max: int = Field(default=300, ge=1, description="for a body to arrive")
    request_seconds_max: int = Field(default=600, ge=1, description="from the head to the end of the answer")
    stall_seconds_max: int = Field(
        default=20, ge=1, description="for which a body or the reader of an answer may be too slow"
    )
    transfer_bytes_per_second_min: int = Field(
        default=500, ge=1, description="least rate of a body that arrives and of an answer that is read"
    )

    @model_validator(mode="after")
    def _one_body_fits(self) -> Limits:
        for bound in ("in_flight_bytes_max", "in_flight_bytes_per_client_max"):
            for name in ("body_bytes_max", "frames_bytes_max"):
                if getattr(self, bound) < getattr(self, name):
                    raise ValueError(f"{bound} is less than {name}, so no body of that size would ever pass")
        return self
