"""Files of points: every row is stored, or reported with its line and how many were stored before it."""

from __future__ import annotations

import codecs
import contextlib
import csv
import datetime
import io
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tracemalloc
import zoneinfo
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import rstore
from rstore.cli import lines
from rstore.cli.lines import BadRow
from rstore.cli.tables import Layout, read_points
from rstore.cli.times import UNITS, time_reader, time_zone
from rstore.core.encodings import Encoding, Value, render_json
from rstore.core.point_rows import Form, render_points
from rstore.core.points import Points, checked

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(params=[7, 64, 2**20])
def block_bytes(request, monkeypatch):
    """Files are cut into pieces of so many bytes, and so within everything that may stand in one."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", request.param)


def layout(time_format=None, unit=None, zone=None, na=(), **given):
    reader = time_reader(time_format, unit, zone and time_zone(zone))
    return Layout(time=reader, integers=time_format is None, missing=frozenset(na), **given)


class Endless:
    """A file of many rows, none of which is kept."""

    def __init__(self, row: bytes, rows: int) -> None:
        self.chunk = row * (2**14 // len(row))
        self.left = rows * len(row) // len(self.chunk)

    def read(self, size):
        self.left -= 1
        return self.chunk if self.left >= 0 else b""


class Read:
    """What is read of a file: its points as pairs of timestamp and JSON text, and the error at the end, or None."""

    def __init__(self, data: bytes, form=Form.CSV, encoding="utf-8", **given):
        self.pairs: list[tuple[int, bytes]] = []
        self.rows = self.skipped = 0
        self.error = None
        line = 0
        try:
            for part in read_points(io.BytesIO(data), form, layout(**given), encoding):
                assert line < part.first <= part.last
                line = part.last
                self.rows += part.rows
                self.skipped += part.skipped
                self.pairs += [(t, text_of(value)) for t, value in part.points]
        except BadRow as error:
            self.error = str(error)

    @property
    def points(self):
        return {t: exactly(text) for t, text in self.pairs}


def text_of(value) -> bytes:
    """The text of what a column of points has for a value."""
    return value.data if isinstance(value, Value) else render_json(value)


def exactly(text):
    """A JSON value in which numbers within arrays and objects keep every digit, as they are stored with their text."""
    value = json.loads(text)
    return value if type(value) in (int, float) else json.loads(text, parse_float=Decimal)


# --- tables of any dialect ---------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
TEXTS = st.one_of(
    st.builds(
        lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
        PLAIN,
        st.booleans(),
        st.sampled_from([None, None, 1]),
    ),
    st.integers(-9, 9).map(str),
    st.floats(-1e6, 1e6).map(str),
    st.sampled_from(["0.12345678901234567890", "[0.12345678901234567890]", "1E5", "12345678901234567890123", " 7 "]),
).filter(lambda text: not any("\ud800" <= character <= "\udfff" or character == "\0" for character in text))
NUMBERS = st.one_of(st.integers(-9, 9).map(str), st.floats(-1e6, 1e6).map(str))
ROWS = st.lists(st.tuples(INT64 | st.integers(0, 20), TEXTS), max_size=12) | st.lists(
    st.tuples(INT64, NUMBERS), max_size=12
)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=6).filter(
    lambda name: name.strip() and not is_json(name)
)


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@st.composite
def dialects(draw):
    quote = draw(st.sampled_from(['"', '"', "'"]))
    doubled = draw(st.booleans())
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE]))
    escape = None if doubled and quoting != csv.QUOTE_NONE else "\\"
    return {
        "delimiter": draw(st.sampled_from([",", ";", "\t", "|", ":", " "])),
        "quotechar": quote,
        "doublequote": doubled,
        "escapechar": escape,
        "quoting": quoting,
        "lineterminator": draw(st.sampled_from(["\n", "\r\n", "\r"])),
    }


def written(rows, dialect, encoding="utf-8", mark=b"") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, **dialect).writerows(rows)
    return mark + file.getvalue().encode(encoding)


def options(dialect):
    return {
        "delimiter": dialect["delimiter"],
        "quote": dialect["quotechar"],
        "escape": dialect["escapechar"],
    }


ENCODINGS = st.sampled_from(
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ]
)


@SLOW
@given(ROWS, dialects(), ENCODINGS, st.none() | st.tuples(NAMES, NAMES), st.booleans())
def test_a_table_of_any_dialect_comes_back(block_bytes, rows, dialect, encoding, header, padded):
    # A quoted text that ends with a space, and text with the escape character, mean something else to some dialects.
    assume(dialect["quoting"] != csv.QUOTE_NONE or not any("\n" in text or "\r" in text for _, text in rows))
    # Before 3.13 Python does not quote the other sort of line end.
    assume(dialect["lineterminator"] != "\r" or not any("\n" in text for _, text in rows))
    table = [[*header]] if header else []
    table += [[f" {t} ", f" {text}"] if padded and dialect["delimiter"] != " " else [t, text] for t, text in rows]
    name, mark = encoding
    read = Read(
        written(table, dialect, name, mark),
        encoding="utf-8" if mark else name,
        header=bool(header),
        **options(dialect),
    )
    assert read.error is None
    assert read.rows == len(rows)
    assert read.points == {t: exactly(text) for t, text in rows}


@SLOW
@given(ROWS.filter(bool), st.none() | st.tuples(NAMES, NAMES), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r"]))
def test_header_and_delimiter_are_found(block_bytes, rows, header, delimiter, end):
    """Or the first line is refused because it is not clear; nothing is guessed."""
    # Before 3.13 Python does not quote the other sort of line end.
    assume(end != "\r" or not any("\n" in text for _, text in rows))
    table = [*([header] if header else []), *rows]
    read = Read(written(table, {"delimiter": delimiter, "lineterminator": end}))
    if read.error is None:
        assert read.points == {t: exactly(text) for t, text in rows}
        assert read.rows == len(rows)
    else:
        assert "line 1: " in read.error
        assert "--delimiter" in read.error or (header and re.match(r"[+-]?\.?[0-9]", header[0].strip()))
        assert read.rows == 0


@SLOW
@given(
    st.lists(st.lists(TEXTS, min_size=3, max_size=3), min_size=1, max_size=6),
    st.permutations(["time", "first", "second", "third"]),
    st.booleans(),
)
def test_columns_are_chosen_by_name_and_by_number(block_bytes, values, order, by_name):
    rows = [dict(zip(["first", "second", "third"], row, strict=True)) | {"time": t} for t, row in enumerate(values)]
    table = [order, *([row[name] for name in order] for row in rows)]

    def column(name):
        return name if by_name else str(order.index(name) + 1)

    data = written(table, {})
    for chosen in ("first", "third"):
        read = Read(data, time_column=column("time"), value_column=column(chosen), header=True)
        assert read.error is None
        assert read.points == {t: exactly(row[chosen]) for t, row in enumerate(rows)}
    assert "--column" in Read(data, time_column=column("time"), header=True).error


@SLOW
@given(st.lists(st.tuples(st.integers(0, 99), NUMBERS | st.sampled_from(["NA", "", "-999", "nan"])), max_size=12))
def test_rows_without_a_value_are_skipped_and_counted(block_bytes, rows):
    missing = {"NA", "", "-999"}
    read = Read(written([("t", "v"), *rows], {}), na=missing)
    before = list(itertools.takewhile(lambda row: row[1] != "nan", rows))
    assert read.skipped == sum(text in missing for _, text in before)
    assert read.points == {t: exactly(text) for t, text in before if text not in missing}
    assert (read.error is None) == (before == rows)
    if read.error:
        assert read.error.startswith(f"line {len(before) + 2}: ")


@SLOW
@given(ROWS, st.binary(max_size=3), st.integers(0, 400), st.booleans())
@example([(0, "1"), (1, "2")], b"\n", 3, False)
@example([(0, "0")], b"\v", 2, False)
def test_a_damaged_table_loses_no_row(block_bytes, rows, inserted, at, cut):
    """Whatever is in the file: as many rows as there are records, or an error that says from which line on."""
    data = written(rows, {})
    at %= len(data) + 1
    damaged = data[:at] + inserted + data[at + cut :]
    read = Read(damaged, header=False, delimiter=",")
    if read.error is None:
        text = damaged.removeprefix(codecs.BOM_UTF8).decode()
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        records = [record for record in reader if "".join(record).strip()]
        assert read.rows == len(records)
        # Python knows more blanks than JSON does.
        assert read.points == {int(t): exactly(value.strip()) for t, value, *_ in records}
    else:
        line = int(re.match(r"line (\d+): ", read.error)[1])
        # What is before it is there.
        whole = damaged.splitlines(keepends=True)
        assert 1 <= line <= len(whole) + 1
        again = Read(b"".join(whole[: line - 1]), header=False, delimiter=",")
        # The error for bytes that Python cannot decode names their own line, not that of the record.
        assert again.error is None or "does not end" in again.error
        assert (again.rows, again.points) == (read.rows, read.points)


# --- the rule for headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "is_header"),
    [
        ("0,12.8", False),
        ('"0","12.8"', False),
        ("  0 ,  12.8  ", False),
        ("-5,1", False),
        ('0,"""text"""', False),
        ("time,degrees", True),
        ('"time","degrees"', True),
        (" time , degrees ", True),
        ("timestamp,value", True),
        ("t,v,", True),
        # A row whose time is wrong, rather than a header.
        ("x,1", None),
        ("1.5,1", None),
        ("007,1", None),
        ("2024-01-01,5", None),
        ('x,"""text"""', None),
        ("x,null", None),
        ("x,", None),
        ("x", None),
        ("0 1", None),
        # Nor is a row a header in which both are wrong.
        ("1.5,nan", None),
        ("2024-01-01,2.5.3", None),
        ("-.5,x", None),
        ("٣,x", True),
        ("", False),
    ],
)
def test_the_first_record_is_a_header_if_its_time_is_not_an_integer(block_bytes, first, is_header):
    data = f"{first}\n7,8\n".encode()
    read = Read(data)
    if is_header is None:
        assert read.error.startswith("line 1: ")
        assert read.pairs == []
        if "," in first:
            assert "--header" in read.error
            assert Read(data, header=True).points == {7: 8}
    else:
        assert read.error is None
        assert read.rows == (1 if is_header or not first else 2)
    if is_header is not True and first and "," in first:
        without = Read(data, header=False)
        assert (without.error is None) == (is_header is False)


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"0,1\n1,2,3\n", 2, "--column"),
        (b"0,1\n1\n", 2, "no value"),
        (b"0,1\n1,\n", 2, "--na"),
        (b"0,1\n\n\nx,2\n", 4, "not an integer"),
        (b"0,1\n1,hello\n", 2, "not valid JSON"),
        (b"0,1\n1,NaN\n", 2, "not valid JSON"),
        (b"0,1\n1,1e400\n", 2, "out of range"),
        (b"0,1\n1,1e-400\n", 2, "nearer to 0"),
        (b"0,1\n9223372036854775808,1\n", 2, "64-bit"),
        (b't,v\n0,"{""a"":\n1}"\n1,x\n', 4, "not valid JSON"),
        (b'0,1\n1,"2\n3,4\n', 2, "does not end"),
        (b'"t,v\n0,1\n', 1, "does not end"),
        (b'0,1\n1,"2"3\n', 2, "quote"),
        (b"0,1\n1,\xff\n", 2, "--encoding"),
        (b"0,1\n1,2\0\n", 2, "UTF-16"),
        ("0,1\n1,2\n".encode("utf-16-le"), 1, "UTF-16"),
        (b"t,v\n0,1\n1;2\n", 3, "not an integer"),
        (b"t;v\n0;2,5\n", 2, "not valid JSON"),
        (b"0;2,5\n", 1, "--delimiter"),
        (b"a,b,c\n0,1,2\n", 1, "--column"),
        (b"timestamp,value,encoding\n0,1,\n1,AA=,bytes\n", 3, "base64"),
        (b"timestamp,value,encoding\n0,1,\n1,AAA=,other\n", 3, "encoding"),
        (b"timestamp,value,encoding\n0,1,\n1,AAA=,bytes,more\n", 3, "4 fields"),
        (b'0,1\n1,"2,""sealed"""\n', 2, "not valid JSON"),
    ],
)
def test_an_error_names_the_line(block_bytes, data, line, reason):
    read = Read(data)
    assert read.error.startswith(f"line {line}: ")
    assert reason in read.error
    assert read.rows == (1 if data.startswith((b"0,1\n", b"timestamp", b"t,v")) and line > 1 else 0)


