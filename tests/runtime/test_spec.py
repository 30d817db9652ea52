"""A prepared job, and the stored form from which a later process makes it again."""

import re
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import Avatar, Feature, FileId, Job, Smile
from perfect_async._files.images import inspect
from perfect_async._journal.model import Entered, StoredJob, decode, encode
from perfect_async._runtime.sharing import submission
from perfect_async._runtime.spec import PLAIN, JobOptions, JobSpec, identity, name_identity
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


NAMED = st.dictionaries(
    st.sampled_from(["src", "ref", "srcmsk"]),
    URLS | st.lists(st.builds(FileId, st.text("ab/", min_size=1)), min_size=1, max_size=3),
    max_size=3,
)
FEATURES = st.builds(
    lambda version, units, key, named: Feature(
        "2d-vto/ring", {"a": [1, {"b": None}]}, version=version, units=units, key=key, **named
    ),
    st.sampled_from(["v2.0", "v2.1"]),
    st.none() | st.integers(0, 9),
    KEYS,
    NAMED,
)


@given(SMILES | AVATARS, st.none() | st.just("/out"), st.booleans())
def test_a_stored_job_is_restored(job: Job, save_to: str | None, delete: bool) -> None:
    """The stored form of a job makes an equal prepared job, in another process too."""
    spec = JobSpec.of(job, None, JobOptions(save_to, delete, (1,)))
    entry = decode(*encode(Entered(1, 0, spec.stored())))
    assert isinstance(entry, Entered)
    assert spec == JobSpec.restored(entry.stored, None, (1,))
    assert job == JobSpec.job_of(entry.stored, None)


async def test_a_stored_file(tmp_path: Path) -> None:
    """A file is stored by its absolute path and its digest."""
    path = tmp_path / "a.jpg"
    path.write_bytes(face(1))
    job = Smile(path)
    picture = await inspect(path, Smile)
    assert picture is not None
    order = JobSpec.of(job, picture, PLAIN).stored()
    assert ("path", str(path), picture.digest) == (order.kind, order.place, order.digest)
    again = JobSpec.restored(order, None, ())
    assert (None, None) == (again.source, again.picture)


async def test_stored_bytes() -> None:
    """Bytes are not stored; after their upload the vendor's file stands for them."""
    picture = await inspect(face(1), Smile)
    order = JobSpec.of(Smile(face(1)), picture, PLAIN).stored()
    assert ("bytes", None) == (order.kind, order.place)
    assert b"" == JobSpec.job_of(order, None).source
    assert FileId("f") == JobSpec.restored(order, "f", ()).source


def test_a_stored_signed_url() -> None:
    """A signed URL is not stored, and equal ones are not equal jobs."""
    signed = Smile("https://a.example/b.jpg?X-Amz-Signature=SECRET")
    spec = JobSpec.of(signed, None, PLAIN)
    assert not spec.sure
    assert ("url", None) == (spec.stored().kind, spec.stored().place)
    assert "SECRET" not in repr(spec.stored())
    assert JobSpec.of(attrs.evolve(signed, key="k"), None, PLAIN).sure


def test_a_new_signature_keeps_the_key() -> None:
    """A key may come again with another signature, since the picture may be the same."""
    spec = JobSpec.of(Smile("https://a.example/b.jpg?X-Amz-Signature=SECRET", key="k"), None, PLAIN)
    restored = JobSpec.restored(spec.stored(), None, ())

    assert [None] * 3 == [it.source_digest for it in (spec, spec.stored(), restored)]


def order(**changes: object) -> StoredJob:
    """The stored form of a smile, with `changes`."""
    made = JobSpec.of(Smile("https://a.example/b.jpg"), None, PLAIN).stored()
    return attrs.evolve(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "strange", [{"feature": "ai-hat"}, {"parameters": (("hat", 1),)}, {"parameters": (("key", 1),)}]
)
def test_a_job_of_another_version_is_refused(strange: dict[str, object]) -> None:
    """A stored job that this version cannot make is refused."""
    with pytest.raises(JobRefused):
        JobSpec.restored(order(**strange), None, ())


def test_an_attached_task_has_no_job() -> None:
    """A task that is attached has no job and no stored form."""
    spec = JobSpec.attached("ai-smile", "t")
    assert (None, False, 1.0) == (spec.job, spec.sure, spec.units)
    with pytest.raises(AssertionError):
        spec.stored()


# Identities.


def test_the_identity_is_the_same_in_every_version() -> None:
    """File names and journals hold identities, so these values must not change."""
    digest = "0" * 64
    found = [
        identity(Smile("me.jpg"), digest)[:16],
        identity(Avatar("https://example.com/a.jpg", "male_1", 8), None)[:16],
        identity(Smile(FileId("f")), None)[:16],
        identity(Smile("me.jpg", key="user 7"), None)[:16],
    ]
    assert ["1bfd3f725ce959d2", "f3c22288127eba47", "aaa65b7a058628c6", "889b6c52a26c0eac"] == found


