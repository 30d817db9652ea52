"""The two features: their parameters, prices, outputs, and the avatar templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from ._http import ApiError, invalid, not_accepted, required
from ._presigned import UrlSigner

EXPRESSIONS: Final = ("smile_with_teeth_visible", "closed_mouth_smile")
MOST_OUTPUTS: Final = 200
SOURCES: Final = ("src_file_id", "src_file_url")

Params = dict[str, object]


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


def source_of(body: Mapping[str, object]) -> tuple[str, str]:
    """Read the source field, as name and value: exactly one must be present, and not null."""
    given = [field for field in SOURCES if field in body]
    for field in given:
        if body[field] is None:
            raise invalid(f"{field} is not one of the accepted values.", f"{field} is null")
    if not given:
        raise required("src_file_id")
    if len(given) > 1:
        text = "Only one of src_file_id and src_file_url may be included in your request."
        raise invalid(text, "both src_file_id and src_file_url are given")
    field = given[0]
    value = text_field(body, field)
    if field == "src_file_url" and not value.startswith(("https://", "http://")):
        raise not_accepted(field)
    return field, value


@attrs.frozen
class Feature:
    """One of the vendor's features.

    `read` validates the fields of a creation and raises `ApiError`. `outputs` is the number of
    result pictures, `price` the units (contract: Expiry and charging). `many` says whether the
    result is a list.
    """

    name: str
    formats: frozenset[str]
    read: Callable[[Mapping[str, object], frozenset[str]], Params]
    outputs: Callable[[Params], int]
    price: Callable[[Params], int]
    many: bool


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
        # Not a violation: templates come and go, and users type their names.
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
FEATURES: Final = {feature.name: feature for feature in (_SMILE, _AVATAR)}

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
    # `female_manga_mood` exists, `male_manga_mood` does not (contract: Templates).
    style = "manga mood" if index == _MANGA else _STYLES[index % len(_STYLES)]
    slug = style.encode("ascii", "ignore").decode().strip().replace(" ", "_")
    name = f"{sex}_{slug}" if index == _MANGA else f"{sex}_{slug}_{index:02}"
    return Template(name, f"{style} {index:02}", style, f"/templates/{style}/{name} 缩略图.jpg")


TEMPLATES = tuple(_make(index) for index in range(TEMPLATE_COUNT))
TEMPLATE_IDS = frozenset(template.id for template in TEMPLATES)
THUMBS: Mapping[str, int] = MappingProxyType({t.path: i for i, t in enumerate(TEMPLATES)})