# --- what the service writes -------------------------------------------------------------------------------

VALUES = st.one_of(
    PLAIN.map(lambda value: Value(Encoding.JSON, json.dumps(value).encode())),
    st.binary(max_size=8).map(lambda data: Value(Encoding.BYTES, data)),
    st.binary(max_size=8).map(lambda data: Value(Encoding.SEALED, data)),
)


@SLOW
@given(st.lists(st.tuples(INT64, VALUES), min_size=1, max_size=8), st.sampled_from([Form.CSV, Form.NDJSON, Form.JSON]))
def test_what_the_service_writes_is_read(block_bytes, pairs, form):
    points = checked(Points.from_values(pairs))
    body = form.opening + render_points(points, form) + form.closing
    found = list(itertools.chain.from_iterable(part.points for part in read_points(io.BytesIO(body), form, layout())))
    assert [(t, text_of(value)) for t, value in found] == [(t, text_of(value)) for t, value in points]


@SLOW
@given(ROWS, ENCODINGS, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.sampled_from([Form.NDJSON, Form.JSON]))
def test_json_in_any_encoding_and_with_any_line_ends(block_bytes, rows, encoding, end, as_object, form):
    rows = [(t, text.replace("\n", "")) for t, text in rows]
    arrays = [f"[{t},{text}]" for t, text in rows]
    if form is Form.NDJSON:
        text = end.join(["", *arrays, "", ""])
    else:
        text = ("{%s}" if as_object else "%s") % ('"points":' * as_object + "[" + f",{end}".join(arrays) + "]")
    name, mark = encoding
    read = Read(mark + text.encode(name), form, "utf-8" if mark else name)
    assert read.error is None
    assert read.rows == len(rows)
    assert read.points == {t: exactly(value) for t, value in rows}


