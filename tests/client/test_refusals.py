"""A hostile service that keeps what it says it refused: one write never becomes several.

The service has no key. It may serve any events that it was ever sent, under any revision and timestamp that it likes,
and may refuse a write and keep it. Whatever it does, no reader counts an apply twice.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import operator
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.relevant import relevant

import rstore
from rstore import Store, StoreConflictError, StoreDecryptionError, StoreError, StoreIntegrityError, StoreProtocolError
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import PROBLEMS
from rstore.core.frames import FrameReader
from rstore.sealing import Context, EventContext, PairContext, PointContext, Sealer

KEY, OLD_KEY = rstore.generate_key(), rstore.generate_key()
NAMESPACE = "hostile"
BOTH = Sealer([KEY, OLD_KEY])
INT64_MAX = 2**63 - 1
DAY_MS = 86_400_000

Event = dict[str, Any]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def answer(status: int, document: Any, media_type: str = "application/json") -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": media_type}, content=json.dumps(document).encode())


def problem(code: str, **members: Any) -> httpx2.Response:
    status = PROBLEMS[code].status
    document = {"type": "about:blank", "title": "", "status": status, "detail": "refused", "code": code, **members}
    return answer(status, document, "application/problem+json")


class Keeping(httpx2.BaseTransport):
    """A service of one sequence. It keeps every event that it is sent, and is honest until its members are replaced.

    ``served`` picks the events that are there, ``told`` the revision and timestamp out of the true ones, and
    ``refusal`` the answer to an apply that is kept all the same, None meaning that it is accepted.
    """

    def __init__(self) -> None:
        self.kept: list[Event] = []
        self.posts: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.served: Callable[[], list[Event]] = lambda: self.kept
        self.told: Callable[[int, int], tuple[int, int]] = lambda revision, timestamp: (revision, timestamp)
        self.refusal: Callable[[], httpx2.Response | None] = lambda: None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        target = urlsplit(request.url.raw_path.decode())
        self.requests.append(f"{request.method} {target.path}")
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        part = target.path.rpartition("/")[2]
        if request.method == "PUT":
            counts = {"kv": 0, "ts": 0, "es": 1}
            return answer(201, {"namespace": NAMESPACE, "sealed_only": False, **counts})
        if request.method == "POST":
            body = json.loads(request.read())
            self.posts.append(body)
            self.kept += [{**event, "timestamp": body["timestamp"]} for event in body["events"]]
            return self.refusal() or self.state(INT64_MAX)
        if part == "events":
            low, high = int(query.get("start", -(2**63))), int(query.get("end", INT64_MAX))
            found = [event for event in self.in_order(high) if event["timestamp"] >= low]
            return answer(200, {"events": [e for e in found if e["item"] == query.get("item", e["item"])]})
        return self.state(int(query["t"]) if part == "past" else INT64_MAX)

    def in_order(self, until: int) -> list[Event]:
        """The events that are served, one at each place."""
        places = {(event["timestamp"], event["item"]): event for event in self.served()}
        return [event for (t, _), event in sorted(places.items()) if t <= until]

    def state(self, until: int) -> httpx2.Response:
        events = self.in_order(until)
        if not events:
            return problem("sequence-not-found")
        needed = relevant([(event["timestamp"], event["item"], event["op"], event) for event in events])
        revision, timestamp = self.told(len({event["timestamp"] for event in events}), events[-1]["timestamp"])
        states = {"state": {}, "events": [event for *_, event in needed]}
        return answer(200, {"timestamp": timestamp, "revision": revision, **states})

    def open(self, **options: Any) -> Store:
        return Store("http://service", NAMESPACE, KEY, frozen=False, transport=self, retries=0, **options).open()

    @property
    def sealed(self) -> set[tuple[int, str, str]]:
        """What was sent in all applies: timestamps, items and envelopes."""
        return {(body["timestamp"], e["item"], e["value"]) for body in self.posts for e in body["events"]}


@pytest.fixture
def service() -> Keeping:
    """A service whose sequence has an item ``n`` of 1, a deleted one, and events of others that it withholds."""
    return begun()


def begun() -> Keeping:
    service = Keeping()
    with service.open() as store:
        store.apply("e", {"n": 1, "gone": 1}, t=1_000)
        store.apply("e", {"gone": (operator.delitem,)}, t=2_000)
    service.posts.clear()
    service.requests.clear()
    return service


def withheld(service: Keeping, count: int) -> list[Event]:
    """Authentic events that another client recorded in the next minutes, and that the service does not serve."""
    there = list(service.kept)
    with service.open() as store:
        for number in range(count):
            store.apply("e", {"n": (operator.add, 1)}, t=now_ms() + 60_000 * (number + 1))
    hidden, service.kept = service.kept[len(there) :], there
    service.posts.clear()
    return hidden


def counted(service: Keeping, events: list[Event]) -> Iterator[float]:
    """How often 1,000 was added to the state that readers of these events get."""
    service.served = lambda: events
    service.told = lambda revision, timestamp: (revision, timestamp)
    with service.open() as store:
        for read in (lambda: store.current("e"), lambda: store.past("e", INT64_MAX)):
            with contextlib.suppress(StoreError):
                yield read()["n"] // 1_000
        with contextlib.suppress(StoreError):
            yield sum(value == 1_000 for _, _, _, value in store.events("e"))


def most_counted(service: Keeping, base: list[Event], kept: list[Event]) -> float:
    """The most that a reader counts, whichever of the kept events the service serves."""
    base = [event for event in base if event not in kept]
    choices = itertools.chain.from_iterable(itertools.combinations(kept, size) for size in range(min(len(kept), 4) + 1))
    return max(count for choice in choices for count in counted(service, [*base, *choice, *kept[4:]]))


# --- an apply that is refused and kept -----------------------------------------------------------------------


def refused(service: Keeping, t: int | None = None, **changes: Any) -> StoreError:
    with service.open() as store, pytest.raises(StoreError) as caught:
        store.apply("e", changes or {"n": (operator.add, 1_000)}, t=t)
    return caught.value


@pytest.mark.parametrize("t", [None, 500, 5_000, INT64_MAX])
@pytest.mark.parametrize("code", ["revision-conflict", "timestamp-taken"])
def test_a_refusal_without_a_reason_in_sight_ends_the_apply(service, code, t):
    there = list(service.kept)
    service.served = lambda: there
    service.refusal = lambda: problem(code, revision=2, timestamp=2_000)
    error = refused(service, t, n=7)
    assert type(error) is StoreProtocolError
    # Who knows what the service did with it.
    assert error.outcome_unknown
    assert len(service.posts) == 1


@pytest.mark.parametrize("t", [None, 5_000])
def test_numbers_alone_get_the_service_the_same_bytes_again(service, t):
    there = list(service.kept)
    service.served = lambda: there
    claims = itertools.count(2)
    service.told = lambda revision, timestamp: (next(claims), now_ms() + 10 * next(claims))
    service.refusal = lambda: problem("revision-conflict", revision=next(claims), timestamp=INT64_MAX)
    before = now_ms()
    assert isinstance(refused(service, t), StoreConflictError)
    assert len(service.posts) > 10
    assert len(service.sealed) == 1
    ((sealed_for, _, _),) = service.sealed
    assert sealed_for == t if t is not None else before <= sealed_for <= now_ms()


@pytest.mark.parametrize("t", [None, 500, 5_000])
@pytest.mark.parametrize("code", ["revision-conflict", "timestamp-taken"])
@pytest.mark.parametrize("resealed", [False, True])
def test_an_apply_that_is_refused_and_served_is_told_apart(service, code, t, resealed):
    """A rotation that another client runs meanwhile changes the bytes, and not whose apply it is."""

    def served() -> list[Event]:
        if resealed:
            for event in service.kept:
                place = EventContext(NAMESPACE, "e", event["timestamp"], event["item"], event["op"])
                value = BOTH.reseal(Value(Encoding.SEALED, base64.b64decode(event["value"])), place)
                event["value"] = base64.b64encode(value.data).decode()
        return service.kept

    service.served = served
    service.refusal = lambda: problem(code, revision=3, timestamp=2_000)
    error = refused(service, t, n=7)
    assert type(error) is StoreProtocolError
    assert error.outcome_unknown
    assert len(service.posts) == 1


def test_events_that_come_to_light_one_by_one_make_one_apply_of_many_times(service):
    hidden = withheld(service, 4)
    there = list(service.kept)
    service.refusal = lambda: problem("revision-conflict", revision=3, timestamp=2_000)

    def served() -> list[Event]:
        return [*there, *hidden[: len(service.posts)]]

    service.served = served
    error = refused(service)
    # The last of them is served unchanged.
    assert isinstance(error, StoreProtocolError)
    attempts = [event for event in service.kept if event not in there]
    assert len({event["timestamp"] for event in attempts}) == len(hidden) + 1
    ids = set()
    for event in attempts:
        place = EventContext(NAMESPACE, "e", event["timestamp"], event["item"], event["op"])
        ids.add(BOTH.open_event(Value(Encoding.SEALED, base64.b64decode(event["value"])), place)[1])
    assert len(ids) == 1
    for size in range(2, len(attempts) + 1):
        service.served = lambda size=size: [*there, *attempts[:size]]
        service.refusal = lambda: None
        with service.open() as store:
            for read in (
                lambda store: store.current("e"),
                lambda store: store.current("e", withtimestamp=True),
                lambda store: store.past("e", INT64_MAX),
                lambda store: store.events("e"),
                lambda store: store.apply("e", {"n": (operator.add, 1)}),
                lambda store: store.apply("e", {}),
            ):
                with pytest.raises(StoreProtocolError, match="serves one apply at"):
                    read(store)
    assert most_counted(service, [*there, *hidden], attempts) == 1


def test_the_parts_of_one_apply_are_not_taken_from_two_attempts(service):
    hidden = withheld(service, 1)
    there = list(service.kept)
    service.served = lambda: [*there, *hidden[: len(service.posts)]]
    service.refusal = lambda: problem("revision-conflict")
    refused(service, a=1, b=1)
    first, second = ([event for event in service.kept if event["item"] == item] for item in "ab")
    assert [len(first), len(second)] == [2, 2]
    for one, other in itertools.product(first, second):
        service.served = lambda one=one, other=other: [*there, one, other]
        with service.open() as store:
            if one["timestamp"] == other["timestamp"]:
                assert store.current("e") == {"a": 1, "b": 1, "n": 1}
            else:
                with pytest.raises(StoreProtocolError, match="serves one apply at"):
                    store.current("e")


def test_events_from_before_there_were_ids_are_read_and_followed(service):
    for t, item, op, text in ((3_000, "old", "setitem", b"5"), (4_000, "old", "neg", b"null")):
        value = BOTH.seal(Value(Encoding.JSON, text), EventContext(NAMESPACE, "e", t, item, op))
        sealed = base64.b64encode(value.data).decode()
        service.kept.append({"timestamp": t, "item": item, "op": op, "value": sealed, "encoding": "sealed"})
    with service.open() as store:
        assert store.current("e", withtimestamp=True) == (4_000, {"n": 1, "old": -5})
        assert store.apply("e", {"old": (operator.mul, 2)}) == {"n": 1, "old": -10}


REFUSALS = ["revision-conflict", "timestamp-taken", "unfoldable-event", "overloaded", "precondition-failed", None]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), t=st.none() | st.sampled_from([1_500, 5_000]), item=st.sampled_from(["n", "new"]))
def test_whatever_a_service_answers_one_apply_counts_once(seed, t, item):
    # What is decided depends on the clock too, so Hypothesis draws no more than the seed.
    dice = random.Random(seed)
    service = begun()
    hidden = withheld(service, 3)
    there = list(service.kept)

    def some(events: list[Event]) -> list[Event]:
        return [event for event in events if dice.random() < 0.5]

    def served() -> list[Event]:
        attempts = [event for event in service.kept if event not in there]
        return [*there, *some(hidden), *(some(attempts) if dice.random() < 0.2 else [])]

    def told(revision: int, timestamp: int) -> tuple[int, int]:
        claims = [timestamp, timestamp + dice.randrange(5), now_ms(), now_ms() + 120_000, INT64_MAX]
        return revision + dice.randrange(20), max(timestamp, dice.choice(claims))

    def refusal() -> httpx2.Response | None:
        code = dice.choice(REFUSALS) if dice.random() < 0.2 else "revision-conflict"
        return None if code is None else problem(code, revision=dice.randrange(9), timestamp=5)

    service.served, service.told, service.refusal = served, told, refusal
    change = (operator.add, 1_000) if item == "n" else 1_000
    with service.open() as store, contextlib.suppress(StoreError):
        store.apply("e", {item: change}, t=t)
    attempts = [event for event in service.kept if event not in there]
    # Any choice of attempts, and of what others did.
    for others in ([], hidden):
        for size in (1, 2, 3):
            for choice in itertools.islice(itertools.combinations(attempts, size), 12):
                assert all(count <= 1 for count in counted(service, [*there, *others, *choice]))


# --- every other write ---------------------------------------------------------------------------------------


class Refusing(httpx2.HTTPTransport):
    """Lets reads through to a real service, and keeps the body of each write, which it answers with a refusal."""

    def __init__(self, code: str) -> None:
        super().__init__(verify=False, trust_env=False)
        self.code = code
        self.sent: list[tuple[Context, bytes]] = []
        self.inflated = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if "idempotency-key" not in request.headers or request.url.raw_path.count(b"/") == 2:
            response = super().handle_request(request)
            if not (self.inflated and response.is_success and request.url.raw_path.endswith(b"/current")):
                return response
            state = json.loads(response.read())
            state["revision"] += self.inflated
            self.inflated += 1
            return answer(200, state)
        self.sent += envelopes(request)
        return problem(self.code, revision=7, timestamp=9)


def envelopes(request: httpx2.Request) -> Iterable[tuple[Context, bytes]]:
    """The envelopes in a write, and the places that they are for."""
    path = request.url.raw_path.decode().partition("?")[0]
    _, _, _, kind, *rest = path.split("/")
    body = request.read()
    if not body:
        return
    key = unquote(rest[0]) if rest else ""
    if request.method == "PUT":
        yield PairContext(NAMESPACE, key), body
    elif kind == "kv":
        for part in json.loads(body).get("set", []):
            yield PairContext(NAMESPACE, part["key"]), base64.b64decode(part["value"])
    elif kind == "ts":
        for points in FrameReader().feed(body):
            for t, value in points:
                yield PointContext(NAMESPACE, key, t), value.data
    else:
        document = json.loads(body)
        for event in document.get("events", []):
            t = event.get("timestamp", document.get("timestamp"))
            yield EventContext(NAMESPACE, key, t, event["item"], event["op"]), base64.b64decode(event["value"])


WRITES: dict[str, list[Callable[[Store], Any]]] = {
    "apply": [
        lambda store: store.apply("e", {"n": (operator.add, 1_000)}),
        lambda store: store.apply("e", {"n": (operator.add, 1_000), "new": (1, 2)}, t=15),
        lambda store: store.apply("e", {"n": (operator.delitem,)}),
        lambda store: store.apply("unknown", {"n": 1}),
    ],
    "set": [
        lambda store: store.set("k", 2),
        lambda store: store.set("k", 2, ttl=5, if_match="*"),
        lambda store: store.set("new", 2, if_absent=True),
    ],
    "__setitem__": [lambda store: store.__setitem__("k", 2)],
    "set_many": [lambda store: store.set_many({"k": 1, "l": (1, 2)})],
    "extend_columns": [lambda store: store.extend_columns("s", [1, 2, 7], [2.5, "two", None])],
    "extend": [lambda store: store.extend("s", (1, 2.5), (2, "two"), (7, None))],
    "rotate": [lambda store: store.rotate()],
    "prune": [lambda store: store.prune("e", "f")],
    "remove": [lambda store: store.remove("s")],
    "delete": [lambda store: store.delete("k", "l")],
    "__delitem__": [lambda store: store.__delitem__("k")],
    "discard": [lambda store: store.discard()],
}
SEALING = {"apply", "set", "__setitem__", "set_many", "extend", "extend_columns", "rotate"}
READING = {
    *("__contains__", "__enter__", "__exit__", "__getitem__", "__init__", "__iter__", "__len__", "__repr__"),
    *("close", "count", "current", "entry", "events", "eventsequences", "eventsources", "find", "first", "get"),
    *(
        "get_many",
        "has",
        "iscomplete",
        "keys",
        "last",
        "missing",
        "namespaces",
        "open",
        "past",
        "range",
        "range_columns",
    ),
    *("timeseries", "tokens"),
}
TOKENS = {"create_token", "rotate_token", "revoke_token"}


def test_every_write_is_tried():
    own = {name for kind in Store.__mro__[:-1] for name, member in vars(kind).items() if callable(member)}
    public = {name for name in own | set(dir(Store)) if not name.startswith("_") or name in own & (READING | {*WRITES})}
    assert public == WRITES.keys() | READING | TOKENS


@pytest.fixture(scope="module")
def filled(serve_module, tmp_path_factory) -> str:
    """The URL of a service with values under an old key."""
    url = serve_module(f"sqlite:///{tmp_path_factory.mktemp('refusing') / 'store.db'}").url
    with Store(url, NAMESPACE, OLD_KEY, frozen=False) as store:
        store.set_many({"k": 1, "l": [1, 2]})
        store.extend("s", (1, 1.5), (2, "x"), (3, None))
        store.apply("e", {"n": 1, "gone": 1}, t=10)
        store.apply("e", {"n": (operator.add, 2), "gone": (operator.delitem,)}, t=20)
        store.apply("f", {"n": 1})
    return url


WRITE_REFUSALS = (
    *("revision-conflict", "timestamp-taken", "precondition-failed", "sequence-not-found", "batch-not-atomic"),
    *("body-too-large", "unfoldable-event", "overloaded", "backend-unavailable", "internal-error", "rate-limited"),
)


@pytest.mark.parametrize("inflated", [False, True], ids=["", "inflated"])
@pytest.mark.parametrize("code", [*WRITE_REFUSALS])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_refused_over_and_over_stays_one_write(filled, name, code, inflated):
    for write in WRITES[name]:
        with Refusing(code) as transport:
            transport.inflated = int(inflated)
            keys = [KEY, OLD_KEY]
            with (
                Store(filled, NAMESPACE, keys, frozen=False, transport=transport, retries=1) as store,
                contextlib.suppress(StoreError, KeyError),
            ):
                write(store)
        contents: dict[Any, set[Any]] = {}
        for place, envelope in transport.sent:
            sealed = Value(Encoding.SEALED, envelope)
            assert isinstance(place, EventContext) or BOTH.open(sealed, place)
            found = BOTH.open_event(sealed, place) if isinstance(place, EventContext) else BOTH.open(sealed, place)
            contents.setdefault(place, set()).add(found)
        assert bool(contents) == (name in SEALING)
        # At each place there is one content, whose copies are all the same to a reader.
        assert all(len(found) == 1 for found in contents.values())
        if name == "apply":
            # And no apply is anywhere but at one timestamp.
            assert len({place.timestamp for place in contents}) == 1
        # Nor is it sealed time and again.
        assert len({envelope for _, envelope in transport.sent}) == len(contents)


# --- timestamps come from events that open -------------------------------------------------------------------

CLAIMS = [2_001, 10**12, 2**62, INT64_MAX - 1, INT64_MAX]


@pytest.mark.parametrize("claim", CLAIMS)
def test_no_reader_is_told_an_invented_timestamp(service, claim):
    service.told = lambda revision, timestamp: (revision, max(claim, timestamp) if timestamp >= 1_000 else timestamp)
    with service.open() as store:
        # The last event is a deletion, which is in no state.
        assert store.current("e", withtimestamp=True) == (2_000, {"n": 1})
        assert store.past("e", INT64_MAX, withtimestamp=True) == (2_000, {"n": 1})
        service.told = lambda revision, timestamp: (revision, min(claim, 1_999))
        assert store.past("e", 1_999, withtimestamp=True) == (1_000, {"gone": 1, "n": 1})
        before = len(service.requests)
        assert store.current("e") == {"n": 1}
        assert len(service.requests) == before + 1, "who does not ask for it pays nothing"


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_timestamp_is_sealed_that_the_service_did_not_choose(service, claim):
    there = list(service.kept)
    service.served = lambda: there
    service.told = lambda revision, timestamp: (revision, max(claim, timestamp))
    service.refusal = lambda: problem("overloaded")
    for change in ({"n": (operator.add, 1)}, {"n": 1}, {"new": (1, 2)}, {"n": (operator.delitem,)}):
        before = now_ms()
        refused(service, **change)
        assert before <= service.posts[-1]["timestamp"] <= now_ms()


def test_what_opens_moves_the_timestamp_on(service):
    last = now_ms() + 60_000
    with service.open() as store:
        store.apply("e", {"x": 1}, t=last)
        store.apply("e", {"x": (operator.delitem,)}, t=last + 5)
        assert store.current("e", withtimestamp=True) == (last + 5, {"n": 1})
        store.apply("e", {"n": (operator.add, 1)})
        assert service.posts[-1]["timestamp"] == last + 6
        store.apply("e", {"n": (operator.add, 1)})
        assert service.posts[-1]["timestamp"] == last + 7


@pytest.mark.parametrize("op", [None, operator.delitem])
def test_no_timestamp_far_ahead_is_taken_unless_the_caller_gives_it(service, op):
    ahead = now_ms() + 2 * DAY_MS
    with service.open() as store:
        store.apply("e", {"x": 1}, t=ahead)
        if op is not None:
            store.apply("e", {"x": (op,)}, t=ahead + 1)
        posts = len(service.posts)
        with pytest.raises(StoreIntegrityError, match="ahead of this machine's clock") as caught:
            store.apply("e", {"n": (operator.add, 1)})
        assert (caught.value.outcome_unknown, caught.value.done) == (False, False)
        assert len(service.posts) == posts
        store.apply("e", {"n": (operator.add, 1)}, t=ahead + 10)
        assert store.apply("e", {"n": (operator.add, 1)}, t=now_ms())["n"] == 3

    class Patient(Store):
        _ahead_seconds_max = 3 * 86_400

    with Patient("http://service", NAMESPACE, KEY, frozen=False, transport=service) as patient:
        patient.apply("e", {"n": (operator.add, 1)})
        assert service.posts[-1]["timestamp"] == ahead + 11


def test_after_the_greatest_timestamp_nothing_follows_and_what_lies_before_can_be_written(service):
    with service.open() as store:
        store.apply("e", {"x": 1}, t=INT64_MAX)
        with pytest.raises(StoreIntegrityError, match="earlier t") as caught:
            store.apply("e", {"n": (operator.add, 1)})
        assert caught.value.code == "timestamp-taken"
        assert store.apply("e", {"n": (operator.add, 1)}, t=now_ms()) == {"n": 2, "x": 1}


def test_another_key_than_that_of_the_events_is_not_a_key_to_add_some(service):
    with service.open() as store:
        store.apply("e", {"n": (operator.delitem,)})
        assert store.current("e") == {}
    with Store("http://service", NAMESPACE, OLD_KEY, frozen=False, transport=service) as other:
        posts = len(service.posts)
        for t in (None, 5, 1_500, now_ms() + 60_000):
            with pytest.raises(StoreDecryptionError):
                other.apply("e", {"new": 1}, t=t)
        assert len(service.posts) == posts
