"""Results: outcomes, and pictures on the disk and in memory, whole or not at all."""

import asyncio
import errno
import io
import json
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._client import results
from perfect_async._client.results import Done, Failed, Outcome, Result, ResultImage
from perfect_async._client.session import ClientSession
from perfect_async._files.saving import AtomicFile
from perfect_async._runtime.executors import LoopExecutor
from perfect_async.errors import (
    BadAnswer,
    ConfigurationError,
    NotSaved,
    PerfectError,
    RequestRefused,
    ServiceUnavailable,
    TaskExpired,
)
from perfect_async.models import Smile, Source
from tests.support.sources import ReadablePath
from tests.support.virtual_time import hanging

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
IDENTITY = "0123abcd4567" + "f" * 52

JPG = b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200) + b"IEND\xaeB`\x82"
WEBP = b"RIFF\0\0\0\0WEBPVP8 " + bytes(200)
GIF = b"GIF89a" + bytes(200)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
AVIF = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(200)

Answer = bytes | Sequence[bytes | Exception] | Exception


class FakeSession:
    """A session with files for some URLs; the last answer of each URL is repeated."""

    def __init__(self, **answers: Answer | list[Answer]) -> None:
        self.answers = {
            url: list(each) if isinstance(each, list) else [each] for url, each in answers.items()
        }
        self.fresh: tuple[ResultImage, ...] = ()
        self.time = NOON
        self.downloads = Counter[str]()
        self.refreshes: list[tuple[str, str]] = []
        self.open = 0
        self.executor = LoopExecutor()
        self.retention = self

    async def clean_folder(self, folder: Path) -> None:
        await checkpoint()

    async def refresh(
        self, feature: str, task_id: str, *, pictures_only: bool
    ) -> tuple[ResultImage, ...]:
        self.refreshes.append((feature, task_id))
        await checkpoint()
        return self.fresh

    @asynccontextmanager
    async def download(
        self, url: str, *, large: bool = False
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.downloads[url] += 1
        answers = self.answers[url]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        await checkpoint()
        if isinstance(answer, Exception):
            raise answer
        pieces = [answer] if isinstance(answer, bytes) else answer
        self.open += 1
        try:
            yield self._pieces(pieces)
        finally:
            self.open -= 1

    async def _pieces(self, pieces: Sequence[bytes | Exception]) -> AsyncIterator[bytes]:
        for piece in pieces:
            await checkpoint()
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def now(self) -> datetime:
        return self.time


def image(url: str, expires_in: float = 7200) -> ResultImage:
    return ResultImage(url, NOON + timedelta(seconds=expires_in))


def result(session: FakeSession, *urls: str, stem: str = "me", expires_in: float = 7200) -> Result:
    return Result(
        "task-1",
        tuple(image(url, expires_in) for url in urls or session.answers),
        feature="ai-smile",
        stem=stem,
        identity=IDENTITY,
        session=cast(ClientSession, session),
    )


def names(folder: Path) -> set[str]:
    """List everything below a folder, hidden files included."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder that must hold no partial file when the test is over."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert [] == list(folder.rglob("*.part"))


class TestOutcomes:
    """`Done` and `Failed`, as users read them."""

    done = Done(Smile("a.jpg"), result(FakeSession(a=JPG)), "task-1", 1.0, 8.5)
    failed = Failed(Smile("b.jpg"), TaskExpired("it is gone.", task_id="t"), "t", 1.0, None)

    def test_a_done_job_unwraps_to_its_result(self) -> None:
        """`unwrap` returns the result, `ok` is True and `error` is None."""
        assert self.done.result is self.done.unwrap()
        assert (True, None) == (self.done.ok, self.done.error)

    def test_a_failed_job_raises_its_error(self) -> None:
        """`unwrap` raises the same error each time."""
        for _ in range(2):
            with pytest.raises(TaskExpired) as caught:
                self.failed.unwrap()
            assert self.failed.error is caught.value
        assert (False, None) == (self.failed.ok, self.failed.result)

    def test_outcomes_match_by_class_and_by_place(self) -> None:
        """A `match` distinguishes them and captures the job, then the result or error."""

        def told(outcome: Outcome) -> object:
            match outcome:
                case Done(job, found, task_id, units, duration):
                    return job, found, task_id, units, duration
                case Failed(job, error):
                    return job, error

        assert (self.done.job, self.done.result, "task-1", 1.0, 8.5) == told(self.done)
        assert (self.failed.job, self.failed.error) == told(self.failed)

    def test_outcomes_are_values(self) -> None:
        """They are frozen, comparable and hashable."""
        assert attrs.evolve(self.done, units=1.0) == self.done
        assert attrs.evolve(self.done, units=2.0) != self.done
        assert 2 == len({self.done, self.failed})
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            self.done.units = 2.0  # type: ignore[misc]

    def test_no_repr_holds_a_signature(self) -> None:
        """Reprs show the signed URLs of a result without their query."""
        signed = ResultImage("https://s3.example.com/a.jpg?X-Amz-Signature=secret", NOON)
        found = attrs.evolve(self.done.result, images=(signed,))
        shown = repr(attrs.evolve(self.done, result=found))

        assert "https://s3.example.com/a.jpg" in shown
        assert "secret" not in shown
        assert "FakeSession" not in shown
        assert IDENTITY not in shown

    def test_a_result_is_its_task_and_its_images(self) -> None:
        """The job and the session of a result do not count in `==`."""
        one, other = FakeSession(a=JPG), FakeSession(a=PNG)

        assert result(one) == result(other, stem="you")
        assert hash(result(one)) == hash(result(other))
        assert ("task_id", "images") == Result.__match_args__


class TestNames:
    """The folders and names of saved pictures."""

    async def test_files_in_a_folder_have_names_of_their_own(self, out: Path) -> None:
        """The name has the source, the job and the type."""
        found = await result(FakeSession(a=JPG)).save(out)

        assert [out / "me-0123abcd4567ffff.jpg"] == found
        assert JPG == found[0].read_bytes()
        assert {"me-0123abcd4567ffff.jpg"} == names(out)

    async def test_several_pictures_are_numbered(self, out: Path) -> None:
        """Numbers count from 1, in the order of the images, each with its own type."""
        session = FakeSession(a=JPG, b=PNG, c=GIF)

        found = await result(session).save(str(out))

        tails = ["1.jpg", "2.png", "3.gif"]
        assert [out / f"me-0123abcd4567ffff-{tail}" for tail in tails] == found
        assert [JPG, PNG, GIF] == [path.read_bytes() for path in found]
        assert [JPG, PNG] == [
            path.read_bytes() for path in await result(session, "a", "b").save(out / "x.png")
        ]
        assert {"x-1.jpg", "x-2.png"} < names(out)

    @pytest.mark.parametrize("tail", ["new/", "a/b/c/", "new/.", "new/..", "."])
    async def test_a_path_that_ends_in_a_separator_is_a_folder(self, out: Path, tail: str) -> None:
        """A missing folder is made with its parents."""
        if tail == "new/..":
            (out / "new").mkdir()

        found = await result(FakeSession(a=JPG)).save(f"{out}/{tail}")

        assert [Path(f"{out}/{tail}") / "me-0123abcd4567ffff.jpg"] == found
        assert found[0].is_file()

    @pytest.mark.parametrize(
        ("expected", "target", "data"),
        [
            ("smiling.jpg", "smiling.jpg", JPG),
            ("smiling.jpeg", "smiling.jpeg", JPG),
            ("smiling.png", "smiling.jpg", PNG),
            ("smiling.webp", "smiling.jpg", WEBP),
            ("smiling.gif", "smiling.gif", GIF),
            ("smiling.heic", "smiling.png", HEIC),
            ("new/folder/smiling.jpg", "new/folder/smiling.png", JPG),
        ],
    )
    async def test_a_file_gets_the_type_of_its_bytes(
        self, out: Path, expected: str, target: str, data: bytes
    ) -> None:
        """A path that is not a folder is the file's, except for its suffix."""
        found = await result(FakeSession(a=data)).save(out / target)

        assert [out / expected] == found
        assert data == found[0].read_bytes()

    async def test_a_path_without_a_suffix_is_a_folder(self, out: Path) -> None:
        """A batch that saves to a missing folder does not overwrite one file."""
        for folder in ("new", "run.1", "2026.11"):
            first = await result(FakeSession(a=JPG)).save(out / folder)
            second = await result(FakeSession(a=PNG), stem="you").save(out / folder)

            assert [out / folder / "me-0123abcd4567ffff.jpg"] == first
            assert [out / folder / "you-0123abcd4567ffff.png"] == second

    async def test_a_relative_target_stays_relative(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The returned path begins with the given one."""
        monkeypatch.chdir(out)

        assert [Path("x.jpg")] == await result(FakeSession(a=JPG)).save("x.jpg")
        assert [Path("me-0123abcd4567ffff.jpg")] == await result(FakeSession(a=JPG)).save(".")

    @given(stem=st.text())
    async def test_no_stem_leaves_the_folder(
        self, stem: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Whatever the source's name, one file appears in the folder and nowhere else."""
        base = tmp_path_factory.mktemp("stem")
        (found,) = await result(FakeSession(a=JPG), stem=stem).save(base / "out.png")
        (inside,) = await result(FakeSession(a=JPG), stem=stem).save(f"{base}/in/")

        assert {"out.jpg", "in", f"in/{inside.name}"} == names(base)
        assert base / "out.jpg" == found
        assert re.fullmatch(r"[^\W-][^/\0]*-0123abcd4567ffff\.jpg", inside.name)

    async def test_the_url_does_not_decide_the_place(self, out: Path) -> None:
        """The path of a result URL does not count for the file's place."""
        url = "https://example.com/../../etc/passwd?name=/etc/x.jpg"

        found = await result(FakeSession(**{url: JPG})).save(out)

        assert [out / "me-0123abcd4567ffff.jpg"] == found

    @pytest.mark.parametrize("target", ["", "a\0b"])
    async def test_an_impossible_target_is_refused_before_the_download(self, target: str) -> None:
        """Nothing is downloaded for a target that cannot be written."""
        session = FakeSession(a=JPG)

        with pytest.raises(ConfigurationError, match="cannot write"):
            await result(session).save(target)
        assert not session.downloads

    @pytest.mark.parametrize("known", [True, False])
    async def test_an_answer_without_urls_is_saved_as_json(self, out: Path, known: bool) -> None:
        """It is asked for again if it is gone."""
        scores = {"acne": 71, "note": "\N{SNOWMAN}"}

        class Answering(FakeSession):
            async def answer(
                self, feature: str, task_id: str
            ) -> tuple[tuple[ResultImage, ...], object]:
                self.refreshes.append((feature, task_id))
                return (), scores

        session = Answering()
        one = Result(
            "t",
            (),
            feature="f",
            stem="s",
            identity=IDENTITY,
            session=cast(ClientSession, session),
            raw=scores if known else None,
        )
        [path] = await one.save(out)

        assert f"s-{IDENTITY[:16]}.json" == path.name
        assert scores == json.loads(path.read_text("utf-8"))
        assert ([] if known else [("f", "t")]) == session.refreshes


class TestAtOnce:
    """A file appears whole or not at all."""

    async def test_a_file_is_replaced_at_the_end(self, out: Path) -> None:
        """The old file is there until the new one is whole."""
        target = out / "x.jpg"
        target.write_bytes(b"old")
        seen: list[bytes] = []

        class Watching(FakeSession):
            async def _pieces(self, pieces: Sequence[bytes | Exception]) -> AsyncIterator[bytes]:
                async for piece in super()._pieces(pieces):
                    yield piece
                    seen.append(await anyio.Path(target).read_bytes())

        await result(Watching(a=(JPG[:100], b"", JPG[100:]))).save(target)

        assert [b"old"] * 3 == seen
        assert JPG == target.read_bytes()

    async def test_saving_again_gives_the_same_file(self, out: Path) -> None:
        """The second save replaces the first one's file."""
        one = result(FakeSession(a=JPG))

        assert await one.save(out) == await one.save(out)
        assert {"me-0123abcd4567ffff.jpg"} == names(out)

    @pytest.mark.parametrize("kind", ["path", "file", "file by a name in bytes", "path with read"])
    @pytest.mark.parametrize("given", ["selfie.png", "selfie.jpg"])
    async def test_the_source_of_the_job_is_not_replaced(
        self, out: Path, given: str, kind: str
    ) -> None:
        """A name whose suffix changes to that of the source, or the source itself, is refused."""
        source = out / "selfie.jpg"
        source.write_bytes(b"the only copy")
        by_bytes = io.FileIO(os.fsencode(source))
        with source.open("rb") as file, by_bytes:
            sources: dict[str, Source] = {
                "path": source,
                "file": file,
                "file by a name in bytes": by_bytes,
                "path with read": ReadablePath(source),
            }
            job = Smile(sources[kind])
            found = attrs.evolve(result(FakeSession(a=JPG)), job=job, units=1.0)

            with pytest.raises(NotSaved, match=r"selfie\.jpg' is the job's own source") as caught:
                await found.save(out / given)

        assert b"the only copy" == source.read_bytes()
        assert {"selfie.jpg"} == names(out)
        assert ("task-1", 1.0) == (caught.value.task_id, caught.value.units_at_stake)
        assert "another name" in caught.value.hint
        assert [out / "smiling.jpg"] == await found.save(out / "smiling.jpg")

    async def test_a_file_whose_name_was_not_given_is_not_replaced(self, out: Path) -> None:
        """A changed suffix replaces no other file; the same bytes count as saved."""
        found = result(FakeSession(a=JPG))
        (out / "b.jpg").write_bytes(b"another picture")

        with pytest.raises(NotSaved, match=r"b\.jpg' exists already; the result is a jpg"):
            await found.save(out / "b.png")

        assert b"another picture" == (out / "b.jpg").read_bytes()
        assert [out / "a.jpg"] == await found.save(out / "a.png")
        assert [out / "a.jpg"] == await found.save(out / "a.png")
        assert [out / "b.jpg"] == await found.save(out / "b.jpg")
        assert {"a.jpg", "b.jpg"} == names(out)

    async def test_a_link_is_replaced_and_not_followed(self, out: Path, tmp_path: Path) -> None:
        """The target of a link stays as it was."""
        (tmp_path / "precious").write_bytes(b"precious")
        for name in ("x.jpg", "me-0123abcd4567ffff.jpg"):
            (out / name).symlink_to(tmp_path / "precious")

        await result(FakeSession(a=JPG)).save(out / "x.jpg")
        await result(FakeSession(a=JPG)).save(out)

        assert b"precious" == (tmp_path / "precious").read_bytes()
        assert {"x.jpg": False, "me-0123abcd4567ffff.jpg": False} == {
            name: (out / name).is_symlink() for name in names(out)
        }

    async def test_files_have_the_usual_rights(self, out: Path) -> None:
        """A picture is as readable as other files that the program writes."""
        (out / "usual").touch()

        (found,) = await result(FakeSession(a=JPG)).save(out)

        assert (out / "usual").stat().st_mode == found.stat().st_mode

    async def test_many_saves_at_once_keep_apart(self, out: Path) -> None:
        """Twenty saves of one result leave one whole file."""
        one = result(FakeSession(a=tuple(JPG[at : at + 10] for at in range(0, len(JPG), 10))))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one.save, out)

        assert {"me-0123abcd4567ffff.jpg"} == names(out)
        assert JPG == (out / "me-0123abcd4567ffff.jpg").read_bytes()

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"", "is empty"),
            ((), "is empty"),
            ((b"", b""), "is empty"),
            (b"<html><body>" + bytes(100), "not a picture: it begins with"),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "<?xml version"),
            ((b"<", b"h1>"), "not a picture"),
            (AVIF, "not a picture"),
            (b"%PDF-1.7", "%PDF"),
            (b"\x1b[31m\n", r"'\\x1b\[31m\\n'"),
        ],
    )
    async def test_other_data_is_not_written(self, out: Path, answer: Answer, said: str) -> None:
        """An empty body, an error page or another type leaves no file, and is not tried again."""
        session = FakeSession(a=answer)

        with pytest.raises(BadAnswer, match=said.replace("?", r"\?")) as caught:
            await result(session).save(out)

        assert caught.value.message.isprintable()
        assert set() == names(out)
        assert (1, 0) == (session.downloads["a"], session.open)

    async def test_an_error_page_is_not_read_to_its_end(self, out: Path) -> None:
        """The download ends after the first bytes."""
        session = FakeSession(a=(b"<html>" * 20, AssertionError("read on")))

        with pytest.raises(BadAnswer):
            await result(session).save(out)

    async def test_the_first_bytes_may_come_one_by_one(self, out: Path) -> None:
        """The type is recognised however the data is cut."""
        session = FakeSession(a=tuple(bytes([byte]) for byte in HEIC))

        (found,) = await result(session).save(out)

        assert ("me-0123abcd4567ffff.heic", HEIC) == (found.name, found.read_bytes())

    async def test_pictures_before_a_failing_one_stay(self, out: Path) -> None:
        """The first two files stay if the third picture fails."""
        session = FakeSession(a=JPG, b=PNG, c=b"<html>")

        with pytest.raises(BadAnswer):
            await result(session).save(out)

        assert {"me-0123abcd4567ffff-1.jpg", "me-0123abcd4567ffff-2.png"} == names(out)

    async def test_a_full_disk_leaves_nothing(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The system's error is raised, and the old file stays."""
        (out / "x.jpg").write_bytes(b"old")

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            await result(FakeSession(a=JPG)).save(out / "x.jpg")

        assert errno.ENOSPC == caught.value.errno
        assert {"x.jpg"} == names(out)
        assert b"old" == (out / "x.jpg").read_bytes()

    async def test_a_folder_in_the_way_is_left_alone(self, out: Path) -> None:
        """If a folder has the file's name, nothing is written."""
        (out / "x.png").mkdir()

        with pytest.raises(NotSaved):
            await result(FakeSession(a=PNG)).save(out / "x.jpg")

        assert {"x.png"} == names(out)

    async def test_a_file_in_the_way_of_a_folder_is_left_alone(self, out: Path) -> None:
        """If a file has the folder's name, nothing is downloaded."""
        (out / "x").touch()
        session = FakeSession(a=PNG)

        with pytest.raises(OSError):
            await result(session).save(f"{out}/x/")
        assert not session.downloads


class TestCancelled:
    """Cancelling a save."""

    @pytest.mark.parametrize("sent", [0, 1, 2])
    @pytest.mark.parametrize("native", [True, False])
    async def test_a_cancelled_download_leaves_nothing(
        self, out: Path, sent: int, native: bool
    ) -> None:
        """No file is left, whether a scope or the task is cancelled, at any time."""
        waiting = anyio.Event()

        class Stalling(FakeSession):
            async def _pieces(self, pieces: Sequence[bytes | Exception]) -> AsyncIterator[bytes]:
                async for piece in super()._pieces(pieces[:sent]):
                    yield piece
                waiting.set()
                await anyio.sleep_forever()

        session = Stalling(a=(JPG, JPG, JPG))
        if native:
            task = asyncio.create_task(result(session).save(out))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(result(session).save, out)
                await waiting.wait()
                group.cancel_scope.cancel()

        assert (set(), 0) == (names(out), session.open)

    @pytest.mark.parametrize("method", ["write", "replace"])
    @pytest.mark.parametrize("late", [True, False])
    async def test_a_thread_that_was_left_behind_cleans_up(
        self, out: Path, monkeypatch: pytest.MonkeyPatch, method: str, late: bool
    ) -> None:
        """A disk that answers after the cancellation leaves no file, or a whole one."""
        begun, go, over = threading.Event(), threading.Event(), threading.Event()
        original: Callable[..., None] = getattr(AtomicFile, method)

        def slow(part: AtomicFile, *args: object) -> None:
            if not late:
                original(part, *args)
            with hanging():
                begun.set()
                go.wait()
            if late:
                original(part, *args)
            over.set()

        monkeypatch.setattr(AtomicFile, method, slow)
        task = asyncio.create_task(result(FakeSession(a=JPG)).save(out))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await asyncio.to_thread(over.wait)

        whole = method == "replace" and not late
        assert ({"me-0123abcd4567ffff.jpg"} if whole else set()) == names(out)

    async def test_a_hanging_disk_delays_a_cancellation_briefly(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cancelled save waits a few seconds for the cleanup, which the thread does later."""
        begun, go, over = threading.Event(), threading.Event(), threading.Event()
        write, discard = AtomicFile.write, AtomicFile.discard

        def slow(part: AtomicFile, data: bytes) -> None:
            write(part, data)
            with part._lock, hanging():
                begun.set()
                go.wait()

        def noted(part: AtomicFile) -> None:
            with hanging():
                discard(part)
            over.set()

        monkeypatch.setattr(AtomicFile, "write", slow)
        monkeypatch.setattr(AtomicFile, "discard", noted)
        task = asyncio.create_task(result(FakeSession(a=JPG)).save(out))
        await asyncio.to_thread(begun.wait)
        start = anyio.current_time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waited = anyio.current_time() - start
        go.set()
        await asyncio.to_thread(over.wait)

        assert results._CLEANUP == waited
        assert set() == names(out)


class TestFreshUrls:
    """URLs expire after two hours, but results do not."""

    @pytest.mark.parametrize(
        ("expected", "expires_in"), [(0, 7200), (0, 61), (1, 60), (1, 0), (1, -86400)]
    )
    async def test_an_expired_url_is_not_tried(
        self, out: Path, expected: int, expires_in: float
    ) -> None:
        """Within a minute of its end a new URL is asked for before the download."""
        session = FakeSession(old=JPG, new=PNG)
        session.fresh = (image("new"),)

        (found,) = await result(session, "old", expires_in=expires_in).save(out)

        assert [("ai-smile", "task-1")] * expected == session.refreshes
        assert Counter({"new" if expected else "old": 1}) == session.downloads
        assert ".png" if expected else ".jpg" == found.suffix

    @pytest.mark.parametrize("status", [400, 403, 404, 410])
    async def test_a_refused_url_is_asked_for_again(self, out: Path, status: int) -> None:
        """A URL that the storage refuses is asked for once more."""
        session = FakeSession(old=RequestRefused("gone.", status=status), new=JPG)
        session.fresh = (image("new"),)

        await result(session, "old").save(out)

        assert Counter(old=1, new=1) == session.downloads
        assert 1 == len(session.refreshes)

    async def test_a_fresh_url_that_is_refused_is_final(self, out: Path) -> None:
        """There is one new URL per picture, whether before or after a try."""
        session = FakeSession(old=RequestRefused("gone.", status=403))
        session.fresh = (image("old"),)

        for expires_in in (7200, 0):
            with pytest.raises(RequestRefused):
                await result(session, "old", expires_in=expires_in).save(out)

        assert 2 == len(session.refreshes)
        assert 3 == session.downloads["old"]
        assert set() == names(out)

    async def test_other_refusals_are_final(self, out: Path) -> None:
        """No new URL is asked for after a refused method or header."""
        session = FakeSession(a=RequestRefused("no.", status=405))

        with pytest.raises(RequestRefused):
            await result(session).save(out)

        assert [] == session.refreshes

    async def test_fresh_urls_serve_the_pictures_that_follow(self, out: Path) -> None:
        """One request returns all URLs; the result itself stays the same."""
        session = FakeSession(a=JPG, b=PNG)
        session.fresh = (image("a"), image("b"))
        one = result(session, "old-a", "old-b", expires_in=0)

        found = await one.save(out)

        assert [JPG, PNG] == [path.read_bytes() for path in found]
        assert 1 == len(session.refreshes)
        assert ("old-a", "old-b") == tuple(each.url for each in one.images)

    @pytest.mark.parametrize("fresh", [(), ("a",), ("a", "b", "c")])
    async def test_another_number_of_pictures_is_not_believed(
        self, out: Path, fresh: tuple[str, ...]
    ) -> None:
        """If a task had two pictures, an answer with another number is bad."""
        session = FakeSession(a=JPG, b=JPG, c=JPG)
        session.fresh = tuple(map(image, fresh))

        with pytest.raises(
            BadAnswer, match=f"had 2 pictures before, and the vendor now names {len(fresh)}"
        ):
            await result(session, "a", "b", expires_in=0).save(out)

    async def test_an_error_of_the_new_urls_is_raised(self, out: Path) -> None:
        """`save` raises the vendor's error about the task."""

        class Forgetful(FakeSession):
            async def refresh(
                self, feature: str, task_id: str, *, pictures_only: bool
            ) -> tuple[ResultImage, ...]:
                raise TaskExpired("it is gone.", task_id=task_id)

        with pytest.raises(TaskExpired):
            await result(Forgetful(a=JPG), expires_in=0).save(out)


class TestTries:
    """Downloads that fail."""

    @pytest.mark.parametrize(
        "broken",
        [
            ServiceUnavailable("dropped."),
            (JPG[:50], ServiceUnavailable("dropped half-way.")),
            (JPG, ServiceUnavailable("dropped at the end.")),
        ],
    )
    async def test_a_download_is_tried_three_times(self, out: Path, broken: Answer) -> None:
        """The third try starts anew after short pauses and succeeds."""
        session = FakeSession(a=[broken, broken, PNG])
        start = anyio.current_time()

        (found,) = await result(session).save(out)

        assert PNG == found.read_bytes()
        assert {"me-0123abcd4567ffff.png"} == names(out)
        assert 2.5 == anyio.current_time() - start

    async def test_the_third_failure_is_final(self, out: Path) -> None:
        """The error is raised, no file is left, and no URL is asked for."""
        session = FakeSession(a=(JPG, ServiceUnavailable("dropped.", status=503)))

        with pytest.raises(ServiceUnavailable):
            await result(session).save(out)

        assert 3 == session.downloads["a"]
        assert (set(), []) == (names(out), session.refreshes)

    @pytest.mark.parametrize("error", [BadAnswer("too large."), PerfectError("?"), ValueError("!")])
    async def test_other_errors_are_not_tried_again(self, out: Path, error: Exception) -> None:
        """Only errors that may pass are tried again."""
        session = FakeSession(a=(JPG, error))

        with pytest.raises(type(error)):
            await result(session).save(out)

        assert 1 == session.downloads["a"]
        assert set() == names(out)


class TestRead:
    """Pictures in memory: the same bytes and checks, and no file on the disk."""

    @pytest.fixture(autouse=True)
    def no_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fail if a file is begun."""
        monkeypatch.delattr(AtomicFile, "write")

    async def test_read_returns_all_pictures(self) -> None:
        """`Result.read` returns all pictures in order."""
        assert [JPG, PNG] == await result(FakeSession(a=JPG, b=(PNG[:7], PNG[7:]))).read()
        assert (
            []
            == await Result(
                "t",
                (),
                feature="f",
                stem="s",
                identity="i",
                session=cast(ClientSession, FakeSession()),
            ).read()
        )

    async def test_read_returns_one_picture(self) -> None:
        """`ResultImage.read` returns one, and asks for a new URL if its own has expired."""
        session = FakeSession(a=JPG, b=PNG, c=WEBP)
        session.fresh = (image("b"), image("c"))
        place = results.ImagePlace(cast(ClientSession, session), "ai-smile", "task-1", 1, 2, True)

        fresh = ResultImage("a", NOON + timedelta(hours=1), place=place)
        assert JPG == await fresh.read()
        assert [] == session.refreshes

        expired = ResultImage("a", NOON, place=place)
        assert WEBP == await expired.read()
        assert [("ai-smile", "task-1")] == session.refreshes
        assert "ai-smile" not in repr(expired)

    async def test_an_image_without_a_result_cannot_be_read(self) -> None:
        """An image that a user made of a URL cannot be downloaded."""
        with pytest.raises(ConfigurationError, match="does not come from a result"):
            await image("a").read()

    async def test_other_data_is_not_returned(self) -> None:
        """Data that is not a picture, or that ends early, raises an error."""
        with pytest.raises(BadAnswer):
            await result(FakeSession(a=b"<html>" + bytes(99))).read()
        session = FakeSession(a=JPG[:-2])
        with pytest.raises(ServiceUnavailable, match="ended early"):
            await result(session).read()
        assert 3 == session.downloads["a"]

    async def test_a_refused_url_is_asked_for_again(self) -> None:
        """A URL that the storage refuses is asked for once more."""
        session = FakeSession(a=RequestRefused("gone.", status=403), b=PNG)
        session.fresh = (image("b"),)
        assert [PNG] == await result(session, "a").read()
        assert 1 == len(session.refreshes)


def test_the_other_fields_of_a_result() -> None:
    """They have defaults, and count neither in `==` nor in the repr."""
    plain = result(FakeSession(a=JPG))
    full = attrs.evolve(plain, job=Smile("a"), units=2.0, duration=3.5, raw={"url": "s3cret"})
    assert (None, 0.0, None, (), None) == (
        *(plain.job, plain.units, plain.duration, plain.files, plain.raw),
    )
    assert plain == full
    assert hash(plain) == hash(full)
    assert "s3cret" not in repr(full)
