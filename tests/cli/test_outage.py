"""A vendor that cannot be reached is named after a second and given up after twenty."""

import attrs
import pytest

from perfect_async import Limits, Polling, ServiceUnavailable
from perfect_async.cli._outage import Outage
from perfect_async.scheduler import Scheduler

FINE = Scheduler(Limits(), Polling(), engine_retries=1).statistics()
CLOSED = attrs.evolve(
    FINE,
    last_failure=ServiceUnavailable(
        "the vendor's API at x could not be reached (ConnectError: Connection refused).",
        never_sent=True,
    ),
)
LOST = attrs.evolve(CLOSED, reached=True)


@pytest.mark.parametrize(("now", "named"), [(100.2, False), (100.9, False), (101.0, True)])
def test_it_is_named_after_a_second(now: float, *, named: bool) -> None:
    """A host that was never reached is named with the reason once the run is a second old."""
    text = Outage(100.0).look(now, CLOSED)

    assert named is (text is not None)
    if text is not None:
        assert "cannot reach x: Connection refused; trying for 20 s" == text


def test_a_short_failure_is_not_named() -> None:
    """One request that fails later is worth a word only if the failure lasts for a second."""
    outage = Outage(100.0)

    assert None is outage.look(150.0, LOST)
    assert None is outage.look(150.5, attrs.evolve(LOST, last_failure=None))
    assert None is outage.look(151.0, LOST)
    text = outage.look(152.0, LOST)
    assert text is not None
    assert text.endswith("; trying again")


def test_it_is_given_up_after_twenty_seconds() -> None:
    """Only a host that was never reached is given up, and the error says what to check."""
    outage = Outage(100.0)

    assert None is outage.end(119.9, CLOSED)
    assert None is outage.end(200.0, FINE)
    assert None is outage.end(200.0, LOST)
    error = outage.end(120.0, CLOSED)
    assert isinstance(error, ServiceUnavailable)
    assert "It was tried for 20 s." in error.message
    assert "YOUCAM_BASE_URL" in error.hint


def test_a_proxy_is_worth_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a variable names a proxy, the host may be fine and the proxy may not."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example")
    error = Outage(100.0).end(120.0, CLOSED)

    assert error is not None
    assert (
        "check the network, HTTPS_PROXY (http://proxy.example) and YOUCAM_BASE_URL." in error.hint
    )


def test_a_refused_certificate_ends_at_once() -> None:
    """What another try cannot help is given up at once, unless the host was reached before."""
    bad = ServiceUnavailable("the certificate is refused.", never_sent=True, lasting=True)

    assert None is not Outage(100.0).end(100.1, attrs.evolve(FINE, last_failure=bad))
    assert None is Outage(100.0).end(100.1, attrs.evolve(FINE, last_failure=bad, reached=True))
