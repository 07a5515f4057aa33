"""Kinto, a JSON storage service, on PostgreSQL: under waitress and with accounts, as `kinto init` sets it up."""

from __future__ import annotations

import base64
import json
import urllib.request

from tests.servers import HOST, Server

from benchmarks.load import KEYS, Request, Target
from benchmarks.peers import environments

_INI = """\
[app:main]
use = egg:kinto
kinto.storage_backend = kinto.core.storage.postgresql
kinto.storage_url = {dsn}
kinto.storage_pool_size = 20
kinto.permission_backend = kinto.core.permission.postgresql
kinto.permission_url = {dsn}
kinto.permission_pool_size = 20
kinto.cache_backend = kinto.core.cache.memory
kinto.userid_hmac_secret = benchmark
kinto.includes = kinto.plugins.accounts
multiauth.policies = account
multiauth.policy.account.use = kinto.plugins.accounts.AccountsPolicy
kinto.account_create_principals = system.Everyone
kinto.bucket_create_principals = system.Authenticated

[server:main]
use = egg:waitress#main
host = {host}
port = {port}
connection_limit = 100

[loggers]
keys = root

[handlers]
keys = console

[formatters]
keys = plain

[logger_root]
level = ERROR
handlers = console

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = ERROR
formatter = plain

[formatter_plain]
"""


class Kinto(Server):
    """Kinto with its storage and permissions on the server of ``dsn``."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self.storage = dsn

    @staticmethod
    def missing() -> str | None:
        return environments.missing("kinto")

    def command(self) -> list[str]:
        names = {"dsn": self.storage, "host": HOST, "port": self.port}
        (self.folder / "kinto.ini").write_text(_INI.format(**names))
        configuration = str(self.folder / "kinto.ini")
        environments.call("kinto", "kinto", "migrate", "--ini", configuration)
        return [environments.program("kinto", "kinto"), "start", "--ini", configuration]

    def answers(self) -> bool:
        return self.says_yes("/v1/")

    def target(self) -> Target:
        """A fresh account, and a collection of its own."""
        self._put("/v1/accounts/benchmark", {"password": "benchmark"}, {})
        credentials = base64.b64encode(b"benchmark:benchmark").decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {credentials}"}
        self._put("/v1/buckets/benchmark", {}, headers)
        self._put("/v1/buckets/benchmark/collections/kv", {}, headers)
        records = "/v1/buckets/benchmark/collections/kv/records"
        return Target(
            self.port,
            gets=[Request("GET", f"{records}/{key}") for key in KEYS[:100]],
            puts=[Request("PUT", f"{records}/{key}", '{"data":{"value":"{value}"}}', 100) for key in KEYS[:100]],
            headers=headers,
            refuses=True,
        )

    def _put(self, path: str, data: dict[str, str], headers: dict[str, str]) -> None:
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}{path}",
            json.dumps({"data": data}).encode(),
            {"Content-Type": "application/json", **headers},
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=30).close()
