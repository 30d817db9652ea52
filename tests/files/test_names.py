"""File names: stems of sources, and names that are safe to write."""

import io
import re
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._files.names import (
    as_file,
    clean,
    clean_letters,
    file_name,
    in_folder,
    in_folder_formerly,
    is_url,
    stem,
)
from perfect_async.models import FileId, Smile, Source
from tests.support.sources import ReadablePath

SAFE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


def named(name: object) -> io.BytesIO:
    """Return a binary file that was opened by this name."""
    file = io.BytesIO()
    file.name = name
    return file


any_text = (
    st.text() | st.text(alphabet="conulCON123. -_é\u0301\0/\\\u202e人") | st.text(min_size=200)
)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("selfie", "selfie"),
        ("Zoe-Muller", "Zoë Müller"),
        ("picture", "人物"),
        ("a-b", "a人b"),
        ("a-b", "a / \\ : b"),
        ("etc-passwd", "../../etc/passwd"),
        ("hidden", ".hidden"),
        ("rm--rf", "-rm -rf"),
        ("a", "a. . ."),
        ("a.tar", "a.tar"),
        ("picture", ""),
        ("picture", "..."),
        ("picture", "\0"),
        ("gpj.txt", "\u202egpj.txt"),
        ("_CON", "CON"),
        ("_con.old", "con.old"),
        ("_nul", " nul. "),
        ("_con", "con-"),
        ("_COM1", "COM¹"),
        ("_lpt9.a.b", "lpt9.a.b"),
        ("console", "console"),
        ("com10", "com10"),
        ("_x", "_x"),
    ],
)
def test_cleaning_keeps_safe_characters(expected: str, text: str) -> None:
    """ASCII letters and digits are kept; special characters and device names are not."""
    assert expected == clean(text)


@given(any_text, st.integers(min_value=8, max_value=80))
def test_any_text_is_cleaned_to_a_safe_name(text: str, limit: int) -> None:
    """Any text becomes a name of safe characters, within its limit, that is no device."""
    name = clean(text, limit)

    assert SAFE.fullmatch(name)
    assert not DEVICE.fullmatch(name)
    assert len(name) <= limit


@given(any_text)
def test_cleaning_is_idempotent(text: str) -> None:
    """A clean name is not changed."""
    assert clean(text) == clean(clean(text))


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("selfie", "selfie"),
        ("Zoë-Müller", "Zoë Müller"),
        ("Zoë", "Zoe\u0308"),
        ("人物", "人物"),
        ("Мария-2", "Мария (2)"),
        ("हिन्दी", "हिन्दी"),
        ("שלום", "שלום"),
        ("١٢٣", "١٢٣"),
        ("a-b", "a\u200d\u202eb"),
        ("gpj.txt", "\u202egpj.txt"),
        ("e-人", "e\uff0f人"),
        ("etc-passwd", "../../etc/passwd"),
        ("a", "\u0301a"),
        ("a", "-\u0301a"),
        ("_con", "con"),
        ("COM", "COM¹"),
        ("picture", "😀"),
        ("picture", "\ud800"),
        ("picture", "\ue000"),
        ("picture", ""),
    ],
)
def test_names_on_the_disk_keep_their_letters(expected: str, text: str) -> None:
    """Letters of every script are kept, in NFC; characters that hide or reorder are not."""
    assert expected == clean_letters(text)


@given(any_text | st.text(max_size=300), st.integers(8, 80), st.integers(32, 143))
def test_any_text_becomes_a_safe_name_on_the_disk(text: str, limit: int, size: int) -> None:
    """Any text becomes one short component in NFC that is no device, and cleaning is idempotent."""
    name = clean_letters(text, limit, size)

    assert name == PurePosixPath(name).name
    assert 0 < len(name) <= limit
    assert len(name.encode()) <= size
    assert unicodedata.is_normalized("NFC", name)
    assert not DEVICE.fullmatch(name)
    assert name.strip(".-") == name
    assert all(char in "._-" or unicodedata.category(char)[0] in "LMN" for char in name)
    assert name == clean_letters(name, limit, size)


@given(any_text, st.text("0123456789abcdef", min_size=64, max_size=64))
def test_a_name_in_a_folder_is_one_component(text: str, digits: str) -> None:
    """The longest name in a folder has 80 characters, one component and the identity in it."""
    name = in_folder(text, digits, "heic", 200)

    assert len(name) <= 80
    assert len(name.encode()) <= 143
    assert name == PurePosixPath(name).name
    assert name.endswith(f"-{digits[:16]}-200.heic")
    assert not DEVICE.fullmatch(name)


