"""The checks of URLs before they are followed or sent."""

import ipaddress
import string
from collections.abc import Callable
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from perfect_async._api.urls import (
    encoded,
    followed,
    normalised_base,
    percent,
    picture_url,
)
from perfect_async.errors import BadAnswer, ConfigurationError, PerfectError, PictureRefused

BASE = "https://yce-api-01.makeupar.com"
SIGNED = (
    "https://bucket.s3-accelerate.amazonaws.com/a/b%20c/d.jpg"
    "?X-Amz-Credential=AKIA%2F20261001&X-Amz-Signature=0123abcd"
)

# Parts of URLs, mostly those that parsers disagree about.
pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(
                    "https://",
                    "http://",
                    "HTTPS://",
                    "//",
                    "/",
                    "\\",
                    "@",
                    ":",
                    "?",
                    "#",
                    "%",
                    ".",
                    "[",
                    "]",
                ),
                *(
                    "127.0.0.1",
                    "0x7f.1",
                    "2130706433",
                    "::1",
                    "::ffff:10.0.0.1",
                    "localhost",
                    "a.example",
                ),
                *(
                    "user:pass",
                    "%2f",
                    "%40",
                    "。",
                    "\u2024",
                    "\uff11\uff12\uff17",
                    "\t",
                    "\n",
                    " ",
                    "\x00",
                    "\ud800",
                ),
                *("xn--a", ":443", ":0", ":99999", "0", "..", "//", "é"),
            ]
        ),
        st.text(max_size=3),
    ),
    max_size=8,
)
urls = st.one_of(pieces.map("".join), pieces.map(lambda parts: "https://" + "".join(parts)))
names = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z]\.example\.(com|org)", fullmatch=True)


def refused(url: str, base_url: str = BASE) -> BadAnswer:
    with pytest.raises(BadAnswer) as caught:
        followed(url, base_url=base_url)
    return caught.value


def raised(function: Callable[[], object]) -> PerfectError | None:
    try:
        function()
    except PerfectError as error:
        return error
    return None


@pytest.mark.parametrize(
    "url",
    [
        SIGNED,
        "https://bucket.s3.amazonaws.com:443/a?b#c",
        "https://BUCKET.Example.COM/a",
        "https://bucket.example.com./a",
        "https://bucket.example.com",
        "https://xn--bcher-kva.example/a",
        "https://under_score.example.com/a",
        "https://93.184.216.34/a",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/a",
        "https://1.example.com/a",
        "https://a.example/café/名.jpg",
        "https://a.example/a/@b:c",
    ],
)
def test_urls_of_public_hosts_are_followed_unchanged(url: str) -> None:
    """A URL of a public host is returned unchanged: its signature covers every character."""
    assert url == followed(url, base_url=BASE)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1"),
        *("0x7F.0.0.1", "0177.0.0.1", "017700000001", "0", "0.0.0.0", "0x", "00", "127.0.0.01"),
        *("10.0.0.1", "10.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "192.0.0.1"),
        *("192.88.99.0", "192.88.99.1", "192.88.99.255"),
        *("[3fff::1]", "[3fff:fff:ffff::1]", "[5f00::1]"),
        *(
            "[::]",
            "[::1]",
            "[fe80::1]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[ff02::1]",
            "[::127.0.0.1]",
        ),
        *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:93.184.216.34]", "[::FFFF:10.0.0.1]"),
        *("[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::a00:1]", "[2002:7f00:1::]"),
        *("[2002:a00:1::1]", "[2001:0:7f00:1::]", "[2001:db8::1]", "[100::1]", "[0:0:0:0:0:0:0:1]"),
    ],
)
def test_special_addresses_are_not_followed(host: str) -> None:
    """Private, loopback, link-local and other special addresses are refused in every spelling."""
    for url in (f"https://{host}/a", f"https://{host}:443/a", f"HTTPS://{host.upper()}"):
        assert "address" in refused(url).message