def test_one_job_one_identity() -> None:
    """The path of a picture does not matter, nor whether it is a file or bytes."""
    digest = "a" * 64

    assert identity(Smile("a/me.jpg"), digest) == identity(Smile(b"..."), digest)
    assert re.fullmatch("[0-9a-f]{64}", identity(Smile("me.jpg"), digest))


def test_different_jobs_have_different_identities() -> None:
    """Picture, parameters, feature and kind of source each make another job."""
    a, b = "a" * 64, "b" * 64
    jobs: list[tuple[Job, str | None]] = [
        (Smile("x"), a),
        (Smile("x"), b),
        (Smile("x", "closed_mouth_smile"), a),
        (Avatar("x", "male_1"), a),
        (Avatar("x", "male_2"), a),
        (Avatar("x", "male_1", 5), a),
        (Smile(FileId("a" * 64)), None),
        (Smile(FileId("https://example.com/a")), None),
        (Smile("https://example.com/a"), None),
        (Smile("https://example.com/b"), None),
        (Smile("x", key="a"), a),
        (Smile("x", key="b"), a),
        (Avatar("x", "male_1", key="a"), a),
    ]

    assert len(jobs) == len({identity(job, digest) for job, digest in jobs})


def test_a_key_is_the_whole_identity() -> None:
    """With a key of the user's neither picture nor parameters count, and none is needed."""
    one = identity(Smile("a.jpg", key="user 7"), None)

    assert one == identity(Smile("b.jpg", "closed_mouth_smile", key="user 7"), "b" * 64)


def test_an_identity_needs_the_picture() -> None:
    """A picture on this machine has no identity without its bytes."""
    with pytest.raises(TypeError, match="needs the digest"):
        identity(Smile("me.jpg"), None)


S3 = "X-Amz-Algorithm=A&X-Amz-Credential=C&X-Amz-Date=D&X-Amz-Expires=7200&X-Amz-Signature="


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"https://s3/me.jpg?{S3}1", f"https://s3/me.jpg?{S3}2"),
        (f"https://s3/me.jpg?{S3}1", "https://s3/me.jpg"),
        ("https://gcs/me.jpg?X-Goog-Signature=1", "https://gcs/me.jpg?X-Goog-Signature=2"),
        ("https://cf/me?Expires=1&Signature=a&Key-Pair-Id=K", "https://cf/me?Expires=2&Policy=p"),
        ("https://az/me?sv=1&se=2&sig=x", "https://az/me?sv=1&se=2&sig=y"),
    ],
)
def test_another_signature_is_another_job(one: str, other: str) -> None:
    """Two URLs that differ only in their signatures may lead to two pictures."""
    assert identity(Smile(one), None) != identity(Smile(other), None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://x/me.jpg#a", "https://x/me.jpg#b"),
        (" https://x/me.jpg", "https://x/me.jpg "),
        ("https://x/me.jpg?a=1&", "https://x/me.jpg?&a=1"),
    ],
)
def test_parts_of_a_url_that_are_not_sent_do_not_count(one: str, other: str) -> None:
    """A fragment, white space and empty parameters are not part of the identity."""
    assert identity(Smile(one), None) == identity(Smile(other), None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://x/me?id=1", "https://x/me?id=2"),
        (f"https://s3/me?versionId=1&{S3}1", f"https://s3/me?versionId=2&{S3}1"),
        ("https://x/get?token=one", "https://x/get?token=two"),
        ("https://x/get?se=1&sig=x", "https://x/get?se=2&sig=x"),
        ("https://x/get?sv=1", "https://x/get?sv=2"),
        ("https://x/a?Signature=1", "https://x/b?Signature=1"),
    ],
)
def test_two_peoples_pictures_are_two_jobs(one: str, other: str) -> None:
    """A query that may identify a picture counts, beside a signature too."""
    assert identity(Smile(one), None) != identity(Smile(other), None)


@given(st.text())
def test_every_url_has_an_identity(text: str) -> None:
    """Every URL has an identity, also one with lone surrogates."""
    assert re.fullmatch("[0-9a-f]{64}", identity(Smile(f"https://{text}\ud800"), None))


SIGNED = "https://s3/me.jpg?X-Amz-Signature="
DIFFERENT: list[Job] = [
    Smile("https://x/a.jpg"),
    Smile("https://x/a.jpg?v=2"),
    Smile(SIGNED + "1"),
    Smile(SIGNED + "2"),
    Smile("https://x/a.jpg", key="k"),
    Smile("https://x/b.jpg", key="k"),
    Smile("https://x/a.jpg", "closed_mouth_smile", key="k"),
    Smile("https://x/a.jpg", key="l"),
    Smile(SIGNED + "1", key="k"),
    Smile(SIGNED + "2", key="k"),
    Smile("https://x/a.jpg?sv=1&sig=2", key="k"),
    Smile("https://x/a.jpg?sv=1&sig=3", key="k"),
    Smile(FileId("a"), key="k"),
    Smile(FileId("b"), key="k"),
    Avatar("https://x/a.jpg", "t", key="k"),
    Avatar("https://x/a.jpg", "u", key="k"),
]


