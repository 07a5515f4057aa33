"""The Dockerfile and the Compose file, as far as they can be tried without a container engine.

`tests/containers` runs both in one. Here the Compose file is parsed by an implementation of the Compose specification;
the Dockerfile's own RUN lines are carried out in an empty folder, and its ENTRYPOINT, CMD and HEALTHCHECK are run with
what they installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests import servers
from tests.locks import pins

from rstored.settings import Settings

ROOT = Path(__file__).parent.parent
RUN_BY_THE_IMAGE_ALONE = ("useradd",)  # makes a user of the container; running it here would make one of this machine


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, argument), continuation lines joined and comments dropped."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in logical if line.strip()]


def arguments(name: str) -> list[str]:
    return [argument for instruction, argument in instructions() if instruction == name]


def command_of(name: str) -> list[str]:
    """The command of an ENTRYPOINT, CMD or HEALTHCHECK."""
    (argument,) = arguments(name)
    command: list[str] = json.loads(argument[argument.index("[") :])
    return command


def compose() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def with_defaults(text: str) -> str:
    """What Compose makes of a text if nobody sets any of its variables."""
    return re.sub(r"(?<!\$)\$\{\w+-([^}]*)\}", r"\1", text)


# --- Compose -----------------------------------------------------------------------------------------------


def test_the_compose_file_obeys_the_specification():
    text = with_defaults((ROOT / "docker-compose.yml").read_text())
    parsed = compose_spec.PyOptions(apply_merge=True).from_yaml(text)
    parsed.validate()
    assert sorted(parsed.service_names()) == ["postgres", "redis", "rstore"]
    with pytest.raises(ValueError, match="read_onli"):
        compose_spec.PyOptions(apply_merge=True).from_yaml(text.replace("read_only", "read_onli"))


def test_alone_it_needs_nothing_and_each_profile_adds_one_server():
    services = compose()["services"]
    assert "profiles" not in services["rstore"]
    for name in ("postgres", "redis"):
        assert services[name]["profiles"] == [name]
        assert services["rstore"]["depends_on"][name] == {"condition": "service_healthy", "required": False}
    # An unset `${NAME:?}` fails in every profile, so none may be there.
    assert ":?" not in re.sub(r"\$\$\{[^}]*\}|#.*", "", (ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("name", ["rstore", "postgres", "redis"])
def test_every_service_is_hardened(name):
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
    assert name == "rstore" or service["healthcheck"]["test"]


def test_only_loopback_of_the_host_reaches_the_service():
    services = compose()["services"]
    assert [port.split(":")[0] for port in services["rstore"]["ports"]] == ["127.0.0.1"]
    assert not any("ports" in services[name] for name in ("postgres", "redis"))
    # The image does not open a store by itself: `docker run -p 8000:8000` must not open one to the world.
    assert "insecure" not in (ROOT / "Dockerfile").read_text().partition("FROM")[2].lower()


def test_what_is_set_reaches_the_service():
    """An `.env` is passed whole, and by name what the shell or `--env-file` sets: `make check` looks for all names."""
    passed = compose()["x-settings"]
    service = compose()["services"]["rstore"]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    assert service["environment"].keys() == passed.keys()
    # An option would win over the variable, and `:-` would replace one that is set and empty, which is a mistake.
    assert "command" not in service
    assert (command_of("ENTRYPOINT"), command_of("CMD")) == (["rstored"], ["serve"])
    for name, value in service["environment"].items():
        assert value is None or value.startswith(f"${{{name}-"), name
    # A name without a value takes away what the image presets.
    presets = {name: value for name, value in variables("ENV").items() if name.startswith("RSTORED_")}
    assert presets.items() <= environment_of("rstore").items()


def test_what_is_under_way_may_finish_before_a_stop_becomes_a_kill():
    grace = compose()["services"]["rstore"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Settings().drain_seconds + Settings().shutdown_grace_seconds


def test_no_secret_stands_in_the_compose_file():
    for service in compose()["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|TOKEN|KEY$", name):
                assert value is None, name


def environment_of(service: str) -> dict[str, str]:
    """What the Compose file sets for a service if nobody sets anything."""
    given = compose()["services"][service]["environment"]
    return {name: with_defaults(value) for name, value in given.items() if value is not None}


def variables(instruction: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in arguments(instruction) for pair in line.split())


def example_dsn(scheme: str, name: str, password: str, port: int) -> str:
    """The DSN that the Compose file's head shows for a server, with the password, at a port of this machine."""
    shown = re.search(rf"^#\s+RSTORED_DSN=({scheme}://\S+)$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)[
        1
    ]
    variable = f"${{{name.upper()}_PASSWORD}}"
    assert variable in shown
    host = f"@{name}"
    assert host in shown
    return shown.replace(variable, password).replace(host, f"@127.0.0.1:{port}")


