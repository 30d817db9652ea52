"""The values that people touch: what they take, refuse and show."""

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from perfect_async import models
from perfect_async.errors import ConfigurationError, JobRefused
from perfect_async.models import (
    Avatar,
    FileId,
    Job,
    Limits,
    Polling,
    Smile,
    Timeouts,
    must_be_job,
)

THING: object = object()
Make = Callable[..., object]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Smile, {"expression": "grin"}),
        (Smile, {"expression": []}),
        (Smile, {"key": ""}),
        (Smile, {"key": " \n"}),
        (Smile, {"key": 7}),
        (Smile, {"key": THING}),
        (Avatar, {"template_id": ""}),
        (Avatar, {"template_id": " "}),
        (Avatar, {"template_id": None}),
        (Avatar, {"template_id": "male_1", "key": ""}),
        *(
            (Avatar, {"template_id": "male_1", "output_count": count})
            for count in (0, -1, 201, 2.0, True, "4", None)
        ),
    ],
)
def test_jobs_outside_what_the_vendor_takes(kind: Make, given: dict[str, object]) -> None:
    """A parameter that cannot be sent is refused where it is written, and cost nothing."""
    with pytest.raises(JobRefused, match="Nothing was sent"):
        kind("a.jpg", **given)


@pytest.mark.parametrize("value", ["", "  ", None, 7])
def test_a_file_id_is_text(value: str) -> None:
    """A file's id that is empty or no text is refused where it is written."""
    with pytest.raises(JobRefused, match=re.escape("FileId.value is")):
        FileId(value)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Limits, {"requests": 0}),
        (Limits, {"requests": 2.5}),
        (Limits, {"requests": True}),
        (Limits, {"per_second": 0}),
        (Limits, {"period": 0}),
        (Limits, {"period": float("nan")}),
        (Limits, {"period": float("inf")}),
        (Limits, {"period": "300"}),
        (Polling, {"lease": 0}),
        (Polling, {"lease": 0.5}),
        (Polling, {"lease": -1}),
        (Polling, {"interval": 0}),
        (Polling, {"give_up_after": 5}),
        (Polling, {"give_up_after": float("inf")}),
        (Timeouts, {"request": 0}),
        (Timeouts, {"connect": None}),
        (Timeouts, {"upload": -1}),
        (Timeouts, {"download": float("nan")}),
        (Limits().split, {"parts": 0}),
        (Limits().split, {"parts": 6}),
        (Limits().split, {"parts": 2.0}),
        (Limits(requests=2).split, {"parts": 3}),
    ],
)
def test_settings_that_cannot_work(kind: Make, given: dict[str, object]) -> None:
    """A setting that cannot work is refused where it is written."""
    with pytest.raises(ConfigurationError, match="Nothing was sent"):
        kind(**given)


def test_a_share_of_the_limits() -> None:
    """Four processes with a quarter each stay inside the whole together."""
    assert Limits(62, 300.0, 1) == Limits().split(4)
    assert Limits() == Limits().split(1)


@pytest.mark.parametrize(
    ("pictures", "units"), [(1, 1), (4, 1), (5, 2), (8, 2), (199, 50), (200, 50)]
)
def test_avatars_cost_a_unit_for_four(pictures: int, units: int) -> None:
    """An avatar's price is one unit per four pictures, rounded up."""
    job = Avatar("a.jpg", template_id="male_1", output_count=pictures)

    assert (units, pictures) == (job.units, job.outputs)


def test_smiles_cost_a_unit() -> None:
    """A smile gives one picture for one unit."""
    assert (1, 1) == (Smile("a.jpg").units, Smile("a.jpg").outputs)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (bytes(20), "<20 bytes>"),
        ("dir/a.jpg", "'dir/a.jpg'"),
        ("https//user:s3cret@a.example/b?s3cret", "'https//a.example/b'"),
        ("data:image/png;base64,s3cret", "'data:image/png…'"),
        (Path("a.jpg"), repr(Path("a.jpg"))),
        (FileId("abc"), "FileId(value='abc')"),
        ("https://a.example/b.jpg?X-Amz-Signature=s3cret", "'https://a.example/b.jpg'"),
        ("https://a.example/b.jpg#s3cret", "'https://a.example/b.jpg'"),
        ("https://joe:s3cret@a.example/b.jpg", "'https://a.example/b.jpg'"),
    ],
)
def test_a_source_shows_no_secret(source: models.Source, shown: str) -> None:
    """A job's repr tells where its picture is, and neither its bytes nor what signs its URL."""
    assert f"Smile(source={shown}," in repr(Smile(source))
    assert "s3cret" not in repr(Smile(source))


def test_jobs_are_frozen_values() -> None:
    """Two jobs that say the same are the same, and cannot be changed."""
    job = Smile("a.jpg", key="1")

    assert {job} == {Smile("a.jpg", key="1"), job}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        job.key = "2"  # type: ignore[misc]


@pytest.mark.parametrize("thing", ["a.jpg", None, Smile, Job()])
def test_what_is_no_job(thing: object) -> None:
    """A job is one of a feature; the general one is none."""
    with pytest.raises(JobRefused, match="is no job"):
        must_be_job(thing)


def test_the_general_job_has_the_documented_price() -> None:
    """A feature that says nothing else gives one picture for one unit, and nobody knows when."""
    assert (1, 1, None) == (Job().outputs, Job().units, Job().usual)


@pytest.mark.parametrize(
    ("job", "usual"),
    [
        (Smile("a.jpg"), (5.0, 20.0)),
        (Avatar("a.jpg", template_id="male_1", output_count=1), (60.0, 150.0)),
        (Avatar("a.jpg", template_id="male_1"), None),
    ],
)
def test_what_is_documented_of_durations(job: Job, usual: tuple[float, float] | None) -> None:
    """An avatar's duration is documented for one picture only, and nothing is made of it."""
    assert usual == job.usual


def test_a_completion_is_one_of_three() -> None:
    """Only the three ways of learning that a task has ended are accepted, or none at all."""
    for completion in (None, "poll", "webhook", "both"):
        assert completion == Polling(completion=completion).completion
    with pytest.raises(ConfigurationError, match=r"Polling\.completion is 'hook'"):
        Polling(completion="hook")  # type: ignore[arg-type]


def test_jobs_are_jobs() -> None:
    """A job of a feature is accepted as one."""
    must_be_job(Smile("a.jpg"))