@pytest.mark.parametrize(
    ("data", "form", "error"),
    [
        (b"[1,2]\n[2]\n", Form.NDJSON, "line 2: "),
        (b"[1,2]\n\n[2,3][3,4]\n", Form.NDJSON, "line 3: each line holds one array"),
        (b"[1,2]\n[2,\n3]\n", Form.NDJSON, "line 2: "),
        (b"[1,2]\n1,2\n", Form.NDJSON, "line 2: "),
        (b"[1,2]\n[1,1e400]\n", Form.NDJSON, "line 2: "),
        (b"[1,2]\n[1,\xff]\n", Form.NDJSON, "line 2: "),
        ("[1,2]\n".encode("utf-16-le"), Form.NDJSON, "line 1: there is a NUL"),
        (b"[[1,2],[2]]", Form.JSON, "point 2: "),
        (b'{"points":[[1,2],[2,1e-400]]}', Form.JSON, "point 2: "),
        (b'{"points":[[1,2]]', Form.JSON, "point 1: not JSON"),
        (b'{"points":[[1,2]],"points":[[2,3]]}', Form.JSON, "point 1: not JSON"),
        (b'{"points":[[1,2]],"other":[]}', Form.JSON, "point 1: not JSON"),
        (b"", Form.JSON, "point 1: not JSON"),
    ],
)
def test_json_that_is_wrong_is_reported(block_bytes, data, form, error):
    read = Read(data, form)
    assert read.error.startswith(error)
    assert read.points == ({} if form is Form.JSON or "line 1" in error else {1: 2})


