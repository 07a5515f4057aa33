"""The recipes of docs/operating.md, carried out as they stand there: nginx, backups, users with few rights."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path

import httpx2
import pytest
from tests import servers
from tests.certificates import new_authority
from tests.nginx import NGINX, free_port
from tests.pages import ROOT, shown
from tests.waiting import until

from rstore import Store, generate_key

PAGE = "docs/operating.md"
TOKEN = "0123456789abcdef" * 2
KEY = generate_key()


def carry_out(block: str, folder: Path, **variables: str) -> None:
    """Run a block of shell commands in a folder; PostgreSQL's programs are on its path."""
    initdb, cli = servers.binary("initdb"), servers.binary("redis-cli", "valkey-cli")
    programs = [str(Path(program).resolve().parent) for program in (initdb, cli) if program is not None]
    environment = {**os.environ, **variables, "PATH": os.pathsep.join([*programs, os.environ["PATH"]])}
    done = subprocess.run(
        ["sh", "-ec", block], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def write(url: str) -> None:
    with Store(url, "shop", KEY, frozen=False) as store:
        store["motto"] = {"en": ("keep", "it", "simple")}
        store.extend("roof", *((t, t / 8) for t in range(2_000)))
        store.apply("stock", {"tents": 3}, t=1000)


def write_more(url: str) -> None:
    with Store(url, "shop", KEY, frozen=False) as store:
        del store["motto"]
        store["later"] = 1
        store.remove("roof")
        store.apply("stock", {"tents": 4})


def check_written(url: str) -> None:
    """What the backup was made of is there, nothing that came later, and it can be written to."""
    with Store(url, "shop", KEY, frozen=False) as store:
        assert dict(store.find()) == {"motto": {"en": ("keep", "it", "simple")}}
        assert store.range("roof") == [(t, t / 8) for t in range(2_000)]
        assert store.current("stock", withtimestamp=True) == (1000, {"tents": 3})
        store.apply("stock", {"tents": 5}, t=2000)
        store["later"] = 2
        assert len(store) == 2


# --- nginx -------------------------------------------------------------------------------------------------


without_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@without_nginx
def test_nginx_in_front_of_two_processes(serve, nginx, tmp_path):
    authority = new_authority(tmp_path / "authority")
    certificate, key = authority.issue("proxy", "127.0.0.1")
    dsn = f"sqlite:///{tmp_path / 'store.db'}"
    env = {"RSTORED_ADMIN_TOKEN": TOKEN, "RSTORED_TRUSTED_PROXIES": "127.0.0.1"}
    few = {"REQUESTS_IN_FLIGHT_MAX": 2, "REQUESTS_IN_FLIGHT_PER_CLIENT_MAX": 2}
    processes = [serve(dsn, env=env, limits=few), serve(dsn, env=env, limits=few)]
    port = free_port()
    site = shown(PAGE, "upstream rstore", "nginx")
    for theirs, process in zip(("8001", "8002"), processes, strict=True):
        assert theirs in site
        site = site.replace(theirs, str(process.port))
    listen = f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};"
    assert "listen 443 ssl;" in site
    nginx(site.replace("listen 443 ssl;", listen), port)
    url = f"https://127.0.0.1:{port}"
    with Store(url, "behind", token=TOKEN, verify=authority.file, frozen=False) as store:
        keys = ["a/b", "..", "../..", "a//b", "//", "./a", "%2F", "é?#", "a\nb", " ", "a\\b", "x" * 512]
        for key in keys:
            store[key] = key
        assert dict(store.find()) == {key: key for key in keys}
        with pytest.raises(Exception, match="400"):
            store["../../../.."] = "nginx takes it for a path that leaves the root"
    trusted = ssl.create_default_context(cafile=authority.file)
    with httpx2.Client(base_url=url, verify=trusted, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as http:
        # Sheds are passed on as they are, and the next request is served.
        def status(_: int) -> int:
            return http.get("/kv?limit=1000").status_code

        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            counted = collections.Counter(pool.map(status, range(400)))
        assert counted.keys() <= {200, 503}, counted
        assert http.get("/kv").status_code == 200
        # So are requests while one of the processes is down.
        processes[0].stop()
        assert [http.get("/kv").status_code for _ in range(10)] == [200] * 10
        assert http.put("/kv/large", content=b"x" * 2**23, headers={"Content-Type": "text/plain"}).status_code == 201
        assert http.get("/kv", params={"match": "a" * 8_000}).status_code == 200
        assert http.get("/kv", params={"match": "a" * 9_000}).json()["code"] == "uri-too-long"


@without_nginx
def test_an_open_store_behind_nginx_answers_at_the_names_of_its_clients(serve, nginx, tmp_path):
    env = {"RSTORED_HOSTS": "store.example", "RSTORED_TRUSTED_PROXIES": "127.0.0.1"}
    service = serve(f"sqlite:///{tmp_path / 'store.db'}", env=env)
    port = free_port()
    site = shown(PAGE, "upstream rstore", "nginx").replace("8001", str(service.port)).replace("8002", str(service.port))
    url = nginx(site.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};"), port)
    with httpx2.Client(base_url=url) as http:
        for host, origin, expected in (
            ("store.example", "https://store.example", 201),
            ("store.example", "https://attacker.example", 403),
            ("attacker.example", "https://attacker.example", 421),
        ):
            answer = http.put(f"/kv/{expected}", json=1, headers={"Host": host, "Origin": origin})
            assert answer.status_code == expected, (host, origin, answer.text)


# --- backups -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the program sqlite3 is not installed")
@pytest.mark.parametrize("copy", ["copy.db", "compact.db"])
def test_sqlite_is_backed_up_while_it_serves(serve, tmp_path, copy):
    dsn = f"sqlite:///{tmp_path / 'rstore.db'}"
    service = serve(dsn)
    write(service.url)
    carry_out(shown(PAGE, "sqlite3 rstore.db"), tmp_path)
    write_more(service.url)
    service.stop()
    (tmp_path / copy).replace(tmp_path / "rstore.db")
    assert sorted(path.suffix for path in tmp_path.glob("rstore.db*")) == [".db"]
    check_written(serve(dsn).url)


@pytest.mark.parametrize("may_create_schemas", [True, False])
def test_postgresql_is_backed_up_while_it_serves(serve, tmp_path, may_create_schemas):
    if (reason := servers.missing_postgresql()) is not None:
        pytest.skip(reason)
    role, database = shown(PAGE, "CREATE ROLE rstore", "sql").splitlines()
    with servers.PostgreSQLServer() as server:
        server.sql(role)
        if may_create_schemas:
            server.sql(database.partition(";")[0])
            dsn = f"postgresql://rstore@127.0.0.1:{server.port}/rstore"
        else:
            server.sql(database.partition("is there: ")[2])
            dsn = f"postgresql://rstore@127.0.0.1:{server.port}/test"
        service = serve(dsn)
        write(service.url)
        carry_out(shown(PAGE, "--file=rstore.dump"), tmp_path, DSN=dsn)
        write_more(service.url)
        service.stop()
        if may_create_schemas:
            carry_out(shown(PAGE, '--dbname="$DSN"'), tmp_path, DSN=dsn)
        else:
            server.sql("DROP SCHEMA rstore CASCADE")
            server.sql(database.partition("is there: ")[2])
            carry_out(shown(PAGE, '--dbname="$DSN"').splitlines()[1] + " --schema=rstore", tmp_path, DSN=dsn)
        check_written(serve(dsn).url)


def test_redis_is_backed_up_while_it_serves(serve, tmp_path):
    if (reason := servers.missing_redis()) is not None:
        pytest.skip(reason)
    with servers.RedisServer() as server:
        service = serve(server.dsn)
        write(service.url)
        carry_out(shown(PAGE, 'redis-cli -u "$DSN"'), tmp_path, DSN=server.dsn)
        write_more(service.url)
        service.stop()
        server.stop()
        shutil.copy(tmp_path / "rstore.rdb", server.folder / "dump.rdb")
        shutil.rmtree(server.folder / "appendonlydir")
        server.options = ("appendonly no",)
        server.start()
        assert server.cli("CONFIG", "SET", "appendonly", "yes") == "OK"
        until(lambda: "aof_rewrite_in_progress:0" in server.cli("INFO", "persistence"))
        server.stop()
        server.options = ()
        server.start()
        check_written(serve(server.dsn).url)


# --- users with few rights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [False, True])
def test_a_redis_user_needs_no_more_rights_than_shown(serve, cluster):
    if (reason := servers.missing_redis()) is not None:
        pytest.skip(reason)
    line = re.search(r"^ACL SETUSER .*$", (ROOT / PAGE).read_text(), re.MULTILINE)
    assert line is not None
    with servers.RedisCluster() if cluster else servers.RedisServer() as server:
        nodes = [*server.masters(), *server.replicas()] if isinstance(server, servers.RedisCluster) else [server]
        for node in nodes:
            assert node.cli(*line[0].split()) == "OK"
        dsn = server.dsn.replace("://", "://rstore:password@")
        service = serve(dsn)
        write(service.url)
        write_more(service.url)
        with Store(service.url, "shop", KEY, frozen=False) as store:
            store.discard()
        with httpx2.Client() as http:
            told = http.get(service.url).json()["backend"]
            assert http.get(f"{service.url}/readyz").status_code == 200
        assert "unknown" not in told["durability"]
        assert "warning" not in told
        assert "NOPERM" not in service.log
