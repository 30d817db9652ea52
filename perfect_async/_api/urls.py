"""Checks URLs before they are connected to or sent, by their text, without a resolver.

A URL of the vendor decides where this process connects. The rules here are therefore stricter than
those of any library: a URL that two parsers may read differently is refused. `urllib.parse` and
`httpx.URL` repair their input (white space, backslashes, a host in other scripts, an address in
octal), so a check of their result does not tell how the next parser reads the URL. `ipaddress`
knows the special addresses. Names are not resolved: a public name that points at a private address
passes.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal, TypeAlias

import attrs

from perfect_async._value import Value
from perfect_async.errors import (
    BadAnswer,
    ConfigurationError,
    PictureRefused,
    quoted,
    redacted,
    shown_source,
)

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Signed URLs with session tokens have about 2,000 characters; httpx refuses more than 65,536.
_LONGEST: Final = 16_384

_PARTS: Final = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#\\]*)"
    r"(?P<path>[^?#\\]*)(?P<query>\?[^#\\]*)?(?P<fragment>#[^\\]*)?",
    re.IGNORECASE,
)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_LONGEST_NAME: Final = 253
"""Characters of a host name (RFC 1035, without the root's dot)."""
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+")
# Names that stay inside a machine, a network or a cluster: RFC 6761, 6762 (and its appendix G),
# 7686 and 8375, ICANN's .internal and its names in collision, Kubernetes' short names of services.
_INSIDE: Final = (
    *("localhost", "local", "localdomain", "localnet", "internal", "intranet", "intra", "private"),
    *("lan", "home", "home.arpa", "corp", "domain", "mail", "workgroup", "onion", "svc", "cluster"),
)
# Special addresses that some versions of `ipaddress` consider global: documentation (RFC 9637),
# segment routing (RFC 9602), the former relays of 6to4 (RFC 7526).
_SPECIAL: Final = (
    ipaddress.ip_network("3fff::/20"),
    ipaddress.ip_network("5f00::/16"),
    ipaddress.ip_network("192.88.99.0/24"),
)
_PORTS: Final = {"https": 443, "http": 80}
_UNRESERVED: Final = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"  # RFC 3986, 2.3
)
# The reserved characters of RFC 3986, and "%", so that nothing is encoded twice.
_API_PATH: Final = re.compile(r"/s2s(?:/v[0-9.]+)?/*")
"""The beginning of the path of every call; with it in the base, each call would answer 404."""
_KEPT: Final = "%/:?#[]@!$&'()*+,;="


@attrs.frozen(eq=False, repr=False)
class _Parts(Value):
    """The parts of a URL; `host` is in lower case and without a trailing dot."""

    scheme: Literal["http", "https"]
    host: str
    port: int | None
    path: str
    query: str
    fragment: str


def followed(url: str, *, base_url: str) -> str:
    """Return `url`, a URL from the vendor, unchanged if this process may connect to it.

    It must be https (http only if `base_url` is http) and carry no credentials. Unless its host is
    the host of `base_url`, it must not have a private, loopback, link-local or other special
    address, a name from inside a network, or a port other than the scheme's default.
    Raises `BadAnswer`; its message shows no more of the URL than the host.
    """
    try:
        parts = _read(url)
    except ValueError as problem:
        reason = str(problem)
    else:
        base = _read(base_url)
        if parts.scheme == "http" and base.scheme != "http":
            reason = "is not https"
        elif _normalised(parts.host) == _normalised(base.host):
            return url
        elif parts.port not in {None, _PORTS[parts.scheme]}:
            reason = f"has the unusual port {parts.port}"
        else:
            reason = _objection(parts.host)
            if not reason:
                return url
        reason = f"{reason} (host {quoted(parts.host, 100)})"
    raise BadAnswer(f"the vendor named a URL that {reason}; it was not followed.")


def picture_url(url: str) -> str:
    """Return the URL of a picture for the vendor, with spaces and non-ASCII characters encoded.

    Raises `PictureRefused` unless it is http or https, names a host and carries no credentials.
    """
    try:
        safe = encoded(url)
        _read(safe)
    except ValueError as problem:
        reason = str(problem)
    else:
        return safe
    raise PictureRefused(
        f"the picture's URL {quoted(shown_source(url))} {reason}.",
        reason="no usable URL",
        advice="correct the URL",
    )


def normalised_base(url: str) -> str:
    """Return `url` as the API's base: scheme and host in lower case, no slash at the end.

    Raises `ConfigurationError` unless it is http or https and names a host. A port and a path are
    allowed; credentials, a query and a fragment are not.
    """
    try:
        parts = _read(url)
    except ValueError as problem:
        reason = str(problem)
    else:
        if _API_PATH.fullmatch(parts.path):
            reason = "has the path of the API, which is added to it; leave the path out"
        elif not parts.query and not parts.fragment:
            port = "" if parts.port is None else f":{parts.port}"
            return f"{parts.scheme}://{parts.host}{port}{parts.path}".rstrip("/")
        else:
            reason = "has a query or a fragment"
    raise ConfigurationError(f"base_url {quoted(redacted(url))} {reason}.")


