"""The peer that misbehaves on the connection follows its script."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from perfect_async.sandbox import Sandbox
from tests.sandbox.clients import RawClient
from tests.sandbox.peer import Peer, peer
from tests.support.ports import free_port

pytestmark = pytest.mark.real_time

CREDIT = "/s2s/v1.0/client/credit"
TEMPLATES = "/s2s/v2.0/task/template/ai-avatar"
KEY = {"Authorization": "Bearer a-key"}


@pytest.fixture
async def misbehaving() -> AsyncIterator[Peer]:
    """Serve a peer with its own sandbox."""
    port = free_port()
    async with peer(Sandbox(origin=f"http://127.0.0.1:{port}"), port) as found:
        yield found


async def answers(found: Peer, *paths: str) -> list[str]:
    """Return the answers that one connection reads for these paths, without any check."""
    async with RawClient({}) as client:
        return [(await client.send("GET", found.url + path, KEY)).body.decode() for path in paths]


async def test_the_peer_answers_like_the_sandbox(misbehaving: Peer) -> None:
    """Without a script there is one answer per request."""
    credit, templates = await answers(misbehaving, CREDIT, TEMPLATES)

    assert '"ApiSubsToken"' in credit
    assert '"female_manga_mood"' in templates


async def test_a_doubled_answer_shifts_the_next_ones(misbehaving: Peer) -> None:
    """The second copy of an answer is read as that of the next request."""
    misbehaving.script(CREDIT, "double")

    credit, wrong = await answers(misbehaving, CREDIT, TEMPLATES)

    assert credit == wrong


async def test_a_late_answer_shifts_the_next_ones(misbehaving: Peer) -> None:
    """An answer that comes after a 502 is read as that of the next request."""
    misbehaving.script(CREDIT, "late")

    gateway, wrong, _ = await answers(misbehaving, CREDIT, TEMPLATES, TEMPLATES)

    assert "<html>" == gateway
    assert '"ApiSubsToken"' in wrong


async def test_a_short_body_is_noticed(misbehaving: Peer) -> None:
    """A client notices the missing half of a body with an announced length."""
    misbehaving.script(CREDIT, "cut")

    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            await http.get(misbehaving.url + CREDIT, headers=KEY)


async def test_a_short_body_without_a_length_is_not_noticed(misbehaving: Peer) -> None:
    """A client does not notice the missing half of a body without a length."""
    misbehaving.script(CREDIT, "unannounced")

    async with httpx.AsyncClient(trust_env=False) as http:
        half = await http.get(misbehaving.url + CREDIT, headers=KEY)
        whole = await http.get(misbehaving.url + CREDIT, headers=KEY)

    assert (200, 200) == (half.status_code, whole.status_code)
    assert len(whole.content) // 2 == len(half.content)


async def test_a_client_may_disconnect(misbehaving: Peer) -> None:
    """A connection that ends within a request raises nothing."""
    host, _, port = misbehaving.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n")
    writer.close()
    await writer.wait_closed()

    assert 2 == len(await answers(misbehaving, CREDIT, TEMPLATES))
