"""The setting `share`: its values, when it applies, and its log lines and errors."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, ConfigurationError, Outcome
from perfect_async._ledger.rows import host_digest, key_digest
from perfect_async.sandbox import Sandbox
from tests.support.sandboxed import KEY, client, smiles, vendor

URL = "https://yce-api-01.makeupar.com"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for the test, and no variable about sharing."""
    monkeypatch.setenv("PERFECT_ASYNC_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("PERFECT_ASYNC_SHARE", raising=False)
    return tmp_path / "state"


def ledgers(folder: Path) -> list[str]:
    """The keys that have a ledger in this folder."""
    return [path.name for path in folder.glob("*/*") if path.is_dir()]


async def work(opened: Client) -> None:
    async with opened, opened.batch(smiles(2)) as batch:
        assert [True, True] == [outcome.ok async for outcome in batch]


async def test_processes_of_this_machine_share_by_default(state: Path) -> None:
    """By default there is a ledger in the user's state folder."""
    async with Client(KEY) as opened:
        assert 1 == opened.statistics().members
        assert [key_digest(KEY)] == ledgers(state)
        assert (state / host_digest(URL)).is_dir()


async def test_a_transport_of_the_network_shares(state: Path) -> None:
    """A transport for a proxy or a private CA leads to the same vendor."""
    async with Client(KEY, transport=httpx.AsyncHTTPTransport()):
        assert [key_digest(KEY)] == ledgers(state)


async def test_a_transport_of_ones_own_does_not_share(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may lead to another vendor, and one line says that the key is not shared."""
    caplog.set_level("INFO", "perfect_async")
    await work(client(vendor()))
    [line] = [each for each in caplog.messages if "share" in each]

    assert 'share="machine" shares it' in line
    assert {"INFO"} == {record.levelname for record in caplog.records}
    assert [] == ledgers(state)


async def test_a_transport_of_ones_own_shares_on_request(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An explicit "machine" shares with any transport, without a log line."""
    caplog.set_level("INFO", "perfect_async")
    await work(client(vendor(), share="machine"))

    assert [key_digest(KEY)] == ledgers(state)
    assert [] == [each for each in caplog.messages if "share" in each]


@pytest.mark.parametrize("kind", [str, Path])
async def test_another_folder(
    tmp_path: Path, state: Path, kind: Callable[[Path], str | Path]
) -> None:
    """The path of a folder names another place, which is made."""
    place = tmp_path / "volume" / "of containers"
    await work(client(vendor(), share=kind(place)))

    assert [key_digest(KEY)] == ledgers(place)
    assert [] == ledgers(state)


async def test_the_variable_names_another_folder(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PERFECT_ASYNC_SHARE counts if the program gives no `share`."""
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", str(tmp_path / "volume"))
    async with Client(KEY):
        assert [key_digest(KEY)] == ledgers(tmp_path / "volume")

    assert [] == ledgers(state)


@pytest.mark.parametrize("off", ["off", "OFF", " off "])
async def test_sharing_is_switched_off_by_a_variable(
    state: Path, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    """PERFECT_ASYNC_SHARE=off counts even if the program gives `share`."""
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", off)
    async with Client(KEY) as opened:
        assert 1 == opened.statistics().members
    await work(client(vendor(), share="machine"))

    assert [] == ledgers(state)


async def test_sharing_is_switched_off_by_none(state: Path) -> None:
    """`share=None` makes no file."""
    async with Client(KEY, share=None):
        pass

    assert [] == ledgers(state)


@pytest.mark.parametrize(
    "value",
    [
        *("", "off", "Machine", "no", "state", "./state", "../state", "~/state"),
        *("file:///state", "http://host", "https://host/", "sqlite:///state", "REDIS://host"),
        *(1, True, False, 0.5, b"machine", ["machine"], object()),
    ],
)
def test_a_wrong_share_is_refused(value: object) -> None:
    """The error says which values `share` may have."""
    with pytest.raises(ConfigurationError) as caught:
        Client(KEY, share=value)  # type: ignore[arg-type]

    assert "share is " in str(caught.value)
    assert '"machine", the absolute path of a folder, a URL that begins with redis://' in str(
        caught.value
    )


@pytest.mark.parametrize(
    "value", ["http://user:pass-word@host/0", "postgres://:pass-word@host", "//u:pass-word@host"]
)
def test_a_password_is_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused URL is shown without its password, also if it comes from a variable."""
    if not value.startswith("//"):
        with pytest.raises(ConfigurationError) as caught:
            Client(KEY, share=value)
        assert "pass-word" not in str(caught.value)
        assert "host" in str(caught.value)

        monkeypatch.setenv("PERFECT_ASYNC_SHARE", value)
        with pytest.raises(ConfigurationError) as caught:
            Client(KEY)
        assert "pass-word" not in str(caught.value)
    good = Client(KEY, share="redis://user:pass-word@host/0")
    assert "pass-word" not in f"{good!r} {good._share!r}"


async def test_clients_of_a_key_must_agree(tmp_path: Path) -> None:
    """A second client on a key in one event loop must have the first one's `share`."""
    sandbox = vendor()
    async with client(sandbox, share="machine"):
        for other in (None, tmp_path):
            with pytest.raises(ConfigurationError, match="must agree"):
                await client(sandbox, share=other).open()
        async with client(sandbox, share="machine") as same:
            assert 1 == same.statistics().members
    async with client(sandbox, share=tmp_path):
        pass


async def test_machine_agrees_with_the_default(state: Path) -> None:
    """The default and "machine" are the same place."""
    async with Client(KEY), Client(KEY, share="machine") as other:
        assert 1 == other.statistics().members

    assert [key_digest(KEY)] == ledgers(state)


async def test_a_client_without_share_uses_the_first_ones() -> None:
    """Only a client with another `share` is refused."""
    sandbox = vendor()
    async with client(sandbox, share="machine") as one, client(sandbox) as two:
        assert [True] * 2 == [result.ok for result in [await ended(each) for each in (one, two)]]
    async with client(sandbox), Client(KEY):
        with pytest.raises(ConfigurationError, match="must agree"):
            await client(sandbox, share="machine").open()


async def ended(opened: Client) -> Outcome:
    async with opened.batch(smiles(1)) as batch:
        [outcome] = [outcome async for outcome in batch]
    return outcome


async def test_keys_and_hosts_have_ledgers_of_their_own(state: Path) -> None:
    """Another key, or another host, has another file; the vendor's two names are one host."""
    sandbox = Sandbox()
    async with (
        client(sandbox, share="machine") as one,
        client(sandbox, share="machine", base_url="https://yce-api-01.perfectcorp.com") as two,
        Client("another key".replace(" ", "-"), share="machine"),
        Client(KEY, base_url="http://127.0.0.1:9", share="machine"),
    ):
        await one.units()
        await two.units()
        assert 2 == two.statistics().members

    assert 3 == len(ledgers(state))


async def test_a_place_that_cannot_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client whose ledger cannot be made logs that once, and works alone."""
    caplog.set_level("INFO", "perfect_async")
    (tmp_path / "file").write_text("no folder")
    await work(client(vendor(), share=tmp_path / "file" / "state"))
    [line] = [each for each in caplog.messages if "share" in each]

    assert line.startswith("This process does not share its key's request window with others: ")
    assert "Not a directory" in line
    assert "Limits().split(n) and share=None" in line
