"""The binary frame that carries points on the wire and in storage. ``docs/points-format.md`` describes it."""

from __future__ import annotations

import enum
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import Final

from rstore.core.columns import all_finite, from_little_endian, is_ascending, little_endian
from rstore.core.encodings import Encoding
from rstore.core.numeric import INT64_MAX
from rstore.core.points import Cells, Column, ColumnKind, InvalidPoints, Points, column_kind, split

_FRAME_VERSION: Final = 1
_FRAME_BYTES_MAX: Final = 64 * 2**20
_STREAM_POINTS: Final = 65_536
_STREAM_BYTES: Final = 2**20
_ENCODING_BYTES: Final = bytes(Encoding)
_HEADER: Final = struct.Struct("<IBBBBI")
_PROGRESSION: Final = struct.Struct("<qq")
_SIZE: Final = struct.Struct("<I")
# The bytes of a point: a timestamp, an encoding, a length, and where the value begins.
_POINT_BYTES: Final = 8 + 1 + 4 + 8


def encode(points: Points) -> bytes:
    """One frame that holds these points. Raises ``OverflowError`` beyond 4 GiB: see :func:`encode_stream`.

    >>> decode(encode(Points.from_pairs([(1, 10), (2, 20)])))[1]
    (2, 20)
    """
    timestamps, values = points.timestamps, points.values
    flags: int = 0
    times = _progression(timestamps)
    if times is None:
        times = little_endian(timestamps)
    else:
        flags |= _Flag.PROGRESSION
    if isinstance(values, Cells):
        body, cell_flags = _encode_cells(values)
        flags |= cell_flags
    else:
        body = little_endian(values)
    length = _HEADER.size - _SIZE.size + len(times) + len(body)
    if length >= 2**32:
        raise OverflowError("the points need a frame of more than 4 GiB")
    return b"".join((_HEADER.pack(length, _FRAME_VERSION, column_kind(values), flags, 0, len(points)), times, body))


def encode_stream(points: Points) -> Iterator[bytes]:
    """Frames of about a mebibyte that together hold these points, in order. No points give no frame."""
    return map(encode, split(points, points_max=_STREAM_POINTS, bytes_max=_STREAM_BYTES))


def count_of(frame: bytes) -> int:
    """The number of points that a whole frame says it holds. The frame is not decoded."""
    _check_header(frame, len(frame))
    return int(_HEADER.unpack_from(frame)[5])


def is_compressed(frame: bytes) -> bool:
    """Whether the values of a whole frame are compressed. Their bytes then have a checksum, which decoding checks."""
    _check_header(frame, len(frame))
    return bool(_HEADER.unpack_from(frame)[3] & _Flag.COMPRESSED)


def decode(frame: bytes, *, bytes_max: int = _FRAME_BYTES_MAX, own: bool = False) -> Points:
    """The points of one whole frame. Raises :class:`InvalidPoints` if the bytes are not exactly one frame.

    It trusts nothing in the frame: it checks sizes before it takes memory, and decompresses at most ``bytes_max``
    bytes. It does not parse JSON cells: see :func:`checked`. ``own`` is for a frame that the caller has made and kept:
    sizes are checked all the same, but not each timestamp and float.
    """
    _check_header(frame, len(frame))
    _, _, kind, flags, _, count = _HEADER.unpack_from(frame)
    rest = memoryview(frame)[_HEADER.size :]
    times_size = _PROGRESSION.size if flags & _Flag.PROGRESSION else 8 * count
    if len(rest) < times_size:
        raise _malformed("its timestamps are cut off")
    times, body = rest[:times_size], rest[times_size:]
    # The values come first. They bound the count, and a progression of timestamps would not.
    values: Column
    if kind == ColumnKind.CELLS:
        values = _decode_cells(body, count, flags, bytes_max)
    else:
        if len(body) != 8 * count:
            raise _malformed("its values are not as long as its count says")
        values = from_little_endian("d" if kind == ColumnKind.FLOATS else "q", body)
        if kind == ColumnKind.FLOATS and not own and not all_finite(values):
            raise InvalidPoints("a column of floats holds only finite ones; NaN and Infinity are not JSON")
    if flags & _Flag.PROGRESSION:
        return Points(_from_progression(times, count), values)
    timestamps = from_little_endian("q", times)
    if not own and not is_ascending(timestamps):
        raise InvalidPoints("the timestamps of a frame ascend strictly")
    return Points(timestamps, values)