# --- times -------------------------------------------------------------------------------------------------

# Python writes years before 1000 with fewer digits than it reads.
MOMENTS = st.datetimes(timezones=st.timezones() | st.just(datetime.UTC)).filter(lambda moment: moment.year >= 1000)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def microseconds(moment):
    return (moment - EPOCH) // datetime.timedelta(microseconds=1)


@given(MOMENTS, st.sampled_from(sorted(UNITS)))
def test_a_date_is_the_moment_that_it_names(moment, unit):
    assume(moment.utcoffset().microseconds == 0)
    per_unit = 10 ** (6 - UNITS[unit]) if UNITS[unit] < 6 else 1
    count = microseconds(moment)
    read = time_reader("iso", unit, None)
    if count % per_unit:
        with pytest.raises(ValueError, match="finer --unit"):
            read(moment.isoformat())
    else:
        assert read(moment.isoformat()) == count * 10 ** max(UNITS[unit] - 6, 0) // per_unit
        form = "%Y-%m-%dT%H:%M:%S.%f%z"
        assert time_reader(form, unit, None)(moment.strftime(form)) == read(moment.isoformat())


@given(st.integers(-(10**20), 10**20), st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)))
def test_a_number_since_1970_is_exact(count, written_in, unit):
    """Written in one unit, with a fraction if it takes one, it is the same moment in another."""
    places = UNITS[unit] - UNITS[written_in]
    text = str(Decimal(count).scaleb(-places)) if places > 0 else str(count * 10**-places)
    assert time_reader(written_in, unit, None)(text) == count


@pytest.mark.parametrize(
    ("form", "unit", "zone", "text", "expected"),
    [
        ("iso", None, None, "1970-01-01T00:00:00Z", 0),
        ("iso", "ns", None, "1970-01-01T00:00:00.123456789Z", 123456789),
        ("iso", "ns", None, "1969-12-31T23:59:59.999999999Z", -1),
        ("iso", "ms", None, "1970-01-01T00:00:00,250+00:00", 250),
        ("iso", None, None, "1970-01-01T01:00:00+01:00", 0),
        ("iso", None, "UTC", "1970-01-02", 86400),
        ("iso", None, "Europe/Berlin", "2024-07-01 00:00", 1719784800),
        ("iso", None, "+02:00", "2024-07-01 00:00", 1719784800),
        ("iso", None, "UTC", "2024-07-01T00:00+02:00", 1719784800),
        ("%d.%m.%Y %H:%M", None, "UTC", "02.01.1970 00:00", 86400),
        ("%Y-%m-%d %H:%M:%S.%f", "us", "UTC", "1970-01-01 00:00:00.000001", 1),
        ("s", None, None, "1700000000", 1700000000),
        ("s", None, None, "1700000000.0", 1700000000),
        ("s", None, None, "1.7e9", 1700000000),
        ("s", "ms", None, "-0.5", -500),
        ("ns", "s", None, "1700000000000000000", 1700000000),
        ("iso", None, None, "1970-01-01T00:00:00", "--time-zone"),
        ("iso", None, None, "1970-01-01T00:00:00.5Z", "--unit"),
        ("iso", None, "Europe/Berlin", "2024-10-27 02:30", "comes twice"),
        ("iso", None, "Europe/Berlin", "2024-03-31 02:30", "never"),
        ("iso", None, None, "31.12.2024", "ISO 8601"),
        ("iso", None, None, "2024-02-30T00:00Z", "ISO 8601"),
        ("iso", None, None, "", "ISO 8601"),
        ("%d.%m.%Y", None, "UTC", "2024-01-01", "does not match"),
        ("s", None, None, "1700000000.5", "--unit"),
        ("s", None, None, "1e999999999", "out of range"),
        ("s", None, None, "1e-999999999", "--unit"),
        ("s", None, None, "9" * 5000, "out of range"),
        ("s", None, None, "nan", "not a number"),
        ("s", None, None, "1_000", "not a number"),
        (None, None, None, "1.0", "--time-format"),
        (None, None, None, "2024-01-01", "--time-format"),
        (None, None, None, "9" * 5000, int("9" * 25)),
    ],
)
def test_times(form, unit, zone, text, expected):
    read = time_reader(form, unit, zone and time_zone(zone))
    if isinstance(expected, int):
        assert read(text) == expected
    else:
        with pytest.raises(ValueError, match=re.escape(expected)):
            read(text)


