"""The manifest of a results folder: read, looked up, appended to, and rebuilt."""

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perfect_async import Avatar, ConfigurationError, Done, Job, Smile
from perfect_async._client.folder import job_identity
from perfect_async._files import names
from perfect_async._runtime.spec import identity
from perfect_async.cli._manifest import (
    NAME,
    Manifest,
    Plan,
    leave_out_results,
    record,
)

TEMPLATE = "male_studio_00"


def picture(folder: Path, name: str, content: bytes | None = None) -> Path:
    """Write a picture, whose bytes are its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode() if content is None else content)
    return path


def digits_of(job: Job, number: int = 16) -> str:
    source = cast("Path", job.source)
    return identity(job, hashlib.sha256(source.read_bytes()).hexdigest())[:number]


def results_of(job: Job, out: Path, digits: int = 16) -> list[Path]:
    """Write the results of a job under their names."""
    stem, hexes = names.stem(job), digits_of(job, digits)
    numbers = [f"-{n}" for n in range(1, job.outputs + 1)] if job.outputs > 1 else [""]
    return [picture(out, f"{stem}-{hexes}{number}.jpg") for number in numbers]


def done(job: Job, files: list[Path]) -> Done:
    return cast("Done", SimpleNamespace(job=job, files=tuple(files), changes=()))


def plan(out: Path, *jobs: Job, again: bool = False) -> Plan:
    return Manifest(out).plan(jobs, token="0123456789abcdef", again=again)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for results."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_an_empty_folder_has_nothing(tmp_path: Path) -> None:
    """Everything is bought where the folder is missing or empty."""
    job = Smile(picture(tmp_path, "a.jpg"))

    manifest = Manifest(tmp_path / "missing")

    assert Plan([job], [], []) == manifest.plan([job], token="x")
    assert (0, False) == (len(manifest), manifest.broken)


def test_a_recorded_result_is_there(tmp_path: Path, out: Path) -> None:
    """A result that was recorded is not bought again, whatever its name and its bytes are now."""
    job = Smile(picture(tmp_path, "a.jpg"))
    files = results_of(job, out)
    record(done(job, files))
    files[0].write_bytes(b"retouched")

    assert Plan([], [(job, tuple(files))], []) == plan(out, job)
    # The same picture under another name, and another expression.
    assert 1 == len(plan(out, Smile(picture(tmp_path, "b.jpg", b"a.jpg"))).there)
    assert 1 == len(plan(out, Smile(tmp_path / "a.jpg", "closed_mouth_smile")).jobs)


@pytest.mark.parametrize("digits", [8, 16])
def test_a_folder_is_no_result(tmp_path: Path, out: Path, digits: int) -> None:
    """Something else with the name of a result does not count as the result."""
    job = Smile(picture(tmp_path, "a.jpg"))
    (file,) = results_of(job, out, digits)
    file.unlink()
    file.mkdir()

    assert [] == plan(out, job).there


def test_a_huge_manifest_is_refused(out: Path) -> None:
    """A file that is too large to be a manifest is not read as one, and stays as it is."""
    with (out / NAME).open("wb") as file:
        file.truncate(1 << 30)

    with pytest.raises(ConfigurationError, match="too large"):
        Manifest(out)


def test_a_deleted_result_is_bought(tmp_path: Path, out: Path) -> None:
    """A recorded result that is gone is bought again, under its old name."""
    job = Smile(picture(tmp_path, "a.jpg"))
    files = results_of(job, out)
    record(done(job, files))
    files[0].unlink()

    assert Plan([job], [], []) == plan(out, job)


def test_an_unrecorded_result_is_there(tmp_path: Path, out: Path) -> None:
    """A result is found by its name, too: the run may have ended before it was recorded."""
    smile = Smile(picture(tmp_path, "a.jpg"))
    avatar = Avatar(tmp_path / "a.jpg", template_id=TEMPLATE, output_count=12)
    files = results_of(smile, out), results_of(avatar, out)

    assert [(smile, tuple(files[0])), (avatar, tuple(files[1]))] == plan(out, smile, avatar).there


def test_an_incomplete_set_is_not_there(tmp_path: Path, out: Path) -> None:
    """Some avatars of a set are not the set: the job is run, which replaces none of them."""
    job = Avatar(picture(tmp_path, "a.jpg"), template_id=TEMPLATE)
    results_of(job, out)[0].unlink()

    assert Plan([job], [], []) == plan(out, job)


def test_a_set_under_other_names_is_recorded_as_the_jobs(tmp_path: Path, out: Path) -> None:
    """A set that was bought anew beside an incomplete one is the job's result."""
    job = Avatar(picture(tmp_path, "a.jpg"), template_id=TEMPLATE)
    results_of(job, out)[0].unlink()
    identity = digits_of(job, 64)
    new = [
        picture(out, names.in_folder("a", identity, "jpg", number, token="0a1b2c3d"))
        for number in range(1, 5)
    ]

    assert [(job, tuple(new))] == plan(out, job).there
    record(done(job, new))
    assert [(job, tuple(new))] == plan(out, job).there