@pytest.mark.parametrize(
    "host",
    [
        *("8.8.2056", "0x08080808", "134744072", "010.8.8.8", "08.8.8.8", "8.8.8", "8.8.8.8.8"),
        *("256.1.1.1", "1.2.3.256", "4294967296", "0xfg", "1.2.0x1ffff", "[2606:2800:0220::1]"),
        *("1..2.3", "0x100000000", "a.1", "a.0x1"),
    ],
)
def test_unusual_spellings_of_addresses_are_not_followed(host: str) -> None:
    """An address that two parsers may read differently is refused, public or not."""
    assert isinstance(refused(f"https://{host}/a"), BadAnswer)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost.", "a.localhost", "a.LocalHost.", "printer.local"),
        *("metadata.google.internal", "a.internal.", "db.lan", "a.home.arpa", "a.localdomain"),
        *("intranet", "metadata", "wiki.intranet"),
        *("kubernetes.default.svc", "db.prod.svc.cluster.local", "db.prod.svc.", "a.cluster"),
        *("git.corp", "nas.home", "a.private", "a.b.PRIVATE", "a.intra", "mx.mail", "a.onion"),
    ],
)
def test_names_from_inside_a_network_are_not_followed(host: str) -> None:
    """A local name is refused, also with a trailing dot or in capitals."""
    assert "inside a network" in refused(f"https://{host}/a").message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "https:///a",
        "https:a.example",
        "https:/a.example/b",
        "//a.example/b",
        "/b",
        "a.example/b",
        "ftp://a.example/b",
        "file:///etc/passwd",
        "data:,x",
        "javascript:alert(1)",
        " https://a.example/b",
        "https://a.example/b ",
        "https://a.example/b c",
        "https://a.example/b\tc",
        "https://a.example/b\r\nHost: c",
        "https://a.example/b\x00",
        "https://a.example/\u202eb",
        "https://a.example/\u2028b",
        "https://a.example/\ud800",
        "https://a.example\\@b.example/",
        "https://a.example/b\\c",
        "https://a.example?b\\c",
        "https://a.example#b\\c",
        "https://user@a.example/b",
        "https://user:pass@a.example/b",
        "https://@a.example/b",
        "https://127.0.0.1@a.example/b",
        "https://a.example@127.0.0.1/b",
        "https://a.example%2f@127.0.0.1/b",
        "https://a.example:/b",
        "https://a.example:0/b",
        "https://a.example:65536/b",
        "https://a.example:123456/b",
        "https://a.example:8a/b",
        "https://a.example:-1/b",
        "https://a.example:٤٤٣/b",
        "https://a.example:80:80/b",
        "https://\uff11\uff12\uff17.0.0.1/b",
        "https://127。0。0。1/b",
        "https://ⓔxample.com/b",
        "https://bücher.example/b",
        "https://%31%32%37.0.0.1/b",
        "https://a%2eexample/b",
        "https://a..example/b",
        "https://.example/b",
        "https://a.example../b",
        "https://-a.example/b",
        "https://a-.example/b",
        "https://a b.example/b",
        "https://[::1/b",
        "https://::1/b",
        "https://[]/b",
        "https://[fe80::1%25eth0]/b",
        "https://[fe80::1%eth0]/b",
        "https://[::1]a/b",
        "https://[1:2]/b",
        "https://[v1.a]/b",
        "https://" + "a" * 64 + ".example/b",
        "https://" + "a." * 130 + "example/b",
        "https://a.example/" + "b" * 16_384,
    ],
)
def test_ambiguous_urls_are_not_followed(url: str) -> None:
    """A URL that is not plain https, or that parsers read differently, is refused."""
    assert isinstance(refused(url), BadAnswer)


@pytest.mark.parametrize(
    ("url", "base_url"),
    [
        ("http://127.0.0.1:8787/_uploads/a", "http://127.0.0.1:8787"),
        ("http://127.0.0.1:9999/a", "http://127.0.0.1:8787"),
        ("https://127.0.0.1/a", "http://127.0.0.1:8787"),
        ("http://127.1/a", "http://127.0.0.1"),
        ("http://127.0.0.1./a", "http://127.0.0.1"),
        ("http://2130706433/a", "http://127.0.0.1"),
        ("http://[::1]/a", "http://[0:0:0:0:0:0:0:1]:8787"),
        ("https://LOCALHOST./a", "https://localhost:8443"),
        ("https://sandbox:1/a", "https://sandbox"),
    ],
)
def test_the_base_urls_own_host_is_followed(url: str, base_url: str) -> None:
    """The user's own choice of the API's host may also hold the files, at any port."""
    assert url == followed(url, base_url=base_url)


@pytest.mark.parametrize("url", ["http://127.0.0.2/a", "http://localhost/a", "http://[::1]/a"])
def test_other_inner_hosts_stay_refused(url: str) -> None:
    """A base URL with an inner address does not allow other inner addresses."""
    assert isinstance(refused(url, "http://127.0.0.1:8787"), BadAnswer)


