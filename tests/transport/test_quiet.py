"""What is not logged."""

import logging

import pytest

from perfect_async._transport.quiet import keep_quiet, quiet

LOUD = ["httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "hpack.hpack"]


@pytest.fixture(autouse=True)
def at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keep_quiet()


@pytest.mark.parametrize("name", LOUD)
def test_our_requests_are_not_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What httpx and its parts say while we are at it is dropped."""
    with quiet():
        logging.getLogger(name).error("secret")

    assert [] == caplog.messages


@pytest.mark.parametrize("name", LOUD)
def test_others_requests_are_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The application's own use of httpx is logged as ever, before and after."""
    logging.getLogger(name).debug("before")
    with quiet():
        pass
    logging.getLogger(name).debug("after")

    assert ["before", "after"] == caplog.messages


def test_other_loggers_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Only these libraries are silenced."""
    with quiet():
        logging.getLogger("app").debug("said")

    assert ["said"] == caplog.messages


def test_it_ends_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """An error inside does not leave the loggers silent."""
    with pytest.raises(ZeroDivisionError), quiet(), quiet():
        _ = 1 / 0
    logging.getLogger("httpx").info("said")

    assert ["said"] == caplog.messages


def test_every_logger_of_httpcore_is_known() -> None:
    """A part of httpcore that learns to log would be noticed here."""
    import httpcore  # noqa: F401 -- it makes its loggers

    made = {name for name in logging.root.manager.loggerDict if name.startswith("httpcore.")}
    filtered = {name for name in made if logging.getLogger(name).filters}

    assert set() == made - filtered


def test_the_filter_is_there_once() -> None:
    """Many clients do not pile up filters."""
    before = len(logging.getLogger("httpx").filters)
    keep_quiet()

    assert before == len(logging.getLogger("httpx").filters)