@given(st.text(max_size=12), st.sampled_from([None, "iso", "s", "ns", "%Y-%m-%d"]))
def test_any_text_is_a_time_or_is_refused(text, form):
    try:
        assert type(time_reader(form, None, datetime.UTC)(text)) is int
    except ValueError as error:
        assert str(error).startswith("the time ")  # noqa: PT017


@pytest.mark.parametrize(
    "form",
    [
        *["foo", "%H:%M", "%%Y", "", "ISO", "%Y %Y", "%Y %Q", "%Y %", "%Y %-d", "%Y %Z", "%Y %U", "%Y %W"],
        *["%Y %I:%M", "%Y %H:%M %p", "%Y\0%"],
    ],
)
def test_a_format_that_says_no_time_is_refused(form):
    with pytest.raises(ValueError):
        time_reader(form, None, None)


DIRECTIVES = [f"%{letter}" for letter in "aAwbBjyHIpMSfzZUWXGuV%"]


@given(
    st.lists(st.sampled_from(DIRECTIVES), max_size=8, unique=True).map(lambda found: " ".join(["%Y-%m-%d", *found])),
    st.integers(0, 2**31).map(lambda seconds: datetime.datetime.fromtimestamp(seconds, datetime.UTC)),
    st.sampled_from(["UTC", "Asia/Tokyo"]),
)
@example("%Y-%m-%d %I:%M", datetime.datetime(2024, 1, 1, 13, tzinfo=datetime.UTC), "UTC")
@example("%Y-%m-%d %H:%M %Z", datetime.datetime(2024, 1, 1, 13, tzinfo=datetime.UTC), "Asia/Tokyo")
def test_a_format_reads_what_is_written_in_it_or_is_refused(form, moment, zone):
    """What it reads, written again in the same format, is the same text: nothing of it was passed over."""
    try:
        read = time_reader(form, "us", time_zone(zone))
    except ValueError:
        return
    text = moment.strftime(form)
    try:
        found = EPOCH + datetime.timedelta(microseconds=read(text))
    except ValueError:
        return
    local = found if "%z" in form else found.astimezone(zoneinfo.ZoneInfo(zone))
    assert local.strftime(form) == text


@given(st.text(max_size=12), st.sampled_from(["", "%Y", "%Y-%m-%d"]))
def test_any_text_is_a_format_or_is_refused(text, begin):
    try:
        read = time_reader(begin + text, None, datetime.UTC)
    except ValueError:
        return
    with contextlib.suppress(ValueError):
        assert type(read("2024-01-01")) is int


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "+25:00", "+x", "../etc/passwd", "-", "/etc/localtime"])
def test_a_zone_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="time zone"):
        time_zone(name)


@given(st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]), st.datetimes())
def test_no_two_local_times_become_one_moment(name, local):
    """Of an hour that comes twice neither is taken for the other."""
    read = time_reader("iso", "us", time_zone(name))
    try:
        moment = read(local.isoformat())
    except ValueError:
        return
    back = (EPOCH + datetime.timedelta(microseconds=moment)).astimezone(zoneinfo.ZoneInfo(name))
    assert back.replace(tzinfo=None, fold=0) == local


# --- the command -------------------------------------------------------------------------------------------


