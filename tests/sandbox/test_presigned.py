"""Presigned URLs that look and fail like those of S3."""

import asyncio
from urllib.parse import parse_qs, urlsplit

import pytest

from perfect_async.sandbox import Sandbox
from tests.sandbox.customer import FACE, Customer, data_of, unlimited_sandbox


async def finished(customer: Customer) -> str:
    """Return a result URL."""
    task = await customer.task()
    await asyncio.sleep(1)
    return str(data_of(await customer.poll(task))["results"]["url"])


async def test_a_url_looks_like_one_of_s3() -> None:
    """https on a separate host, with the query of S3's URLs."""
    async with Customer(unlimited_sandbox()) as customer:
        url = urlsplit((await customer.file())["requests"][0]["url"])
    query = parse_qs(url.query)

    assert ("https", "uploads.sandbox.example") == (url.scheme, url.hostname)
    assert ["AWS4-HMAC-SHA256"] == query["X-Amz-Algorithm"]
    assert ["7200"] == query["X-Amz-Expires"]
    assert ["content-length;content-type;host"] == query["X-Amz-SignedHeaders"]
    assert 64 == len(query["X-Amz-Signature"][0])


async def test_the_date_is_the_wall_clocks() -> None:
    """X-Amz-Date is the time of signing in UTC."""
    sandbox = Sandbox(epoch=1_782_864_000.0)
    async with Customer(sandbox) as customer:
        first = await customer.file()
        await asyncio.sleep(3661)
        second = await customer.file()

    dates = [
        parse_qs(urlsplit(e["requests"][0]["url"]).query)["X-Amz-Date"] for e in (first, second)
    ]
    assert [["20260701T000000Z"], ["20260701T010101Z"]] == dates


@pytest.mark.parametrize(("age", "status"), [(7199, 200), (7201.5, 403)])
async def test_a_result_url_lives_two_hours(age: float, status: int) -> None:
    """After 7,200 s the answer is a 403 in XML."""
    async with Customer(unlimited_sandbox()) as customer:
        url = await finished(customer)
        await asyncio.sleep(age)
        answer = await customer.http.get(url)

    assert status == answer.status_code
    if status == 403:
        assert "application/xml" == answer.headers["content-type"]
        assert "<Code>AccessDenied</Code><Message>Request has expired" in answer.text


async def test_an_upload_url_expires_too() -> None:
    """Bytes that come after two hours are refused."""
    async with Customer(unlimited_sandbox()) as customer:
        entry = await customer.file()
        await asyncio.sleep(7202)
        assert 403 == (await customer.put(entry, FACE)).status_code


async def test_the_lifetime_is_a_setting() -> None:
    """`url_lifetime` is in the URL and is respected."""
    sandbox = Sandbox(url_lifetime=60)
    async with Customer(sandbox) as customer:
        entry = await customer.file()
        assert "X-Amz-Expires=60&" in entry["requests"][0]["url"]
        await asyncio.sleep(62)
        assert 403 == (await customer.put(entry, FACE)).status_code


async def test_authorization_is_refused() -> None:
    """A key that is sent to a storage host is a 400 and a violation, on both hosts."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        url = await finished(customer)
        entry = (await customer.file())["requests"][0]
        got = await customer.http.get(url, headers=customer.key)
        put = await customer.http.put(
            entry["url"], headers={**entry["headers"], **customer.key}, content=FACE
        )
        thumb = await customer.http.get(
            "https://results.sandbox.example/templates/x.jpg", headers=customer.key
        )

    assert [400, 400, 400] == [answer.status_code for answer in (got, put, thumb)]
    assert [
        "result: Authorization header sent to the results host",
        "upload: Authorization header sent to the uploads host",
        "thumb: Authorization header sent to the results host",
    ] == sandbox.ledger.violations


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X-Amz-Expires=7200", "X-Amz-Expires=72000"),
        ("X-Amz-Signature=", "X-Amz-Signature=0"),
        ("/0.jpg", "/1.jpg"),
        ("?", "?versionId=3&"),
    ],
)
async def test_a_changed_url_is_refused(old: str, new: str) -> None:
    """Any change of a signed URL breaks its signature."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        url = await finished(customer)
        answer = await customer.http.get(url.replace(old, new, 1))

    assert 403 == answer.status_code
    assert "SignatureDoesNotMatch" in answer.text
    assert 1 == len(sandbox.ledger.violations)


async def test_a_url_is_for_one_method() -> None:
    """An upload URL accepts neither GET nor POST."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        request = (await customer.file())["requests"][0]
        got = await customer.http.get(request["url"])
        posted = await customer.http.post(request["url"], headers=request["headers"], content=FACE)

    assert [403, 403] == [got.status_code, posted.status_code]
    assert 2 == len(sandbox.ledger.violations)


async def test_a_bare_path_is_refused() -> None:
    """A path without a signature is refused."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.http.get("https://results.sandbox.example/sandbox-out/a/0.jpg")

    assert 403 == answer.status_code


async def test_the_same_seed_gives_the_same_urls() -> None:
    """Seed and epoch fix URLs and ids."""
    found: list[object] = []
    for _ in range(2):
        async with Customer(Sandbox(seed=9, epoch=1e9)) as customer:
            found.append(await customer.file())

    assert found[0] == found[1]


async def test_an_origin_serves_the_stores_under_paths() -> None:
    """With an origin, presigned URLs are paths of it, and work there."""
    sandbox = Sandbox(origin="http://127.0.0.1:8787/", units=5)
    async with Customer(sandbox) as customer:
        customer.http.base_url = "http://127.0.0.1:8787"
        entry = await customer.file()
        url = entry["requests"][0]["url"]
        assert url.startswith("http://127.0.0.1:8787/_uploads/sandbox-in/")
        assert 200 == (await customer.put(entry, FACE)).status_code
        templates = data_of(await customer.get("/s2s/v2.0/task/template/ai-avatar"))["templates"]
        thumb = templates[0]["thumb"]
        assert thumb.startswith("http://127.0.0.1:8787/_results/templates/")
        assert 200 == (await customer.http.get(thumb)).status_code
