"""Failures grouped by their cause, in the terminal's words."""

import pytest

from perfect_async import (
    CeilingReached,
    NotSaved,
    PerfectError,
    PictureRefused,
    RateLimited,
    RequestRefused,
    ResultUnreadable,
    ServiceUnavailable,
    SubmissionInDoubt,
    TaskExpired,
    TaskFailed,
    Unauthorized,
)
from perfect_async.cli._display import JobReport
from perfect_async.cli._summary import causes, hint_of, is_shared, message_of
from perfect_async.cli._wording import in_terminal_terms


def report(source: str, error: PerfectError | None) -> JobReport:
    return JobReport(source, error is None, None, 0.0, None, (), error)


def engine(code: str) -> TaskFailed:
    return TaskFailed(f"the engine failed with '{code}'.", code=code, passing=False)


def test_one_cause_is_one_line() -> None:
    """Fifty pictures that fail for one reason are one cause with one hint."""
    refused = [
        report(f"{n}.jpg", Unauthorized("the vendor does not accept the API key.", status=401))
        for n in range(50)
    ]
    (cause,) = causes(refused)

    first, second = cause.lines()
    assert first == (
        "50 failed: the vendor does not accept the API key. "
        "Check the key in the vendor's console, and set YOUCAM_API_KEY or pass --api-key-file."
    )
    assert second == "  0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 45 more"
    assert "49.jpg" in cause.lines(whole=True)[1]


def test_the_most_frequent_cause_is_first() -> None:
    """Causes differ by code and reason, and the one with most pictures is first."""
    reports = [
        report("a.jpg", engine("error_no_face")),
        report("b.jpg", PictureRefused("'b.jpg' is empty.", reason="0 bytes")),
        report("c.jpg", PictureRefused("'c.jpg' is empty.", reason="0 bytes")),
        report("d.jpg", PictureRefused("'d.jpg' is webp.", reason="webp")),
        report("e.jpg", engine("error_pose")),
        report("f.jpg", None),
    ]

    found = causes(reports)
    assert [("b.jpg", "c.jpg"), ("a.jpg",), ("d.jpg",), ("e.jpg",)] == [
        cause.sources for cause in found
    ]
    assert "pictures that cannot be sent: 0 bytes." == found[0].message
    assert ["1 failed: 'd.jpg' is webp. " + PictureRefused.hint] == found[2].lines()


def test_different_messages_of_one_cause() -> None:
    """A cause whose messages differ shows one of them and says so."""
    reports = [
        report("a.jpg", RequestRefused(f"the vendor refused it: {n}.", status=400))
        for n in range(2)
    ]

    assert "the vendor refused it: 0. (and the like)" == causes(reports)[0].message


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("error_no_face", "no face was found (error_no_face)."),
        ("error_new", "the engine failed with 'error_new'."),
    ],
)
def test_engine_codes_in_words(code: str, text: str) -> None:
    """Known codes of the engine are explained; others are quoted."""
    assert text == message_of(engine(code))


def test_shared_causes() -> None:
    """A refused key fails every picture alike; a missing face does not."""
    assert is_shared(Unauthorized("no"))
    assert is_shared(CeilingReached("no"))
    assert not is_shared(engine("error_no_face"))


@pytest.mark.parametrize(
    "error",
    [
        Unauthorized("x"),
        RateLimited("x"),
        ServiceUnavailable("x"),
        CeilingReached("x"),
        NotSaved("x"),
        ResultUnreadable("x"),
        SubmissionInDoubt("x"),
        TaskExpired("x"),
        PictureRefused("x", fittable=True),
    ],
)
def test_hints_name_nothing_of_the_library(error: PerfectError) -> None:
    """Hints in the terminal advise what can be done there, and no calls of Python."""
    advice = in_terminal_terms(error.hint)

    for word in ("`", "client", "Client", "attach", "max_units", "buy_in_doubt", "raw", "Limits"):
        assert word not in advice


@pytest.mark.parametrize(
    ("peer", "last"),
    [("the vendor's API at x", "YOUCAM_BASE_URL"), ("the vendor's storage", "the vendor's status")],
    ids=["api", "storage"],
)
def test_only_what_leads_to_the_host_is_worth_a_look(
    monkeypatch: pytest.MonkeyPatch, peer: str, last: str
) -> None:
    """A proxy may be why any host is not reached; the variable for the API's host only for that."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("YOUCAM_BASE_URL", "http://127.0.0.1:8787")
    error = ServiceUnavailable(f"{peer} could not be reached (ConnectError).", never_sent=True)

    assert f"Try again later; check the network and {last}." == hint_of(error)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128/?secret")
    assert (
        f"Try again later; check the network, HTTPS_PROXY (http://proxy:3128/) and {last}."
        == hint_of(error)
    )


def test_a_refused_certificate_is_not_tried_again() -> None:
    """Another try does not help, so the hint names only what to check."""
    error = ServiceUnavailable(
        "the vendor's storage could not be reached (ConnectError).", never_sent=True, lasting=True
    )

    assert hint_of(error).startswith("Check the network")


def test_failures_of_this_machine_have_nothing_to_do_with_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hint of a request that this machine did not send, or of a 5xx, names no variable."""
    monkeypatch.setenv("YOUCAM_BASE_URL", "http://127.0.0.1:8787")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")

    for error in (
        ServiceUnavailable("The journal's disk was slow.", never_sent=True),
        ServiceUnavailable("the vendor answered HTTP 503.", status=503),
    ):
        assert ServiceUnavailable.hint == hint_of(error)
