"""Registrations and uploads."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx
import pytest

from perfect_async.sandbox import Sandbox
from tests.sandbox.clients import CLIENTS
from tests.sandbox.customer import FACE, TEETH, Customer, data_of, error_of, unlimited_sandbox

ENTRY: dict[str, object] = {"content_type": "image/jpeg", "file_name": "a.jpg", "file_size": 9}

INVALID = "One or more parameters in this request are invalid."


async def test_files_are_answered_in_order() -> None:
    """Several files are answered in order, each with its id and its PUT."""
    names = ["c.jpg", "a.jpg", "b.jpg"]
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.register(*[{**ENTRY, "file_name": name} for name in names])
    files = data_of(answer)["files"]

    assert names == [file["file_name"] for file in files]
    assert 3 == len({file["file_id"] for file in files})
    assert ["PUT"] * 3 == [file["requests"][0]["method"] for file in files]
    assert {"Content-Type": "image/jpeg", "Content-Length": "9"} == files[0]["requests"][0][
        "headers"
    ]


async def test_file_ids_have_special_characters() -> None:
    """Every file id has `/`, `+` and `=`."""
    async with Customer(unlimited_sandbox()) as customer:
        for _ in range(20):
            assert set("/+=") <= set((await customer.file())["file_id"])


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("object", {"Content-Type": "image/jpeg", "Content-Length": "9"}),
        ("numbers", {"Content-Type": "image/jpeg", "Content-Length": 9}),
    ],
)
async def test_headers_have_two_styles(
    style: Literal["object", "numbers"], expected: dict[str, object]
) -> None:
    """Lengths are strings in recordings and numbers in the documents."""
    async with Customer(Sandbox(header_style=style)) as customer:
        answer = await customer.register(ENTRY)

    assert expected == data_of(answer)["files"][0]["requests"][0]["headers"]


async def test_headers_may_be_a_list() -> None:
    """Lists have `key` or `name`, since both were observed."""
    async with Customer(Sandbox(header_style="list")) as customer:
        files = data_of(await customer.register(ENTRY, ENTRY))["files"]
    found = [file["requests"][0]["headers"] for file in files]

    assert [{"Content-Type", "Content-Length"}] * 2 == [
        {header.get("key") or header.get("name") for header in headers} for headers in found
    ]
    assert {"key", "name"} == {word for headers in found for word in headers[0]} - {"value"}


async def test_too_many_files_are_a_400() -> None:
    """More than `files_per_call` register nothing and are no violation, since the limit is open."""
    sandbox = Sandbox(files_per_call=2)
    async with Customer(sandbox) as customer:
        refused = await customer.register(ENTRY, ENTRY, ENTRY)
        taken = await customer.register(ENTRY, ENTRY)

    assert (400, "InvalidParameters") == error_of(refused)[:2]
    assert 200 == taken.status_code
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize("field", ["content_type", "file_name", "file_size"])
@pytest.mark.parametrize("null", [True, False])
async def test_a_missing_field_of_a_file_is_named(field: str, null: bool) -> None:
    """Every field is required; null counts as missing."""
    entry = {**ENTRY, field: None} if null else {k: v for k, v in ENTRY.items() if k != field}
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.register(entry)

    text = f"{field} is required but wasn't included in your request."
    assert (400, "InvalidParameters", text) == error_of(answer)
    assert [f"file: required field {field} is missing or null"] == sandbox.ledger.violations


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content_type", "image/x-icon"),
        ("content_type", 5),
        ("file_name", ""),
        ("file_size", "9"),
        ("file_size", True),
        ("file_size", 0),
        ("file_size", -1),
    ],
)
async def test_a_wrong_value_of_a_file_is_named(field: str, value: object) -> None:
    """The error names a field whose value is not accepted."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.register({**ENTRY, field: value})

    text = f"{field} is not one of the accepted values."
    assert (400, "InvalidParameters", text) == error_of(answer)


@pytest.mark.parametrize("body", [{}, {"files": []}, {"files": None}, {"files": {}}])
async def test_a_registration_needs_files(body: dict[str, object]) -> None:
    """A call without files is refused."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.post("/s2s/v2.0/file", body)

    assert (400, "InvalidParameters") == error_of(answer)[:2]


async def test_an_entry_must_be_an_object() -> None:
    """A file that is not an object is refused."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.post("/s2s/v2.0/file", {"files": ["me.jpg"]})

    assert (400, "InvalidParameters") == error_of(answer)[:2]


@pytest.mark.parametrize("content_type", ["image/jpg", "image/jpeg", "image/png", "image/heic"])
async def test_both_spellings_of_jpeg_are_accepted(content_type: str) -> None:
    """The accepted types are both spellings of JPEG, PNG and HEIC."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.register({**ENTRY, "content_type": content_type})

    assert content_type == data_of(answer)["files"][0]["content_type"]


async def test_a_unicode_name_is_a_violation() -> None:
    """Unicode names are undocumented: accepted, but reported."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.register({**ENTRY, "file_name": "я.jpg"})

    assert 200 == answer.status_code
    assert ["file_name is not ASCII"] == sandbox.ledger.violations


