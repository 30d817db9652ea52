"""The typed features, the parts that all features share, and the avatar templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import attrs

from ._http import ApiError, as_list, invalid, not_accepted, required
from ._presigned import UrlSigner

EXPRESSIONS: Final = ("smile_with_teeth_visible", "closed_mouth_smile")
MOST_OUTPUTS: Final = 200

Params = dict[str, object]
Body = Mapping[str, object]


def text_field(body: Mapping[str, object], field: str) -> str:
    """Read a required field that must be a non-empty string."""
    value = body.get(field)
    if value is None:
        raise required(field)
    if not isinstance(value, str) or not value:
        raise not_accepted(field)
    return value


def whole_field(body: Mapping[str, object], field: str) -> int:
    """Read a required field that must be an integer (JSON's `true` is not one)."""
    value = body.get(field)
    if value is None:
        raise required(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise not_accepted(field)
    return value


@attrs.frozen
class Input:
    """An input of a feature; `name` begins its fields, and `many` accepts a list of pictures."""

    name: str
    many: bool = False
    optional: bool = False

    @property
    def fields(self) -> tuple[str, str]:
        """The names of the fields for ids and for URLs."""
        end = "s" if self.many else ""
        return f"{self.name}_file_id{end}", f"{self.name}_file_url{end}"


SRC: Final = Input("src")


def source_of(body: Body, one: Input = SRC) -> list[tuple[bool, str]]:
    """Read an input, of which exactly one field must be present and not null.

    Returns for each picture whether it is at a URL, and the URL or the file's id.
    """
    by_id, by_url = one.fields
    given = [field for field in one.fields if field in body]
    for field in given:
        if body[field] is None:
            raise invalid(f"{field} is not one of the accepted values.", f"{field} is null")
    if not given:
        if one.optional:
            return []
        raise required(by_id)
    if len(given) > 1:
        text = f"Only one of {by_id} and {by_url} may be included in your request."
        raise invalid(text, f"both {by_id} and {by_url} are given")
    field = given[0]
    values = body[field] if one.many else [text_field(body, field)]
    listed = as_list(values)
    if not listed or not all(isinstance(value, str) and value for value in listed):
        raise not_accepted(field)
    texts = [str(value) for value in listed]
    is_url = field == by_url
    if is_url and not all(text.startswith(("https://", "http://")) for text in texts):
        raise not_accepted(field)
    return [(is_url, text) for text in texts]


@attrs.frozen
class Feature:
    """One of the vendor's features.

    `read` validates the fields of a creation and raises `ApiError`. `outputs` is the number of
    result files, `price` the price in units (contract: Expiry and charging). `many` says whether
    the result is a list. `kind` is the suffix of the files. `answer` makes the results from the
    URLs if they have a special shape.
    """

    name: str
    formats: frozenset[str]
    read: Callable[[Mapping[str, object], frozenset[str]], Params]
    outputs: Callable[[Params], int]
    price: Callable[[Params], int]
    many: bool = False
    version: str = "v2.0"
    inputs: tuple[Input, ...] = (SRC,)
    kind: Callable[[Params], str] = lambda _: "jpg"
    answer: Callable[[Params, Sequence[str]], object] | None = None

    @property
    def key(self) -> str:
        """The path, with the version unless it is v2.0."""
        return self.name if self.version == "v2.0" else f"{self.name}@{self.version}"


def _read_smile(body: Mapping[str, object], _: frozenset[str]) -> Params:
    expression = text_field(body, "expression_type")
    if expression not in EXPRESSIONS:
        raise not_accepted("expression_type")
    return {"expression_type": expression}


def _read_avatar(body: Mapping[str, object], templates: frozenset[str]) -> Params:
    template = text_field(body, "template_id")
    count = whole_field(body, "output_count")
    if not 1 <= count <= MOST_OUTPUTS:
        raise not_accepted("output_count")
    if template not in templates:
        # Not a violation: templates change, and users type their names.
        raise ApiError(400, "The template is not available.", "InvalidTemplate")
    return {"template_id": template, "output_count": count}


def _count(params: Params) -> int:
    count = params["output_count"]
    assert isinstance(count, int)  # noqa: S101 - `_read_avatar` made it so
    return count


_SMILE = Feature(
    name="ai-smile",
    formats=frozenset({"jpeg", "png", "heic"}),
    read=_read_smile,
    outputs=lambda _: 1,
    price=lambda _: 1,
    many=False,
)
_AVATAR = Feature(
    name="ai-avatar",
    formats=frozenset({"jpeg", "png"}),
    read=_read_avatar,
    outputs=_count,
    price=lambda params: -(-_count(params) // 4),
    many=True,
)


# The price is described in prose (contract: Other features).
def _studio_price(params: Params) -> int:
    return -(-_count(params) // 2)


_STUDIO = attrs.evolve(_AVATAR, name="ai-studio", price=_studio_price)
TYPED: Final = (_SMILE, _AVATAR, _STUDIO)

TEMPLATE_COUNT = 71
_MANGA = 5
_STYLES = ("studio", "vintage film", "古风 portrait", "cyber city", "水彩 sketch")


@attrs.frozen
class Template:
    """One avatar style; `path` of its thumbnail on the result host is not percent-encoded."""

    id: str
    title: str
    category: str
    path: str

    def as_json(self, urls: UrlSigner) -> dict[str, object]:
        """Return the entry of the template list."""
        return {
            "id": self.id,
            "thumb": urls.plain("results", self.path),
            "title": self.title,
            "category_name": self.category,
        }


def _make(index: int) -> Template:
    sex = "female" if index % 2 else "male"
    # `female_manga_mood` exists; `male_manga_mood` does not (contract: Templates).
    style = "manga mood" if index == _MANGA else _STYLES[index % len(_STYLES)]
    slug = style.encode("ascii", "ignore").decode().strip().replace(" ", "_")
    name = f"{sex}_{slug}" if index == _MANGA else f"{sex}_{slug}_{index:02}"
    return Template(name, f"{style} {index:02}", style, f"/templates/{style}/{name} 缩略图.jpg")


TEMPLATES = tuple(_make(index) for index in range(TEMPLATE_COUNT))
TEMPLATE_IDS = frozenset(template.id for template in TEMPLATES)
THUMBS: Mapping[str, int] = MappingProxyType({t.path: i for i, t in enumerate(TEMPLATES)})