def test_each_option_reaches_the_reader(run, tmp_path):
    def points(name, data, *options):
        run("ts", "remove", "s")
        file = tmp_path / name
        file.write_bytes(data)
        done = run("ts", "extend", "s", file, *options)
        assert done.code == 0, done.err
        return run("ts", "range", "s").json

    assert points("F.CSV", b"0,1\n") == [[0, 1]]
    assert points("f.Tsv", b'0\t"[1,2]"\n') == [[0, [1, 2]]]
    assert points("f.jsonl", b"[0,1]\n") == [[0, 1]]
    assert points("F.Json", b'{"points":[[0,1]]}') == [[0, 1]]
    assert points("f.txt", b"0,1\n", "--csv") == [[0, 1]]
    assert points("f.csv", b"[0,1]\n", "--ndjson") == [[0, 1]]
    assert points("f", b"[[0,1]]", "--json") == [[0, 1]]
    assert points("f.csv", "t,é\n0,1\n".encode("latin-1"), "--encoding", "latin-1") == [[0, 1]]
    assert points("f.csv", b"x,1\n0,2\n", "--header") == [[0, 2]]
    assert points("f.csv", b"0,1\n", "--no-header") == [[0, 1]]
    assert points("f.csv", b"a,b,c\n0,1,2\n", "--column", "c") == [[0, 2]]
    assert points("f.csv", b"7,0,2\n", "--column", "3", "--time-column", "2") == [[0, 2]]
    assert points("f.csv", b"0,NA\n1,\n2,-1\n3,3\n", "--na", "NA", "--na", "", "--na", "-1") == [[3, 3]]
    assert points("f.csv", b"0|1\n", "--delimiter", "|") == [[0, 1]]
    assert points("f.csv", b"0 1\n", "--delimiter", "space") == [[0, 1]]
    assert points("f.csv", b"0;[1,2]\n", "--delimiter", ";") == [[0, [1, 2]]]
    assert points("f.csv", b"0,'[1,2]'\n", "--quote", "'") == [[0, [1, 2]]]
    assert points("f.csv", b"0,[1\\,2]\n", "--escape", "\\") == [[0, [1, 2]]]
    assert points("f.csv", b"1970-01-01T00:00:01.5Z,1\n", "--time-format", "iso", "--unit", "ms") == [[1500, 1]]
    zone = ("--time-zone", "+01:00")
    assert points("f.csv", b"02.01.1970,1\n", "--time-format", "%d.%m.%Y", *zone) == [[82800, 1]]
    assert points("f.csv", b"1.5,1\n", "--time-format", "s", "--unit", "us") == [[1500000, 1]]


def test_what_is_counted(run):
    data = b"t,v\n0,1\n1,NA\n0,2\n2,NA\n"
    assert run("ts", "extend", "s", "--csv", "--na", "NA", stdin=data).out == (
        '{"points": 1, "replaced": 1, "skipped": 2}\n'
    )
    assert run("ts", "extend", "s", stdin=b"").out == '{"points": 0}\n'
    bad = run("ts", "extend", "s", "--csv", "--na", "NA", stdin=data + b"x,1\n")
    assert (bad.code, bad.out) == (1, "")
    assert bad.err == ("rstore: line 6: the time is not an integer. Points stored before: 1, rows skipped: 2\n")


