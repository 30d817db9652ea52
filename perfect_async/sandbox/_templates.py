"""The avatar templates: 71 over four pages, with thumbnails at awkward URLs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from ._presigned import Links

COUNT = 71
_STYLES = ("studio", "vintage film", "古风 portrait", "cyber city", "水彩 sketch")


@attrs.frozen
class Template:
    """One style; `path` is its thumbnail's on the result host, unencoded as the vendor's are."""

    id: str
    title: str
    category: str
    path: str

    def wire(self, links: Links) -> dict[str, object]:
        """As the template list shows it."""
        return {
            "id": self.id,
            "thumb": links.plain("results", self.path),
            "title": self.title,
            "category_name": self.category,
        }


def _make(index: int) -> Template:
    sex = "female" if index % 2 else "male"
    style = _STYLES[index % len(_STYLES)]
    slug = style.encode("ascii", "ignore").decode().strip().replace(" ", "_")
    name = f"{sex}_{slug}_{index:02}"
    return Template(name, f"{style} {index:02}", style, f"/templates/{style}/{name} 缩略图.jpg")


TEMPLATES = tuple(_make(index) for index in range(COUNT))
TEMPLATE_IDS = frozenset(template.id for template in TEMPLATES)
THUMBS: Mapping[str, int] = MappingProxyType({t.path: i for i, t in enumerate(TEMPLATES)})