class FrameReader:
    """Reads a stream of frames chunk by chunk, however the chunks are cut.

    ``frame_bytes_max`` bounds one frame, before and after decompression. ``stream_bytes_max``, if given, bounds what
    the values of all frames together decode to. Beyond these the reader raises :class:`InvalidPoints` before it takes
    memory.
    Before the reader decodes a frame, it calls ``before_decoding`` with the number of points and of bytes of their
    columns that the frame says it has. ``before_decoding`` may raise.

    >>> reader = FrameReader()
    >>> frame = encode(Points.from_pairs([(1, 10)]))
    >>> [len(points) for chunk in (frame[:5], frame[5:] + frame) for points in reader.feed(chunk)]
    [1, 1]
    >>> reader.finish()
    """

    def __init__(
        self,
        *,
        frame_bytes_max: int = _FRAME_BYTES_MAX,
        stream_bytes_max: int | None = None,
        before_decoding: Callable[[int, int], None] | None = None,
    ) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._before_decoding = before_decoding
        self._stream_bytes_left = stream_bytes_max
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Points]:
        """The points of each frame that this chunk completes, one by one. The caller must iterate to the end."""
        # A chunk of whole frames, such as a short body, is not copied first.
        buffer: bytes | bytearray = chunk
        if self._buffer:
            self._buffer += chunk
            buffer = self._buffer
        position = 0
        with memoryview(buffer) as view:
            while len(view) - position >= _SIZE.size:
                (length,) = _SIZE.unpack_from(view, position)
                end = position + _SIZE.size + length
                if end - position > self._frame_bytes_max:
                    raise _too_large(f"a frame of more than {self._frame_bytes_max} bytes")
                if len(view) < end:
                    break
                yield self._decode(bytes(view[position:end]))
                position = end
        if buffer is chunk:
            self._buffer += buffer[position:]
        else:
            del self._buffer[:position]

    def finish(self) -> None:
        """Raise :class:`InvalidPoints` if the stream ended inside a frame."""
        if self._buffer:
            raise _malformed("the stream ends inside it")

    def _decode(self, frame: bytes) -> Points:
        bytes_max = self._frame_bytes_max
        if self._before_decoding is not None:
            self._before_decoding(count_of(frame), _decoded_size(frame))
        if self._stream_bytes_left is None:
            return decode(frame, bytes_max=bytes_max)
        points = decode(frame, bytes_max=min(bytes_max, self._stream_bytes_left))
        # Timestamps do not count: they take at most a small multiple of what the values take.
        self._stream_bytes_left -= points.size + (4 * len(points) if isinstance(points.values, Cells) else 0)
        if self._stream_bytes_left < 0:
            raise _too_large("points larger than the limit")
        return points


class _Flag(enum.IntEnum):
    PROGRESSION = 1
    ONE_ENCODING = 2
    COMPRESSED = 4


def _encode_cells(cells: Cells) -> tuple[bytes, int]:
    flags: int = 0
    encodings = cells.encodings
    if encodings and encodings.count(encodings[0]) == len(encodings):
        encodings, flags = encodings[:1], _Flag.ONE_ENCODING
    body = b"".join((encodings, little_endian(array("I", cells.lengths)), cells.data))
    # Ciphertext does not compress, so an attempt would waste time.
    if len(body) >= 64 and not (flags and encodings[0] == Encoding.SEALED):
        compressed = zlib.compress(body, 1)
        if len(compressed) < 0.9 * len(body) and len(body) < 2**32:
            return _SIZE.pack(len(body)) + compressed, flags | _Flag.COMPRESSED
    return body, flags


