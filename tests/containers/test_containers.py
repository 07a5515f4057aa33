"""The image and the Compose file in a real engine: what is built, each profile, settings, hardening, stop and restart.

`scripts/containers.sh` (`make container-test`) starts the engine and runs this. Only the base images are not the real
ones: see `standins` beside this file. The commands are those that docs/operating.md shows.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import new_authority
from tests.knobs import knob
from tests.pages import ROOT, shown
from tests.waiting import until

from rstored.limits import Limits
from rstored.settings import Settings

PAGE = "docs/operating.md"
STANDINS = Path(__file__).parent / "standins"
CACHE = knob("RSTORE_CONTAINER_CACHE", "")
URL = "http://127.0.0.1:8000"
TOKEN = "0123456789abcdef0123456789abcdef"
PASSWORD = "fedcba9876543210"
PROFILES = {
    "sqlite": {},
    "postgresql": {
        "COMPOSE_PROFILES": "postgres",
        "POSTGRES_PASSWORD": PASSWORD,
        "RSTORED_DSN": "postgresql://rstore:${POSTGRES_PASSWORD}@postgres/rstore",
    },
    "redis": {
        "COMPOSE_PROFILES": "redis",
        "REDIS_PASSWORD": PASSWORD,
        "RSTORED_DSN": "redis://:${REDIS_PASSWORD}@redis",
    },
}

pytestmark = pytest.mark.skipif(not CACHE, reason="needs a container engine of its own: make container-test")


def run(
    *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RSTORE", "COMPOSE", "POSTGRES", "REDIS"))
    }
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def docker(*arguments: str, cwd: Path | None = None) -> str:
    done = run("docker", *arguments, cwd=cwd)
    assert done.returncode == 0, f"docker {shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def base_images() -> None:
    """Stand-ins under the names of the images that Dockerfile and Compose file use."""
    assert CACHE
    for name in ("python", "servers"):
        docker("import", f"{CACHE}/{name}.tar", f"rstore-standin/{name}")
    used = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    used |= set(re.findall(r"^    image: (\S+:\S+)", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
    assert {name.partition(":")[0] for name in used} == {"python", "redis", "postgres"}
    for image in used:
        name = image.partition(":")[0]
        context = f"{CACHE}/index" if name == "python" else str(STANDINS)
        docker("build", "--file", f"{STANDINS}/{name}.Dockerfile", "--tag", image, context)


@pytest.fixture(scope="session")
def image(base_images: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built by Compose from the files that are in version control, or would be."""
    folder = tmp_path_factory.mktemp("clone")
    for name in filter(
        None, run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\0")
    ):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    docker("compose", "build", cwd=folder)
    return "rstore"