def test_again_buys_a_set_of_its_own(tmp_path: Path, out: Path) -> None:
    """`--again` buys what is there; both sets are found afterwards, the newest first."""
    job = Avatar(picture(tmp_path, "a.jpg"), template_id=TEMPLATE)
    old = results_of(job, out)
    record(done(job, old))

    (again,) = plan(out, job, again=True).jobs
    new = results_of(again, out)
    record(done(again, new))

    assert set(old).isdisjoint(new)
    assert [(job, tuple(new))] == plan(out, job).there
    new[0].unlink()
    assert [(job, tuple(old))] == plan(out, job).there


def test_results_of_former_versions_are_there(tmp_path: Path, out: Path) -> None:
    """Names with 8 digits count as well."""
    smile = Smile(picture(tmp_path, "a.jpg"))
    avatar = Avatar(tmp_path / "a.jpg", template_id=TEMPLATE)
    files = results_of(smile, out, 8), results_of(avatar, out, 8)

    assert [(smile, tuple(files[0])), (avatar, tuple(files[1]))] == plan(out, smile, avatar).there
    files[1][2].unlink()
    assert [avatar] == plan(out, avatar).jobs


def test_several_jobs_for_one_former_name(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two jobs fit a name of 8 digits, neither is bought, and both are named."""
    monkeypatch.setattr(
        "perfect_async._client.folder.name_identity", lambda job, digest: "01234567" + digest[8:]
    )
    one = Smile(picture(tmp_path, "1/a.jpg"))
    two = Smile(picture(tmp_path, "2/a.jpg"))
    picture(out, "a-01234567.jpg")

    found = plan(out, one, two)

    assert ([], [], [one, two]) == (found.jobs, found.there, [job for job, _ in found.refused])
    message = found.refused[0][1].message
    assert all(text in message for text in ("a-01234567.jpg", str(one.source), str(two.source)))
    # One alone claims it, and keeps it.
    alone = plan(out, one)
    assert [one] == [job for job, _ in alone.there]
    Manifest(out).record_former(alone)
    assert ([two], [one]) == (
        plan(out, one, two).jobs,
        [job for job, _ in plan(out, one, two).there],
    )


def test_signed_urls_are_their_own(out: Path) -> None:
    """URLs that differ in their signature are different pictures; the same URL is there."""
    one, two = (Smile(f"https://x/a.jpg?X-Amz-Signature={n}") for n in range(2))
    file = picture(out, f"a-{identity(one, None)[:16]}.jpg")
    record(done(one, [file]))

    assert ([two], [(one, (file,))]) == (plan(out, one, two).jobs, plan(out, one, two).there)
    assert b"Amz" not in (out / NAME).read_bytes()


def test_the_manifest_is_private(tmp_path: Path, out: Path) -> None:
    """Only its owner can read it, and it holds file names and digits alone."""
    job = Smile(picture(tmp_path, "a.jpg"), key="my key")
    record(done(job, results_of(job, out)))

    path = out / NAME
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert {"job": digits_of(job), "files": [f"a-{digits_of(job)}.jpg"]} == json.loads(
        path.read_text()
    )


def test_a_job_without_files_is_not_recorded(tmp_path: Path, out: Path) -> None:
    """Nothing is written for a job that saved nothing, or under a name of the user's own."""
    job = Smile(picture(tmp_path, "a.jpg"))
    record(done(job, []))
    record(done(job, [out / "mine.jpg"]))

    assert not (out / NAME).exists()


GOOD = {"job": "0" * 16, "files": ["a-0000000000000000.jpg"]}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\n",
        b"[]\n",
        b"[" * 100_000 + b"\n",
        b'{"job": "../../../etc", "files": ["a.jpg"]}\n',
        json.dumps({**GOOD, "files": ["../secret.jpg"]}).encode() + b"\n",
        json.dumps({**GOOD, "files": ["a\0b"]}).encode() + b"\n",
        json.dumps({**GOOD, "files": []}).encode() + b"\n",
        json.dumps({**GOOD, "files": [7]}).encode() + b"\n",
        json.dumps({**GOOD, "files": "a.jpg"}).encode() + b"\n",
        json.dumps(GOOD).encode(),  # cut off before its end
    ],
)
def test_a_broken_manifest_is_rebuilt(tmp_path: Path, out: Path, line: bytes) -> None:
    """Lines that cannot be read are dropped; the others stay, and names still count."""
    jobs = [Smile(picture(tmp_path, name)) for name in ("a.jpg", "b.jpg")]
    files = [results_of(job, out) for job in jobs]
    record(done(jobs[0], files[0]))
    good = (out / NAME).read_bytes()
    (out / NAME).write_bytes((line or b"\n") + good if line.endswith(b"\n") else good + line + b"{")

    manifest = Manifest(out)
    assert (True, 2) == (manifest.broken, len(manifest))
    manifest.rebuild()

    assert good == (out / NAME).read_bytes()
    assert 0o600 == stat.S_IMODE((out / NAME).stat().st_mode)
    assert {NAME, *(path.name for pair in files for path in pair)} == {
        path.name for path in out.iterdir()
    }
    assert not Manifest(out).broken
    assert 2 == len(plan(out, *jobs).there)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_something_else_is_no_manifest(out: Path, tmp_path: Path, kind: str) -> None:
    """A folder, link or pipe with its name is refused at once, and not followed."""
    match kind:
        case "folder":
            (out / NAME).mkdir()
        case "link":
            (out / NAME).symlink_to(picture(tmp_path, "elsewhere"))
        case _:
            os.mkfifo(out / NAME)

    with pytest.raises(ConfigurationError, match="cannot be read"):
        Manifest(out)


