"""Lists of pictures: lines on stdin, and CSV files with a column of keys."""

import io
from pathlib import Path

import pytest

from perfect_async.cli._inputs import Entry, search
from perfect_async.cli._lists import is_list, read_list
from perfect_async.errors import ConfigurationError


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "pictures"),
    [
        (b"a.jpg\n\nb, c.jpg\r\nhttps://x/d.jpg", ["a.jpg", "b, c.jpg", "https://x/d.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        (b"\xef\xbb\xbfa.jpg\n", ["a.jpg"]),
        ("ü.jpg\n".encode(), ["ü.jpg"]),
        (b"\xff.jpg\n", ["\udcff.jpg"]),
        (b"Picture,key\na.jpg,1\n", ["a.jpg"]),
    ],
)
def test_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes, pictures: list[str]) -> None:
    """One picture a line, or between NULs; any bytes are a name; CSV is known by its header."""
    stdin(monkeypatch, content)

    assert pictures == [picture for picture, _ in read_list("-")]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("picture,key\na.jpg,one\nb.jpg,\n", [("a.jpg", "one"), ("b.jpg", None)]),
        ("key;Path\n7;a.jpg\n\n", [("a.jpg", "7")]),
        ("id\turl\n1\thttps://x/a.jpg\n", [("https://x/a.jpg", None)]),
        ('picture,name\n"a, b.jpg",x\n', [("a, b.jpg", None)]),
        ("\ufeffpicture\r\na.jpg\r\n", [("a.jpg", None)]),
    ],
)
def test_csv(tmp_path: Path, content: str, lines: list[tuple[str, str | None]]) -> None:
    """Columns are found by their names; relative paths are relative to the list's folder."""
    table = tmp_path / "people.csv"
    table.write_bytes(content.encode())

    assert is_list(str(table))
    assert read_list(str(table)) == [
        (picture if "://" in picture else str(tmp_path / picture), key) for picture, key in lines
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,age\na,7\n", "no column 'picture' in its first line (its columns: 'name', 'age')"),
        (b"picture,key\n,7\n", "line 2 of .* names no picture"),
        (b"picture,key\na.jpg,7\nb.jpg,7\n", "line 3 of .* gives the key '7' to a second picture"),
        (b"picture\n", "is empty: it names no picture"),
        (b"\xff\xfep\0", "UTF-16"),
        (b"", "is empty: it names no picture"),
    ],
)
def test_wrong_csv(tmp_path: Path, content: bytes, message: str) -> None:
    """A list without pictures, and one with a key for two, are said with their line."""
    table = tmp_path / "people.csv"
    table.write_bytes(content)

    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(").replace(")", r"\)")):
        read_list(str(table))


def test_an_empty_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that gives nothing is an error: a search that finds nothing is a mistake mostly."""
    stdin(monkeypatch, b"\n")

    with pytest.raises(ConfigurationError, match="the list on stdin is empty"):
        read_list("-")


def test_lists_among_the_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of a list are named themselves; one file under two keys is two jobs."""
    (tmp_path / "a.jpg").touch()
    (tmp_path / "list.csv").write_text("picture,key\na.jpg,1\na.jpg,2\n")
    stdin(monkeypatch, b"https://x/b.jpg\n")
    monkeypatch.chdir(tmp_path)

    assert [
        Entry(Path("a.jpg"), "1"),
        Entry(Path("a.jpg"), "2"),
        Entry("https://x/b.jpg"),
        Entry(Path("a.jpg")),
    ] == search(["list.csv", "-", "a.jpg"], ["jpg"]).entries


def test_skipped_pictures_of_a_folder(tmp_path: Path) -> None:
    """Pictures of other types and links to nothing are skipped; other files are no matter."""
    for name in ("a.jpg", "b.webp", "c.avif", "d.txt", ".e.webp"):
        (tmp_path / name).touch()
    (tmp_path / "f.jpg").symlink_to("nowhere")
    (tmp_path / "g.webp").mkdir()

    found = search([str(tmp_path)], ["jpg"])
    assert [Entry(tmp_path / "a.jpg", named=False)] == found.entries
    assert ["webp", "avif", "broken link"] == [each.reason for each in found.skipped]
    assert "--fit makes it fit" in found.skipped[0].message
    assert "--fit" not in found.skipped[1].message
    named = search([str(tmp_path), str(tmp_path / "a.jpg")], ["jpg"])
    assert [Entry(tmp_path / "a.jpg")] == named.entries
    both = search([str(tmp_path), str(tmp_path / "b.webp")], ["jpg"])
    assert ["avif", "broken link"] == [each.reason for each in both.skipped]


def test_a_folder_of_folders(tmp_path: Path) -> None:
    """A folder without pictures whose folders may have some names the pattern that finds them."""
    (tmp_path / "2026").mkdir()

    with pytest.raises(ConfigurationError, match=r"its folders are not searched, the pattern '.*"):
        search([str(tmp_path)], ["jpg"])


def test_a_folder_of_other_types_alone(tmp_path: Path) -> None:
    """A folder in which nothing can be sent says what is in it."""
    (tmp_path / "b.webp").touch()

    with pytest.raises(ConfigurationError, match=r"it has webp, which --fit makes fit"):
        search([str(tmp_path)], ["jpg"])