@pytest.mark.parametrize(
    "options",
    [
        ["--csv", "--json"],
        ["--delimiter", "ab", "--csv"],
        ["--delimiter", "", "--csv"],
        ["--delimiter", '"', "--csv"],
        ["--quote", ",", "--delimiter", ",", "--csv"],
        ["--column", "0", "--csv"],
        ["--column", "", "--csv"],
        ["--column", "name", "--no-header", "--csv"],
        ["--time-format", "nothing", "--csv"],
        ["--time-format", "%H:%M", "--csv"],
        ["--time-format", "iso", "--time-zone", "Mars", "--csv"],
        ["--time-format", "iso", "--unit", "h", "--csv"],
        ["--unit", "ms", "--csv"],
        ["--time-zone", "UTC", "--csv"],
        ["--encoding", "base64"],
        ["--encoding", "nothing"],
        ["--header"],
        ["--no-header", "--json"],
        ["--na", "", "--ndjson"],
        ["--column", "a"],
        ["--quote", "'"],
        ["--time-format", "iso", "--json"],
        ["unknown.txt"],
        ["unknown"],
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(run, options):
    done = run("ts", "extend", "s", *options, stdin=b"0,1\n")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert run("-n", "refused", "ts", "extend", "s", *options).code == 2
    assert "refused" not in run("ns", "list").json


def good_row(t, text):
    return "good", [t, text], exactly(text)


BAD_TIMES = ["x", "1.5", "", "9223372036854775808", "-9223372036854775809", "1_000", "٣", "2024-01-01", "0x10"]
BAD_VALUES = [
    "hello",
    "NaN",
    "1e400",
    "-1e400",
    "1e-400",
    "[1,",
    "'a'",
    "1 2",
    "1,",
    "1,json",
    '{"a":1,}',
    "9" * 5000,
    "1,5",
]
BAD_ROWS = st.one_of(
    # What is found only when the rows are made points.
    st.tuples(st.sampled_from(["9223372036854775808", "-9223372036854775809"]), NUMBERS).map(list),
    st.tuples(st.sampled_from(BAD_TIMES), TEXTS).map(list),
    st.tuples(INT64, st.sampled_from(BAD_VALUES)).map(list),
    st.tuples(INT64, TEXTS, TEXTS).map(list),
    # Lines as they stand: a quote that is not at an end of a field, text that is not UTF-8, and NUL.
    st.sampled_from([b'5,"1"2', b"5,\xff", b"5,\0"]),
)
SKIPPED = st.sampled_from(["NA", ""]).map(lambda text: ("skipped", [7, text], None))
TABLES = st.one_of(
    st.lists(st.one_of(st.builds(good_row, INT64, TEXTS), SKIPPED, st.just(("blank", [], None))), max_size=12),
    st.lists(st.builds(good_row, INT64, NUMBERS) | SKIPPED, max_size=12),
    st.lists(st.builds(good_row, INT64, NUMBERS), max_size=12),
)


@SLOW
@given(
    TABLES,
    BAD_ROWS | st.none(),
    TABLES,
    st.none() | st.just(["t", "v"]),
    st.sampled_from([True, False]),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE)]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from([7, 64, 2**20]),
)
@example(
    *([good_row(1, "1")], ["9223372036854775808", "1"], [("skipped", [7, "NA"], None)], None, False),
    *(",", "\n", ("utf-8", b""), csv.QUOTE_MINIMAL, 2**20),
)
def test_every_row_is_stored_or_reported(
    run, before, bad, after, header, stated, delimiter, end, encoding, quoting, block_bytes
):
    """The service has the rows before the first wrong one. The error names its line, and how many are before it."""
    if isinstance(bad, bytes):
        assume(encoding[0] == "utf-8" or b"\xff" not in bad)
        bad = bad.replace(b",", delimiter.encode())

    def text_of_rows(rows):
        file = io.StringIO(newline="")
        quoted: Any
        for row in rows:
            # Before 3.13 Python does not quote the other sort of line end.
            quoted = csv.QUOTE_ALL if "\n" in "".join(map(str, row)) else quoting
            csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoted).writerow(row)
        return file.getvalue()

    start = text_of_rows([*([header] if header else []), *(row for _, row, _ in before)])
    rest = text_of_rows(row for _, row, _ in after)
    name, mark = encoding
    if isinstance(bad, bytes):
        middle = (bad + end.encode()).decode("utf-8", "surrogateescape").encode(name, "surrogateescape")
    else:
        middle = (text_of_rows([bad]) if bad else "").encode(name)
    data = mark + start.encode(name) + middle + (rest.encode(name) if bad else b"")
    run("ts", "remove", "s")
    options = ["--delimiter", delimiter, "--na", "NA", "--na", ""]
    options += [("--header" if header else "--no-header")] if stated else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        done = run("ts", "extend", "s", "--csv", *options, stdin=data)
    stored = dict(map(exact_row, run("ts", "range", "s").out.splitlines()))
    good = [(row[0], value) for kind, row, value in before if kind == "good"]
    skipped = [row for kind, row, _ in before if kind == "skipped"]
    assert stored == dict(good)
    if bad is None:
        assert done.code == 0, done.err
        counted = json.loads(done.out)
        assert counted["points"] + counted.get("replaced", 0) == len(good)
        assert counted.get("skipped", 0) == len(skipped)
    else:
        assert (done.code, done.out) == (1, "")
        line = len(start.encode().splitlines()) + 1
        told = re.fullmatch(
            r"rstore: line (\d+): .*\. Points stored before: ([\d,]+)(?:, rows skipped: (\d+))?\n", done.err
        )
        assert told, done.err
        assert int(told[1]) == line
        assert len(dict(good)) <= int(told[2]) <= len(good)
        assert int(told[3] or 0) == len(skipped)


def exact_row(line):
    t, value = json.loads(line, parse_float=Decimal)
    return t, float(value) if isinstance(value, Decimal) else value


def test_a_file_that_cannot_be_read(run, tmp_path):
    for name, reason in (("nowhere.csv", "No such file"), ("folder.csv", "Is a directory")):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        done = run("ts", "extend", "s", tmp_path / name)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"rstore: cannot read {tmp_path / name}: {reason}")