def test_a_rebuild_that_fails_changes_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the broken manifest as it is, and nothing beside it."""
    picture(out, NAME, b"broken\n")
    manifest = Manifest(out)

    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        manifest.rebuild()

    assert [out / NAME] == list(out.iterdir())
    assert b"broken\n" == (out / NAME).read_bytes()


def test_runs_at_the_same_time_add_to_one_manifest(tmp_path: Path, out: Path) -> None:
    """Each line is appended whole, and none is lost."""
    jobs = [Smile(picture(tmp_path, f"{number}.jpg")) for number in range(40)]
    outcomes = [done(job, results_of(job, out)) for job in jobs]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, outcomes))

    assert 40 == len((out / NAME).read_bytes().splitlines())
    assert (40, False) == (len(Manifest(out)), Manifest(out).broken)


def test_unreadable_pictures_are_left_to_the_client(tmp_path: Path, out: Path) -> None:
    """A missing file, a folder, a pipe and a huge file are planned without reading them."""
    results_of(Smile(picture(tmp_path, "a.jpg")), out)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(Smile.largest + 1)
    jobs = [Smile(tmp_path / name) for name in ("missing", "out", "pipe", "huge", "a\0b")]

    assert Plan(list(jobs), [], []) == plan(out, *jobs)


@given(st.binary(max_size=300))
def test_no_content_breaks_the_reading(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Whatever the file holds, it can be read, and is whole after it was rebuilt."""
    out = tmp_path_factory.mktemp("out")
    (out / NAME).write_bytes(content)

    manifest = Manifest(out)
    if manifest.broken:
        manifest.rebuild()

    assert not Manifest(out).broken


# One folder for pictures and results.


def test_results_are_not_fed_back(tmp_path: Path) -> None:
    """Of a folder with pictures and results only the pictures are used."""
    jobs = [Smile(picture(tmp_path, name)) for name in ("a.jpg", "b.jpg", "c.jpg")]
    record(done(jobs[0], results_of(jobs[0], tmp_path)))
    results_of(jobs[1], tmp_path)
    results_of(jobs[2], tmp_path, 8)
    results_of(Avatar(tmp_path / "c.jpg", template_id="x"), tmp_path, 8)
    everything = sorted(tmp_path.glob("*.jpg"))

    kept, left_out = leave_out_results(everything, Manifest(tmp_path))

    assert [job.source for job in jobs] == kept
    assert (len(everything) - 3) == len(left_out)


def test_pictures_that_look_like_former_results_are_used(tmp_path: Path) -> None:
    """A name with 8 digits may be a date: it is a result if the digits are right."""
    pictures = [picture(tmp_path, name) for name in ("IMG.jpg", "IMG-20240101.jpg")]

    assert (pictures, []) == leave_out_results(pictures, Manifest(tmp_path))


def test_results_of_another_folder(tmp_path: Path, out: Path) -> None:
    """A folder of results alone can be worked on; results beside their pictures are left out."""
    job = Smile(picture(tmp_path / "in", "a.jpg"))
    files = results_of(job, tmp_path / "in")
    record(done(job, files))

    mixed = [*files, cast("Path", job.source)]
    assert ([job.source], files) == leave_out_results(mixed, Manifest(out))
    assert (files, []) == leave_out_results(files, Manifest(out))
    url = "https://x/a-0123456789abcdef.jpg"
    assert ([url], []) == leave_out_results([url], Manifest(out))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_picture_that_was_made_to_fit(tmp_path: Path, out: Path, *, replaced: bool) -> None:
    """Its result is found without `fit`, too, unless the file has become another picture."""
    source = tmp_path / "a.webp"
    Image.new("RGB", (40, 30), "red").save(source, "WEBP", lossless=True)
    job = Smile(source)
    known = job_identity(job, fit=True)
    assert known is not None
    file = picture(out, f"a-{known[:16]}.jpg")
    if replaced:
        Image.new("RGB", (40, 30), "blue").save(source, "WEBP", lossless=True)
    record(cast("Done", SimpleNamespace(job=job, files=(file,), changes=("webp made png",))))

    for _ in range(2):
        found = plan(out, job)
        assert (replaced, not replaced) == (found.jobs == [job], found.fitted == 1)
        (out / NAME).write_bytes((out / NAME).read_bytes() + b"broken\n")
        Manifest(out).rebuild()
