"""Which pictures a command line means."""

from pathlib import Path

import pytest

from perfect_async import Avatar, ConfigurationError, Smile
from perfect_async.cli._inputs import expand


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


def names(*words: str, formats: tuple[str, ...] = Smile.formats, out: str = "out") -> list[str]:
    return [str(found) for found in expand(words, formats, Path(out))]


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


def test_a_deep_pattern_spares_the_results(folder: Path) -> None:
    """`**` goes down, but not into the folder of results: they are not paid for again."""
    (folder / "out").mkdir()
    (folder / "out" / "made.jpg").write_bytes(b"")

    assert ["b.jpg", "deep/e.jpg"] == [Path(name).as_posix() for name in names("**/*.jpg")]
    assert ["out/made.jpg"] == [Path(name).as_posix() for name in names("out")]
    assert 3 == len(expand(["**/*.jpg"], ("jpg",)))


def test_a_named_file_needs_no_suffix(folder: Path) -> None:
    """A file that is there is taken at its name, also where the name looks like a pattern."""
    (folder / "x[1].dat").write_bytes(b"")

    assert ["x[1].dat", "notes.txt"] == names("x[1].dat", "notes.txt")


def test_urls_pass(folder: Path) -> None:
    """A URL is left as it is: stars and all."""
    assert ["https://example.com/*.jpg?a=b", "ftp://x/y"] == names(
        "https://example.com/*.jpg?a=b", "ftp://x/y"
    )


def test_each_once_in_their_order(folder: Path) -> None:
    """What is named twice, or by two paths, is one picture, where it came first."""
    Path("link.heic").symlink_to("c.heic")

    assert ["c.heic", "a.PNG", "http://x/", "b.jpg", "d.jpeg"] == names(
        "c.heic", "a.PNG", "http://x/", "http://x/", str(folder / "c.heic"), ".", "link.heic"
    )


def test_home_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` works in every shell."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))

    assert [str(folder / "b.jpg")] == names("~/b.jpg")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("none.jpg", "no file 'none.jpg'"),
        ("dangling.jpg", "no file 'dangling.jpg'"),
        ("none*.jpg", "'none*.jpg' stands for no picture (.jpg, .jpeg, .png, .heic)"),
        ("folder.jpg", "'folder.jpg' stands for no picture"),
        ("*.txt", "stands for no picture"),
        ("", "'' names no file"),
        ("a\0b", "names no file"),
        ("x" * 5000, "cannot be read"),
        ("~nobody-at-all/x.jpg", "cannot be read"),
    ],
)
def test_a_word_without_a_picture_is_named(folder: Path, word: str, message: str) -> None:
    """What stands for nothing is an error that names it, before anything is sent."""
    Path("dangling.jpg").symlink_to("nowhere")

    with pytest.raises(ConfigurationError) as caught:
        names("b.jpg", word)

    assert message in caught.value.message


def test_no_words() -> None:
    """Nothing named is an error too."""
    with pytest.raises(ConfigurationError, match="no picture is named"):
        expand([], Smile.formats)