def test_jobs_that_differ_in_anything_have_different_files() -> None:
    """File names differ even if the key is equal, so no result replaces another one."""
    found = {JobSpec.of(job, None, PLAIN).file_identity for job in DIFFERENT}

    assert len(DIFFERENT) == len(found)


async def test_pictures_with_one_key_have_different_files() -> None:
    """The file names of uploaded pictures differ by their bytes."""
    found = {
        JobSpec.of(job, await inspect(job.source, Smile), PLAIN).file_identity
        for job in (Smile(face(1), key="k"), Smile(face(2), key="k"))
    }
    assert 2 == len(found)


@pytest.mark.parametrize("job", [*DIFFERENT, Smile(face(1), key="k"), Smile(face(1))])
async def test_a_job_from_the_journal_has_the_same_files(job: Job) -> None:
    """The next process gives a job's files the same names."""
    picture = await inspect(job.source, type(job))
    spec = JobSpec.of(job, picture, PLAIN)

    assert spec.file_identity == JobSpec.restored(spec.stored(), None, ()).file_identity


@pytest.mark.parametrize("file_id", [None, "f"])
@pytest.mark.parametrize("job", [*DIFFERENT, Smile(face(1), key="k"), Smile(face(1))])
async def test_a_job_from_the_journal_is_the_same_in_the_ledger(
    job: Job, file_id: str | None
) -> None:
    """It has the same digest, whether its picture was uploaded or not."""
    picture = await inspect(job.source, type(job))
    spec = JobSpec.of(job, picture, PLAIN)
    given = file_id if picture is not None else None

    again = JobSpec.restored(spec.stored(), given, ())

    assert spec.source_digest == again.source_digest
    assert submission(spec) == submission(again)


@pytest.mark.parametrize("key", [None, "k"])
async def test_the_files_of_a_job_are_known_before_it_is_prepared(key: str | None) -> None:
    """Each input counts by its bytes, its URL or its file id."""
    signed = "https://x.example/a.jpg?signature=s"
    urls = ["https://x.example/a.jpg", signed]
    job = Feature("a", src=face(1), ref=urls, mask=FileId("m"), key=key)
    pictures = [await inspect(each.source, job) for each in job.inputs]
    digests = [None if each is None else each.digest for each in pictures]

    spec = JobSpec.of(job, pictures[0], PLAIN, *pictures[1:])

    assert spec.file_identity == name_identity(job, *digests)


# Features without a class.


@given(FEATURES)
def test_a_stored_feature_is_restored(job: Feature) -> None:
    """Path, version, parameters, price and inputs are restored."""
    spec = JobSpec.of(job, None, PLAIN, *[None] * len(job.inputs))
    entry = decode(*encode(Entered(1, 0, spec.stored())))
    assert isinstance(entry, Entered)

    assert job == JobSpec.job_of(entry.stored, None)
    assert spec == JobSpec.restored(entry.stored, None, ())
    assert spec.file_identity == JobSpec.restored(entry.stored, None, ()).file_identity


async def test_uploads_of_a_former_process() -> None:
    """Each uploaded input has a file at the vendor; the others are unknown."""
    job = Feature("a", src=face(1), ref=[face(2), face(3)])
    pictures = [await inspect(each.source, job) for each in job.inputs]
    stored = JobSpec.of(job, pictures[0], PLAIN, *pictures[1:]).stored()
    again = JobSpec.restored(stored, "s", (), ((2, "r"),))

    assert [FileId("s"), None, FileId("r")] == again.sources
    assert again.job is not None
    assert [FileId("s"), b"", FileId("r")] == [each.source for each in again.job.inputs]


def test_different_features_have_different_identities() -> None:
    """Path, version, parameters, and the names and order of inputs each make another job."""
    a, b = FileId("a"), FileId("b")
    jobs = [
        Feature("a", src=a),
        Feature("a", ref=a),
        Feature("a", ref=[a]),
        Feature("a", ref=[a, b]),
        Feature("a", ref=[b, a]),
        Feature("a", {"x": 1}, src=a),
        Feature("a", src=a, version="v2.1"),
        Feature("b", src=a),
        Feature("b"),
        Feature("a", src=a, key="k"),
        Feature("a", src=a, key="k", version="v2.1"),
    ]
    assert len(jobs) == len({identity(job, *[None] * len(job.inputs)) for job in jobs})


def test_the_price_is_not_part_of_the_identity() -> None:
    """A job is not bought again because its price is given later."""
    one, other = Feature("a", {"x": 1}), Feature("a", {"x": 1}, units=3)
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    "parameters",
    [
        (("params", "["), ("inputs", "[]")),
        (("params", "[]"), ("inputs", "[]")),
        (("params", "{}"), ("inputs", "3")),
        (("params", "{}"), ("inputs", "[]")),
        (("params", "{}"), ("inputs", '[["src",null]]'), ("units", "x")),
        (("params", "{}"), ("inputs", '[["Src",null]]')),
    ],
)
def test_a_feature_of_another_version_is_refused(parameters: tuple[tuple[str, str], ...]) -> None:
    """A stored job that this version cannot read is refused and stays in the journal."""
    with pytest.raises(JobRefused):
        JobSpec.job_of(order(feature="a", parameters=parameters), None)
