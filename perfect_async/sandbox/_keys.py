"""API keys and access tokens (contract: Errors, Other calls)."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping
from typing import Final

from ._clock import Chance, Clock
from ._features import text_field
from ._http import MICROSECONDS, ApiError

# The scheme's name has no case (RFC 9110, 11.1).
_BEARER: Final = re.compile(r"bearer ([\x21-\x7e]+)", re.IGNORECASE)
# What RSA gives is longer; the shortest plain text, `client_id=...&timestamp=...`, is not.
_SHORTEST_TOKEN: Final = 16
LIFETIME: Final = 7200 * MICROSECONDS


class Keys:
    """Decides which keys are accepted, and hands out access tokens for them."""

    def __init__(self, accepted: Collection[str] | None, clock: Clock, chance: Chance) -> None:
        self._accepted = None if accepted is None else frozenset(accepted)
        self._clock = clock
        self._chance = chance
        # Access token: its key, and the loop's time at which it expires.
        self._tokens: dict[str, tuple[str, int]] = {}

    def check(self, authorization: str) -> str:
        """Return the key of an Authorization header. Raises `ApiError`.

        An access token stands for the key that it was given for.
        """
        found = _BEARER.fullmatch(authorization)
        if found is None:
            # [seen] The answer to a missing header.
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
        """Handle `POST /client/auth`: give an access token for a client id. Raises `ApiError`.

        The real `id_token` is encrypted with the client's key, which the sandbox does not have:
        any base64 of the length of a plain text or more is accepted.
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
