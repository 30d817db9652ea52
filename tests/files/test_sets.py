"""The files of one result are written without replacing others, and results are never mixed."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._files.saving import AtomicFile
from perfect_async._files.sets import PictureSet, Put, copy_files, save_set
from perfect_async._files.threads import in_thread

IDENTITY = "0123456789abcdef" * 4


def a_set(folder: Path, count: int) -> PictureSet:
    return PictureSet(folder, "me", IDENTITY, count)


def save(folder: Path, task_id: str, pictures: Sequence[bytes]) -> list[Path]:
    """Save pictures with these bytes as the result of a task."""

    def write_one(index: int, put: Put) -> Path:
        part = AtomicFile(folder)
        try:
            part.write(pictures[index])
            return put(index, part, "jpg")
        finally:
            part.discard()

    async def write(wanted: Sequence[int], put: Put) -> list[Path]:
        return [await in_thread(write_one, index, put) for index in wanted]

    return asyncio.run(save_set(a_set(folder, len(pictures)), task_id, write))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    former=st.dictionaries(st.integers(1, 4), st.sampled_from([b"1", b"2", b"retouched"])),
    kind=st.sampled_from(["jpg", "png"]),
)
def test_existing_files_are_kept(
    tmp_path_factory: pytest.TempPathFactory, former: dict[int, bytes], kind: str
) -> None:
    """Existing files are not changed, and the set has all of its pictures."""
    folder = tmp_path_factory.mktemp("out")
    pictures = [b"1", b"2", b"3", b"4"]
    for number, data in former.items():
        (folder / f"me-{IDENTITY[:16]}-{number}.{kind}").write_bytes(data)
    before = content(folder)

    files = save(folder, "task", pictures)

    assert pictures == [file.read_bytes() for file in files]
    assert before == {name: content(folder)[name] for name in before}
    fits = all(data == pictures[number - 1] for number, data in former.items())
    assert (4 if fits else 4 + len(former)) == len(content(folder))
    # The second time, the set exists.
    assert files == save(folder, "task", pictures)


def test_the_sets_of_two_tasks_have_different_names(tmp_path: Path) -> None:
    """Each of several results of a job is a separate set, and retouched files are kept."""
    first, second, third = [
        save(tmp_path, task, [task.encode(), b"same"]) for task in ("a", "b", "c")
    ]
    assert 6 == len({*first, *second, *third}) == len(content(tmp_path))

    second[0].write_bytes(b"retouched")
    second[1].unlink()

    assert second == save(tmp_path, "b", [b"b", b"same"])
    assert [b"retouched", b"same"] == [file.read_bytes() for file in second]


def test_files_are_copied_in_order(tmp_path: Path) -> None:
    """Copied files keep their types and their order."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    sources = [tmp_path / "from" / name for name in ("b.png", "a.jpg")]
    for source in sources:
        source.write_bytes(source.name.encode())

    async def copy(wanted: Sequence[int], put: Put) -> list[Path]:
        return await copy_files(sources, tmp_path / "to", wanted, put)

    files = asyncio.run(save_set(a_set(tmp_path / "to", 2), "task", copy))

    assert [(b"b.png", ".png"), (b"a.jpg", ".jpg")] == [
        (file.read_bytes(), file.suffix) for file in files
    ]
    assert set(files) == set((tmp_path / "to").iterdir())
