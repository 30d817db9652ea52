"""The checks of a key: common mistakes of copying are stripped or named."""

import pytest

from perfect_async import Client, ConfigurationError
from perfect_async._client import settings


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_line_end_after_a_key_is_stripped(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with the line end of a file or secret store works."""
    monkeypatch.setenv("YOUCAM_API_KEY", f"key{end}")

    assert Client()._key == "key" == Client(f"key{end}")._key


@pytest.mark.parametrize("key", ['"key"', "'key'", "\u201ckey\u201d", 'key"', "`key`"])
def test_quotes_around_a_key_are_named(key: str) -> None:
    """A key in quotes is refused with that reason, and not repeated."""
    with pytest.raises(ConfigurationError, match="stands in quotes") as caught:
        Client(key)
    assert "YOUCAM_API_KEY" in str(caught.value)


@pytest.mark.parametrize("key", ["...", "\u2026"])
def test_the_key_of_an_example_is_named(key: str) -> None:
    """Three dots, copied from an example, are refused before the vendor refuses them."""
    with pytest.raises(ConfigurationError, match="which stands for a key in examples"):
        Client(key)


@pytest.mark.parametrize("key", [None, "", "\n", "Bearer x", "a b", "kéy", " key"])
def test_an_impossible_key_is_refused(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is missing, empty, or has impossible characters is refused."""
    monkeypatch.delenv("YOUCAM_API_KEY", raising=False)

    assert settings.key_problem(settings.stripped(key)) is not None
    with pytest.raises(ConfigurationError):
        Client(key)
