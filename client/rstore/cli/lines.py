"""Lines of files: it reads text in any encoding, as UTF-8, in blocks that end where a line ends."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

BLOCK_BYTES: Final = 2**20
"""How many bytes of a file are read, and their points sent, at a time, more or less."""

LINE_BYTES_MAX: Final = 64 * 2**20

_BYTE_ORDER_MARKS: Final = (
    # The mark of UTF-32 begins like that of UTF-16, so it comes first.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class BadRow(Exception):
    """A row that is not a point. The message names the line on which it begins."""

    def __init__(self, number: int, reason: str, noun: str = "line") -> None:
        super().__init__(f"{noun} {number}: {reason}")


class Readable(Protocol):
    """A file."""

    def read(self, size: int, /) -> bytes: ...


def as_utf8(file: Readable, encoding: str) -> Iterator[bytes]:
    """The text of a file, as UTF-8 without a byte order mark."""
    chunk = file.read(BLOCK_BYTES)
    while 0 < len(chunk) < 4 and (more := file.read(BLOCK_BYTES)):
        chunk += more
    encoding = codecs.lookup(encoding).name
    for mark, marked in _BYTE_ORDER_MARKS:
        if chunk.startswith(mark):
            chunk, encoding = chunk[len(mark) :], marked
            break
    decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
    lines = 0
    while chunk:
        if decoder is None:
            yield chunk
        else:
            try:
                text = decoder.decode(chunk).encode()
            except UnicodeError:
                raise BadRow(lines + 1, f"from there on some of the text is not {encoding}") from None
            lines += text.count(b"\n")
            yield text
        chunk = file.read(BLOCK_BYTES)
    if decoder is not None:
        try:
            decoder.decode(b"", final=True)
        except UnicodeError:
            raise BadRow(lines + 1, f"the file ends within a character of {encoding}") from None


def lines_together(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end where a line ends: with LF, CRLF or CR."""
    ready = b""
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        # A CR at the very end may be half of a CRLF.
        end = chunk.rfind(b"\n") + 1 or chunk.rfind(b"\r", 0, len(chunk) - 1) + 1
        size += len(chunk)
        if end:
            if ready:
                yield ready
            ready = b"".join([*pending, chunk[:end]])
            pending, size = [chunk[end:]], len(chunk) - end
        else:
            pending.append(chunk)
        if size > LINE_BYTES_MAX:
            raise BadRow(1, f"a line of more than {LINE_BYTES_MAX} bytes; is this a text file?")
    # A last line that does not end stays with the lines before it.
    if last := b"".join([ready, *pending]):
        yield last


def line_text(line: bytes, number: int) -> str:
    """A line as text."""
    if b"\0" in line:
        raise BadRow(number, "there is a NUL; if the file is UTF-16, say so with --encoding")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise BadRow(number, "the text is not UTF-8; say what it is with --encoding") from None
