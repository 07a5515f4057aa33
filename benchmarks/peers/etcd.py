"""etcd, one member, over its JSON gateway. It syncs its log before it acknowledges; that is its default."""

from __future__ import annotations

import base64

from tests.servers import HOST, Server, binary, free_port

from benchmarks.load import KEYS, Request, Target


class Etcd(Server):
    """A cluster of one. Keys and values are base64 in its JSON, and a GET is a POST."""

    @staticmethod
    def missing() -> str | None:
        return None if binary("etcd") else "etcd is not installed: apt-get install etcd-server"

    def command(self) -> list[str]:
        program = binary("etcd")
        assert program is not None
        client, peer = f"http://{HOST}:{self.port}", f"http://{HOST}:{free_port()}"
        command = [program, "--data-dir", str(self.folder / "data"), "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        return [*command, "--initial-cluster", f"default={peer}"]

    def answers(self) -> bool:
        return self.says_yes("/health")

    def target(self) -> Target:
        names = [base64.b64encode(key.encode()).decode() for key in KEYS]
        return Target(
            self.port,
            gets=[Request("POST", "/v3/kv/range", f'{{"key":"{name}"}}') for name in names],
            # 133 characters, a last one without surplus bits and the padding are 100 bytes.
            puts=[Request("POST", "/v3/kv/put", f'{{"key":"{name}","value":"{{value}}A=="}}', 133) for name in names],
            headers={"Content-Type": "application/json"},
        )