def _decode_cells(body: memoryview, count: int, flags: int, bytes_max: int) -> Cells:
    if flags & _Flag.COMPRESSED:
        body = memoryview(_decompress(body, bytes_max))
    data_at = (1 if flags & _Flag.ONE_ENCODING else count) + 4 * count
    if len(body) < data_at:
        raise _malformed("its values are cut off")
    encodings = bytes(body[: data_at - 4 * count])
    if encodings.translate(None, _ENCODING_BYTES):
        raise _malformed("a value has an unknown encoding")
    lengths: array[int] = from_little_endian("I", body[data_at - 4 * count : data_at])
    data = bytes(body[data_at:])
    if sum(lengths) != len(data):
        raise _malformed("the lengths of its values do not add up")
    return Cells(encodings * count if flags & _Flag.ONE_ENCODING else encodings, lengths, data)


def _check_header(frame: bytes, size: int) -> None:
    """Raise unless a frame of ``size`` bytes begins with a header that this version reads."""
    if size < _HEADER.size:
        raise _malformed("it is shorter than a header")
    length, version, kind, flags, reserved, _ = _HEADER.unpack_from(frame)
    if version != _FRAME_VERSION:
        raise _malformed(f"its version is {version}; this reads version {_FRAME_VERSION}")
    if length != size - _SIZE.size:
        raise _malformed("its length is not what its header says")
    known = ~0 if kind == ColumnKind.CELLS else _Flag.PROGRESSION
    if kind not in ColumnKind.__members__.values() or reserved or flags > 7 or flags & ~known:
        raise _malformed("it has an unknown kind or flag")


def _decoded_size(frame: bytes) -> int:
    """The number of bytes that the columns of a whole frame say they take. The frame is not decoded."""
    _, _, _, flags, _, count = _HEADER.unpack_from(frame)
    size: int = len(frame)
    if flags & _Flag.COMPRESSED:
        at = _HEADER.size + (_PROGRESSION.size if flags & _Flag.PROGRESSION else 8 * count)
        size = max(size, int.from_bytes(frame[at : at + _SIZE.size], "little"))
    return size + _POINT_BYTES * int(count)


def _decompress(body: memoryview, bytes_max: int) -> bytes:
    if len(body) < _SIZE.size:
        raise _malformed("its values are cut off")
    (size,) = _SIZE.unpack_from(body)
    if size > bytes_max:
        raise _too_large(f"a frame that decompresses to more than {bytes_max} bytes")
    decompressor = zlib.decompressobj()
    try:
        # One byte beyond the promised size shows whether the stream is longer than it says.
        raw = decompressor.decompress(body[_SIZE.size :], size + 1)
    except zlib.error:
        raise _malformed("its values do not decompress") from None
    if len(raw) != size or not decompressor.eof or decompressor.unused_data:
        raise _malformed("its values do not decompress to the size it says")
    return raw


def _progression(timestamps: array[int]) -> bytes | None:
    """First timestamp and stride, if there are three or more timestamps and they are evenly spaced."""
    count = len(timestamps)
    if count < 3:
        return None
    first, last = timestamps[0], timestamps[-1]
    stride = timestamps[1] - first
    if stride * (count - 1) != last - first or timestamps != array("q", range(first, last + 1, stride)):
        return None
    return _PROGRESSION.pack(first, stride)


def _from_progression(times: memoryview, count: int) -> array[int]:
    first, stride = _PROGRESSION.unpack(times)
    if stride < 1 or count < 1 or first + stride * (count - 1) > INT64_MAX:
        raise _malformed("its timestamps do not ascend within int64")
    return array("q", range(first, first + stride * count, stride))


def _malformed(reason: str) -> InvalidPoints:
    return InvalidPoints(f"not a points frame: {reason}", code="malformed-body")


def _too_large(what: str) -> InvalidPoints:
    return InvalidPoints(f"{what} is refused", code="body-too-large")