def check_service(service, password: str, backend: str) -> None:
    """It stores what it is given, is durable by its own word, and says its password nowhere."""
    put = urllib.request.Request(f"{service.url}/kv/k", b"1", {"Content-Type": "application/json"}, method="PUT")
    with urllib.request.urlopen(put, timeout=10) as answer:
        assert answer.status < 300
    with urllib.request.urlopen(service.url, timeout=10) as answer:
        told = json.load(answer)["backend"]
    assert told["name"] == backend
    assert "warning" not in told
    assert password not in service.log


def needs(reason: str | None) -> None:
    if reason is not None:
        pytest.skip(reason)


def test_the_postgres_profile_works_with_the_dsn_that_is_shown(serve):
    needs(servers.missing_postgresql())
    password = "0123456789abcdef"
    with servers.PostgreSQLServer() as server:
        # What the image makes of POSTGRES_USER, POSTGRES_DB and POSTGRES_PASSWORD.
        environment = compose()["services"]["postgres"]["environment"]
        user, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
        server.sql(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'")
        server.sql(f"CREATE DATABASE {database} OWNER {user}")
        rules = server.data / "pg_hba.conf"
        rules.write_text("local all admin trust\nhost all all all scram-sha-256\n")
        server.sql("SELECT pg_reload_conf()")
        service = serve(None, env={"RSTORED_DSN": example_dsn("postgresql", "postgres", password, server.port)})
        check_service(service, password, "postgresql")
        service.stop()
        with pytest.raises(RuntimeError, match="cannot connect to PostgreSQL") as refused:
            serve(None, env={"RSTORED_DSN": example_dsn("postgresql", "postgres", "wrong-one", server.port)})
        assert "wrong-one" not in str(refused.value)


class ComposeRedis(servers.RedisServer):
    """The Compose file's own command for Redis, in a folder of this machine."""

    def command(self) -> list[str]:
        shell, option, script = compose()["services"]["redis"]["command"]
        assert "exec redis-server /tmp/redis.conf\n" in script
        script = script.replace("$$", "$").replace("dir /data", "dir .")
        script = script.replace(
            "exec redis-server /tmp/", f"exec redis-server /tmp/redis.conf --port {self.port} --bind 127.0.0.1 #"
        )
        return [shell, option, script.replace("/tmp/", "./")]


def test_the_redis_profile_works_with_the_dsn_that_is_shown(serve, monkeypatch):
    needs(servers.missing_redis())
    if servers.binary("redis-server") is None:
        pytest.skip("the image has redis-server; here is another")
    password = "0123456789abcdef"
    monkeypatch.setenv("REDIS_PASSWORD", password)
    monkeypatch.setenv("REDISCLI_AUTH", password)
    with ComposeRedis() as server:
        service = serve(None, env={"RSTORED_DSN": example_dsn("redis", "redis", password, server.port)})
        check_service(service, password, "redis")
        service.stop()
        with pytest.raises(RuntimeError, match="password") as refused:
            serve(None, env={"RSTORED_DSN": example_dsn("redis", "redis", "wrong-one", server.port)})
        assert "wrong-one" not in str(refused.value)
        assert password not in Path(f"/proc/{server.process.pid}/cmdline").read_text()


def test_the_servers_of_the_compose_file_refuse_to_start_without_a_password(monkeypatch):
    needs(servers.missing_redis())
    monkeypatch.delenv("REDIS_PASSWORD", raising=False)
    server = ComposeRedis()
    try:
        with pytest.raises(RuntimeError, match="set REDIS_PASSWORD"):
            server.start()
    finally:
        server.close()


# --- Dockerfile ----------------------------------------------------------------------------------------------


def test_the_image_runs_as_nobody_and_keeps_its_data_in_a_volume():
    assert arguments("USER") == ["10001"]
    assert arguments("VOLUME") == ["/data"]
    assert arguments("EXPOSE") == ["8000"]
    assert len(arguments("FROM")) == 2
    assert all(image.startswith("python:3.11-slim") for image in arguments("FROM"))


def test_every_copied_path_exists_and_is_sent_to_the_engine():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    sources = [path for line in arguments("COPY") if not line.startswith("--from") for path in line.split()[:-1]]
    assert {"client", "service", "pyproject.toml", "locks"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore, source


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A folder that stands for the image: the Dockerfile's COPY and RUN lines are carried out in it.

    `python` in it is the interpreter that this one's virtual environment was made with.
    """
    with tempfile.TemporaryDirectory(prefix="rstore-image-") as folder:
        root = Path(folder)
        for name in ("bin", "src", "data"):
            (root / name).mkdir()
        (root / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
        environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        environment["PATH"] = f"{root / 'bin'}:{environment['PATH']}"
        for instruction, argument in instructions():
            if instruction == "COPY" and not argument.startswith("--from"):
                for source in argument.split()[:-1]:
                    copy(ROOT / source, root / "src" / source)
            elif instruction == "RUN" and not argument.startswith(RUN_BY_THE_IMAGE_ALONE):
                command = re.sub(r"(?<![\w.])/(build|wheels|opt/rstore)\b", rf"{root}/\1", argument)
                done = subprocess.run(
                    command, shell=True, cwd=root / "src", env=environment, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        yield root


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def environment_in(image: Path, port: int = 0) -> dict[str, str]:
    """The Dockerfile's ENV with the Compose file's environment, with their paths moved to where they stand here.

    Only the port is another one, so that it is free here.
    """
    given = {**variables("ENV"), **environment_of("rstore"), "RSTORED_PORT": str(port)}
    return {
        **given,
        "PATH": given["PATH"].replace("/opt/rstore", f"{image}/opt/rstore").replace("$PATH", "/usr/bin:/bin"),
        "RSTORED_DSN": given["RSTORED_DSN"].replace("/data/", f"{image}/data/"),
    }


def run_in(image: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    program = f"{image}/opt/rstore/bin/{command[0]}"
    return subprocess.run(
        [program, *command[1:]],
        cwd=image / "data",
        env=environment_in(image) | variables,
        capture_output=True,
        text=True,
        timeout=30,
    )


def files_of(image: Path) -> dict[Path, int]:
    """Every file of the image outside its volume, with the time it was last written."""
    return {path: path.lstat().st_mtime_ns for path in image.rglob("*") if path.relative_to(image).parts[0] != "data"}


def test_the_image_has_the_service_and_nothing_of_development(image):
    version = run_in(image, ["rstored", "--version"])
    assert version.returncode == 0, version.stderr
    assert re.search(r"\d+\.\d+\.\d+", version.stdout)
    installed = run_in(image, ["pip", "list", "--format=freeze"]).stdout.lower()
    here = {Requirement(line) for line in installed.splitlines()}
    pinned = {Requirement(f"{canonicalize_name(name)}=={version}") for name, version in pins("service.txt").items()}
    assert {r for r in here if r.name not in {"pip", "setuptools", "rstore"}} == pinned
    assert "pytest" not in installed
    assert "pandas" not in installed


@pytest.fixture
def serving(image: Path) -> Iterator[int]:
    """What the image runs, from a folder that it may not write.

    Stopped as the engine stops it, it ends with 0 and has written nowhere but in the volume.
    """
    program, *command = [*command_of("ENTRYPOINT"), *command_of("CMD")]
    nowhere = image / "nowhere"
    nowhere.mkdir(mode=0o500)
    before = files_of(image)
    process = subprocess.Popen(
        [f"{image}/opt/rstore/bin/{program}", *command],
        cwd=nowhere,
        env=environment_in(image),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        # What is logged may stand before it.
        while not (found := re.search(r"listens on http://\S+:(\d+)", lines[-1] if lines else "")):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        yield int(found[1])
    finally:
        process.send_signal(getattr(signal, arguments("STOPSIGNAL")[0]))
        output = "".join([*lines, process.communicate(timeout=30)[0]])
    assert process.returncode == 0, output
    assert (image / "data" / "rstore.db").exists()
    assert files_of(image) == before


def test_the_healthcheck_tells_a_serving_image_from_a_dead_one(image, serving):
    alive = run_in(image, command_of("HEALTHCHECK"), RSTORED_PORT=str(serving))
    assert alive.returncode == 0, alive.stderr
    dead = run_in(image, command_of("HEALTHCHECK"), RSTORED_PORT="9")
    assert dead.returncode == 1
    assert dead.stderr.startswith("rstored: unhealthy: ")


def test_the_image_refuses_to_open_an_unprotected_store_to_the_world(image):
    refused = run_in(image, [*command_of("ENTRYPOINT"), *command_of("CMD")], RSTORED_INSECURE="false")
    assert refused.returncode == 1
    assert "nothing keeps anybody out" in refused.stderr
