"""``python -m rstored.health`` exits with 0 if the service that has this environment answers ``/healthz``, else with 1.

It is the health check of the container image, and the container engine starts it every few seconds. So it imports only
the standard library, which takes a fifth of the time that the settings would take, and reads its few settings itself.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping
from typing import Final

_SECONDS: Final = 4
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def check(environment: Mapping[str, str]) -> None:
    """Ask the service that these ``RSTORED_…`` variables describe.

    Raises OSError or HTTPException if it does not answer, and ValueError if the port is not a number.
    """
    host = environment.get("RSTORED_HOST", "127.0.0.1")
    address = (_ANY.get(host, host), int(environment.get("RSTORED_PORT", "8000")))
    with socket.create_connection(address, timeout=_SECONDS) as connection:
        if "RSTORED_TLS_CERT" not in environment:
            _ask(connection)
            return
        # The certificate names the service as its clients know it, not as this address.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(connection) as encrypted:
            # A service that requires certificates closes a connection without one. Its half of the handshake is enough
            # as a sign of life.
            if "RSTORED_TLS_CLIENT_CA" not in environment:
                _ask(encrypted)


def _ask(connection: socket.socket) -> None:
    # An open store answers to names of loopback, whichever address it listens on.
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        if answer.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"/healthz answers {answer.status}")


if __name__ == "__main__":
    try:
        check(os.environ)
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.exit(f"rstored: unhealthy: {error}")
