"""The routes about the service itself."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rstored import __version__
from rstored.app import running_app
from rstored.limits import Limits
from rstored.settings import Settings

pytestmark = pytest.mark.anyio


async def test_the_index(http):
    info = (await http.get("/")).json()
    assert (info["name"], info["version"]) == ("rstored", __version__)
    assert info["backend"]["name"] == "sqlite"
    assert set(info["backend"]) == {"name", "version", "durability"}
    assert info["limits"] == Limits().model_dump()
    for name in ("openapi", "docs", "health", "readiness", "metrics", "namespaces"):
        assert (await http.get(info["links"][name])).status_code == 200


async def test_without_docs(tmp_path):
    import httpx2

    async with running_app(Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", docs=False)) as app:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            assert (await http.get("/docs")).status_code == 404
            assert (await http.get("/openapi.json")).status_code == 404
            assert "docs" not in (await http.get("/")).json()["links"]


async def test_health_and_readiness(app, http):
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    app.state.stopping = True
    assert (await http.get("/healthz")).status_code == 200
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "shutting-down")


async def test_metrics(http):
    await http.put("/ns/secret-space/kv/secret-key", json=1)
    for _ in range(3):
        await http.get("/ns/secret-space/kv/secret-key")
    await http.get("/kv/absent")
    await http.get("/secret-route")
    await http.request("BREW", "/secret-route")
    await http.request("BREW", "/kv/secret-key")
    await http.options("/kv/secret-key")
    await http.patch("/ns/secret-space/ts/secret-key/range")
    answer = await http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "secret" not in answer.text
    assert "BREW" not in answer.text
    samples = {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }

    def count(method: str, route: str, status: int) -> float:
        return samples["rstored_request_seconds_count", f"method={method}", f"route={route}", f"status={status}"]

    assert count("PUT", "/ns/{namespace}/kv/{key}", 201) == 1
    assert count("GET", "/ns/{namespace}/kv/{key}", 200) == 3
    assert count("GET", "/kv/{key}", 404) == 1
    assert count("GET", "none", 404) == 1
    assert count("other", "none", 404) == 1
    # What the route does not take is counted there all the same.
    assert count("other", "/kv/{key}", 405) == 1
    assert count("OPTIONS", "/kv/{key}", 204) == 1
    assert count("PATCH", "/ns/{namespace}/ts/{key}/range", 405) == 1
    assert samples["rstored_backend_seconds_count", "operation=write"] == 1
    assert samples["rstored_batch_size_sum", "operation=write"] == 1
    assert samples["rstored_batch_size_count", "operation=read"] >= 4
    assert samples["rstored_batch_size_bucket", "le=+Inf", "operation=write"] == 1
    assert samples["rstored_request_seconds_sum", "method=GET", "route=/kv/{key}", "status=404"] > 0


async def test_each_app_counts_for_itself(app, http, tmp_path):
    await http.get("/kv/k")
    async with running_app(Settings(dsn=f"sqlite:///{tmp_path / 'other.db'}")) as other:
        assert b"/kv/{key}" in app.state.metrics.render()
        assert b"/kv/{key}" not in other.state.metrics.render()
