"""API keys and access tokens (contract: Errors, Other calls)."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from typing import Final

from ._clock import Chance, Clock
from ._features import text_field
from ._http import MICROSECONDS, ApiError

# The name of the scheme is case-insensitive (RFC 9110, 11.1).
_BEARER: Final = re.compile(r"bearer ([\x21-\x7e]+)", re.IGNORECASE)
# In bytes. Any RSA ciphertext is longer.
_SHORTEST_TOKEN: Final = 16
LIFETIME: Final = 7200 * MICROSECONDS


class Keys:
    """Checks API keys, and issues access tokens for them."""

    def __init__(self, accepted: Collection[str] | None, clock: Clock, chance: Chance) -> None:
        self._accepted = None if accepted is None else frozenset(accepted)
        self._clock = clock
        self._chance = chance
        # For each access token, its key and the loop's time at which it expires.
        self._tokens: dict[str, tuple[str, int]] = {}

    def check(self, authorization: str) -> str:
        """Return the key of an Authorization header. Raises `ApiError`.

        For an access token it is the key that the token was issued for.
        """
        found = _BEARER.fullmatch(authorization)
        if found is None:
            # This answer to a missing header was observed.
            raise ApiError(401, "Invalid API key", "InvalidApiKey")
        key = found[1]
        if key in self._tokens:
            key, expiry = self._tokens[key]
            if self._clock.now() > expiry:
                raise ApiError(401, "Invalid access token", "InvalidAccessToken")
        elif self._accepted is not None and key not in self._accepted:
            raise ApiError(401, "Invalid API key", "InvalidApiKey")
        return key

    def authenticate(self, body: Mapping[str, object]) -> dict[str, object]:
        """Handle `POST /client/auth`: issue an access token for a client id. Raises `ApiError`.

        The real `id_token` is encrypted with a key that the sandbox does not have, so any base64 of
        at least 16 bytes is accepted.
        """
        client_id = text_field(body, "client_id")
        if self._accepted is not None and client_id not in self._accepted:
            raise _refused()
        try:
            decrypted = base64.b64decode(text_field(body, "id_token"), validate=True)
        except ValueError:
            raise _refused() from None
        if len(decrypted) < _SHORTEST_TOKEN:
            raise _refused()
        noise = self._chance.identifiers("access tokens").randbytes(48)
        token = base64.urlsafe_b64encode(noise).decode()
        self._tokens[token] = (client_id, self._clock.now() + LIFETIME)
        return {"access_token": token}


def _refused() -> ApiError:
    return ApiError(401, "Invalid authentication", "InvalidAuthentication")