class Project:
    """The Compose file in a folder of its own, beside an `.env`."""

    def __init__(self, folder: Path, settings: Mapping[str, str], override: str | None = None) -> None:
        self.folder = folder
        text = (ROOT / "docker-compose.yml").read_text()
        # The checks are those of the images, but sooner, so that the tests need not wait for them.
        text = text.replace("    image: rstore\n", "    image: rstore\n    healthcheck: {interval: 1s}\n")
        (folder / "docker-compose.yml").write_text(text.replace("interval: 5s", "interval: 1s"))
        if settings:
            (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        if override is not None:
            (folder / "docker-compose.override.yml").write_text(override)

    def compose(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return run("docker", "compose", *arguments, cwd=self.folder, env=env)

    def up(self, env: Mapping[str, str] | None = None) -> None:
        """Up, and healthy by the images' own checks."""
        done = self.compose("up", "--detach", "--wait", "--no-build", env=env)
        assert done.returncode == 0, f"{done.stderr}\n{self.logs()}\n{self.inspect()['State']}"

    def down(self, *arguments: str) -> None:
        done = self.compose("--profile", "*", "down", *arguments)
        assert done.returncode == 0, done.stderr

    def logs(self) -> str:
        return self.compose("logs", "--no-color").stdout

    def fails_to_start(self) -> str:
        """Bring it up, and return the log of what ends instead of becoming healthy."""
        done = self.compose("up", "--detach", "--wait", "--no-build")
        assert done.returncode != 0
        return self.logs()

    def exec(self, *command: str, service: str = "rstore") -> subprocess.CompletedProcess[str]:
        return self.compose("exec", "-T", service, *command)

    def inspect(self, service: str = "rstore") -> dict[str, Any]:
        container = self.compose("ps", "--all", "--quiet", service).stdout.strip()
        return json.loads(docker("inspect", container))[0]


@pytest.fixture
def project(image: str, tmp_path: Path) -> Iterator[Any]:
    """Makes a project; at the end its containers and volumes are removed."""
    made: list[Project] = []

    def make(settings: Mapping[str, str] | None = None, override: str | None = None) -> Project:
        folder = tmp_path / f"project{len(made)}"
        folder.mkdir()
        made.append(Project(folder, settings or {}, override))
        return made[-1]

    yield make
    for one in made:
        one.down("--volumes", "--timeout", "1")
    assert docker("ps", "--all", "--quiet") == ""
    assert docker("volume", "ls", "--quiet") == ""


def ask(
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    url: str = URL,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data, {"Content-Type": "application/json", **(headers or {})}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or "null")


def write() -> None:
    assert ask("/kv/motto", {"en": "keep it simple"}, method="PUT")[0] in (201, 204)
    assert ask("/ts/roof/range", {"points": [[0, 12.8], [3600, 10.6]]}) == (200, {"points": 2})


def check_written() -> None:
    assert ask("/kv/motto") == (200, {"en": "keep it simple"})
    assert ask("/ts/roof/range") == (200, {"points": [[0, 12.8], [3600, 10.6]]})


# --- the profiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_comes_up_durable_and_keeps_its_data(project, profile):
    here = project(PROFILES[profile])
    here.up()
    assert ask("/readyz")[0] == 200
    backend = ask("/")[1]["backend"]
    assert backend["name"] == profile
    assert "warning" not in backend, backend
    write()

    # A stop is orderly: what the engine kills, as its grace is over, has another status. A start finds the data.
    stopped = here.compose("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert here.inspect()["State"]["ExitCode"] == 0, here.logs()
    here.up()
    check_written()

    # So does one after everything was killed, and one in new containers on the same volumes.
    assert here.compose("kill").returncode == 0
    here.up()
    check_written()
    here.down()
    here.up()
    check_written()
    assert PASSWORD not in here.logs()


@pytest.mark.parametrize("profile", ["postgresql", "redis"])
def test_a_server_refuses_to_start_without_its_password(project, profile):
    settings = {name: value for name, value in PROFILES[profile].items() if not name.endswith("_PASSWORD")}
    log = project(settings).fails_to_start()
    assert re.search("superuser password is not specified|set REDIS_PASSWORD in the environment or in .env", log), log


def test_a_request_under_way_is_answered_when_it_stops(project):
    here = project()
    here.up()
    with socket.create_connection(("127.0.0.1", 8000), timeout=30) as connection:
        connection.sendall(
            b"PUT /kv/slow HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnu"
        )
        until(lambda: b"rstored_requests_in_flight 1.0" in metrics())
        stop = subprocess.Popen(["docker", "compose", "stop"], cwd=here.folder, stderr=subprocess.DEVNULL)
        try:
            until(lambda: not ready())
            connection.sendall(b"ll")
            assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")
        finally:
            assert stop.wait(timeout=60) == 0
    assert here.inspect()["State"]["ExitCode"] == 0
    here.up()
    assert ask("/kv/slow") == (200, None)


def metrics() -> bytes:
    with urllib.request.urlopen(f"{URL}/metrics", timeout=20) as answer:
        return answer.read()


def ready() -> bool:
    try:
        return ask("/readyz")[0] == 200
    except OSError:
        return False


# --- who reaches it, and as whom it runs --------------------------------------------------------------------


def test_only_the_host_and_the_containers_of_the_project_reach_it(project):
    here = project()
    here.up()
    gateway = here.inspect()["NetworkSettings"]["Networks"]["rstore_default"]["Gateway"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((gateway, 8000), timeout=5)
    script = "import urllib.request as r; print(r.urlopen('http://rstore:8000/').read().decode())"
    inside = docker("run", "--rm", "--network=rstore_default", "--entrypoint=python", "rstore", "-c", script)
    assert json.loads(inside)["backend"]["name"] == "sqlite"
    # A page whose name was pointed to it does not.
    for host in ("attacker.example", f"{gateway}:8000"):
        status, problem = ask("/kv", headers={"Host": host})
        assert (status, problem["code"]) == (421, "misdirected-request")
    status, problem = ask("/kv/motto", 1, method="PUT", headers={"Origin": "https://attacker.example"})
    assert (status, problem["code"]) == (403, "cross-origin-request")


def test_the_service_has_no_privileges_and_a_root_file_system_that_is_read_only(project):
    here = project()
    here.up()
    write()
    status = here.exec("python", "-c", STATUS_OF_THE_SERVICE).stdout
    fields = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
    assert fields["Uid"].split() == ["10001"] * 4
    assert (int(fields["CapPrm"], 16), int(fields["CapBnd"], 16), fields["NoNewPrivs"]) == (0, 0, "1")
    refused = here.exec("touch", "/opt/rstore/written")
    assert "Read-only file system" in refused.stderr


STATUS_OF_THE_SERVICE = """
import glob
for name in glob.glob("/proc/[0-9]*/status"):
    text = open(name).read()
    if text.startswith("Name:\\trstored"):
        print(text)
"""


def test_the_image_alone_writes_nothing_but_its_volume_even_if_it_may(image):
    container = docker("run", "--detach", "--env", f"RSTORED_ADMIN_TOKEN={TOKEN}", image).strip()
    try:
        wait_until_healthy(container)
        assert docker("diff", container) == ""
        docker("stop", container)
        assert docker("inspect", "--format={{.State.ExitCode}}", container).strip() == "0"
    finally:
        docker("rm", "--force", "--volumes", container)


def test_the_image_alone_refuses_to_open_a_store_to_everybody(image):
    refused = run("docker", "run", "--rm", image)
    assert refused.returncode == 1
    assert "nothing keeps anybody out" in refused.stderr
    with_sealed_root = run("docker", "run", "--rm", "--read-only", "--tmpfs=/tmp", image, "--version")
    assert with_sealed_root.returncode == 0, with_sealed_root.stderr


# --- settings ----------------------------------------------------------------------------------------------

# Settings of text, and those whose default has no neighbour of the same kind.
EXAMPLES = {
    "dsn": "sqlite:////data/other.db",
    "host": "127.0.0.1",
    "admin_token": TOKEN,
    "insecure": "false",  # the Compose file presets it
    "hosts": "store.example,rstore",
    "tls_cert": "/tls/service.pem",
    "tls_key": "/tls/service.key",
    "tls_key_password": "a pass phrase",
    "tls_client_ca": "/tls/ca.pem",
    "root_path": "/store",
    "trusted_proxies": "10.0.0.0/8, fd00::/8",
    "cors_origins": "https://app.example,http://localhost:3000",
    "log_level": "debug",
}


def example(name: str, field: Any) -> str:
    """A value of the setting or limit that is neither its default nor what the image or the Compose file presets."""
    if name in EXAMPLES:
        return EXAMPLES[name]
    assert isinstance(field.default, bool | int | float), f"{name} needs an example"
    if isinstance(field.default, bool):
        return str(not field.default).lower()
    most = min((bound.le for bound in field.metadata if hasattr(bound, "le")), default=field.default + 1)
    return str(field.default + 1 if field.default < most else field.default - 1)


def every_setting() -> dict[str, str]:
    return {
        f"RSTORED_{name.upper()}": example(name, field)
        for name, field in Settings.model_fields.items()
        if name != "limits"
    } | {f"RSTORED_LIMITS__{name.upper()}": example(name, field) for name, field in Limits.model_fields.items()}


def settings_inside(here: Project, *options: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The RSTORED_ variables of a container of the service, which the service there finds right."""
    script = (
        "import json, os; from rstored.settings import load_settings; load_settings(); "
        "print(json.dumps({n: v for n, v in os.environ.items() if n.startswith('RSTORED_')}))"
    )
    done = here.compose(
        *options, "run", "--rm", "-T", "--no-deps", "--entrypoint=python", "rstore", "-c", script, env=env
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


PRESETS = {
    "RSTORED_DSN": "sqlite:////data/rstore.db",
    "RSTORED_HOST": "0.0.0.0",
    "RSTORED_INSECURE": "true",
    "RSTORED_HOSTS": "rstore",
}


@pytest.mark.parametrize("source", [".env", "--env-file", "shell"])
def test_every_setting_reaches_the_service(project, source):
    given = every_setting()
    if source == ".env":
        assert settings_inside(project(given)) == given
    elif source == "shell":
        assert settings_inside(project(), env=given) == given
    else:
        # Those of an .env that is not meant do not count.
        here = project({"RSTORED_WORKERS": "3"})
        (here.folder / "production.env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
        assert settings_inside(here, "--env-file=production.env") == given


def test_nothing_is_passed_that_nobody_set(project):
    assert settings_inside(project()) == PRESETS
    assert settings_inside(project({"RSTORED_ACCESS_LOG": "true"})) == {**PRESETS, "RSTORED_ACCESS_LOG": "true"}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"RSTORED_ADMIN_TOKN": TOKEN}, "RSTORED_ADMIN_TOKN is not a setting"),
        ({"RSTORED_WORKERS": "many"}, "RSTORED_WORKERS: "),
        ({"RSTORED_LIMITS__IDLE_SECONDS_MAX": ""}, "RSTORED_LIMITS__IDLE_SECONDS_MAX"),
    ],
    ids=["misspelt", "wrong", "empty"],
)
def test_a_setting_that_cannot_be_stops_the_start(project, settings, line):
    assert line in project(settings).fails_to_start()


def test_an_admin_token_closes_the_store(project):
    here = project({"RSTORED_ADMIN_TOKEN": TOKEN})
    here.up()
    assert ask("/kv")[0] == 401
    assert ask("/kv", headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_port_is_the_one_of_the_setting(project, workers):
    here = project({"RSTORED_PORT": "8123", "RSTORED_WORKERS": workers})
    here.up()
    assert ask("/healthz", url="http://127.0.0.1:8123")[0] == 200
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 8000), timeout=5)
    assert here.compose("stop").returncode == 0
    assert here.inspect()["State"]["ExitCode"] == 0, here.logs()


@pytest.mark.parametrize("client_ca", [False, True], ids=["server", "mutual"])
def test_the_service_is_healthy_with_tls(project, tmp_path, client_ca):
    authority = new_authority(tmp_path / "tls")
    _, key = authority.issue("service", "127.0.0.1")
    os.chmod(key, 0o644)
    settings = {"RSTORED_TLS_CERT": "/tls/service.pem", "RSTORED_TLS_KEY": "/tls/service.key"}
    if client_ca:
        settings["RSTORED_TLS_CLIENT_CA"] = "/tls/ca.pem"
    here = project(settings, f'services: {{rstore: {{volumes: ["{authority.folder}:/tls:ro"]}}}}')
    here.up()
    context = ssl.create_default_context(cafile=authority.file)
    if client_ca:
        context.load_cert_chain(*authority.issue("client"))
    assert ask("/healthz", url="https://127.0.0.1:8000", context=context)[0] == 200


# --- what docs/operating.md shows ----------------------------------------------------------------------------


def carry_out(here: Project, marker: str) -> str:
    done = run("sh", "-ec", shown(PAGE, marker), cwd=here.folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("profile", "backup", "restore"),
    [
        ("sqlite", "docker compose cp", "cat >rstore.db'"),
        ("postgresql", "docker compose exec -T postgres pg_dump", "docker compose exec -T postgres pg_restore"),
        ("redis", "redis-cli --rdb -", "cat >dump.rdb"),
    ],
)
def test_a_backup_is_restored(project, profile, backup, restore):
    here = project(PROFILES[profile])
    here.up()
    write()
    carry_out(here, backup)
    assert ask("/kv/motto", method="DELETE")[0] == 204
    assert ask("/kv/later", 1, method="PUT")[0] == 201
    carry_out(here, restore)
    here.up()
    check_written()
    assert ask("/kv/later")[0] == 404
    # And it is written to as before.
    assert ask("/kv/later", 2, method="PUT")[0] == 201
    assert here.compose("restart").returncode == 0
    here.up()
    assert ask("/kv/later") == (200, 2)


@pytest.mark.parametrize("profile", ["postgresql", "redis"])
def test_the_lines_for_env_are_those_that_are_tested(profile):
    marker = f"COMPOSE_PROFILES={PROFILES[profile]['COMPOSE_PROFILES']}"
    in_docs = dict(line.split(" ")[0].split("=", 1) for line in shown(PAGE, marker).splitlines())
    head = (ROOT / "docker-compose.yml").read_text().partition("\nname:")[0]
    in_file = dict(re.findall(r"^#     (\w+)=(\S+)$", head[head.index(marker) - 10 :], re.MULTILINE)[:3])
    assert in_docs == in_file == {**PROFILES[profile], **{n: "…" for n in in_docs if n.endswith("PASSWORD")}}


def test_a_token_made_in_the_container_closes_the_store(project):
    here = project()
    here.up()
    token = carry_out(here, "docker compose exec rstore rstored token create").strip()
    until(lambda: ask("/kv")[0] == 401)
    assert ask("/kv", headers={"Authorization": f"Bearer {token}"})[0] == 200


def test_it_is_published_as_shown_with_tls_and_closed(project, tmp_path):
    override = shown(PAGE, "!override", "yaml")
    here = project(override=override)
    assert "tls-cert" in here.fails_to_start()
    authority = new_authority(tmp_path / "authority")
    certificate, key = authority.issue("service", "127.0.0.1")
    (here.folder / "tls").mkdir(exist_ok=True)
    shutil.copy(certificate, here.folder / "tls" / "fullchain.pem")
    shutil.copy(key, here.folder / "tls" / "key.pem")
    (here.folder / "tls" / "key.pem").chmod(0o644)
    here.up(env={"RSTORED_ADMIN_TOKEN": TOKEN})
    context = ssl.create_default_context(cafile=authority.file)
    url = "https://127.0.0.1:8443"
    assert ask("/kv", url=url, context=context)[0] == 401
    assert ask("/kv", url=url, context=context, headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200
    gateway = here.inspect()["NetworkSettings"]["Networks"]["rstore_default"]["Gateway"]
    socket.create_connection((gateway, 8443), timeout=5).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 8000), timeout=5)


def test_the_image_runs_as_shown(image, tmp_path):
    _, command = shown(PAGE, "docker run").splitlines()
    container = run("sh", "-ec", command.replace("docker run", "docker run --detach")).stdout.strip()
    try:
        assert container
        wait_until_healthy(container)
        assert ask("/kv")[0] == 401
    finally:
        docker("rm", "--force", container)
        docker("volume", "rm", "rstore")


def wait_until_healthy(container: str) -> None:
    until(lambda: docker("inspect", "--format={{.State.Health.Status}}", container).strip() == "healthy")
