"""What is sent again, when, and that nothing takes effect twice. Everything runs blocking and awaited."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import operator
import socket
import threading
import time
from typing import Any

import anyio
import httpx2
import pytest

import rstore
from rstore import (
    AsyncStore,
    Store,
    StoreConflictError,
    StoreLimitError,
    StoreNotAvailableError,
    StoreRequestError,
    calls,
)
from rstore.calls import TryAgain
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import PROBLEMS, StoreError
from rstore.transport.attempts import Attempts

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[Store, AsyncStore])
def kind(request):
    return request.param


@pytest.fixture
def paused(monkeypatch) -> list[float]:
    """The pauses that the SDK made, in seconds."""
    pauses: list[float] = []
    sleep, sleep_awaited = time.sleep, asyncio.sleep

    def recorded(seconds):
        pauses.append(seconds)
        sleep(seconds)

    async def recorded_awaited(seconds, *result):
        pauses.append(seconds)
        return await sleep_awaited(seconds, *result)

    monkeypatch.setattr(time, "sleep", recorded)
    monkeypatch.setattr(asyncio, "sleep", recorded_awaited)
    return pauses


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long each request was allowed to wait for its answer, in seconds."""
    found: list[float] = []
    send, send_awaited = httpx2.HTTPTransport.handle_request, httpx2.AsyncHTTPTransport.handle_async_request

    def recorded(transport, request):
        found.append(request.extensions["timeout"]["read"])
        return send(transport, request)

    async def recorded_awaited(transport, request):
        found.append(request.extensions["timeout"]["read"])
        return await send_awaited(transport, request)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", recorded)
    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", recorded_awaited)
    return found


async def opened(kind, url, namespace="n", **options):
    store = kind(url, namespace, frozen=False, **options)
    await settled(store.open())
    return store


async def settled(result):
    return await result if inspect.isawaitable(result) else result


INFO = b'{"namespace": "n", "sealed_only": false, "kv": 0, "ts": 0, "es": 0}'


# --- a service that is away for a moment -------------------------------------------------------------------


@pytest.mark.parametrize("failures", [["drop"], ["drop", "drop"], [503], [429, 502, 504], ["drop", 503]])
async def test_a_moment_away_is_not_noticed(kind, scripted, reply, json_reply, failures):
    left = list(failures)

    def script(request):
        if request.method == "PUT":
            return json_reply(INFO, 201)
        if left:
            failure = left.pop(0)
            return None if failure == "drop" else reply(failure, retry_after="0")
        return reply(200, b"5", content_type="application/json", etag='"x"')

    server = scripted(script)
    store = await opened(kind, server.url)
    assert await settled(store.get("k")) == 5
    assert len(server.received) == 2 + len(failures)
    await settled(store.close())


@pytest.mark.parametrize(("status", "exception"), [(503, StoreNotAvailableError), (429, StoreLimitError)])
async def test_patience_ends(kind, scripted, reply, json_reply, status, exception):
    server = scripted(lambda request: json_reply(INFO, 201) if request.method == "PUT" else reply(status))
    store = await opened(kind, server.url, retries=2)
    with pytest.raises(exception):
        await settled(store.get("k"))
    assert len(server.received) == 1 + 3
    await settled(store.close())


@pytest.mark.parametrize("status", [400, 403, 404, 409, 412, 422, 500, 507])
async def test_what_will_not_pass_is_not_tried_again(kind, scripted, reply, json_reply, status):
    server = scripted(lambda request: json_reply(INFO, 201) if request.method == "PUT" else reply(status))
    store = await opened(kind, server.url)
    with pytest.raises(StoreError):
        await settled(store.get("k"))
    assert len(server.received) == 2
    await settled(store.close())


