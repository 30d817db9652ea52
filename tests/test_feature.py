"""`Feature`: the inputs and parameters that it accepts and refuses, and its repr."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import Feature, FileId, JobInput, JobRefused, Placeholder, Studio
from perfect_async.models import must_be_job


@pytest.mark.parametrize("path", ["smile", "avatar", "studio"])
def test_a_typed_feature_without_its_prefix_is_refused(path: str) -> None:
    """The message has the vendor's name."""
    with pytest.raises(JobRefused, match=f"its name is 'ai-{path}'"):
        Feature(path, {})


def test_a_feature_keeps_its_inputs_and_parameters() -> None:
    """The inputs keep their order, and the first one is the source."""
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


def test_a_feature_needs_no_input() -> None:
    """A job may have text alone, and such a job is bought again instead of fetched again."""
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
def test_a_malformed_path_is_refused(path: object) -> None:
    """A job is refused when it is made if its path is not that of a feature."""
    with pytest.raises(JobRefused, match="is not the path of a feature"):
        Feature(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["delete", "template/ai-avatar", "a/Delete", "a/template"])
def test_paths_of_other_calls_are_refused(path: str) -> None:
    """The vendor deletes tasks and lists templates below the path of the features."""
    with pytest.raises(JobRefused, match="another of the vendor's calls"):
        Feature(path)


@pytest.mark.parametrize("version", ["", "v1.0", "v2", "v2.2", None, 2.1])
def test_an_unknown_version_is_refused(version: object) -> None:
    """A job is refused if the vendor has not published its version."""
    with pytest.raises(JobRefused, match=r"one of v2\.0, v2\.1"):
        Feature("skin-analysis", version=version)  # type: ignore[arg-type]


@pytest.mark.parametrize("units", [-1, 1.5, True, "2", float("nan")])
def test_a_wrong_price_is_refused(units: object) -> None:
    """A price must be a whole number of units."""
    with pytest.raises(JobRefused, match="units is"):
        Feature("a", units=units)  # type: ignore[arg-type]


def test_an_empty_key_is_refused() -> None:
    """A key must be text that is not empty."""
    with pytest.raises(JobRefused, match="key"):
        Feature("a", key=" ")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"src": []}, "src is an empty list"),
        ({"Big": "a.jpg"}, "not the name of an input"),
        ({"_x": "a.jpg"}, "not the name of an input"),
    ],
)
def test_wrong_inputs_are_refused(inputs: dict[str, object], message: str) -> None:
    """A name must have the vendor's form, and a list must have an entry."""
    with pytest.raises(JobRefused, match=message):
        Feature("a", **inputs)  # type: ignore[arg-type]


def deep() -> dict[str, object]:
    """Return parameters that are nested too deeply for any parser."""
    nested: dict[str, object] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    return nested


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "params is 'list'"),
        ({1: 2}, "a name that is not text"),
        ({"a": {1: 2}}, "a name that is not text"),
        ({"a": b""}, "params holds a 'bytes'"),
        ({"a": {"b": [object()]}}, "params holds a 'object'"),
        ({"a": float("inf")}, "not finite"),
        ({"src_file_id": "x"}, "sent under that name"),
        ({"src_file_urls": ["x"]}, "sent under that name"),
        ({"a": Placeholder("ref")}, r"the input 'ref' \[0\], which was not given"),
        ({"a": [Placeholder("src", 1)]}, r"the input 'src' \[1\], which was not given"),
        ({"a": {"$input": "ref"}}, "was not given"),
        ({"a": {"$input": 1}}, "in a form other than"),
        ({"a": {"$input": "src", "index": "0"}}, "in a form other than"),
        ({"a": {"$input": "src", "more": 0}}, "in a form other than"),
        (deep(), "nested too deep"),
    ],
)
def test_wrong_parameters_are_refused(params: object, message: str) -> None:
    """A job is refused if its parameters are not JSON or name an input that it does not have."""
    with pytest.raises(JobRefused, match=message):
        Feature("a", params, src="a.jpg")  # type: ignore[arg-type]


def test_placeholders_may_be_objects_or_json() -> None:
    """A placeholder may be given as a JSON object, and a mask by either of its two names."""
    job = Feature(
        "a",
        {"x": ({"y": Placeholder("mask")}, {"$input": "ref", "index": 1}, {"$input": "msk"})},
        ref=["b", "c"],
        mask="m",
    )
    x = [{"y": Placeholder("msk")}, Placeholder("ref", 1), Placeholder("msk")]
    assert {"x": x} == job.params


def test_a_feature_is_a_value() -> None:
    """Equal features compare equal, can be copied, and do not change with their arguments."""
    params = {"list": [1]}
    job = Feature("a", params, src=FileId("f"), key="k")
    params["list"].append(2)
    job.params["list"] = 3

    assert {"list": [1]} == job.params
    assert job == Feature("a", {"list": [1]}, src=FileId("f"), key="k")
    assert hash(job) == hash(copy.copy(job))
    assert job == pickle.loads(pickle.dumps(job))
    assert job != Feature("a", {"list": [1]}, src=FileId("f"), key="k", version="v2.1")


def test_the_repr_shows_no_secret() -> None:
    """The repr shows the arguments, without bytes and without the secrets of URLs."""
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
    """Every JSON value is kept; only None at the top level is left out."""
    expected = {name: value for name, value in params.items() if value is not None}
    assert expected == Feature("a", params).params


@pytest.mark.parametrize(("count", "units"), [(1, 1), (2, 1), (3, 2), (200, 100)])
def test_a_studio_costs_a_unit_for_two(count: int, units: int) -> None:
    """A studio costs one unit per two pictures, rounded up."""
    job = Studio("a.jpg", "style", count)
    assert (count, units, "ai-studio") == (job.outputs, job.units, job.feature)
    assert job.priced
