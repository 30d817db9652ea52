"""Jobs and settings: the values that they accept and refuse, and their reprs."""

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
def test_jobs_outside_the_vendors_limits_are_refused(kind: Make, given: dict[str, object]) -> None:
    """A job is refused when it is made if a parameter is outside the vendor's limits."""
    with pytest.raises(JobRefused, match="Nothing was sent"):
        kind("a.jpg", **given)


@pytest.mark.parametrize("value", ["", "  ", None, 7])
def test_a_file_id_is_text(value: str) -> None:
    """A file id that is empty or not text is refused when it is made."""
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
def test_settings_that_cannot_work_are_refused(kind: Make, given: dict[str, object]) -> None:
    """A setting that cannot work is refused when it is made."""
    with pytest.raises(ConfigurationError, match="Nothing was sent"):
        kind(**given)


def test_limits_are_split_into_shares() -> None:
    """Four processes with a share each keep the whole limits together."""
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
    """A job's repr names its picture without its bytes and without its URL's signature."""
    assert f"Smile(source={shown}," in repr(Smile(source))
    assert "s3cret" not in repr(Smile(source))


def test_jobs_are_frozen_values() -> None:
    """Jobs with equal fields are equal, and cannot be changed."""
    job = Smile("a.jpg", key="1")

    assert {job} == {Smile("a.jpg", key="1"), job}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        job.key = "2"  # type: ignore[misc]


@pytest.mark.parametrize("thing", ["a.jpg", None, Smile, Job()])
def test_other_objects_are_not_jobs(thing: object) -> None:
    """Only a job of a feature is a job; the base class alone is not."""
    with pytest.raises(JobRefused, match="is not a job"):
        must_be_job(thing)


def test_the_general_job_has_the_documented_price() -> None:
    """A feature gives one picture for one unit by default, and no duration is documented."""
    assert (1, 1, None) == (Job().outputs, Job().units, Job().usual)


@pytest.mark.parametrize(
    ("job", "usual"),
    [
        (Smile("a.jpg"), (5.0, 20.0)),
        (Avatar("a.jpg", template_id="male_1", output_count=1), (60.0, 150.0)),
        (Avatar("a.jpg", template_id="male_1"), None),
    ],
)
def test_documented_durations(job: Job, usual: tuple[float, float] | None) -> None:
    """An avatar's duration is documented for one picture only, and not guessed for more."""
    assert usual == job.usual


def test_a_completion_is_one_of_three() -> None:
    """`Polling.completion` is "poll", "webhook", "both" or None."""
    for completion in (None, "poll", "webhook", "both"):
        assert completion == Polling(completion=completion).completion
    with pytest.raises(ConfigurationError, match=r"Polling\.completion is 'hook'"):
        Polling(completion="hook")  # type: ignore[arg-type]


def test_a_job_of_a_feature_is_a_job() -> None:
    """A job of a feature is accepted as one."""
    must_be_job(Smile("a.jpg"))
