"""What a run will do: which pictures, at what price, and how long it takes."""

import os
from pathlib import Path

import attrs
import pytest
from PIL import Image

from perfect_async import Avatar, Job, Smile
from perfect_async.cli._inputs import Entry, Skipped, count_reasons
from perfect_async.cli._plan import (
    Order,
    about,
    cost_of,
    equal_text,
    estimate_seconds,
    look_at_all,
    units_text,
)
from perfect_async.sandbox import portrait

ORDER = Order(45, 5, 0, [], 0, 45.0, 57.5, balance=856.0)


def skipped(*reasons: str) -> list[Skipped]:
    return [Skipped(Path(f"{n}.jpg"), reason, "") for n, reason in enumerate(reasons)]


def test_the_line() -> None:
    """The line names what is sent, what is not and why, the price, the balance and the time."""
    order = attrs.evolve(ORDER, skipped=skipped("webp", "0 bytes", "broken link"))

    assert str(order) == (
        "45 to send, 5 already there, 3 skipped (webp, 0 bytes, broken link), "
        "45 units of a balance of 856, about 1 min."
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"balance": None}, "45 units (balance unknown), about"),
        ({"max_units": 20.0}, "at most 20 units (--max-units) of a balance of 856, about"),
        ({"max_units": 100.0}, ", 45 units of a balance"),
        ({"at_most": True}, "at most 45 units of a balance"),
        ({"refused": 2, "equal": 3}, "2 that cannot be sent, 3 equal to another, 45 units"),
        ({"send": 1, "units": 1.0}, "1 to send, 5 already there, 1 unit of a balance"),
        ({"send": 0}, "0 to send, 5 already there: nothing to buy."),
        ({"used_by_others": 0.9}, "1 min. Other processes have used 90% of the request window"),
        ({"turned": 1}, "1 min. 1 is turned by EXIF and may come out turned; --fit turns it upr"),
        ({"turned": 2}, "2 are turned by EXIF and may come out turned; --fit turns them upright."),
        ({"balance": 12.0}, "1 min. The balance does not suffice: what it does not cover is"),
    ],
)
def test_the_line_of_others(changes: dict[str, object], text: str) -> None:
    """The line says what differs from the usual run."""
    assert text in str(attrs.evolve(ORDER, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("units", "balance", "max_units", "asks"),
    [
        (19.0, None, None, False),
        (20.0, None, None, True),
        (20.0, 856.0, None, True),
        (3.0, 2.0, None, True),
        (3.0, 3.0, None, False),
        (100.0, 856.0, 5.0, False),
        (100.0, 4.0, 5.0, True),
    ],
)
def test_when_a_run_asks(
    units: float, balance: float | None, max_units: float | None, *, asks: bool
) -> None:
    """A run asks from 20 units on, and where the balance does not suffice."""
    order = Order(3, 0, 0, [], 0, units, None, max_units=max_units, balance=balance)

    assert asks is order.needs_consent
    assert not attrs.evolve(order, send=0).needs_consent


def test_reasons_are_counted() -> None:
    """Equal reasons are one with their number."""
    assert "2 webp, broken link" == count_reasons(skipped("webp", "broken link", "webp"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12, "under 1 min"), (57, "about 1 min"), (3000, "about 50 min"), (7000, "about 2 h")],
)
def test_a_rough_time(seconds: float, text: str) -> None:
    """Times are rounded as far as they are known."""
    assert text == about(seconds)


def test_units() -> None:
    """One is a unit, all others are units."""
    assert ["1 unit", "0 units", "2.5 units"] == [units_text(n) for n in (1, 0, 2.5)]


@pytest.mark.parametrize(
    ("number", "low", "high"), [(1, 5, 30), (50, 50, 90), (200, 400, 700), (1000, 2400, 3600)]
)
def test_the_time_of_smiles(number: int, low: float, high: float) -> None:
    """The estimate is near what the benchmarks measure."""
    found = estimate_seconds([Smile(f"https://x/{n}.jpg") for n in range(number)])

    assert found is not None
    assert low <= found <= high