def test_http_needs_an_http_base() -> None:
    """Plain http is followed only if the base URL is http."""
    assert "is not https" in refused("http://a.example/b").message
    assert "http://a.example/b" == followed("http://a.example/b", base_url="http://c.example")


@given(
    st.sampled_from(["http://a.example/{}", "https://u:{}@a.example/", "https://10.0.0.1/{}?{}"]),
    st.from_regex(r"[A-Za-z0-9]{24}", fullmatch=True),
)
def test_a_refusal_shows_only_the_host(form: str, secret: str) -> None:
    """The message contains no path, query or credentials of a refused URL."""
    assert secret not in str(refused(form.replace("{}", secret)))


@given(urls, st.sampled_from([BASE, "http://127.0.0.1:8787"]))
@example("https://a.example\\@127.0.0.1/", BASE)
@example("https://a.example:@127.0.0.1/", BASE)
def test_all_parsers_see_the_checked_host(url: str, base_url: str) -> None:
    """httpx and the standard library find the checked host in a followed URL."""
    try:
        same = followed(url, base_url=base_url)
    except BadAnswer:
        return

    host = httpx.URL(same).host
    assert url == same
    assert host == urlsplit(same).hostname
    assert "" == httpx.URL(same).userinfo.decode()
    if base_url == BASE:
        assert "." in host.rstrip(".") or ":" in host
        assert not host.rstrip(".").endswith((".localhost", ".local", ".internal"))


@given(st.integers(0, 2**32 - 1), st.data())
def test_every_spelling_of_an_inner_ipv4_address_is_refused(
    value: int, data: st.DataObject
) -> None:
    """No spelling in decimal, octal or hex, in one to four parts, gives a non-global address."""
    address = ipaddress.IPv4Address(value)
    parts = data.draw(st.integers(1, 4), label="parts")
    octets = list(address.packed)
    numbers = [*octets[: parts - 1], int.from_bytes(bytes(octets[parts - 1 :]), "big")]
    spell = st.sampled_from(["{:d}", "0x{:x}", "0{:o}", "0X{:X}"])
    host = ".".join(data.draw(spell).format(number) for number in numbers)

    try:
        followed(f"https://{host}/a", base_url=BASE)
    except BadAnswer:
        followable = False
    else:
        followable = True

    if followable:
        assert str(address) == host
        assert address.is_global
        assert not address.is_multicast
    assert f"http://{host}/" == followed(f"http://{host}/", base_url=f"http://{address}")


@given(st.integers(0, 2**128 - 1))
@example(int(ipaddress.IPv6Address("2002:7f00:1::")))
@example(int(ipaddress.IPv6Address("::ffff:8.8.8.8")))
def test_only_plain_global_ipv6_addresses_are_followed(value: int) -> None:
    """IPv6 addresses that are special or wrap an IPv4 address are refused."""
    address = ipaddress.IPv6Address(value)

    try:
        followed(f"https://[{address}]/a", base_url=BASE)
    except BadAnswer:
        return

    assert address.is_global
    assert not (address.ipv4_mapped)
    assert not (address.sixtofour)
    assert not (address.teredo)
    assert not (address.is_multicast)
    assert not (address.is_reserved)


@given(names, st.booleans(), st.text(string.ascii_letters + "/%=&?-"))
def test_signed_urls_on_public_names_are_always_followed(name: str, port: bool, rest: str) -> None:
    """A URL on a public name is followed with any path and query."""
    url = f"https://{name}{':443' if port else ''}/{rest}"

    assert url == followed(url, base_url=BASE)


@given(names, st.integers(1, 65535).filter(lambda port: port != 443))
@example("a.example.com", 80)
@example("a.example.com", 8443)
def test_other_ports_are_not_followed(name: str, port: int) -> None:
    """A port other than the scheme's default is refused on other hosts."""
    assert "unusual port" in refused(f"https://{name}:{port}/a").message
    assert "unusual port" in refused(f"https://{name}:{port}/a", "http://a.example").message


@pytest.mark.parametrize(("port", "fine"), [("", True), (":80", True), (":443", False)])
def test_plain_http_is_followed_on_port_80(port: str, fine: bool) -> None:
    """With an http base URL, http is followed on port 80 only."""
    url = f"http://a.example{port}/b"
    if fine:
        assert url == followed(url, base_url="http://c.example")
    else:
        assert "unusual port" in refused(url, "http://c.example").message


