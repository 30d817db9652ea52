"""Finding the job of a result file by its name and its picture."""

import errno
import hashlib
import os
from pathlib import Path
from typing import NoReturn

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import Avatar, Job, Smile
from perfect_async._client.folder import (
    ResultName,
    digits_of,
    former_names,
    former_stem,
    is_named_after,
    job_identity,
    look_at,
    numbers_of,
)
from perfect_async._files import names
from perfect_async._files.images import inspect
from perfect_async._runtime.spec import PLAIN, JobSpec, identity
from perfect_async.errors import PictureRefused
from perfect_async.sandbox import portrait

identities = st.binary(min_size=32, max_size=32).map(bytes.hex)
numbers = st.integers(0, 200)
tokens = st.none() | st.just("0a1b2c3d")


@given(st.text(max_size=20), identities, st.sampled_from(names.RESULT_KINDS), numbers, tokens)
def test_the_name_of_a_result_identifies_its_job(
    stem: str, known_as: str, kind: str, number: int, token: str | None
) -> None:
    """A name has the digits of the job's identity, also if the job has several results."""
    name = names.in_folder(stem, known_as, kind, number or None, token=token)

    parts = ResultName.parse(name)

    assert parts is not None
    assert (digits_of(known_as), number, False) == (parts.digits, parts.number, parts.is_former)
    assert token is None or parts.stem.endswith(f"-{token}")


@given(st.text(max_size=20), identities, numbers)
def test_former_names_have_eight_digits(stem: str, known_as: str, number: int) -> None:
    """The names of former versions are found for every type of picture."""
    picture = Path(f"/x/{stem.replace('/', '').replace(chr(0), '')}.jpg")

    found = [ResultName.parse(name) for name in former_names(Smile(picture), known_as, number)]

    expected = ResultName(former_stem(picture), known_as[:8], number)
    assert [expected] * len(names.RESULT_KINDS) == found
    assert expected.is_former


@given(st.text(max_size=200), identities, st.sampled_from(names.RESULT_KINDS), numbers, tokens)
def test_a_result_is_named_after_its_picture(
    stem: str, known_as: str, kind: str, number: int, token: str | None
) -> None:
    """So is one beside an older one, however long the name of the picture is."""
    picture = Path(f"/x/{stem.replace('/', '').replace(chr(0), '')}.jpg")
    name = names.in_folder(picture.stem, known_as, kind, number or None, token=token)

    assert is_named_after(name, Smile(picture))


@pytest.mark.parametrize(
    "name",
    [
        f"you-{'0' * 16}.jpg",
        f"me-too-{'0' * 16}.jpg",
        f"me-too-0a1b2c3d-{'0' * 16}.jpg",
        f"me-0a1b2c3g-{'0' * 16}.jpg",
        f"me-0A1B2C3D-{'0' * 16}.jpg",
        "me.jpg",
    ],
)
def test_other_names_are_of_other_pictures(name: str) -> None:
    """A name that the client would not give to a result of the picture is another picture's."""
    assert not is_named_after(name, Smile("/x/me.jpg"))


@pytest.mark.parametrize("name", ["me.jpg", "me-0123.jpg", f"me-{'0' * 16}.txt", f"{'0' * 16}.jpg"])
def test_other_names_are_not_results(name: str) -> None:
    """A name without digits, stem or type is not that of a result."""
    assert ResultName.parse(name) is None


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (Smile("a.jpg"), [0]),
        (Avatar("a.jpg", "t", output_count=1), [0]),
        (Avatar("a.jpg", "t", output_count=3), [1, 2, 3]),
    ],
)
def test_several_pictures_are_numbered(job: Job, expected: list[int]) -> None:
    """Numbers count from 1; a single picture has none."""
    assert expected == numbers_of(job)


def test_identities_are_the_same_as_the_clients(tmp_path: Path) -> None:
    """A picture counts by its bytes and a URL by its text; an unreadable picture has none."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"data")
    url = Smile("https://x.example/a.jpg")
    os.mkfifo(tmp_path / "pipe")

    assert identity(Smile(path), hashlib.sha256(b"data").hexdigest()) == job_identity(Smile(path))
    assert identity(url, None) == job_identity(url)
    for unreadable in (tmp_path, tmp_path / "missing", tmp_path / "pipe"):
        assert job_identity(Smile(unreadable)) is None


@pytest.mark.parametrize("url", [None, "https://x.example/a.jpg", "https://x/a.jpg?signature=s"])
def test_identities_in_names_are_the_same_as_the_clients(tmp_path: Path, url: str | None) -> None:
    """A job with a key is found by the file names that the client gives."""
    path = tmp_path / "a.jpg"
    path.write_bytes(portrait(1, 64))
    job = Smile(url or path, key="ann")
    picture = anyio.run(inspect, job.source, Smile)

    assert JobSpec.of(job, picture, PLAIN).file_identity == job_identity(job)
    if picture is not None:
        assert job_identity(job) == job_identity(job, digest=picture.digest)


def test_inspecting_a_picture(tmp_path: Path) -> None:
    """A picture that can be sent has a digest, and others are refused."""
    path = tmp_path / "a.jpg"
    path.write_bytes(portrait(1, 64))

    assert hashlib.sha256(portrait(1, 64)).hexdigest() == look_at(path, Smile)
    with pytest.raises(PictureRefused, match="cannot be read: No such file"):
        look_at(tmp_path / "missing", Smile)


def test_a_picture_that_cannot_be_read_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk that may pass is a refusal that says so."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("perfect_async._client.folder.look_at_file", fail)

    with pytest.raises(PictureRefused, match="Input/output error") as caught:
        look_at(tmp_path / "a.jpg", Smile)
    assert "try again" in caught.value.hint