def test_the_time_of_avatars() -> None:
    """Avatars last longer than smiles; without jobs there is no time."""
    avatars = [Avatar(f"https://x/{n}.jpg", template_id="t") for n in range(10)]

    assert (estimate_seconds(avatars) or 0) > 100
    assert None is estimate_seconds([])


def test_pictures_are_looked_at(tmp_path: Path) -> None:
    """What cannot be sent is refused where it was named, and skipped where it was found."""
    good, copy, empty = (tmp_path / name for name in ("good.jpg", "copy.jpg", "empty.jpg"))
    good.write_bytes(portrait(1, 64))
    copy.write_bytes(portrait(1, 64))
    empty.touch()
    entries = [
        Entry(good, named=False),
        Entry("https://x/a.jpg"),
        Entry(empty, named=False),
        Entry(tmp_path / "gone.jpg"),
        Entry(copy, named=False),
    ]
    seen: list[int] = []

    looked = look_at_all(entries, Smile, on_step=seen.append)

    assert [good, copy, "https://x/a.jpg"] == [entry.picture for entry in looked.entries]
    assert [(copy, good)] == looked.equal
    assert ["missing"] == [error.reason for _, error in looked.refused]
    assert [(empty, "0 bytes")] == [(each.picture, each.reason) for each in looked.skipped]
    assert [1, 2, 3, 4, 5] == seen
    assert looked.digests[good] == looked.digests[copy]
    assert "is the same picture as" in equal_text(looked.equal[0])


def test_with_fit_only_the_hopeless_are_refused(tmp_path: Path) -> None:
    """What may be made to fit is left to the run; what is empty, gone or no picture is not."""
    contents = {"a.jpg": b"RIFF1234WEBPxxxx", "b.jpg": b"", "c.jpg": b"some text", "d.jpg": b"%PDF"}
    entries = [Entry(tmp_path / name, named=False) for name in contents]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "e.jpg").open("wb") as file:
        file.truncate(11 * 1024 * 1024)
    entries.append(Entry(tmp_path / "e.jpg", named=False))

    looked = look_at_all(entries, Smile, fit=True)
    assert [entries[0]] == looked.entries
    assert ["0 bytes", "no picture", "pdf", "too large"] == [one.reason for one in looked.skipped]
    assert not any("--fit" in one.message for one in looked.skipped)
    assert 5 == len(look_at_all(entries, Smile).skipped)


def test_pictures_that_exif_turns_are_counted(tmp_path: Path) -> None:
    """Without `fit` they are sent as they are, so they are named; with it they are turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_bytes(portrait(1, 64))
    entries = [Entry(tmp_path / "a.jpg"), Entry(tmp_path / "b.jpg")]

    assert {tmp_path / "a.jpg"} == look_at_all(entries, Smile).turned
    assert set() == look_at_all(entries, Smile, fit=True).turned


def test_equal_pictures_cost_once(tmp_path: Path) -> None:
    """Equal pictures are one task, unless they have keys of their own."""
    one, two = tmp_path / "1", tmp_path / "2"
    jobs: list[Job] = [Smile(one), Smile(two), Smile("https://x/a.jpg")]

    assert 2.0 == cost_of(jobs, {one: "d", two: "d"})
    assert 3.0 == cost_of(jobs, {one: "d", two: "e"})
    assert 2.0 == cost_of([Smile(one, key="a"), Smile(two, key="b")], {one: "d", two: "d"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_without_permission(tmp_path: Path) -> None:
    """A file that may not be read is said to be unreadable."""
    (tmp_path / "a.jpg").write_bytes(portrait(1, 64))
    (tmp_path / "a.jpg").chmod(0)

    ((_, error),) = look_at_all([Entry(tmp_path / "a.jpg")], Smile).refused
    assert "unreadable" == error.reason
