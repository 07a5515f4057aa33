"""Who a client is. A client has one address in one form, whoever reports it and however it is written."""

from __future__ import annotations

import ipaddress
import json
import socket

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstored.addresses import canonical_address, network
from rstored.http.proxies import Proxies

PROXY, OUTER = "10.0.0.1", "10.0.0.2"
PROXIES = Proxies(list(map(network, ("10.0.0.0/8", "fd00::/8"))))
NO_ADDRESSES = [
    "",
    "unknown",
    "_hidden",
    "localhost",
    "client.example",
    "for=198.51.100.1",
    '"198.51.100.1"',
    "198.51.100",
    "198.51.100.256",
    "198.51.100.01",
    "0xc6336401",
    "3325256705",
    "198.51.100.1:",
    "198.51.100.1:port",
    "198.51.100.1:80:80",
    "198.51.100.1 198.51.100.2",
    "[198.51.100.1]",
    "[2001:db8::1",
    "[2001:db8::1]443",
    "2001:db8::1]:443",
    "2001:db8::1::",
    "fe80::1%eth0",
    "fe80::1%anything at all",
    "198.51.100.1\x1b[2J",
    "１98.51.100.1",
]

addresses = st.ip_addresses().filter(lambda address: str(address) not in PROXIES)


def spellings(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[str]:
    """How the address may be written."""
    if isinstance(address, ipaddress.IPv4Address):
        mapped = ipaddress.IPv6Address(f"::ffff:{address}")
        plain, six = [str(address)], [f"::ffff:{address}", f"::FFFF:{address}", f"0:0:0:0:0:ffff:{address}"]
        six += [f"::ffff:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}", mapped.exploded]
    else:
        plain, six = [], [address.compressed, address.exploded, address.compressed.upper(), address.exploded.upper()]
    written = [*plain, *(f"{text}:65535" for text in plain), *six]
    return [*written, *(f"[{text}]" for text in six), *(f"[{text}]:443" for text in six)]


@given(address=addresses, claim=st.text())
def test_a_client_is_one_client_however_a_proxy_writes_its_address(address, claim):
    clients = set()
    for text in spellings(address):
        for forwarded in (text, f" {text}\t", f"{claim},{text}", f"{text}, {OUTER}", f"{text},[fd00::1]:80, {OUTER}"):
            clients.add(PROXIES.client_of(PROXY, forwarded))
    assert clients == {str(getattr(address, "ipv4_mapped", None) or address)}


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_not_an_address_counts_as_the_proxy_that_wrote_it(text):
    for before in ("", "198.51.100.7, "):
        assert PROXIES.client_of(PROXY, before + text) == PROXY
        assert PROXIES.client_of(PROXY, f"{before}{text}, {OUTER}") == OUTER


@given(st.text() | st.lists(st.sampled_from([*NO_ADDRESSES, "198.51.100.7", OUTER])).map(",".join))
def test_whatever_a_proxy_says_the_client_is_an_address_in_its_one_form(forwarded):
    client = PROXIES.client_of(PROXY, forwarded)
    assert canonical_address(client) == client


@given(st.ip_addresses(v=4), st.integers(min_value=0, max_value=32))
def test_a_network_of_mapped_addresses_is_that_of_the_addresses(address, length):
    written = network(f"{ipaddress.IPv4Network((address, length), strict=False)}")
    mapped = network(f"::ffff:{written.network_address}/{96 + length}")
    assert mapped == written
    assert str(address) in Proxies([mapped])


def test_limits_and_log_know_a_client_by_its_one_address(serve, tmp_path):
    """The service listens on both families, so that what connects by IPv4 arrives as a mapped address."""
    service = serve(
        f"sqlite:///{tmp_path / 'store.db'}",
        host="::",
        limits={"FAILED_AUTHENTICATIONS_PER_MINUTE_MAX": 6},
        env={
            "RSTORED_ADMIN_TOKEN": "x" * 40,
            "RSTORED_ACCESS_LOG": "true",
            "RSTORED_TRUSTED_PROXIES": "127.0.0.1",
        },
    )
    written = ["198.51.100.1", "198.51.100.1:80", "[::ffff:198.51.100.1]:80", "::FFFF:c633:6401", "unknown", "_x"]
    with httpx2.Client(base_url=f"http://127.0.0.1:{service.port}") as http:

        def status(forwarded: str, token: int) -> int:
            headers = {"X-Forwarded-For": forwarded, "Authorization": f"Bearer {token}"}
            return http.get("/ns", headers=headers).status_code

        # The last of each client's are more than it may fail.
        assert [status(written[number % 4], number) for number in range(8)] == [401] * 6 + [429] * 2
        assert [status(written[4 + number % 2], number) for number in range(8)] == [401] * 6 + [429] * 2
        # All addresses of IPv4 would be in one network of IPv6.
        assert status("198.51.100.2", 0) == 401
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        while connection.recv(4096):
            pass
    service.stop()
    lines = [json.loads(line) for line in service.log.splitlines()]
    clients = [line["client"] for line in lines if line["message"] == "request" and line["route"] == "/ns"]
    assert clients == ["198.51.100.1"] * 8 + ["127.0.0.1"] * 8 + ["198.51.100.2"]
    assert [line["client"] for line in lines if line["message"] == "malformed request"] == ["127.0.0.1"]
