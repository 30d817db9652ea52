"""An errand is its job, and what a journal holds of it makes the same job again."""

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import Avatar, FileId, Job, Smile
from perfect_async._files.images import inspect
from perfect_async._journal.model import Entered, StoredJob, decode, encode
from perfect_async._runtime.spec import PLAIN, JobOptions, JobSpec
from perfect_async.errors import JobRefused
from tests.support.journaled import face

KEYS = st.none() | st.text(min_size=1, max_size=20).filter(str.strip)
URLS = st.sampled_from(["https://a.example/b.jpg", "http://a.example/c?x=1"])
PLACES = URLS | st.builds(FileId, st.text("abc/+=", min_size=1, max_size=9))
SMILES = st.builds(
    Smile,
    PLACES,
    expression=st.sampled_from(["smile_with_teeth_visible", "closed_mouth_smile"]),
    key=KEYS,
)
AVATARS = st.builds(
    Avatar, PLACES, template_id=st.just("t"), output_count=st.integers(1, 200), key=KEYS
)


@given(SMILES | AVATARS, st.none() | st.just("/out"), st.booleans())
def test_there_and_back(job: Job, save_to: str | None, delete: bool) -> None:
    """What is written of a job makes the same errand again, in another process too."""
    spec = JobSpec.of(job, None, JobOptions(save_to, delete, (1,)))
    entry = decode(*encode(Entered(1, 0, spec.stored())))
    assert isinstance(entry, Entered)
    assert spec == JobSpec.recalled(entry.stored, None, (1,))
    assert job == JobSpec.job_of(entry.stored, None)


async def test_a_file(tmp_path: Path) -> None:
    """A file is known by its absolute path and its digest."""
    path = tmp_path / "a.jpg"
    path.write_bytes(face(1))
    job = Smile(path)
    picture = await inspect(path, Smile)
    assert picture is not None
    order = JobSpec.of(job, picture, PLAIN).stored()
    assert ("path", str(path), picture.digest) == (order.kind, order.place, order.digest)
    again = JobSpec.recalled(order, None, ())
    assert (None, None) == (again.source, again.picture)


async def test_bytes() -> None:
    """Bytes are not kept; once they are uploaded the file stands for them."""
    picture = await inspect(face(1), Smile)
    order = JobSpec.of(Smile(face(1)), picture, PLAIN).stored()
    assert ("bytes", None) == (order.kind, order.place)
    assert b"" == JobSpec.job_of(order, None).source
    assert FileId("f") == JobSpec.recalled(order, "f", ()).source


def test_a_signed_url() -> None:
    """A signed URL is not kept, and equal ones are not equal jobs."""
    signed = Smile("https://a.example/b.jpg?X-Amz-Signature=SECRET")
    spec = JobSpec.of(signed, None, PLAIN)
    assert not spec.sure
    assert ("url", None) == (spec.stored().kind, spec.stored().place)
    assert "SECRET" not in repr(spec.stored())
    assert JobSpec.of(attrs.evolve(signed, key="k"), None, PLAIN).sure


def order(**changes: object) -> StoredJob:
    """What is written of a smile, with `changes`."""
    made = JobSpec.of(Smile("https://a.example/b.jpg"), None, PLAIN).stored()
    return attrs.evolve(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "strange", [{"feature": "ai-hat"}, {"parameters": (("hat", 1),)}, {"parameters": (("key", 1),)}]
)
def test_of_another_version(strange: dict[str, object]) -> None:
    """What this version cannot make is refused."""
    with pytest.raises(JobRefused):
        JobSpec.recalled(order(**strange), None, ())


def test_known_by_its_id() -> None:
    """A task that is attached has no job, and nothing of it is written."""
    spec = JobSpec.attached(Smile, "t")
    assert (None, False, 1.0) == (spec.job, spec.sure, spec.units)
    with pytest.raises(AssertionError):
        spec.stored()
