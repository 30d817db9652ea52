"""`Feature`: what it takes, what it refuses, and how it shows itself."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import Feature, FileId, JobInput, JobRefused, Placeholder, Studio
from perfect_async.models import must_be_job


def test_what_it_holds() -> None:
    """Inputs stand side by side in their order, and the first one is the source."""
    job = Feature("2d-vto/ring", {"a": 1, "b": None}, src="a.jpg", ref=["b.jpg", b"c"], mask="d")

    assert {"a": 1} == job.params
    assert "a.jpg" == job.source
    assert [
        JobInput("src", "a.jpg"),
        JobInput("ref", "b.jpg", 0),
        JobInput("ref", b"c", 1),
        JobInput("msk", "d"),
    ] == list(job.inputs)
    assert (1, False, 1, True) == (job.units, job.priced, job.outputs, job.reusable)
    must_be_job(job)


def test_no_input() -> None:
    """Words alone make a job, and another try is another result."""
    job = Feature("text-to-image/youcam", {"prompt": "a fox"}, units=1)

    assert ((), "", False) == (job.inputs, job.source, job.reusable)
    assert (1, True) == (job.units, job.priced)


def test_a_version_is_part_of_its_name() -> None:
    """The same path in another version is another feature."""
    assert "skin-analysis" == Feature("skin-analysis").feature
    assert "skin-analysis@v2.1" == Feature("skin-analysis", version="v2.1").feature


@pytest.mark.parametrize(
    "path",
    [
        *("", "/skin-analysis", "skin-analysis/", "a//b", "..", "a/../b", "a/..", "a?b", "a#b"),
        *("a b", "a%2Fb", "a@v2.1", "\N{SNOWMAN}", "a\n", ".a", "a" * 65, "a/" * 128 + "a"),
        *(None, 7),
    ],
)
def test_a_path_that_leads_elsewhere(path: object) -> None:
    """A path that is none is refused when the job is made."""
    with pytest.raises(JobRefused, match="is no path of a feature"):
        Feature(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["delete", "template/ai-avatar", "a/Delete", "a/template"])
def test_other_calls_are_no_features(path: str) -> None:
    """Deleting and listing templates are calls of their own below the same path."""
    with pytest.raises(JobRefused, match="other calls of the vendor"):
        Feature(path)


@pytest.mark.parametrize("version", ["", "v1.0", "v2", "v2.2", None, 2.1])
def test_an_unknown_version(version: object) -> None:
    """Only versions that are published are asked for."""
    with pytest.raises(JobRefused, match=r"none of v2\.0, v2\.1"):
        Feature("skin-analysis", version=version)  # type: ignore[arg-type]


@pytest.mark.parametrize("units", [-1, 1.5, True, "2", float("nan")])
def test_a_wrong_price(units: object) -> None:
    """A price is a whole number of units."""
    with pytest.raises(JobRefused, match="units is"):
        Feature("a", units=units)  # type: ignore[arg-type]


def test_an_empty_key() -> None:
    """A key is text."""
    with pytest.raises(JobRefused, match="key"):
        Feature("a", key=" ")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"src": []}, "src is an empty list"),
        ({"Big": "a.jpg"}, "no name of an input"),
        ({"_x": "a.jpg"}, "no name of an input"),
    ],
)
def test_wrong_inputs(inputs: dict[str, object], message: str) -> None:
    """A name has the vendor's form, and a list has an entry."""
    with pytest.raises(JobRefused, match=message):
        Feature("a", **inputs)  # type: ignore[arg-type]


def deep() -> dict[str, object]:
    """Return parameters that no parser reads."""
    nested: dict[str, object] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    return nested


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "params is 'list'"),
        ({1: 2}, "a name that is no text"),
        ({"a": {1: 2}}, "a name that is no text"),
        ({"a": b""}, "params holds a 'bytes'"),
        ({"a": {"b": [object()]}}, "params holds a 'object'"),
        ({"a": float("inf")}, "not finite"),
        ({"src_file_id": "x"}, "stands for an input"),
        ({"src_file_urls": ["x"]}, "stands for an input"),
        ({"a": Placeholder("ref")}, r"the input 'ref' \[0\]; there is none"),
        ({"a": [Placeholder("src", 1)]}, r"the input 'src' \[1\]; there is none"),
        ({"a": {"$input": "ref"}}, "there is none"),
        ({"a": {"$input": 1}}, "in a form other than"),
        ({"a": {"$input": "src", "index": "0"}}, "in a form other than"),
        ({"a": {"$input": "src", "more": 0}}, "in a form other than"),
        (deep(), "nested too deep"),
    ],
)
def test_wrong_parameters(params: object, message: str) -> None:
    """What cannot be sent as JSON, or stands for nothing, is refused when the job is made."""
    with pytest.raises(JobRefused, match=message):
        Feature("a", params, src="a.jpg")  # type: ignore[arg-type]


def test_placeholders() -> None:
    """A placeholder may be an object of JSON as well, and a mask has two names."""
    job = Feature(
        "a",
        {"x": ({"y": Placeholder("mask")}, {"$input": "ref", "index": 1}, {"$input": "msk"})},
        ref=["b", "c"],
        mask="m",
    )
    x = [{"y": Placeholder("msk")}, Placeholder("ref", 1), Placeholder("msk")]
    assert {"x": x} == job.params


def test_it_is_a_value() -> None:
    """Equal jobs are equal, can be copied, and do not change with what they were made of."""
    params = {"list": [1]}
    job = Feature("a", params, src=FileId("f"), key="k")
    params["list"].append(2)
    job.params["list"] = 3

    assert {"list": [1]} == job.params
    assert job == Feature("a", {"list": [1]}, src=FileId("f"), key="k")
    assert hash(job) == hash(copy.copy(job))
    assert job == pickle.loads(pickle.dumps(job))
    assert job != Feature("a", {"list": [1]}, src=FileId("f"), key="k", version="v2.1")


def test_its_repr() -> None:
    """It shows what it was made of, without bytes and without the secrets of URLs."""
    job = Feature(
        "a",
        {"x": 1},
        src=b"12",
        ref=["https://x.example/a?X-Amz-Signature=SECRET", "b.jpg"],
        version="v2.1",
        units=2,
        key="k",
    )
    shown = repr(job)

    assert shown.startswith("Feature('a', {'x': 1}, src=<2 bytes>, ref=['https://x.example/a")
    assert shown.endswith(", 'b.jpg'], version='v2.1', units=2, key='k')")
    assert "SECRET" not in shown
    assert "Feature('a', {})" == repr(Feature("a"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda name: name != "$input"), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "$input"), JSON, max_size=4))
def test_parameters_stay_as_they_are(params: dict[str, object]) -> None:
    """Whatever JSON can say is kept; only nothing at the top level is left out."""
    expected = {name: value for name, value in params.items() if value is not None}
    assert expected == Feature("a", params).params


@pytest.mark.parametrize(("count", "units"), [(1, 1), (2, 1), (3, 2), (200, 100)])
def test_a_studio_is_one_unit_for_two(count: int, units: int) -> None:
    """The price of a studio, rounded up."""
    job = Studio("a.jpg", "style", count)
    assert (count, units, "ai-studio") == (job.outputs, job.units, job.feature)
    assert job.priced