async def test_nobody_waits_longer_than_the_deadline_for_another_attempt(
    kind, scripted, reply, json_reply, paused, waits
):
    server = scripted(
        lambda request: json_reply(INFO, 201) if request.method == "PUT" else reply(503, retry_after="3600")
    )
    store = await opened(kind, server.url, deadline=5)
    with pytest.raises(StoreNotAvailableError):
        await settled(store.get("k"))
    assert sum(paused) < 2
    assert len(waits) == len(server.received) == 2
    await settled(store.close())


async def test_a_silent_service_is_not_waited_for(kind, paused, waits):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = kind(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        with pytest.raises(StoreNotAvailableError, match="in time"):
            await settled(store.open())
        assert waits
        assert sum(waits) + sum(paused) < 2


async def test_no_service_at_all(kind, closed_port):
    store = kind(f"http://127.0.0.1:{closed_port}")
    with pytest.raises(StoreNotAvailableError) as caught:
        await settled(store.open())
    assert caught.value.outcome_unknown is False
    # The HTTP library's own error is there for whoever wants to see more.
    assert caught.value.__cause__ is not None
    with pytest.raises(StoreError, match="not open"):
        await settled(store.get("k"))


def test_what_must_not_be_done_twice_is_sent_again_only_if_it_did_not_arrive():
    call = calls.kv.put("n", "k", Value(Encoding.JSON, b"1"))
    call.repeatable = False
    attempts = Attempts(call, 4, 60)
    attempts.pause_seconds(TryAgain(StoreNotAvailableError("no connection"), unsent=True))
    attempts.pause_seconds(TryAgain(StoreNotAvailableError("busy", code="shutting-down", status=503)))
    with pytest.raises(StoreNotAvailableError) as caught:
        attempts.pause_seconds(TryAgain(StoreNotAvailableError("cut")))
    assert caught.value.outcome_unknown


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used(kind, json_reply):
    """No answer says that it will, and no attempt is lost to it: a call that must not be sent twice goes through."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for number in range(4):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(json_reply(INFO, 200 if number else 201))
                connection.close()

        server = threading.Thread(target=serve)
        server.start()
        store = await opened(kind, f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0)
        for _ in range(3):
            await anyio.sleep(0.05)
            assert await settled(store.count()) == 0
        server.join(10)
        await settled(store.close())


def test_pauses_double_and_end():
    attempts = Attempts(calls.kv.get("n", "k"), 3, 60)
    failure = TryAgain(StoreNotAvailableError("away"))
    pauses = [attempts.pause_seconds(failure) for _ in range(3)]
    assert all(low <= pause <= 2 * low for pause, low in zip(pauses, (0.025, 0.05, 0.1), strict=True))
    with pytest.raises(StoreNotAvailableError):
        attempts.pause_seconds(failure)
    assert Attempts(calls.kv.get("n", "k"), 1, 60).pause_seconds(TryAgain(StoreNotAvailableError("away"), 3)) == 3


# --- what is known of a write that failed ------------------------------------------------------------------


def problem(reply, code):
    status = PROBLEMS[code].status
    return reply(status, b'{"code": "%b"}' % code.encode(), content_type="application/problem+json", retry_after="0")


@pytest.mark.parametrize(
    ("answers", "unknown"),
    [
        (["drop"], True),
        (["drop", "overloaded"], True),
        (["drop", "unauthenticated"], True),
        (["drop", "precondition-failed"], False),
        (["overloaded"], False),
        (["overloaded", "shutting-down"], False),
        (["backend-unavailable"], True),
        (["internal-error"], True),
        (["storage-full"], False),
        (["precondition-failed"], False),
        ([502], True),
        ([429], False),
        (["nonsense"], True),
    ],
)
async def test_an_error_says_whether_a_write_may_have_happened(kind, scripted, reply, json_reply, answers, unknown):
    left: list[Any] = []

    def script(request):
        if request.target == "/ns/n":
            return json_reply(INFO, 201)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer == "drop":
            return None
        if answer == "nonsense":
            return reply(200, b"what?")
        return reply(answer) if isinstance(answer, int) else problem(reply, answer)

    store = await opened(kind, scripted(script).url, retries=len(answers) - 1)
    left[:] = answers
    with pytest.raises(StoreError) as caught:
        await settled(store.set("k", 1))
    assert caught.value.outcome_unknown is unknown
    left[:] = answers
    with pytest.raises(StoreError) as caught:
        await settled(store.get("k"))
    assert caught.value.outcome_unknown is False
    await settled(store.close())


# --- an answer that is lost --------------------------------------------------------------------------------


@pytest.fixture
def lossy(scripted, service_url):
    """Starts a proxy to the service that drops every first answer to the requests that ``loses`` picks."""

    def start(loses):
        seen = set()
        host = service_url.removeprefix("http://")

        def script(request):
            connection = http.client.HTTPConnection(host)
            headers = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
            connection.request(request.method, request.target, request.body or None, headers)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            fields = [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() != "transfer-encoding"]
            if "content-length" not in {field.partition(":")[0].lower() for field in fields}:
                fields.append(f"content-length: {len(body)}")
            identity = request.method, request.target, request.body
            if loses(request) and identity not in seen:
                seen.add(identity)
                return None
            head = "\r\n".join([f"HTTP/1.1 {answer.status} X", *fields, "", ""])
            return head.encode() + body

        return scripted(script)

    return start


@pytest.mark.parametrize("sealed", [False, True])
async def test_nothing_takes_effect_twice(kind, lossy, namespace, sealed):
    server = lossy(lambda request: request.method != "GET")
    key = rstore.generate_key() if sealed else None
    store = await opened(kind, server.url, namespace, key=key)
    etag = await settled(store.set("k", 1, if_absent=True))
    assert await settled(store.set("k", 2, if_match=etag)) != etag
    with pytest.raises(StoreConflictError):
        await settled(store.set("k", 3, if_match=etag))
    assert await settled(store.apply("e", {"n": 1})) == {"n": 1}
    assert await settled(store.apply("e", {"n": (operator.add, 1)})) == {"n": 2}
    assert await settled(store.apply("e", {"n": (operator.mul, 10)}, t=2**60)) == {"n": 20}
    assert await settled(store.current("e")) == {"n": 20}
    assert len(await settled(store.events("e"))) == 3
    await settled(store.extend("s", (1, 1), (2, 2)))
    await settled(store.remove("s", end=1))
    assert await settled(store.range("s")) == [(2, 2)]
    await settled(store.set_many({"a": 1, "b": 2}))
    await settled(store.delete("a"))
    await settled(store.delete("a", "b"))
    await settled(store.prune("e"))
    assert await settled(store.keys()) == ["k"]
    if kind is Store:
        del store["k"]
        with pytest.raises(KeyError):
            store["k"]
    lost = [request for request in server.received if request.method != "GET"]
    assert len(lost) >= 20
    await settled(store.discard())
    await settled(store.close())


async def test_values_beyond_json_are_applied_once_too(kind, lossy, namespace):
    server = lossy(lambda request: request.method == "POST")
    store = await opened(kind, server.url, namespace)
    assert await settled(store.apply("e", {"n": (1,)})) == {"n": (1,)}
    assert await settled(store.apply("e", {"n": (operator.add, (2,))})) == {"n": (1, 2)}
    assert await settled(store.current("e")) == {"n": (1, 2)}
    await settled(store.close())


async def test_an_answer_that_breaks_off_is_asked_for_again(kind, scripted, service_url, reply, json_reply):
    whole = reply(200, b"[1,2,3,4]", content_type="application/json", etag='"x"')
    parts = [whole[:-3], whole]

    def script(request):
        if request.method == "PUT":
            return json_reply(INFO, 201)
        part = parts.pop(0)
        return part if part == whole else part.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")

    store = await opened(kind, scripted(script).url)
    assert await settled(store.get("k")) == [1, 2, 3, 4]
    assert parts == []
    await settled(store.close())


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_positive(kind, timeout):
    with pytest.raises(StoreRequestError):
        kind("http://127.0.0.1", timeout=timeout)