async def test_the_older_path_serves_one_feature() -> None:
    """A file that is registered for a feature is missing for another feature."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        file_id = await customer.uploaded(feature="ai-avatar")
        body = {"src_file_id": file_id, "expression_type": TEETH}
        wrong = await customer.create(body)
        right = await customer.create(
            {"src_file_id": file_id, "template_id": "male_studio_00", "output_count": 1},
            "ai-avatar",
        )

    assert [400, 200] == [wrong.status_code, right.status_code]
    assert ["task: file registered for ai-avatar used for ai-smile"] == sandbox.ledger.violations


async def test_the_older_path_knows_the_features_formats() -> None:
    """The path of avatars does not accept HEIC."""
    heic = {**ENTRY, "content_type": "image/heic"}
    async with Customer(unlimited_sandbox()) as customer:
        avatar = await customer.register(heic, feature="ai-avatar")
        smile = await customer.register(heic, feature="ai-smile")

    assert [400, 200] == [avatar.status_code, smile.status_code]


async def test_the_universal_path_may_be_missing() -> None:
    """A vendor before v1.14 answers 404 on the universal path only."""
    sandbox = Sandbox(universal_path=False)
    async with Customer(sandbox) as customer:
        universal = await customer.register(ENTRY)
        older = await customer.register(ENTRY, feature="ai-smile")

    assert [404, 200] == [universal.status_code, older.status_code]


async def test_an_upload_may_be_repeated() -> None:
    """The upload has exactly the given headers, and a repetition is harmless."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        entry = await customer.file()
        answers = [await customer.put(entry, FACE) for _ in range(2)]

    assert [200, 200] == [answer.status_code for answer in answers]
    assert answers[0].headers["etag"].startswith('"')
    assert [] == sandbox.ledger.violations


async def put(headers: dict[str, str], data: bytes = FACE) -> tuple[httpx.Response, Sandbox]:
    """Upload with the given headers, changed."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        entry: Any = await customer.file()
        request = entry["requests"][0]
        answer = await customer.http.put(
            request["url"], headers={**request["headers"], **headers}, content=data
        )
    return answer, sandbox


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "image/png"}, "SignatureDoesNotMatch"),
        ({"x-amz-acl": "public-read"}, "AccessDenied"),
        ({"x-amz-meta-name": "me"}, "AccessDenied"),
    ],
)
async def test_unsigned_headers_are_refused(headers: dict[str, str], code: str) -> None:
    """The storage refuses other values and unsigned headers of the storage."""
    answer, sandbox = await put(headers)

    assert 403 == answer.status_code
    assert f"<Code>{code}</Code>" in answer.text
    assert 1 == len(sandbox.ledger.violations)


@pytest.mark.parametrize("client", sorted(CLIENTS))
async def test_standard_headers_are_no_violation(client: str) -> None:
    """The storage accepts the headers that HTTP clients add to an upload."""
    answer, sandbox = await put(dict(CLIENTS[client]))

    assert 200 == answer.status_code
    assert [] == sandbox.ledger.violations


async def test_an_additional_header_is_a_violation() -> None:
    """S3 ignores additional headers, but the contract forbids them."""
    answer, sandbox = await put({"X-Trace": "1"})

    assert 200 == answer.status_code
    assert ["upload with the header x-trace, which was not given"] == sandbox.ledger.violations


async def test_another_length_is_refused() -> None:
    """A length that was not registered is not the signed one."""
    answer, sandbox = await put({"Content-Length": "5"}, FACE[:5])

    assert 403 == answer.status_code
    assert 1 == len(sandbox.ledger.violations)


async def test_an_incomplete_upload_is_refused() -> None:
    """A body that is shorter than its Content-Length is incomplete."""
    answer, sandbox = await put({}, FACE[:-1])

    assert (400, True) == (answer.status_code, "IncompleteBody" in answer.text)
    assert "bytes announced as" in sandbox.ledger.violations[0]


async def test_an_upload_needs_a_length() -> None:
    """Chunked uploads are refused, like by S3."""

    async def chunks() -> AsyncIterator[bytes]:
        yield FACE

    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        entry = await customer.file()
        answer = await customer.http.put(
            entry["requests"][0]["url"], headers={"Content-Type": "image/jpeg"}, content=chunks()
        )

    assert (411, True) == (answer.status_code, "MissingContentLength" in answer.text)
    assert ["upload: upload without Content-Length"] == sandbox.ledger.violations


async def test_a_streamed_upload_is_accepted() -> None:
    """A body in chunks with the signed length arrives whole."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(FACE), 500):
            yield FACE[start : start + 500]

    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        request = (await customer.file())["requests"][0]
        answer = await customer.http.put(
            request["url"], headers=request["headers"], content=chunks()
        )

    assert 200 == answer.status_code
    assert [] == sandbox.ledger.violations


async def test_a_file_that_was_never_uploaded_is_refused() -> None:
    """A task on a file without bytes is a 400, costs nothing, and is a violation."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        entry = await customer.file()
        body = {"src_file_id": entry["file_id"], "expression_type": TEETH}
        answer = await customer.create(body)

    assert (400, None, INVALID) == error_of(answer)
    assert 0 == sandbox.ledger.units_charged
    assert ["task: task on a file whose bytes never arrived"] == sandbox.ledger.violations


async def test_an_unknown_file_id_is_not_a_violation() -> None:
    """An unknown id is a 400 and not a violation, since users type ids."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.create({"src_file_id": "abc/+=", "expression_type": TEETH})

    assert (400, None, INVALID) == error_of(answer)
    assert [] == sandbox.ledger.violations


async def test_a_wrong_element_is_named_by_its_index() -> None:
    """The error of a value in an array names its index."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.post("/s2s/v2.0/file", {"files": [ENTRY, "a.jpg"]})

    text = "`1` is not one of the accepted values."
    assert (400, "InvalidParameters", text) == error_of(answer)
