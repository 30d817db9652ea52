"""Blocking calls run in a worker thread, and are retried while too many files are open."""

import asyncio
import errno

import pytest

from perfect_async._files.threads import in_thread


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
async def test_too_many_open_files_are_retried(code: int) -> None:
    """The call is retried after a pause."""
    began = asyncio.get_running_loop().time()
    calls = 0

    def fail_twice(value: str) -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError(code, "Too many open files")
        return value

    assert "done" == await in_thread(fail_twice, "done")
    assert 1.5 == asyncio.get_running_loop().time() - began


async def test_retries_end_after_a_while() -> None:
    """The error is raised after 18.5 s."""

    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    began = asyncio.get_running_loop().time()
    with pytest.raises(OSError, match="Too many"):
        await in_thread(fail)
    assert 18.5 == asyncio.get_running_loop().time() - began


async def test_other_errors_are_raised_at_once() -> None:
    """A full disk is not retried."""
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await in_thread(fail)
    assert 1 == calls
