"""Files: registration and upload (contract: The flow of one picture, 1 and 2)."""

from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conformance.vendor import BASE_URL, Vendor, assumed, clock, error_code, headers_of

pytestmark = clock


async def test_a_registration_answers_in_order(vendor: Vendor) -> None:
    """Each file of the call has its place in the answer, with an id and a request."""
    files = await vendor.register("b.jpg", "a.jpg")

    assert ["b.jpg", "a.jpg"] == [file["file_name"] for file in files]
    assert ["image/jpeg"] * 2 == [file["content_type"] for file in files]
    assert 2 == len({file["file_id"] for file in files})


async def test_an_upload_request_is_complete(vendor: Vendor) -> None:
    """The request is a PUT to https on another host, with type and length, for 7,200 s."""
    request = (await vendor.register("a.jpg"))[0]["requests"][0]
    url = urlsplit(request["url"])
    headers = {name.lower(): value for name, value in headers_of(request["headers"]).items()}

    assert ("PUT", "https") == (request["method"], url.scheme)
    assert urlsplit(BASE_URL).hostname != url.hostname
    assert {"content-type": "image/jpeg", "content-length": str(len(vendor.picture))} == headers
    assert ["7200"] == parse_qs(url.query)["X-Amz-Expires"]


@pytest.mark.parametrize("feature", ["ai-smile", "ai-avatar"])
async def test_the_older_path_works(vendor: Vendor, feature: str) -> None:
    """`/file/<feature>` registers like the universal path."""
    files = await vendor.register("a.jpg", path=f"/s2s/v2.0/file/{feature}")

    assert 200 == (await vendor.put(files[0])).status_code


async def test_the_storage_accepts_the_bytes(vendor: Vendor) -> None:
    """The given headers are enough, and no key is needed."""
    file = (await vendor.register("a.jpg"))[0]

    assert 200 == (await vendor.put(file)).status_code


async def test_the_storage_refuses_a_key(vendor: Vendor) -> None:
    """An Authorization header beside a signed URL is an error of the storage."""
    file = (await vendor.register("a.jpg"))[0]

    answer = await vendor.put(file, Authorization="Bearer not-a-key")

    assert 400 <= answer.status_code < 500
    assert answer.text.lstrip().startswith("<?xml")


async def test_the_storage_refuses_another_type(vendor: Vendor) -> None:
    """The signed headers cannot be changed."""
    file = (await vendor.register("a.jpg"))[0]
    headers = headers_of(file["requests"][0]["headers"])
    name = next(name for name in headers if name.lower() == "content-type")

    assert 403 == (await vendor.put(file, **{name: "image/gif"})).status_code


@pytest.mark.parametrize("field", ["content_type", "file_name", "file_size"])
async def test_a_missing_field_is_named(vendor: Vendor, field: str) -> None:
    """A registration without a required field is a 400 that names the field."""
    entry = {key: value for key, value in vendor.entry().items() if key != field}

    answer = await vendor.post("/s2s/v2.0/file", {"files": [entry]})

    assert 400 == answer.status_code
    assert error_code(answer) in {"InvalidParameters", "BadRequest"}
    assert field in answer.json()["error"]


@assumed
async def test_twenty_files_fit_into_one_call(vendor: Vendor) -> None:
    """Twenty files are accepted; more may be refused with a 400."""
    names = [f"{number}.jpg" for number in range(20)]

    files = await vendor.register(*names)

    assert names == [file["file_name"] for file in files]