def encoded(url: str) -> str:
    """Percent-encode the spaces and non-ASCII characters of `url`, except in its host.

    Existing percent-encoding is kept. Raises `ValueError` for control characters and for lone
    surrogates, which UTF-8 cannot encode.
    """
    found = _PARTS.fullmatch(url)
    if found is None:
        return url
    start = found.start("path")
    return url[:start] + _encoded_rest(url[start:])


def _encoded_rest(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        raise ValueError("holds control characters")
    return percent(text, kept=_KEPT)


def percent(text: str, *, kept: str = "") -> str:
    """Percent-encode `text` as UTF-8, except RFC 3986's unreserved characters and those in `kept`.

    It equals `urllib.parse.quote`, which the sans-IO packages do not import. Raises
    `UnicodeEncodeError` for lone surrogates.
    """
    plain = _UNRESERVED + kept.encode()
    return "".join(chr(b) if b in plain else f"%{b:02X}" for b in text.encode())


def _read(url: str) -> _Parts:
    """Return the parts of `url`. Raises `ValueError`; its text does not quote the URL."""
    if len(url) > _LONGEST:
        raise ValueError(f"is longer than {_LONGEST} characters")
    if not url.isprintable() or " " in url:
        raise ValueError("holds spaces or control characters")
    found = _PARTS.fullmatch(url)
    if found is None:
        raise ValueError("is not http(s)://host/path")
    authority = found["authority"].lower()
    if "@" in authority:
        raise ValueError("carries credentials")
    where = _AUTHORITY.fullmatch(authority)
    if where is None:
        raise ValueError("has no host, a host that is not plain ASCII, or a wrong port")
    port = None if where["port"] is None else int(where["port"])
    if port is not None and not 1 <= port <= 65535:  # noqa: PLR2004 -- a port's range is its name
        raise ValueError("has a wrong port")
    host = _host(where["host"])
    return _Parts(
        scheme="https" if found["scheme"].lower() == "https" else "http",
        host=host,
        port=port,
        path=found["path"],
        query=found["query"] or "",
        fragment=found["fragment"] or "",
    )


def _host(host: str) -> str:
    """Return `host` without a trailing dot. Raises `ValueError` unless it is a name or address."""
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("has a wrong IPv6 address") from None
        return host
    bare = host.removesuffix(".")
    if len(bare) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, bare.split("."))):
        raise ValueError("has a wrong host")
    if _NUMBER.fullmatch(bare.rpartition(".")[2]):
        _ipv4(bare)
    return bare


def _ipv4(host: str) -> ipaddress.IPv4Address:
    """Read `host` as the C library does: 1 to 4 parts in decimal, octal or hex.

    The last part fills the remaining bytes. Raises `ValueError` for any other text.
    (`socket.inet_aton` does the same, but sans-IO code does not import `socket`.)
    """
    *octets, last = host.split(".")
    try:
        numbers = [_number(part) for part in octets]
        tail = _number(last)
    except ValueError:
        numbers, tail = [], -1
    if not (len(numbers) < 4 and max(numbers, default=0) < 256):  # noqa: PLR2004 -- four octets
        tail = -1
    if not 0 <= tail < 256 ** (4 - len(numbers)):
        raise ValueError("has a wrong IPv4 address")
    value = tail + sum(number << 8 * (3 - place) for place, number in enumerate(numbers))
    return ipaddress.IPv4Address(value)


def _number(part: str) -> int:
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if part.startswith("0") else 10)


def _address(host: str) -> _Address | None:
    """Return `host`, an address in any spelling, as an address; None for a name."""
    if host.startswith("["):
        return ipaddress.IPv6Address(host[1:-1])
    return _ipv4(host) if _NUMBER.fullmatch(host.rpartition(".")[2]) else None


def _normalised(host: str) -> str:
    """Return `host` for comparison: an address in its usual spelling, a name unchanged."""
    address = _address(host)
    return host if address is None else str(address)


def _objection(host: str) -> str:
    """Return the reason not to connect to `host`, or "" if there is none."""
    address = _address(host)
    if address is None:
        if "." not in host or any(host.endswith("." + name) for name in _INSIDE):
            return "names a host inside a network"
        return ""
    if str(address) != host.strip("[]"):
        # 010.0.0.1 is 8.0.0.1 to some parsers and 10.0.0.1 to others.
        return "spells an address in an unusual way"
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        # This covers ::/8, with IPv4-mapped, IPv4-compatible and NAT64 addresses.
        or address.is_reserved
        # Shared address space (100.64.0.0/10) is neither private nor global.
        or not address.is_global
        # 6to4 wraps an IPv4 address, perhaps a private one; Teredo is private to ipaddress.
        or (isinstance(address, ipaddress.IPv6Address) and address.sixtofour is not None)
        or any(address in network for network in _SPECIAL)
    )
    return "names a special address" if special else ""
