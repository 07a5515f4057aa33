"""Parses the requests of a connection: the caller feeds in bytes, and reads heads and bodies.

httptools parses. This module adds the bounds on heads and trailers and the checks that RFC 9112 requires of a server.
It parses nothing after the end of a message until the caller reads on.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httptools

from rstored.api.replies import Header
from rstored.api.requests import joined_fields
from rstored.limits import Limits
from rstored.problems import Problem

_BLANK_LINE: Final = b"\r\n\r\n"
# The messages of httptools for unknown versions, and for the preface of HTTP/2.
_OTHER_VERSIONS: Final = frozenset(
    {"Invalid HTTP version", "Pause on PRI/Upgrade", "Expected HTTP/2 Connection Preface"}
)
# The parts before and after the authority in a target that is a whole URL.
_BESIDE_AUTHORITY: Final = re.compile(rb"\A[^:/?#]*://|[/?#].*\Z", re.DOTALL)
_NOTHING: Final = bytearray()


class RequestHead(NamedTuple):
    """The head of a request. ``fields`` are those of :func:`~rstored.api.requests.joined_fields`.

    ``keep_alive`` says whether the connection may go on after the answer. ``knows_chunks`` says whether the client is
    new enough for a body in chunks.
    """

    method: str
    raw_path: bytes
    query: bytes
    fields: dict[bytes, bytes]
    keep_alive: bool
    knows_chunks: bool


class RequestParser:
    """Parses the requests of one connection, one message at a time.

    :meth:`feed` takes bytes that arrive. :meth:`read_head` returns the next head, and :meth:`read_body` the part of its
    body that has arrived, until the message is ``complete``. Only then may the next head be read. Both raise Problem
    for bytes that are not a request, and then nothing more can be read.
    """

    def __init__(self, limits: Limits) -> None:
        self.complete = False
        self._limits = limits
        # The bytes that have arrived, and how many of them have been parsed. Empty as soon as all are parsed.
        self._data = _NOTHING
        self._parsed = 0
        # Its handlers are methods of this parser, so the two form a cycle until close() is called.
        self._parser = self._new_parser()
        self._url = b""
        # The fields of the head that arrives, or the trailers.
        self._fields: list[Header] = []
        # The head of the message whose rest has not been read.
        self._head: RequestHead | None = None
        # How many bytes of the body are missing, or -1 for a body in chunks, whose length is not known.
        self._body_left = -1
        # The parts of the body that have arrived and have not been read.
        self._pieces: list[bytes] = []
        # How many bytes were parsed since the last message ended, or since the last part of its body.
        self._silent_bytes = 0
        # The last bytes that were parsed. A blank line may have begun in them.
        self._seam = _NOTHING

    def feed(self, data: bytearray) -> None:
        """Take bytes that have arrived. They are kept until they are read."""
        self._data = self._data[self._parsed :] + data if self._data else data
        self._parsed = 0

    @property
    def has_unread(self) -> bool:
        """Whether bytes have arrived that have not been parsed."""
        return bool(self._data)

    @property
    def is_between_messages(self) -> bool:
        """Whether no byte of another request has arrived."""
        return not self._silent_bytes and not self._data

    def discard(self) -> None:
        """Drop the bytes that have arrived and have not been parsed."""
        self._data = _NOTHING
        self._parsed = 0

    def close(self) -> None:
        """Drop everything. Nothing can be read any more."""
        self.discard()
        del self._parser

    def read_head(self) -> RequestHead | None:
        """The next head, or None if it is not complete yet. Raises Problem.

        The message of a request without a body is complete with its head.
        """
        self._head = None
        self.complete = False
        while self._head is None and self._data:
            self._parse_to_blank_line()
        return self._head

    def read_body(self) -> bytes:
        """The part of the body that has arrived since the last call. Parses nothing after the body. Raises Problem."""
        if self._body_left < 0:
            while not self.complete and self._data:
                self._parse_to_blank_line()
        else:
            body = memoryview(self._data)[self._parsed : self._parsed + self._body_left]
            self._body_left -= len(body)
            self._proceed_to(self._parsed + len(body))
            self._parse(body)
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # Bytes after the last request are ignored. They are no reason to refuse that request.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _parse_to_blank_line(self) -> None:
        """Parse up to the next blank line, or everything that has arrived. Raises Problem.

        The first blank line ends a head, and a blank line ends a body in chunks. So nothing after them is parsed.
        """
        data, start, seam = self._data, self._parsed, self._seam
        silent_bytes_max = self._silent_bytes_max()
        most = start + silent_bytes_max + 1 - self._silent_bytes
        found = data.find(_BLANK_LINE, start, most)
        end = found + len(_BLANK_LINE) if found >= 0 else 0
        if seam:
            found = (seam + data[start : start + 3]).find(_BLANK_LINE)
            if found >= 0:
                end = start + found + len(_BLANK_LINE) - len(seam)
        if end:
            self._seam = _NOTHING
        else:
            end = min(most, len(data))
            self._seam = (seam + data[max(start, end - 3) : end])[-3:]
        self._proceed_to(end)
        self._silent_bytes += end - start
        if self._parse(data if end - start == len(data) else data[start:end]):
            head = self._head_without_upgrade()
            self._parser = self._new_parser()
            self._url = b""
            self._fields = []
            self._parse(head)
        # Bytes that bring no body are kept, or only make work.
        if self._silent_bytes > silent_bytes_max or (self._fields and self._trailers_are_too_long()):
            raise self._too_large()

    def _silent_bytes_max(self) -> int:
        """How many bytes may bring neither the end of a head nor a part of a body.

        In a body, bytes before the first trailer may be counted with the trailers, or not, depending on where the
        packets are cut. So there the fields are counted, and this bound matters only for bytes that are not fields.
        """
        return self._limits.header_bytes_max * (1 if self._head is None else 2)

    def _trailers_are_too_long(self) -> bool:
        if self._head is None:
            # The bytes of a head are counted before it is parsed.
            return False
        size = sum(len(name) + len(value) + len(b": \r\n") for name, value in self._fields)
        return size > self._limits.header_bytes_max

    def _proceed_to(self, end: int) -> None:
        """Note that the bytes up to ``end`` are parsed."""
        if end < len(self._data):
            self._parsed = end
        else:
            self.discard()

    def _parse(self, data: bytearray | memoryview | bytes) -> bool:
        """Let httptools parse the data. True if it ends with a head that asks for another protocol. Raises Problem."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return True
        except httptools.HttpParserError as error:
            # The first mistake counts, wherever the packets are cut.
            raise (self._too_large() if self._trailers_are_too_long() else _problem_of(error)) from None
        return False

    def _head_without_upgrade(self) -> bytes:
        """The head that was just parsed, without its request for another protocol.

        A server may ignore that request. Some clients ask for HTTP/2 in every request. httptools stops at the end of
        such a head, and takes the body for the other protocol. Then an empty value would be stored.
        """
        parser = self._parser
        lines = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        for name, value in self._fields:
            if name == b"connection":
                # The field may have other options too, such as the end of the connection.
                value = b", ".join(part for part in value.split(b",") if part.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join(lines) + b"\r\n"

    def _too_large(self) -> Problem:
        limits = self._limits
        if self._head is None and len(self._url) > limits.uri_bytes_max:
            most = limits.uri_bytes_max
            return Problem("uri-too-long", f"the request target is longer than {most} bytes", limit=most)
        most, what = limits.header_bytes_max, "bytes"
        if len(self._fields) > limits.headers_max:
            most, what = limits.headers_max, "fields"
        part = "trailers of the request have" if self._head is not None else "head of the request has"
        return Problem("headers-too-large", f"the {part} more than {most} {what}", limit=most)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer. Nobody reads trailers, but they are counted too.

        The first field too many ends the parsing, because each takes many times its bytes in memory.
        """
        # RFC 9112, 5.1: the spaces around a value are not part of it. httptools leaves those behind it.
        self._fields.append((name.lower(), value.rstrip(b" \t")))
        if len(self._fields) > self._limits.headers_max:
            raise self._too_large()

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._fields
        method = parser.get_method()
        if method == b"CONNECT":
            raise Problem("malformed-request", "the service is not a proxy, so it opens no tunnel")
        if parser.should_upgrade():
            return
        limits = self._limits
        if self._silent_bytes > limits.header_bytes_max:
            raise self._too_large()
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Problem("unsupported-http-version", "this is not an HTTP/1.1 request")
        fields = joined_fields(headers)
        is_repeated = len(fields) < len(headers) and [name for name, _ in headers].count(b"host") > 1
        if version == "1.1" and (b"host" not in fields or is_repeated):
            # RFC 9112, 3.2. A proxy may have used another Host than this service would.
            raise Problem("malformed-request", "an HTTP/1.1 request has exactly one Host")
        target = self._url
        self._silent_bytes = 0
        self._url = b""
        self._fields = []
        self._body_left = int(fields[b"content-length"]) if b"content-length" in fields else -1
        authority = None
        if not target.startswith(b"/"):
            parts = httptools.parse_url(target)
            if parts.host is not None:
                authority = _BESIDE_AUTHORITY.sub(b"", target)
            target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        raw_path, _, query = target.partition(b"?")
        if authority is not None:
            # RFC 9112, 3.2.2: if the target names the host, the field is ignored.
            fields[b"host"] = authority
        # An older client may not know chunks.
        is_old = version == "1.0"
        self._head = RequestHead(
            method.decode("ascii"),
            raw_path,
            query,
            fields,
            parser.should_keep_alive() and not is_old,
            not is_old,
        )

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        # There is no head here if it asked for another protocol.
        if self._head is not None:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._head is not None:
            if self._fields:
                if self._trailers_are_too_long():
                    raise self._too_large()
                self._fields = []
            self._silent_bytes = 0
            self.complete = True


def _problem_of(error: Exception) -> Problem:
    """The problem for an error that ended the parsing. Raises ``error`` if it is a fault of the service."""
    problem = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    if isinstance(problem, Problem):
        return problem
    if not isinstance(problem, httptools.HttpParserError):
        raise error
    code = "unsupported-http-version" if str(error) in _OTHER_VERSIONS else "malformed-request"
    return Problem(code, "this is not an HTTP/1.1 request")
