"""An envelope opens with its key at its place, and in no other case."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import logging
import os
import pathlib
import pickle
import pprint
import random
import shutil
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pytest
import rich.console
import rich.pretty
import rich.traceback
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from rstore import AsyncStore, Store, sealing
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import StoreDecryptionError, StoreEncodingError, StoreError, StoreRequestError
from rstore.sealing import Context, EventContext, PairContext, PointContext, Sealer, generate_key, pack, unpack
from rstore.sealing.keys import SUBKEYS_CACHED_MAX, SealingKey

VECTORS = pathlib.Path(__file__).parents[2] / "docs" / "sealing-vectors.json"
KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(100, 132))).decode()
SEALER = Sealer(KEY)
# What it seals with.
SEALING_KEY = SealingKey(base64.urlsafe_b64decode(KEY), with_fernet=False)
VALUE = Value(Encoding.JSON, b'{"a":1}')
PAIR = PairContext("default", "a/b")
POINT = PointContext("default", "a/b", 1_700_000_000_000)
EVENT = EventContext("default", "a/b", 1_700_000_000_000, "item", "setitem")
PLACES: list[Context] = [PAIR, POINT, EVENT]
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
int64s = st.integers(-(2**63), 2**63 - 1)
places = st.one_of(
    st.builds(PairContext, names, names),
    st.builds(PointContext, names, names, int64s),
    st.builds(EventContext, names, names, int64s, names, names),
)
stored = st.builds(Value, st.sampled_from([Encoding.JSON, Encoding.BYTES, Encoding.PICKLE]), st.binary(max_size=64))


# --- the published vectors ---------------------------------------------------------------------------------


class Case(NamedTuple):
    """What a vector is made of."""

    key: str
    kind: str
    place: dict[str, str]
    encoding: int
    data: bytes
    nonce: bytes
    apply_id: bytes = b""

    def context(self) -> Context:
        place: dict[str, Any] = dict(self.place)
        if "timestamp" in place:
            place["timestamp"] = int(place["timestamp"])
        return {"kv": PairContext, "ts": PointContext, "es": EventContext}[self.kind](**place)


def place_of(namespace: str, key: str, **more: str) -> dict[str, str]:
    return {"namespace": namespace, "key": key, **more}


CASES = [
    Case(KEY, "kv", place_of("default", "greeting"), 0, b'"hello"', bytes(range(12))),
    Case(KEY, "kv", place_of("team-1", "a/b ä 🙂"), 1, b"\x00\xff", bytes(range(1, 13))),
    Case(KEY, "kv", place_of("default", "empty"), 1, b"", bytes(range(2, 14))),
    Case(KEY, "kv", place_of("default", "set"), 2, pickle.dumps({1}, 5), bytes(range(3, 15))),
    Case(KEY, "ts", place_of("default", "greeting", timestamp="0"), 0, b"21.5", bytes(range(4, 16))),
    Case(KEY, "ts", place_of("default", "t", timestamp=str(-(2**63))), 0, b"-1", bytes(range(5, 17))),
    Case(KEY, "ts", place_of("default", "t", timestamp=str(2**63 - 1)), 0, b"1", bytes(range(6, 18))),
    Case(
        *(OTHER_KEY, "es", place_of("shop", "stock", timestamp="1700000000000", item="äpfel", op="setitem")),
        *(0, b"5", bytes(range(7, 19))),
    ),
    Case(
        *(OTHER_KEY, "es", place_of("shop", "stock", timestamp="1700000000001", item="äpfel", op="add")),
        *(0, b"-2", bytes(range(8, 20))),
    ),
    Case(
        *(OTHER_KEY, "es", place_of("shop", "stock", timestamp="1700000000002", item="äpfel", op="neg")),
        *(0, b"null", bytes(range(9, 21))),
    ),
    Case(
        *(OTHER_KEY, "es", place_of("shop", "stock", timestamp="1700000000003", item="äpfel", op="mul")),
        *(0, b"7", bytes(range(10, 22))),
        apply_id=bytes(range(200, 212)),
    ),
    Case(
        *(OTHER_KEY, "es", place_of("shop", "stock", timestamp="1700000000003", item="birnen", op="setitem")),
        *(2, pickle.dumps((1,), 5), bytes(range(11, 23))),
        apply_id=bytes(range(200, 212)),
    ),
    Case(
        *(OTHER_KEY, "es", place_of("shop", "stock", timestamp="1700000000004", item="birnen", op="delitem")),
        *(0, b"null", bytes(range(12, 24))),
        apply_id=bytes(range(201, 213)),
    ),
]


def vector(case: Case) -> dict[str, Any]:
    """The vector, computed from the words of docs/sealing.md alone."""
    master = base64.urlsafe_b64decode(case.key)

    def derive(info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(master)

    def lp(text: str) -> bytes:
        return struct.pack(">I", len(text.encode())) + text.encode()

    key_id = derive(b"rstore/1/kid")[:8]
    place = case.place
    subkey = derive(b"rstore/1/seal" + lp(place["namespace"]) + lp(case.kind) + lp(place["key"]))
    aad = b"\x01" + key_id
    if case.kind in ("ts", "es"):
        aad += struct.pack(">q", int(place["timestamp"]))
    if case.kind == "es":
        aad += lp(place["item"]) + lp(place["op"])
    plaintext = bytes([case.encoding]) + case.data
    if case.apply_id:
        plaintext = bytes([0x10 + case.encoding]) + case.apply_id + case.data
    envelope = b"\x01" + key_id + case.nonce + AESGCM(subkey).encrypt(case.nonce, plaintext, aad)
    return {
        "master_key": case.key,
        "kind": case.kind,
        **place,
        **({"apply_id": case.apply_id.hex()} if case.apply_id else {}),
        "nonce": case.nonce.hex(),
        "plaintext": plaintext.hex(),
        "key_id": key_id.hex(),
        "subkey": subkey.hex(),
        "aad": aad.hex(),
        "envelope": base64.b64encode(envelope).decode(),
    }


def test_the_published_vectors_are_what_the_page_says() -> None:
    assert json.loads(VECTORS.read_text()) == {"version": 1, "vectors": [vector(case) for case in CASES]}


@pytest.mark.parametrize("case", CASES)
def test_vectors(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    envelope = base64.b64decode(vector(case)["envelope"])
    sealer = Sealer(case.key)
    value = Value(Encoding(case.encoding), case.data)
    context = case.context()
    monkeypatch.setattr(os, "urandom", {len(case.nonce): case.nonce}.__getitem__)
    if isinstance(context, EventContext) and case.apply_id:
        sealed = sealer.seal_event(value, context, case.apply_id)
    else:
        sealed = sealer.seal(value, context)
    assert sealed == (Encoding.SEALED, envelope)
    assert sealer.open(Value(Encoding.SEALED, envelope), context) == value
    if isinstance(context, EventContext):
        opened = sealer.open_event(Value(Encoding.SEALED, envelope), context)
        assert opened == (value, case.apply_id or None)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_web_crypto_opens_the_vectors() -> None:
    script = pathlib.Path(__file__).with_name("open_sealed.mjs")
    result = subprocess.run(["node", script, VECTORS], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr, result.returncode) == (f"{len(CASES)} vectors open\n", "", 0)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_what_web_crypto_seals_opens() -> None:
    script = pathlib.Path(__file__).with_name("seal_values.mjs")
    wanted = [vector(case) for case in CASES]
    result = subprocess.run(
        ["node", script], input=json.dumps(wanted), capture_output=True, text=True, timeout=60, check=True
    )
    envelopes = [base64.b64decode(envelope) for envelope in json.loads(result.stdout)]
    assert len(envelopes) == len(CASES)
    for case, envelope in zip(CASES, envelopes, strict=True):
        value = Value(Encoding(case.encoding), case.data)
        assert envelope[9:21] != case.nonce
        assert Sealer(case.key).open(Value(Encoding.SEALED, envelope), case.context()) == value
        place = case.context()
        if isinstance(place, PointContext):
            opened = Sealer(case.key).open_points(place.namespace, place.key, [place.timestamp], [envelope])
            assert opened == [pack(value)]


# --- nonces and subkeys ------------------------------------------------------------------------------------


def nonces_of(count: int) -> list[bytes]:
    """Nonces as sealing uses them: of values one by one, and of points in bulk."""
    sealed = [SEALER.seal(VALUE, PAIR).data for _ in range(count // 2)]
    sealed += SEALER.seal_points("n", "k", [1] * (count // 2), [b"\0001"] * (count // 2))
    return [envelope[9:21] for envelope in sealed]


def test_nonces_are_unique_and_look_random() -> None:
    nonces = nonces_of(20_000)
    assert len(set(nonces)) == len(nonces)
    # Each bit is set in half of them: 10,000, give or take six standard deviations (of 71) and a bit.
    for bit in range(96):
        ones = sum(nonce[bit // 8] >> bit % 8 & 1 for nonce in nonces)
        assert abs(ones - len(nonces) // 2) < 450, bit
    # No counter: neither half of a nonce grows from one to the next.
    for part in (slice(0, 6), slice(6, 12)):
        rises = sum(a[part] < b[part] for a, b in itertools.pairwise(nonces))
        assert abs(rises - len(nonces) // 2) < 450


def test_nonces_come_from_the_operating_system_and_from_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    asked: list[int] = []
    monkeypatch.setattr(os, "urandom", urandom)
    random.seed(0)
    assert SEALER.seal(VALUE, PAIR).data[9:21] == b"\x01" * 12
    assert SEALER.seal(VALUE, EVENT).data[9:21] == b"\x02" * 12
    assert [e[9:21] for e in SEALER.seal_points("n", "k", [1, 2], [b"\0001"] * 2)] == [b"\x03" * 12] * 2
    assert asked == [12, 12, 24]
    assert base64.urlsafe_b64decode(generate_key()) == b"\x04" * 32


def test_a_forked_process_uses_other_nonces() -> None:
    """A generator with a state of its own would go on alike in both."""
    code = (
        "import os, sys\n"
        "from rstore.sealing import *\n"
        "from rstore.core.encodings import *\n"
        "sealer, place = Sealer(sys.argv[1]), PairContext('n', 'k')\n"
        "sealer.seal(Value(Encoding.JSON, b'1'), place)\n"
        "child = os.fork()\n"
        "made = [sealer.seal(Value(Encoding.JSON, b'1'), place).data.hex() for _ in range(50)]\n"
        "os.write(1, '\\n'.join([*made, '']).encode())\n"
        "child and os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, KEY], capture_output=True, text=True, timeout=60, check=True)
    envelopes = done.stdout.split()
    assert len(envelopes) == 100
    assert len({envelope[18:42] for envelope in envelopes}) == 100


PARTS = ["", "a", "b", "ab", "kv", "ts", "es", "\0", "\0\0\0\1a", "a\0\0\0\2kv", "\0\0\0\2ts", "ä", "a\u0308"]


def test_no_two_places_have_one_subkey() -> None:
    """Nor do names that read the same end to end, or that look like the lengths between them."""
    subkeys = {}
    for place in itertools.product(PARTS, ("kv", "ts", "es"), PARTS):
        namespace, kind, key = place
        info = b"rstore/1/seal" + b"".join(len(t.encode()).to_bytes(4, "big") + t.encode() for t in place)
        subkeys[place] = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(base64.urlsafe_b64decode(KEY))
        # It is the one that the sealer uses.
        sealed = AESGCM(subkeys[place]).encrypt(bytes(12), b"x", None)
        assert SEALING_KEY.cipher(namespace, kind, key).decrypt(bytes(12), sealed, None) == b"x"
    assert len(set(subkeys.values())) == len(PARTS) ** 2 * 3
    key_id = SEALING_KEY.head[1:]
    assert not [subkey for subkey in subkeys.values() if key_id in subkey]


@given(places, places)
def test_no_two_places_authenticate_alike(place: Context, other: Context) -> None:
    whole = [(c.namespace, c.kind, c.key, c.authenticated()) for c in (place, other)]
    assert (whole[0] == whole[1]) == (type(place) is type(other) and place == other)


# --- opening -----------------------------------------------------------------------------------------------


@given(stored, places)
def test_what_was_sealed_opens_at_its_place(value: Value, place: Context) -> None:
    sealed = SEALER.seal(value, place)
    assert sealed.encoding is Encoding.SEALED
    assert len(sealed.data) == 38 + len(value.data)
    assert SEALER.open(sealed, place) == value
    assert Sealer([OTHER_KEY, KEY]).open(sealed, place) == value


@given(places, places)
def test_what_was_sealed_opens_at_no_other_place(place: Context, other: Context) -> None:
    sealed = SEALER.seal(VALUE, place)
    if type(place) is type(other) and place == other:
        assert SEALER.open(sealed, other) == VALUE
    else:
        with pytest.raises(StoreDecryptionError, match="altered, or sealed for another place"):
            SEALER.open(sealed, other)


@pytest.mark.parametrize("place", PLACES)
def test_every_flipped_bit_is_refused(place: Context) -> None:
    envelope = SEALER.seal(VALUE, place).data
    both = Sealer([KEY, OTHER_KEY], accept_fernet=True)
    for bit in range(8 * len(envelope)):
        flipped = bytearray(envelope)
        flipped[bit // 8] ^= 1 << bit % 8
        for sealer in (SEALER, both):
            with pytest.raises(StoreDecryptionError):
                sealer.open(Value(Encoding.SEALED, bytes(flipped)), place)


@pytest.mark.parametrize("place", PLACES)
def test_every_cut_and_every_addition_is_refused(place: Context) -> None:
    envelope = SEALER.seal(VALUE, place).data
    for changed in (*(envelope[:end] for end in range(len(envelope))), envelope + b"\0", b"\0" + envelope):
        with pytest.raises(StoreDecryptionError):
            SEALER.open(Value(Encoding.SEALED, changed), place)


def moves(place: Context) -> list[Context]:
    others: list[dict[str, Any]] = [
        {field: f"{getattr(place, field)}x"} for field in {"namespace", "key", "item", "op"} & {*place._fields}
    ]
    moved: list[Context] = [place._replace(**other) for other in others]
    if not isinstance(place, PairContext):
        moved += [place._replace(timestamp=t) for t in (0, -1, place.timestamp + 1, -(2**63), 2**63 - 1)]
    return moved + [other for other in PLACES if other is not place]


@pytest.mark.parametrize("place", PLACES)
def test_every_move_is_refused(place: Context) -> None:
    sealed = SEALER.seal(VALUE, place)
    assert SEALER.open(sealed, place) == VALUE
    for moved in moves(place):
        with pytest.raises(StoreDecryptionError, match="another place"):
            SEALER.open(sealed, moved)


def test_names_do_not_run_into_each_other() -> None:
    sealed = SEALER.seal(VALUE, EventContext("n", "k", 1, "ab", "c"))
    for other in (EventContext("n", "k", 1, "a", "bc"), EventContext("nk", "", 1, "ab", "c")):
        with pytest.raises(StoreDecryptionError):
            SEALER.open(sealed, other)


@pytest.mark.parametrize("first", [3, 4, 255])
def test_an_unknown_encoding_inside_is_refused(first: int) -> None:
    head, nonce = SEALING_KEY.head, bytes(12)
    cipher = SEALING_KEY.cipher("default", "ts", "a/b")
    for plaintext in (bytes([first]) + b"1", b""):
        envelope = head + nonce + cipher.encrypt(nonce, plaintext, head + POINT.authenticated())
        with pytest.raises(StoreDecryptionError):
            SEALER.open(Value(Encoding.SEALED, envelope), POINT)
        with pytest.raises(StoreDecryptionError):
            SEALER.open_points("default", "a/b", [POINT.timestamp], [envelope])


events = st.builds(EventContext, names, names, int64s, names, names)
apply_ids = st.binary(min_size=12, max_size=12)


@given(stored, events, apply_ids)
def test_an_event_is_sealed_with_the_id_of_its_apply(value: Value, place: EventContext, apply_id: bytes) -> None:
    sealed = SEALER.seal_event(value, place, apply_id)
    assert len(sealed.data) == 50 + len(value.data)
    assert SEALER.open_event(sealed, place) == (value, apply_id)
    assert SEALER.open(sealed, place) == value
    # One from before there were ids has none.
    assert SEALER.open_event(SEALER.seal(value, place), place) == (value, None)
    for other in (place._replace(op=place.op + "x"), PointContext(*place[:3]), PairContext(*place[:2])):
        with pytest.raises(StoreDecryptionError):
            SEALER.open(sealed, other)


def test_ids_of_applies_differ() -> None:
    ids = {sealing.new_apply_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert {len(apply_id) for apply_id in ids} == {12}


@given(st.binary(max_size=16).filter(lambda data: len(data) < 13))
def test_an_apply_id_that_is_cut_short_is_refused(data: bytes) -> None:
    head, nonce = SEALING_KEY.head, bytes(12)
    cipher = SEALING_KEY.cipher("default", "es", "a/b")
    plaintext = b"\x10" + data[1:]
    envelope = head + nonce + cipher.encrypt(nonce, plaintext, head + EVENT.authenticated())
    for use in (SEALER.open, SEALER.open_event, SEALER.reseal):
        with pytest.raises(StoreDecryptionError, match="cut short"):
            use(Value(Encoding.SEALED, envelope), EVENT)


@pytest.mark.parametrize("place", [PAIR, POINT])
def test_nothing_but_an_event_has_an_apply_id(place: Context) -> None:
    head, nonce = SEALING_KEY.head, bytes(12)
    cipher = SEALING_KEY.cipher(place.namespace, place.kind, place.key)
    envelope = head + nonce + cipher.encrypt(nonce, b"\x10" + bytes(12) + b"1", head + place.authenticated())
    for use in (SEALER.open, SEALER.reseal):
        with pytest.raises(StoreDecryptionError, match="not an encoding"):
            use(Value(Encoding.SEALED, envelope), place)


@given(stored, places, apply_ids)
def test_resealing_keeps_all_that_is_in_it(value: Value, place: Context, apply_id: bytes) -> None:
    both, new = Sealer([OTHER_KEY, KEY]), Sealer(OTHER_KEY)
    assert new.open(both.reseal(SEALER.seal(value, place), place), place) == value
    if isinstance(place, EventContext):
        resealed = both.reseal(SEALER.seal_event(value, place, apply_id), place)
        assert new.open_event(resealed, place) == (value, apply_id)
        assert new.open_event(both.reseal(SEALER.seal(value, place), place), place) == (value, None)


@pytest.mark.parametrize("encoding", [Encoding.JSON, Encoding.BYTES, Encoding.PICKLE])
def test_a_value_that_is_not_sealed_is_never_passed_through(encoding: Encoding) -> None:
    for data in (b"1", SEALER.seal(VALUE, PAIR).data):
        with pytest.raises(StoreDecryptionError, match="not sealed"):
            SEALER.open(Value(encoding, data), PAIR)


def test_a_sealed_value_is_not_sealed_again() -> None:
    with pytest.raises(StoreEncodingError, match="sealed already"):
        SEALER.seal(SEALER.seal(VALUE, PAIR), PAIR)


def test_equal_values_have_unequal_envelopes() -> None:
    assert len({SEALER.seal(VALUE, PAIR).data for _ in range(100)}) == 100
    assert len({*SEALER.seal_points("n", "k", [1] * 100, [b"\0001"] * 100)}) == 100


@given(stored)
def test_pack_and_unpack(value: Value) -> None:
    assert unpack(pack(value)) == value


# --- points ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(int64s, stored), max_size=20))
def test_points_in_bulk_are_points_one_by_one(points: list[tuple[int, Value]]) -> None:
    timestamps = [t for t, _ in points]
    plaintexts = [pack(value) for _, value in points]
    sealed = SEALER.seal_points("n", "k", timestamps, plaintexts)
    for (t, value), envelope in zip(points, sealed, strict=True):
        assert SEALER.open(Value(Encoding.SEALED, envelope), PointContext("n", "k", t)) == value
    one_by_one = [SEALER.seal(value, PointContext("n", "k", t)).data for t, value in points]
    for envelopes in (sealed, one_by_one):
        assert SEALER.open_points("n", "k", timestamps, envelopes) == plaintexts


def test_points_under_several_keys_open_together() -> None:
    token = Fernet(KEY).encrypt(pickle.dumps("old"))
    old, new = Sealer(OTHER_KEY), Sealer([KEY, OTHER_KEY], accept_fernet=True)
    first = old.seal_points("n", "k", [1, 2], [b"\0001", b"\0002"])
    second = new.seal_points("n", "k", [3], [b"\0003"])
    opened = new.open_points("n", "k", [1, 3, 4, 2], [first[0], second[0], token, first[1]])
    assert opened == [b"\0001", b"\0003", b"\x02" + pickle.dumps("old"), b"\0002"]


def test_a_bad_point_among_many_is_refused() -> None:
    envelopes = SEALER.seal_points("n", "k", range(10), [b"\0001"] * 10)
    swapped = [envelopes[1], envelopes[0], *envelopes[2:]]
    with pytest.raises(StoreDecryptionError, match="timestamp 0"):
        SEALER.open_points("n", "k", range(10), swapped)
    for place in (("m", "k"), ("n", "l")):
        with pytest.raises(StoreDecryptionError):
            SEALER.open_points(*place, range(10), envelopes)
    for bad in (b"", b"1", envelopes[5][:37], b"\x02" + envelopes[5][1:], Fernet(KEY).encrypt(b"x")):
        with pytest.raises(StoreDecryptionError):
            SEALER.open_points("n", "k", range(10), [*envelopes[:5], bad, *envelopes[6:]])
    envelope = envelopes[5]
    for bit in range(8 * len(envelope)):
        flipped = bytearray(envelope)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreDecryptionError):
            SEALER.open_points("n", "k", [4, 5], [envelopes[4], bytes(flipped)])


@pytest.mark.parametrize("timestamp", [2**63, -(2**63) - 1])
def test_a_timestamp_beyond_int64_is_refused(timestamp: int) -> None:
    for place in (PointContext("n", "k", timestamp), EventContext("n", "k", timestamp, "i", "add")):
        with pytest.raises(StoreRequestError, match="timestamp"):
            SEALER.seal(VALUE, place)
    with pytest.raises(StoreRequestError, match="timestamp"):
        SEALER.seal_points("n", "k", [timestamp], [b"\0001"])
    envelopes = SEALER.seal_points("n", "k", [1], [b"\0001"])
    with pytest.raises(StoreRequestError, match="timestamp"):
        SEALER.open_points("n", "k", [timestamp], envelopes)


# --- keys --------------------------------------------------------------------------------------------------


def test_generated_keys_are_fernet_keys_and_differ() -> None:
    made = {generate_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert len(base64.urlsafe_b64decode(key)) == 32
        Fernet(key)


@pytest.mark.parametrize(
    "keys",
    [KEY, KEY.encode(), [KEY], (KEY.encode(),), Fernet.generate_key(), [KEY, KEY]],
    ids=["text", "bytes", "list", "tuple", "fernet", "repeated"],
)
def test_keys_are_taken_as_text_bytes_or_a_sequence(keys: Any) -> None:
    sealer = Sealer(keys)
    assert sealer.open(sealer.seal(VALUE, PAIR), PAIR) == VALUE


def test_rotation() -> None:
    old = Sealer(OTHER_KEY).seal(VALUE, PAIR)
    rotated = Sealer([KEY, OTHER_KEY])
    assert rotated.open(old, PAIR) == VALUE
    new = rotated.seal(VALUE, PAIR)
    assert Sealer(KEY).open(new, PAIR) == VALUE
    with pytest.raises(StoreDecryptionError, match="not among the given keys") as caught:
        Sealer(KEY).open(old, PAIR)
    assert old.data[1:9].hex() in str(caught.value)
    with pytest.raises(StoreDecryptionError, match="not among"):
        Sealer(OTHER_KEY).open(new, PAIR)


BAD_KEYS = [
    *(
        "",
        "secret",
        KEY[:-1],
        KEY + "A",
        KEY[:-2],
        KEY + "\n",
        " " + KEY,
        "ä" * 44,
        base64.b64encode(b"\xff" * 32).decode(),
    ),
    *(base64.urlsafe_b64encode(bytes(31)).decode(), base64.urlsafe_b64encode(bytes(33)).decode(), bytes(32)),
]


def shown(error: StoreError) -> str:
    """The error with every local variable of the module's own frames, as a crash reporter shows it."""
    exception = traceback.TracebackException.from_exception(error, capture_locals=True)
    room = pathlib.Path(sealing.__file__).parent
    frames = [frame for frame in exception.stack if pathlib.Path(frame.filename).parent == room]
    assert frames
    return f"{error} {[frame.locals for frame in frames]}"