@pytest.mark.parametrize(
    ("expected", "url"),
    [
        ("https://a.example/b.jpg?c=d", "https://a.example/b.jpg?c=d"),
        ("http://a.example/b", "http://a.example/b"),
        ("https://a.example/%E5%90%8D%20b.jpg?q=%C3%A9#f", "https://a.example/名 b.jpg?q=é#f"),
        ("https://a.example/%20%2F", "https://a.example/%20%2F"),
        ("http://127.0.0.1:8787/a.jpg", "http://127.0.0.1:8787/a.jpg"),
        ("https://a.b.svc:9443/a.jpg", "https://a.b.svc:9443/a.jpg"),
        ("http://192.88.99.1/a.jpg", "http://192.88.99.1/a.jpg"),
    ],
)
def test_a_pictures_url_may_have_any_host(expected: str, url: str) -> None:
    """The vendor fetches a picture's URL, so only its spelling is corrected."""
    assert expected == picture_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a.example/b", "file:///etc/passwd", "https://", "https:///b", "a.example/b", ""),
        *(
            "https://user:secret@a.example/b",
            "https://secret@a.example/b",
            "https://bücher.example",
        ),
        *(
            "https://a.example/\n",
            "https://a.example/\ud800",
            "https://a b.example/",
            "https://a:0/",
        ),
    ],
)
def test_a_pictures_url_is_http_and_carries_no_credentials(url: str) -> None:
    """Other URLs are refused, and the message does not show credentials."""
    with pytest.raises(PictureRefused) as caught:
        picture_url(url)

    assert "secret" not in str(caught.value)


@given(urls)
def test_encoding_a_picture_url_is_idempotent(url: str) -> None:
    """Any text is refused or becomes ASCII that is returned unchanged."""
    try:
        once = picture_url(url)
    except PictureRefused:
        return

    assert once.isascii()
    assert once == picture_url(once)


@pytest.mark.parametrize(
    ("expected", "url"),
    [
        (BASE, BASE),
        (BASE, BASE + "/"),
        (BASE, "HTTPS://YCE-API-01.MAKEUPAR.COM./"),
        ("http://127.0.0.1:8787", "http://127.0.0.1:8787/"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("https://gate.example/YouCam", "https://gate.example/YouCam//"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_a_base_is_normalised(expected: str, url: str) -> None:
    """Scheme and host become lower case, and slashes at the end are removed."""
    assert expected == normalised_base(url)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "yce-api-01.makeupar.com",
            "ftp://a.example",
            "https://",
            "https://a b",
            "https://a:0",
        ),
        *("https://user:secret@a.example", "https://a.example?secret", "https://a.example/#secret"),
        *(
            "https://a.example/?",
            "https://bücher.example",
            "https://a.example\n",
            "https://300.1.1.1",
        ),
    ],
)
def test_a_base_must_be_a_bare_http_url(url: str) -> None:
    """A base with credentials, a query, a fragment or no host raises `ConfigurationError`."""
    with pytest.raises(ConfigurationError) as caught:
        normalised_base(url)

    assert "secret" not in str(caught.value)


@given(urls)
def test_normalising_a_base_is_idempotent(url: str) -> None:
    """Any text is refused, or its normalised form is a base whose own host is followed."""
    try:
        once = normalised_base(url)
    except ConfigurationError:
        return

    assert once == normalised_base(once)
    assert f"{once}/x" == followed(f"{once}/x", base_url=once)


@given(st.text())
def test_percent_encoding_is_the_standard_librarys(text: str) -> None:
    """`percent` equals `urllib.parse.quote`."""
    assume(not any("\ud800" <= c <= "\udfff" for c in text))

    assert quote(text, safe="") == percent(text)
    assert quote(text, safe="/%") == percent(text, kept="/%")


@given(urls)
def test_encoding_is_idempotent(url: str) -> None:
    """Encoding an encoded URL changes nothing."""
    try:
        once = encoded(url)
    except ValueError:
        assert not url.isprintable()
        return

    assert once == encoded(once)


@given(urls)
def test_any_text_is_accepted_or_refused_printably(url: str) -> None:
    """Each function accepts any text or raises a `PerfectError` that prints."""
    for error in (
        raised(lambda: followed(url, base_url=BASE)),
        raised(lambda: picture_url(url)),
        raised(lambda: normalised_base(url)),
    ):
        assert error is None or str(error).isprintable()
