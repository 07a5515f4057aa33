"""nginx in front of services: a process with a configuration of its own, gone at the end."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.waiting import SECONDS_MAX, listens, until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def nginx_processes(folder: Path) -> Iterator[Callable[[str, int], str]]:
    """``start(servers, port)``: nginx with these ``server`` blocks; its URL, once it listens on this port."""
    with contextlib.ExitStack() as stack:

        def start(servers: str, port: int) -> str:
            assert NGINX is not None
            (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, servers=servers))
            command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            stack.callback(process.wait, SECONDS_MAX)
            stack.callback(process.terminate)
            until(lambda: process.poll() is not None or listens(port))
            assert process.poll() is None, "nginx does not run"
            return f"http://127.0.0.1:{port}"

        yield start
