"""The pictures that a command line names."""

from pathlib import Path

import pytest

from perfect_async import Avatar, ConfigurationError, Smile
from perfect_async.cli._inputs import find_pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and other things, which is the current one."""
    for name in ("b.jpg", "a.PNG", "c.heic", "d.jpeg", "notes.txt", ".hidden.jpg", "deep/e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str, formats: tuple[str, ...] = Smile.formats, out: str = "out") -> list[str]:
    return [str(found) for found in find_pictures(arguments, formats, Path(out))]


def test_a_folder_is_its_pictures(folder: Path) -> None:
    """By suffix whatever its case, sorted, not those below, no hidden ones, no folders."""
    assert ["a.PNG", "b.jpg", "c.heic", "d.jpeg"] == [Path(name).name for name in names(".")]


def test_a_folder_is_what_the_feature_takes(folder: Path) -> None:
    """Avatars take no heic."""
    assert ["a.PNG", "b.jpg", "d.jpeg"] == names(".", formats=Avatar.formats)


def test_a_pattern_is_its_matches(folder: Path) -> None:
    """Patterns are expanded as a shell would, pictures only."""
    assert ["b.jpg"] == names("[bn]*")
    assert ["b.jpg", "c.heic"] == names("?.jpg", "?.heic")


def test_a_deep_pattern_leaves_the_results_out(folder: Path) -> None:
    """`**` goes down, but not into the folder of results: they are not paid for again."""
    (folder / "out").mkdir()
    (folder / "out" / "made.jpg").write_bytes(b"")

    assert ["b.jpg", "deep/e.jpg"] == [Path(name).as_posix() for name in names("**/*.jpg")]
    assert ["out/made.jpg"] == [Path(name).as_posix() for name in names("out")]
    assert 3 == len(find_pictures(["**/*.jpg"], ("jpg",)))


def test_a_named_file_needs_no_suffix(folder: Path) -> None:
    """An existing file is taken by its name, also where the name looks like a pattern."""
    (folder / "x[1].dat").write_bytes(b"")

    assert ["x[1].dat", "notes.txt"] == names("x[1].dat", "notes.txt")


def test_urls_pass(folder: Path) -> None:
    """A URL is left as it is: stars and all."""
    assert ["https://example.com/*.jpg?a=b", "ftp://x/y"] == names(
        "https://example.com/*.jpg?a=b", "ftp://x/y"
    )


def test_each_once_in_their_order(folder: Path) -> None:
    """A picture named twice, or by two paths, appears once, at its first place."""
    Path("link.heic").symlink_to("c.heic")

    assert ["c.heic", "a.PNG", "http://x/", "b.jpg", "d.jpeg"] == names(
        "c.heic", "a.PNG", "http://x/", "http://x/", str(folder / "c.heic"), ".", "link.heic"
    )


def test_home_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is expanded."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))

    assert [str(folder / "b.jpg")] == names("~/b.jpg")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("none.jpg", "no file or folder 'none.jpg'"),
        ("dangling.jpg", "'dangling.jpg' is a link to a file that is not there."),
        ("none*.jpg", "'none*.jpg' matches no picture (.jpg, .jpeg, .png, .heic)"),
        ("folder.jpg", "'folder.jpg' has no picture"),
        ("*.txt", "matches no picture"),
        ("", "'' names no file"),
        ("a\0b", "names no file"),
        ("x" * 5000, "cannot be read"),
        ("~nobody-at-all/x.jpg", "cannot be read"),
    ],
)
def test_an_argument_without_a_picture_is_named(folder: Path, argument: str, message: str) -> None:
    """An argument that names no picture is an error that quotes it."""
    Path("dangling.jpg").symlink_to("nowhere")

    with pytest.raises(ConfigurationError) as caught:
        names("b.jpg", argument)

    assert message in caught.value.message


def test_no_arguments() -> None:
    """No argument at all is an error too."""
    with pytest.raises(ConfigurationError, match="no picture is named"):
        find_pictures([], Smile.formats)
