"""From the bytes of a body to its text: whatever way they are cut, the same comes out."""

import gzip
import json
import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence

import pytest
from starlette.requests import Request

from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidEncoding,
    InvalidLine,
    InvalidText,
    UnsupportedMediaType,
)
from gateway.web.body import (
    EMPTY_LINES,
    FREE_EXPANSION,
    INFLATED_BYTES,
    JSON,
    LINE_BYTES,
    LINES,
    MEMBERS,
    MOST_EXPANSION,
    PARTIAL,
    PIECE_BYTES,
    PLAIN,
    BodyDecoder,
    BodyForm,
    LinesDecoder,
    PlainDecoder,
    TextDecoder,
    WholeDecoder,
    body_form,
)

LIMIT = 1 << 30

ALPHABET = 'abc \t\r\n\\"{}[]:,/\0\x7fäß€\u2028\u2029\ufeff\uffff👋🏽👩‍👩‍👧'
"""What JSON, UTF-8 or line ends could trip over: one to four bytes each."""


@pytest.fixture(params=range(40))
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Each makes another text, written and cut another way."""
    return random.Random(request.param)  # noqa: S311 - to be the same each time


def _text(rng: random.Random, longest: int = 60) -> str:
    return "".join(rng.choices(ALPHABET, k=rng.randint(0, longest)))


def _cut(rng: random.Random, data: bytes) -> list[bytes]:
    """In pieces of any length, empty ones too."""
    borders = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 12)))
    return [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]


def _decoding(decoder: TextDecoder | BodyDecoder, pieces: Sequence[bytes]) -> Iterator[str]:
    for piece in pieces:
        yield from decoder.feed(piece)
    yield from decoder.finish()


def _decoded(decoder: TextDecoder | BodyDecoder, pieces: Sequence[bytes]) -> list[str]:
    return list(_decoding(decoder, pieces))


def _texts_of(decoder: TextDecoder | BodyDecoder, pieces: Sequence[bytes]) -> list[str]:
    """Without the empty ones, by which a decoder lets others have their turn."""
    return [text for text in _decoded(decoder, pieces) if text]


def _bytes(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def _body(decoder: TextDecoder, *, compressed: bool = True, limit: int = LIMIT) -> BodyDecoder:
    return BodyDecoder(BodyForm(PLAIN, compressed), decoder, limit)


# Plain text


def test_a_plain_text_cut_anywhere_comes_out_equal(rng: random.Random) -> None:
    text = _text(rng)
    data = text.encode()

    assert "".join(_decoded(PlainDecoder(), _cut(rng, data))) == text
    assert "".join(_decoded(PlainDecoder(), _bytes(data))) == text
    assert _decoded(WholeDecoder(lambda size: None), _cut(rng, data)) == [text]


def test_what_is_not_utf8_is_refused_however_it_is_cut(rng: random.Random) -> None:
    wrong = rng.choice([b"\xff", b"\xc3(", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf0\x9f"])
    data = _text(rng).encode() + wrong

    for decoder in (PlainDecoder(), WholeDecoder(lambda size: None)):
        with pytest.raises(InvalidText):
            _decoded(decoder, _cut(rng, data))


def test_a_long_piece_of_plain_text_is_handed_on_in_short_ones() -> None:
    text = "a€👋" * 10_000

    pieces = _decoded(PlainDecoder(), [text.encode()])

    assert "".join(pieces) == text
    # A character that the border cuts comes with the next piece.
    assert all(len(piece.encode()) < PIECE_BYTES + 4 for piece in pieces)


def test_what_is_held_of_a_whole_text_is_told_before_it_is_kept() -> None:
    held: list[int] = []
    decoder = WholeDecoder(held.append)

    assert _decoded(decoder, [b"abc", b"", b"de"]) == ["abcde"]
    assert held == [3, 0, 2]


# JSON lines


def _lines(rng: random.Random, texts: Sequence[str], trailer: dict[str, str] | None) -> bytes:
    """The texts as a client may write them: either form, either line end, blank lines between."""
    ends = [b"\n", b"\r\n", b" \t\n", b"\n\n", b"\r\n \r\n"]
    values: list[object] = [rng.choice([text, {"text": text}]) for text in texts]
    if trailer is not None:
        values.append({"close": {"attributes": trailer} if trailer else {}})
    data = b""
    for value in values:
        written = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        data += rng.choice([b"", b" ", b"\n"]) + written.encode() + rng.choice(ends)
    return data.removesuffix(b"\n") if rng.random() < 0.3 else data


def test_json_lines_cut_anywhere_come_out_equal(rng: random.Random) -> None:
    texts = [_text(rng) for _ in range(rng.randint(0, 8))]
    trailer = rng.choice([None, {}, {"mood": _text(rng), "ü": ""}])
    data = _lines(rng, texts, trailer)

    for pieces in (_cut(rng, data), _bytes(data), [data]):
        decoder = LinesDecoder()
        assert _texts_of(decoder, pieces) == [text for text in texts if text]
        assert decoder.trailer == (trailer or {})


@pytest.mark.parametrize("line", [b"\n", b'""\n', b'{"text": ""}\n'])
def test_lines_without_text_let_others_have_their_turn_and_are_bounded(line: bytes) -> None:
    decoder = LinesDecoder()

    assert list(decoder.feed(line * EMPTY_LINES)) == [""] * EMPTY_LINES
    with pytest.raises(InvalidLine):
        list(decoder.feed(line))


def test_the_last_line_may_be_asked_for_again() -> None:
    decoder = LinesDecoder()

    assert list(decoder.feed(b'{"close": {"attributes": {"a": "b"}}}')) == []
    assert [list(decoder.finish()) for _ in range(2)] == [[], []]
    assert decoder.trailer == {"a": "b"}


def test_a_line_is_handed_on_as_soon_as_it_has_ended() -> None:
    decoder = LinesDecoder()

    assert list(decoder.feed(b'"one"\n"two"\n"thr')) == ["one", "two"]
    assert list(decoder.feed(b'ee"')) == []
    assert list(decoder.feed(b"\n")) == ["three"]
    assert list(decoder.finish()) == []


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        (b"{", InvalidLine, "Line 2 of the body is not JSON."),
        (b"1", InvalidLine, None),
        (b"null", InvalidLine, None),
        (b'["a"]', InvalidLine, None),
        (b"NaN", InvalidLine, None),
        (b"9" * 5_000, InvalidLine, None),
        (b"[" * 20_000, InvalidLine, None),
        (b"{}", InvalidLine, None),
        (b'{"text": 1}', InvalidLine, None),
        (b'{"text": "a", "more": "b"}', InvalidLine, None),
        (b'{"text": "a", "close": {}}', InvalidLine, None),
        (b'{"text": "a", "text": "b"}', InvalidLine, "Line 2 of the body has a member twice."),
        (b'{"close": null}', InvalidLine, None),
        (b'{"close": {"attribute": {}}}', InvalidLine, None),
        (
            b'{"close": {"attributes": {"a": 1}}}',
            InvalidLine,
            "Line 2 of the body: 'attributes' must be an object whose values are strings.",
        ),
        (b'{"close": {"attributes": []}}', InvalidLine, None),
        (b'{"close": {"attributes": {"": "a"}}}', InvalidLine, None),
        (b'{"close": {"attributes": {"a": "\\ud800"}}}', InvalidLine, None),
        (b'{"close": {}}\n"a"', InvalidLine, None),
        (b'{"close": {}}\n{"close": {}}', InvalidLine, None),
        (b'"\xff"', InvalidText, None),
        (b'"\\ud800"', InvalidText, None),
        (b'{"text": "\\udc00"}', InvalidText, None),
        (b'"' + b"a" * LINE_BYTES, BodyTooLarge, None),
        (b" " * (LINE_BYTES + 1), BodyTooLarge, None),
    ],
    ids=lambda value: repr(value[:32]) if isinstance(value, bytes) else None,
)
@pytest.mark.parametrize("cut", [_bytes, lambda data: [data]], ids=["bytes", "whole"])
def test_what_is_wrong_with_a_line_is_found_however_it_is_cut(
    line: bytes, kind: type[GatewayError], detail: str | None, cut: Callable[[bytes], list[bytes]]
) -> None:
    texts: list[str] = []

    with pytest.raises(kind) as error:
        texts.extend(_decoding(LinesDecoder(), cut(b'"good"\n' + line)))

    assert texts == ["good"]
    assert detail in (None, error.value.detail)


def test_a_line_may_be_as_long_as_its_limit() -> None:
    longest = b'"' + b"a" * (LINE_BYTES - 2) + b'"'

    assert _decoded(LinesDecoder(), [longest + b"\n" + longest]) == ["a" * (LINE_BYTES - 2)] * 2


def test_a_line_that_does_not_end_is_refused_before_it_is_all_there() -> None:
    decoder = LinesDecoder()

    assert list(decoder.feed(b'"' + b"a" * (LINE_BYTES - 1))) == []
    with pytest.raises(BodyTooLarge):
        list(decoder.feed(b"a"))


# gzip


def _members(rng: random.Random, data: bytes) -> bytes:
    """In one or several members, each written at once or flushed here and there."""
    written = b""
    for part in rng.choice([[data], _cut(rng, data)]):
        writer = zlib.compressobj(rng.randint(0, 9), wbits=16 + zlib.MAX_WBITS)
        for piece in _cut(rng, part):
            written += writer.compress(piece)
            written += writer.flush(rng.choice([zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH]))
        written += writer.flush()
    return written


def test_a_compressed_text_cut_anywhere_comes_out_equal(rng: random.Random) -> None:
    text = _text(rng) * rng.choice([1, 1, 50])
    data = _members(rng, text.encode())

    for pieces in (_cut(rng, data), _bytes(data), [data]):
        assert "".join(_decoded(_body(PlainDecoder()), pieces)) == text


def test_compressed_json_lines_cut_anywhere_come_out_equal(rng: random.Random) -> None:
    texts = [_text(rng) for _ in range(rng.randint(0, 8))]
    data = _members(rng, _lines(rng, texts, {"mood": "good"}))

    decoder = _body(LinesDecoder())
    assert _texts_of(decoder, _cut(rng, data)) == [text for text in texts if text]
    assert decoder.trailer == {"mood": "good"}


def test_what_was_flushed_is_handed_on_at_once() -> None:
    writer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    decoder = _body(PlainDecoder())

    for text in ("one ", "two " * 100_000, "three"):
        data = writer.compress(text.encode()) + writer.flush(zlib.Z_SYNC_FLUSH)
        assert "".join(decoder.feed(data)) == text
    assert "".join([*decoder.feed(writer.flush()), *decoder.finish()]) == ""


def test_a_compressed_body_of_no_bytes_is_an_empty_text() -> None:
    assert _decoded(_body(WholeDecoder(lambda size: None)), []) == [""]


def test_a_compressed_body_that_is_cut_short_is_refused(rng: random.Random) -> None:
    whole = gzip.compress(_text(rng).encode())

    with pytest.raises(InvalidEncoding):
        _decoded(_body(PlainDecoder()), _cut(rng, whole[: rng.randrange(1, len(whole))]))


@pytest.mark.parametrize(
    "data",
    [
        b"text",
        b"\x1f\x8btext",
        zlib.compress(b"text"),
        gzip.compress(b"text") + b"text",
        gzip.compress(b"text")[:-8] + b"another ",
    ],
    ids=["plain", "header alone", "deflate", "plain behind", "checksum"],
)
@pytest.mark.parametrize("cut", [_bytes, lambda data: [data]], ids=["bytes", "whole"])
def test_what_is_not_gzip_is_refused(data: bytes, cut: Callable[[bytes], list[bytes]]) -> None:
    with pytest.raises(InvalidEncoding):
        _decoded(_body(PlainDecoder()), cut(data))


class Sizes(TextDecoder):
    """Notes how many bytes it is given at a time."""

    def __init__(self) -> None:
        self.trailer = {}
        self.given: list[int] = []

    def feed(self, data: bytes) -> Iterator[str]:
        self.given.append(len(data))
        yield "a piece"

    def finish(self) -> Iterator[str]:
        yield from ()


def test_a_compressed_body_is_expanded_a_little_at_a_time_and_only_when_asked_for() -> None:
    text = os.urandom(1_000_000) * 3
    sizes = Sizes()
    decoder = _body(sizes)

    pieces = decoder.feed(gzip.compress(text))
    next(pieces)
    assert sizes.given == [INFLATED_BYTES]
    for _ in pieces:
        assert sizes.given[-1] <= INFLATED_BYTES
    assert sum(sizes.given) == len(text)


def test_a_body_made_to_expand_without_bound_is_refused_at_a_hundred_times_its_size() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    sizes = Sizes()

    with pytest.raises(BodyTooLarge):
        _decoded(_body(sizes), [bomb])

    allowed = MOST_EXPANSION * len(bomb)
    assert allowed > FREE_EXPANSION
    assert allowed - INFLATED_BYTES < sum(sizes.given) <= allowed


def test_a_small_body_may_expand_more() -> None:
    small = gzip.compress(bytes(FREE_EXPANSION))
    sizes = Sizes()

    _decoded(_body(sizes), [small])

    assert sum(sizes.given) == FREE_EXPANSION > MOST_EXPANSION * len(small)
    with pytest.raises(BodyTooLarge):
        _decoded(_body(Sizes()), [gzip.compress(bytes(FREE_EXPANSION + 1))])


def test_a_compressed_body_has_a_bounded_number_of_members() -> None:
    member = gzip.compress(b"a")

    assert "".join(_decoded(_body(PlainDecoder()), [member * MEMBERS])) == "a" * MEMBERS
    with pytest.raises(InvalidEncoding):
        _decoded(_body(PlainDecoder()), [member * MEMBERS, member])


def test_the_limit_is_of_what_is_inside_the_coding() -> None:
    data = gzip.compress(b"a" * 1_000)

    assert _decoded(_body(PlainDecoder(), limit=1_000), [data]) == ["a" * 1_000]
    with pytest.raises(BodyTooLarge):
        _decoded(_body(PlainDecoder(), limit=999), [data])
    with pytest.raises(BodyTooLarge):
        _decoded(_body(PlainDecoder(), compressed=False, limit=999), [b"a" * 500] * 2)


# What the headers say


def _request(*headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "headers": raw})


@pytest.mark.parametrize(
    ("value", "media_type"),
    [
        ("text/plain", PLAIN),
        ("Text/Plain; Charset=UTF-8", PLAIN),
        ('text/plain;charset="utf-8"; format=flowed', PLAIN),
        ("application/json", JSON),
        ("application/x-ndjson; charset=utf8", LINES),
    ],
)
def test_the_media_type_says_what_a_body_is(value: str, media_type: str) -> None:
    assert body_form(_request(("Content-Type", value))) == BodyForm(media_type, False)


@pytest.mark.parametrize(
    ("coding", "compressed"),
    [("gzip", True), ("GZIP", True), ("x-gzip", True), ("identity", False)],
)
def test_the_coding_says_whether_it_is_compressed(coding: str, compressed: bool) -> None:
    request = _request(("Content-Type", PLAIN), ("Content-Encoding", coding))

    assert body_form(request) == BodyForm(PLAIN, compressed)


def test_the_first_part_of_an_upload_need_not_say_what_the_whole_is() -> None:
    partial = _request(("Content-Type", PARTIAL))

    assert body_form(partial, partial=True) == BodyForm(PLAIN, False)
    assert body_form(_request(), partial=True) == BodyForm(PLAIN, False)
    assert body_form(_request(("Content-Type", LINES)), partial=True) == BodyForm(LINES, False)
    with pytest.raises(UnsupportedMediaType):
        body_form(partial)
