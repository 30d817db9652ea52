"""The bodies of uploads and downloads: counted, bounded and decoded in steps."""

import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._transport.bodies import UploadBody, decoded, upload_headers
from perfect_async.errors import BadAnswer, PictureRefused
from tests.support.virtual_time import run


class Chunks:
    """An async iterator that is not a generator, like the streams of some transports."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise StopAsyncIteration from None


class Picture:
    """Yields chunks, and counts how often its generator began and ended."""

    def __init__(self, *chunks: bytes, failure: Exception | None = None) -> None:
        self._chunks = chunks
        self._failure = failure
        self.begun = self.ended = 0

    async def __call__(self) -> AsyncIterator[bytes]:
        self.begun += 1
        try:
            for chunk in self._chunks:
                yield chunk
            if self._failure is not None:
                raise self._failure
        finally:
            self.ended += 1


async def whole(raw: Iterable[bytes], encoding: str, limit: int = 10**9) -> bytes:
    return b"".join([piece async for piece in decoded(Chunks(raw), encoding, limit)])


async def test_a_source_is_counted_and_read() -> None:
    """A body yields its bytes from the start each time, and closes its chunks each time."""
    picture = Picture(b"ab", b"", b"c")
    source = UploadBody(picture)

    assert 3 == await source.count()
    assert [b"ab", b"", b"c"] == [chunk async for chunk in source.read(3)]
    assert (2, 2) == (picture.begun, picture.ended)
    assert source.failure is None


async def test_a_source_need_not_be_a_generator() -> None:
    """The chunks may be any async iterator."""
    source = UploadBody(lambda: Chunks([b"ab"]))

    assert 2 == await source.count()


@pytest.mark.parametrize(("sent", "length"), [([], 1), ([b"ab"], 2), ([], 3), ([b"ab", b"c"], 4)])
async def test_a_picture_that_changed_is_refused(sent: list[bytes], length: int) -> None:
    """At most the granted length is sent; any other length is a failure of the picture."""
    picture = Picture(b"ab", b"c") if length != 3 else Picture()
    source = UploadBody(picture)
    seen: list[bytes] = []

    async def reading() -> None:
        async for chunk in source.read(length):
            seen.append(chunk)  # noqa: PERF401 -- chunks before the error count

    with pytest.raises(PictureRefused, match="changed") as caught:
        await reading()

    assert sent == seen
    assert caught.value is source.failure
    assert (1, 1) == (picture.begun, picture.ended)


async def test_an_error_of_the_source_is_kept() -> None:
    """An error of reading the picture is kept as `failure`, apart from errors of the network."""
    failure = OSError("disk")
    picture = Picture(b"ab", failure=failure)
    source = UploadBody(picture)

    with pytest.raises(OSError, match="disk"):
        await source.count()

    assert failure is source.failure
    assert 1 == picture.ended


async def test_leaving_a_source_early_closes_it() -> None:
    """An upload that breaks off closes the file at once."""
    picture = Picture(b"ab", b"c")
    reading = UploadBody(picture).read(3)

    await anext(reading)
    await reading.aclose()

    assert 1 == picture.ended


def test_granted_upload_headers_are_sent() -> None:
    """Headers of the content and of the storage pass, with names in lower case."""
    headers = (
        ("Content-Type", "image/jpeg"),
        ("Content-Length", " 29490 "),
        ("x-amz-acl", "private"),
        ("X-Amz-Meta-a", ""),
    )

    expected = {
        "content-type": "image/jpeg",
        "content-length": "29490",
        "x-amz-acl": "private",
        "x-amz-meta-a": "",
    }
    assert expected == upload_headers(headers)
    assert {} == upload_headers(())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("Authorization", "a"), ("Host", "a"), ("Transfer-Encoding", "chunked"), ("Cookie", "a")),
        *(("Expect", "100-continue"), ("Connection", "close"), ("", "a"), ("content-", "a")),
        *(("content-type ", "a"), ("content type", "a"), ("content-type\r\nHost", "a")),
        *(("xcontent-type", "a"), ("Content-Typé", "a"), ("CONTENT-TYPE", "again")),
        *(("content-x", "a\r\nHost: b"), ("content-x", "é"), ("content-x", "\x00")),
        *(("content-length", ""), ("content-length", "-1"), ("content-length", "1e3")),
        *(("content-length", "1,1"), ("content-length", "9" * 13)),
    ],
)
def test_other_upload_headers_are_refused(name: str, value: str) -> None:
    """The vendor's answer cannot set a header like `Authorization` or `Host`."""
    with pytest.raises(BadAnswer, match="the vendor asks"):
        upload_headers((("Content-Type", "image/jpeg"), (name, value)))