def test_a_name_has_stem_identity_and_number() -> None:
    """The name is the stem, 16 digits of the identity, and the number if there are several."""
    identity = "0123abcd4567" + "f" * 52
    assert "me-0123abcd4567ffff.jpg" == in_folder("me", identity, "jpg")
    assert "人-0123abcd4567ffff-7.png" == in_folder("人", identity, "png", 7)
    token = "0a1b2c3d"
    assert "me-0a1b2c3d-0123abcd4567ffff.jpg" == in_folder("me", identity, "jpg", token=token)
    long = in_folder("x" * 200, identity, "heic", 200, token=token)
    assert long.endswith("x-0a1b2c3d-0123abcd4567ffff-200.heic")
    assert 80 == len(long)


def test_former_names_are_known() -> None:
    """Former versions wrote eight digits, and only ASCII letters."""
    identity = "0123abcd4567" + "f" * 52
    assert "Zoe-0123abcd.jpg" == in_folder_formerly("Zoë", identity, "jpg")
    assert "picture-0123abcd-7.png" == in_folder_formerly("人", identity, "png", 7)


@pytest.mark.parametrize(
    ("expected", "path", "kind", "number"),
    [
        ("out.jpg", "out", "jpg", None),
        ("out.jpg", "out.jpg", "jpg", None),
        ("out.jpeg", "out.jpeg", "jpg", None),
        ("OUT.JPG", "OUT.JPG", "jpg", None),
        ("out.png", "out.jpg", "png", None),
        ("out.webp", "out.PNG", "webp", None),
        ("v1.2.png", "v1.2", "png", None),
        ("me.tar.jpg", "me.tar", "jpg", None),
        (".hidden.jpg", ".hidden", "jpg", None),
        (".jpg.png", ".jpg", "png", None),
        ("out-2.png", "out.jpg", "png", 2),
        ("out-2.jpeg", "out.jpeg", "jpg", 2),
        ("out-10.gif", "out", "gif", 10),
        ("a.b/out.heif.heic", "a.b/out.heif.tiff", "heic", None),
    ],
)
def test_a_file_gets_the_suffix_of_its_bytes(
    expected: str, path: str, kind: str, number: int | None
) -> None:
    """A wrong suffix of a picture is replaced; other suffixes are part of the name."""
    assert Path(expected) == as_file(Path(path), kind, number)


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        (True, "https://example.com/a.jpg"),
        (True, "HTTP://example.com"),
        (True, " https://example.com"),
        (True, "file:///etc/passwd"),
        (True, "data:image/png;base64,AAAA"),
        (False, "photos/a.jpg"),
        (False, "C://photos/a.jpg"),
        (False, "C:\\photos"),
        (False, "https:/one-slash"),
        (False, "://"),
        (False, "dir/x://y"),
        (False, ""),
        (False, Path("https://example.com/a.jpg")),
        (False, b"https://example.com"),
        (False, FileId("https://example.com")),
    ],
)
def test_only_text_with_a_scheme_is_a_url(expected: bool, source: Source) -> None:
    """A path object and a drive letter are paths; a text with a scheme is a URL."""
    assert expected is is_url(source)


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        ("me", "photos/me.jpg"),
        ("me.tar", Path("photos/me.tar.gz")),
        ("Zoë", "Zoë.png"),
        ("", ""),
        ("picture", b"bytes"),
        ("file", FileId("a/b+c=")),
        ("b", "https://example.com/a/b.jpg?c=d/e.png#f/g.gif"),
        ("me 2", "https://example.com/me%202.jpg"),
        ("passwd", "https://example.com/..%2F..%2Fetc%2Fpasswd"),
        ("", "https://example.com/"),
        ("", "https://example.com"),
        ("", "data:image/png;base64,AAAA"),
    ],
)
def test_the_stem_comes_from_the_source(expected: str, source: Source) -> None:
    """The stem is the name of the source's file or the last segment of its URL."""
    assert expected == stem(Smile(source))


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        ("photos/me.jpg", "photos/me.jpg"),
        ("photos/me.jpg", Path("photos/me.jpg")),
        ("photos/me.jpg", ReadablePath(Path("photos/me.jpg"))),
        ("photos/me.jpg", named("photos/me.jpg")),
        ("photos/me.jpg", named(b"photos/me.jpg")),
        ("photos/me.jpg", named(Path("photos/me.jpg"))),
        (None, named(3)),
        (None, io.BytesIO()),
        (None, b"photos/me.jpg"),
        (None, FileId("photos/me.jpg")),
        (None, "https://example.com/me.jpg"),
    ],
    ids=[
        *("text", "path", "path with read", "file", "file by bytes", "file by a path"),
        *("file by a descriptor", "file in memory", "bytes", "file id", "URL"),
    ],
)
def test_only_paths_and_named_files_stand_for_a_file(expected: str | None, source: Source) -> None:
    """A path and an open file stand for a file of that name; other sources stand for none."""
    assert expected == file_name(source)


@given(any_text)
def test_every_source_has_a_stem(text: str) -> None:
    """Any path and any URL gives a file name."""
    for source in (text, f"https://example.com/{text}"):
        assert SAFE.fullmatch(clean(stem(Smile(source))))