@pytest.mark.parametrize("bad", BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_what_is_not_a_key_is_refused_and_not_shown(bad: str | bytes) -> None:
    for keys, ordinal in ((bad, 1), ([bad], 1), ([KEY, bad], 2)):
        with pytest.raises(StoreError, match=f"key {ordinal} is not a key") as caught:
            Sealer(keys)
        frames = shown(caught.value)
        assert KEY not in frames
        assert len(bad) < 4 or repr(bad) not in frames


def test_there_has_to_be_a_key() -> None:
    with pytest.raises(StoreError, match="empty"):
        Sealer([])
    with pytest.raises(StoreError, match="key 1 is not a key"):
        Sealer([None])
    for array in (numpy.array(1), numpy.array([[1]])):
        with pytest.raises(StoreError, match="key 1 is not a key"):
            Sealer(array)  # type: ignore[arg-type]


def test_a_repr_shows_key_ids_and_no_key() -> None:
    sealer = Sealer([KEY, OTHER_KEY], accept_fernet=True)
    ids = [vector(case)["key_id"] for case in (CASES[0], CASES[-1])]
    assert repr(sealer) == f"Sealer({', '.join(ids)})"
    assert repr(SEALING_KEY) == f"<key {ids[0]}>"
    hidden = [
        form
        for key in (KEY, OTHER_KEY)
        for form in (key, base64.urlsafe_b64decode(key).hex(), repr(base64.urlsafe_b64decode(key)))
    ]
    with pytest.raises(StoreDecryptionError) as caught:
        sealer.open(Value(Encoding.SEALED, sealer.seal(VALUE, PAIR).data[:-1]), PAIR)
    assert not [form for form in hidden if form in shown(caught.value)]


def everything_shown(error: BaseException) -> str:
    """The error as crash reporters show it: with causes, and every variable of every frame; also as rich does."""
    shown = io.StringIO()
    console = rich.console.Console(file=shown, width=500)
    console.print(
        rich.traceback.Traceback.from_exception(
            type(error), error, error.__traceback__, show_locals=True, locals_max_string=1_000, extra_lines=0
        )
    )
    told = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    return "".join(told) + shown.getvalue()


def forms(*keys: str) -> list[str]:
    """How a key could be read in a text."""
    found = []
    for key in keys:
        master = base64.urlsafe_b64decode(key)
        found += [
            key,
            key[:-1],
            master.hex(),
            repr(master)[2:-1],
            str(list(master))[1:-1],
            base64.b64encode(master).decode(),
        ]
    return found


HIDDEN = [generate_key() for _ in range(2)]
TOKEN = generate_key()[:20]
FAILURES: dict[str, Callable[[], object]] = {
    "no key": lambda: Sealer([*HIDDEN, "bad"]),
    "a store's key": lambda: Store("http://127.0.0.1:1", key=[*HIDDEN, "bad"], token=TOKEN),
    "a key too long": lambda: Store("http://127.0.0.1:1", key=HIDDEN[0] + HIDDEN[1], token=TOKEN),
    "a dsn": lambda: Store("ftp://127.0.0.1", key=HIDDEN, token=TOKEN),
    "a namespace": lambda: Store("http://127.0.0.1:1", "a b", HIDDEN[0], token=TOKEN),
    "a timeout": lambda: Store("http://127.0.0.1:1", key=HIDDEN, token=TOKEN, timeout=-1),
    "a policy": lambda: Store("http://127.0.0.1:1", key=HIDDEN, token=TOKEN, sealed_only=True),
    "a token": lambda: Store("http://127.0.0.1:1", key=HIDDEN, token=TOKEN + "\n"),
    "no service": lambda: Store("http://127.0.0.1:1", key=HIDDEN, token=TOKEN, retries=0).open(),
    "not open": lambda: Store("http://127.0.0.1:1", key=HIDDEN, token=TOKEN).get("k"),
    "an async store": lambda: AsyncStore("http://127.0.0.1:1", key=[*HIDDEN, "bad"], token=TOKEN),
    "sealed for elsewhere": lambda: Sealer(HIDDEN).open(Sealer(HIDDEN).seal(VALUE, PAIR), POINT),
    "sealed by another": lambda: Sealer(HIDDEN).open(SEALER.seal(VALUE, PAIR), PAIR),
    "a Fernet token": lambda: Sealer(HIDDEN, accept_fernet=True).open(Value(Encoding.BYTES, b"gAAAA"), PAIR),
    "points": lambda: Sealer(HIDDEN).open_points("n", "k", [2], Sealer(HIDDEN).seal_points("n", "k", [1], [b"\0001"])),
    "a pickled sealer": lambda: pickle.dumps(Sealer(HIDDEN, accept_fernet=True)),
    "a pickled store": lambda: pickle.dumps(Store("http://127.0.0.1:1", key=HIDDEN, token=TOKEN)),
    "a copied sealer": lambda: copy.deepcopy(Sealer(HIDDEN, accept_fernet=True)),
}


@pytest.mark.parametrize("name", FAILURES)
def test_no_traceback_shows_a_key_not_even_among_the_variables(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    with pytest.raises((StoreError, TypeError)) as caught:
        FAILURES[name]()
    logging.getLogger("app").error("it failed", exc_info=caught.value)
    told = everything_shown(caught.value) + caplog.text + repr(caught.value) + str(vars(caught.value))
    assert "Traceback" in told
    assert not [form for form in (*forms(*HIDDEN), TOKEN) if form in told]


def parts_of(thing: object, seen: dict[int, object]) -> None:
    """Gather a thing, and all that its attributes, members and elements lead to, as far as the SDK made their types."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if isinstance(thing, dict | list | tuple):
        inner = list(thing.values()) if isinstance(thing, dict) else list(thing)
    elif type(thing).__module__.startswith("rstore."):
        names = {*vars(type(thing)).get("__slots__", ()), *getattr(thing, "__dict__", ())}
        inner = [getattr(thing, name) for name in names if hasattr(thing, name)]
    else:
        inner = []
    for part in inner:
        parts_of(part, seen)


def test_no_view_of_a_store_shows_a_key() -> None:
    store = Store("http://127.0.0.1:1", key=HIDDEN, token=TOKEN, accept_fernet=True)
    seen: dict[int, object] = {}
    parts_of([store, copy.copy(store), vars(store)], seen)
    sealers = [part for part in seen.values() if isinstance(part, Sealer)]
    sealers[0].seal(VALUE, PAIR)
    views = list(seen.values())
    assert {type(view) for view in views} >= {Store, Sealer, SealingKey, Fernet}
    told = "".join([*map(repr, views), *map(str, views), *(rich.pretty.pretty_repr(view) for view in views)])
    told += pprint.pformat(views)
    assert not [form for form in (*forms(*HIDDEN), TOKEN) if form in told]


def test_the_search_for_keys_finds_them() -> None:
    def fails() -> None:
        key = HIDDEN[0]
        raise ValueError(len(key))

    with pytest.raises(ValueError, match="44") as caught:
        fails()
    assert HIDDEN[0] in everything_shown(caught.value)


def test_the_cache_of_subkeys_is_bounded() -> None:
    key = SealingKey(base64.urlsafe_b64decode(KEY), with_fernet=False)
    for number in range(SUBKEYS_CACHED_MAX + 10):
        key.cipher("n", "kv", str(number))
    assert key.cipher.cache_info().currsize == SUBKEYS_CACHED_MAX


# --- Fernet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [Encoding.BYTES, Encoding.SEALED])
def test_fernet_tokens_open_only_on_request(encoding: Encoding) -> None:
    token = Value(encoding, Fernet(OTHER_KEY).encrypt(pickle.dumps((1, "x"))))
    with pytest.raises(StoreDecryptionError, match="accept_fernet=True"):
        Sealer([KEY, OTHER_KEY]).open(token, PAIR)
    opened = Sealer([KEY, OTHER_KEY], accept_fernet=True).open(token, PAIR)
    assert opened == Value(Encoding.PICKLE, pickle.dumps((1, "x")))
    with pytest.raises(StoreDecryptionError, match="does not open"):
        Sealer(KEY, accept_fernet=True).open(token, PAIR)


@pytest.mark.parametrize("encoding", [Encoding.JSON, Encoding.PICKLE])
def test_a_fernet_token_in_another_encoding_is_refused(encoding: Encoding) -> None:
    token = Value(encoding, Fernet(KEY).encrypt(pickle.dumps(1)))
    with pytest.raises(StoreDecryptionError, match="not sealed"):
        Sealer(KEY, accept_fernet=True).open(token, PAIR)


def test_an_altered_fernet_token_is_refused() -> None:
    sealer = Sealer(KEY, accept_fernet=True)
    token = Fernet(KEY).encrypt(pickle.dumps(1))
    raw = base64.urlsafe_b64decode(token)
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreDecryptionError):
            sealer.open(Value(Encoding.BYTES, base64.urlsafe_b64encode(bytes(flipped))), PAIR)


def test_accepting_fernet_passes_nothing_else_through() -> None:
    sealer = Sealer(KEY, accept_fernet=True)
    for value in (Value(Encoding.BYTES, b"gAAAA"), Value(Encoding.BYTES, b"plain"), VALUE):
        with pytest.raises(StoreDecryptionError):
            sealer.open(value, PAIR)
    assert sealer.open(sealer.seal(VALUE, PAIR), PAIR) == VALUE