@pytest.mark.parametrize("sealed", [False, True])
def test_values_keep_their_text_and_numbers_their_form(run, service_url, namespace, sealed):
    """As the route stores them; sealed, the same text is what is sealed."""
    key = ["--key", rstore.generate_key()] if sealed else []
    long = "[0.12345678901234567890]"
    data = f'0,"{long}"\n1,12345678901234567890123\n2,1.10\n3,"""é"""\n'.encode()
    assert run(*key, "ts", "extend", "s", "--csv", stdin=data).json == [{"points": 4}]
    shown = run(*key, "ts", "range", "s").out
    assert shown == f'[0, {long}]\n[1, 12345678901234567890123]\n[2, 1.1]\n[3, "é"]\n'
    if not sealed:
        rows = f'[0,{long}]\n[1,12345678901234567890123]\n[2,1.10]\n[3,"é"]\n'.encode()
        url = f"{service_url}/ns/{namespace}/ts"
        httpx2.post(f"{url}/rest/range", content=rows, headers={"Content-Type": "application/x-ndjson"})
        assert httpx2.get(f"{url}/s/range").content == httpx2.get(f"{url}/rest/range").content


def test_what_is_sealed_is_imported_without_a_key(run, service_url, namespace):
    key = rstore.generate_key()
    run("--key", key, "ts", "extend", "s", stdin=b"[1,2]\n")
    url = f"{service_url}/ns/{namespace}/ts/s/range"
    rows = httpx2.get(url, headers={"Accept": "application/x-ndjson"}).content
    run("ts", "remove", "s")
    refused = run("--key", key, "ts", "extend", "s", stdin=rows)
    assert (refused.code, "sealed already" in refused.err) == (1, True)
    assert run("ts", "extend", "s", stdin=rows).json == [{"points": 1}]
    assert run("--key", key, "ts", "range", "s").json == [[1, 2]]


def test_a_service_that_takes_fewer_points_at_a_time_gets_fewer(run, serve, tmp_path):
    service = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"points_per_call_max": 100})
    data = b"".join(b"%d,%d\n" % (t, t) for t in range(1_000))
    assert run("--url", service.url, "ts", "extend", "s", "--csv", stdin=data).json == [{"points": 1_000}]
    assert len(run("--url", service.url, "ts", "range", "s").json) == 1_000


def test_a_value_that_the_service_does_not_take(run, serve, tmp_path, monkeypatch):
    service = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"value_bytes_max": 100})
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    data = b"".join(b"%d,%d\n" % (t, t) for t in range(100)) + b'100,"""' + b"x" * 200 + b'"""\n'
    done = run("--url", service.url, "ts", "extend", "s", "--csv", stdin=data)
    assert done.code == 1
    first, stored = re.match(r"rstore: lines (\d+) to 101: .* Points stored before: (\d+)\n", done.err).groups()
    assert int(first) - 1 == int(stored) == len(run("--url", service.url, "ts", "range", "s").json)


def test_ctrl_c_says_how_many_are_stored(service_url, namespace):
    command = [sys.executable, "-m", "rstore", "--url", service_url, "-n", namespace, "ts", "extend", "s", "--csv"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    rows = b"".join(b"%d,1\n" % t for t in range(400_000))
    process.stdin.write(rows)
    process.stdin.flush()
    with rstore.Store(service_url, namespace, frozen=False) as store:
        while store.last("s") is None:
            pass
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGINT
    told = int(re.fullmatch(r"rstore: interrupted\. Points stored before: ([\d,]+)\n", error)[1].replace(",", ""))
    with rstore.Store(service_url, namespace) as store:
        assert len(store.range("s")) >= int(told) > 0


@pytest.mark.parametrize("piped", [False, True])
def test_progress_is_shown_on_a_terminal(service_url, namespace, tmp_path, piped):
    file = tmp_path / "points.csv"
    file.write_bytes(b"".join(b"%d,%d\n" % (t, t) for t in range(300_000)))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rstore", "--url", service_url, "-n", namespace, "ts", "extend", "s", "--csv"]
    with file.open("rb") as rows:
        feeder = subprocess.Popen(["cat"], stdin=rows, stdout=subprocess.PIPE) if piped else None
        process = subprocess.Popen(
            command,
            stdin=feeder.stdout if feeder else rows,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        shown = b""
        while chunk := read_terminal(ours):
            shown += chunk
        out, _ = process.communicate()
        if feeder:
            feeder.wait()
            feeder.stdout.close()
    os.close(ours)
    assert json.loads(out) == {"points": 300_000}
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode()
    assert "bytes" in text
    assert ("%" in text) == (not piped)


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Nobody writes to it any more.
        return b""


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (b"1700000000,20.25\n", Form.CSV),
        (b'1,"20.25"\n', Form.CSV),
        (b"[1,2]\n", Form.NDJSON),
        (b'[1,"x"]\n', Form.NDJSON),
    ],
)
def test_a_long_file_takes_as_much_memory_as_a_piece_of_it(row, form, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 2**14)
    peaks = []
    for size in (2**17, 2**21):
        file = Endless(row, size // len(row))
        tracemalloc.start()
        try:
            rows = sum(part.rows for part in read_points(file, form, layout()))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert rows > 0.9 * size // len(row)
    assert peaks[1] < peaks[0] + 2**20