@given(st.lists(st.tuples(st.text(), st.text())).map(tuple))
def test_any_upload_headers_are_plain_or_refused(headers: tuple[tuple[str, str], ...]) -> None:
    """Any granted headers are refused or are printable ASCII."""
    try:
        plain = upload_headers(headers)
    except BadAnswer:
        return

    for name, value in plain.items():
        assert name.startswith(("content-", "x-amz-"))
        assert f"{name}: {value}".isascii()
        assert f"{name}: {value}".isprintable()


@pytest.mark.parametrize("encoding", ["", "identity"])
async def test_unencoded_bytes_pass_unchanged(encoding: str) -> None:
    """Without an encoding the chunks are unchanged; empty ones are left out."""
    pieces = [piece async for piece in decoded(Chunks([b"ab", b"", b"c"]), encoding, 3)]

    assert [b"ab", b"c"] == pieces


@given(
    st.binary(max_size=300_000) | st.integers(1, 300_000).map(bytes),
    st.integers(1, 2000),
    st.sampled_from(["gzip", "x-gzip", "deflate"]),
)
def test_compressed_bytes_are_inflated(data: bytes, size: int, encoding: str) -> None:
    """gzip and deflate are decoded in chunks of any size."""
    packed = zlib.compress(data) if encoding == "deflate" else gzip.compress(data)
    chunks = [packed[i : i + size] for i in range(0, len(packed), size)]

    assert data == run(whole, chunks, encoding)


async def test_the_limit_counts_decoded_bytes() -> None:
    """Exactly `limit` decoded bytes pass, and one more raises."""
    packed = gzip.compress(b"a" * 100_000)

    assert 100_000 == len(await whole([packed], "gzip", 100_000))
    assert b"ab" == await whole([b"ab"], "", 2)
    with pytest.raises(BadAnswer, match="larger than 99,999 bytes"):
        await whole([packed], "gzip", 99_999)
    with pytest.raises(BadAnswer, match="larger than 1 bytes"):
        await whole([b"ab"], "", 1)


async def test_a_decompression_bomb_takes_no_memory() -> None:
    """200 MB in a small chunk are refused at the limit without being held in memory."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1024 * 1024)
    bomb = b"".join([*(squeezer.compress(zeros) for _ in range(200)), squeezer.flush()])
    tracemalloc.start()

    with pytest.raises(BadAnswer, match="larger"):
        await whole([bomb], "gzip", 1_000_000)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("expected", "chunks", "encoding"),
    [
        ("not compressed as its header says", [b"<html>"], "gzip"),
        (
            "not compressed as its header says",
            [gzip.compress(b"a" * 99)[:20], b"\xff" * 20],
            "gzip",
        ),
        ("ends early", [gzip.compress(b"abc")[:-1]], "gzip"),
        ("ends early", [], "deflate"),
        ("encoding 'br'", [b"a"], "br"),
        ("encoding 'gzip, gzip'", [b"a"], "gzip, gzip"),
    ],
)
async def test_a_wrong_encoding_is_a_bad_answer(
    expected: str, chunks: list[bytes], encoding: str
) -> None:
    """Broken, cut and unknown encodings raise `BadAnswer` without a cause."""
    with pytest.raises(BadAnswer, match=expected) as caught:
        await whole(chunks, encoding)

    assert caught.value.__context__ is None


async def test_bytes_after_compressed_data_are_ignored() -> None:
    """Padding after the end of the data is ignored."""
    assert b"abc" == await whole([gzip.compress(b"abc") + b"\0\0", b"\0"], "gzip")


@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_leaving_a_decoder_early_closes_its_source(encoding: str) -> None:
    """A reader that stops early closes the source at once."""
    packed = gzip.compress(b"a" * 100_000)
    picture = Picture(packed, packed)
    reading = decoded(picture(), encoding, 10**9)

    await anext(reading)
    await reading.aclose()

    assert (1, 1) == (picture.begun, picture.ended)
