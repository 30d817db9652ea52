"""Eight untyped features of the vendor, as its documents describe them (contract: Other features).

Comments mark the assumptions where the documents are silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ._features import SRC, TYPED, Body, Feature, Input, Params, text_field
from ._http import as_list, as_object, invalid, not_accepted, required

_PICTURES: Final = frozenset({"jpeg", "png"})
_VIDEOS: Final = frozenset({"mp4", "mov"})
_GARMENTS: Final = ("full_body", "upper_body", "lower_body", "shoes", "outerwear", "auto")
_LONGEST_PROMPT: Final = 800
_MOST_SECONDS: Final = 60
_FINGERS: Final = 5
# Units by the number of concerns. The units are published, the numbers of concerns are assumed.
_CONCERNS: Final = (4, 7, 10, 15)
_SD: Final = (9, 12, 14, 16)
_HD: Final = (12, 16, 20, 22)


def _texts(body: Body, field: str) -> list[str]:
    """Read a required list of texts; the error names the index of a wrong one."""
    if body.get(field) is None:
        raise required(field)
    listed = as_list(body[field])
    if not listed:
        raise not_accepted(field)
    for index, value in enumerate(listed):
        if not isinstance(value, str):
            raise not_accepted(f"`{index}`")
    return [str(value) for value in listed]


def _read_skin(body: Body, _: frozenset[str]) -> Params:
    actions = _texts(body, "dst_actions")
    if len({action.startswith("hd_") for action in actions}) > 1 or len(actions) > _CONCERNS[-1]:
        raise not_accepted("dst_actions")
    form = body.get("format", "zip")
    if form not in {"zip", "json"}:
        raise not_accepted("format")
    return {"dst_actions": actions, "format": form}


def _actions(params: Params) -> list[str]:
    return [str(action) for action in as_list(params["dst_actions"]) or []]


def _skin_price(params: Params) -> int:
    actions = _actions(params)
    prices = _HD if actions[0].startswith("hd_") else _SD
    return next(
        price for most, price in zip(_CONCERNS, prices, strict=True) if len(actions) <= most
    )


def _skin_answer(params: Params, urls: Sequence[str]) -> object:
    """Return a bare URL for a zip, else an entry for each concern with its scores and mask."""
    if params["format"] == "zip":
        return urls[0]
    return {
        "output": [
            {
                "type": action,
                "region": "whole",
                "raw_score": 60.5 + index,
                "ui_score": 70 + index,
                "mask_urls": [url],
            }
            for index, (action, url) in enumerate(zip(_actions(params), urls, strict=True))
        ]
    }


def _skin(version: str) -> Feature:
    return Feature(
        name="skin-analysis",
        version=version,
        formats=_PICTURES,
        read=_read_skin,
        outputs=lambda params: 1 if params["format"] == "zip" else len(_actions(params)),
        price=_skin_price,
        kind=lambda params: "zip" if params["format"] == "zip" else "png",
        answer=_skin_answer,
    )


def _read_tones(body: Body, _: frozenset[str]) -> Params:
    level = body.get("face_angle_strictness_level", "high")
    if level not in {"strict", "high", "medium", "low", "flexible"}:
        raise not_accepted("face_angle_strictness_level")
    return {"face_angle_strictness_level": level}


def _tones(_: Params, __: Sequence[str]) -> object:
    return {"color": {"skin_color": "#e3b38f", "hair_color": "#3a2a20", "lip_color": "#b0605c"}}


def _read_clothes(body: Body, _: frozenset[str]) -> Params:
    if text_field(body, "garment_category") not in _GARMENTS:
        raise not_accepted("garment_category")
    # A template may replace the reference; the list of templates is not published.
    if not any(field in body for field in ("ref_file_id", "ref_file_url", "template_id")):
        raise required("ref_file_id")
    return {"garment_category": body["garment_category"]}


def _read_ring(body: Body, _: frozenset[str]) -> Params:
    """Read the parameters, which repeat the ids of the inputs."""
    info = as_object(body.get("source_info"))
    if info is None:
        raise required("source_info")
    _must_be_sent(body, info, "name", SRC)
    _must_be_sent(body, info, "mask_name", _RING_MASK)
    rings = as_list(body.get("object_infos"))
    if not rings:
        raise required("object_infos")
    for index, ring in enumerate(rings):
        fields = as_object(ring)
        if fields is None:
            raise not_accepted(f"`{index}`")
        _must_be_sent(body, fields, "name", _RINGS)
        _must_be_sent(body, fields, "mask_name", _RING_MASKS)
        parameter = as_object(fields.get("parameter")) or {}
        if parameter.get("ring_wearing_finger") not in range(_FINGERS):
            raise not_accepted("ring_wearing_finger")
    return {"rings": len(rings)}


def _must_be_sent(body: Body, fields: Body, field: str, one: Input) -> None:
    """Check that a nested field repeats a value of an input; an optional one may be missing."""
    value = fields.get(field)
    if value is None and one.optional:
        return
    sent = [each for name in one.fields for each in as_list(body.get(name)) or [body.get(name)]]
    if not isinstance(value, str) or value not in sent:
        raise invalid(f"{field} is not one of the accepted values.", f"{field} names no input")


_RINGS: Final = Input("ref", many=True)
_RING_MASK: Final = Input("srcmsk", optional=True)
_RING_MASKS: Final = Input("refmsk", many=True, optional=True)


def _read_nothing(_: Body, __: frozenset[str]) -> Params:
    return {}


def _read_prompt(body: Body, _: frozenset[str]) -> Params:
    if text_field(body, "model") != "youcam-image-v2":
        raise not_accepted("model")
    prompt = text_field(body, "prompt")
    if len(prompt) > _LONGEST_PROMPT:
        raise not_accepted("prompt")
    return {"prompt": prompt}


def _read_video(body: Body, _: frozenset[str]) -> Params:
    seconds = body.get("dst_duration")
    if seconds is None:
        raise required("dst_duration")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise not_accepted("dst_duration")
    if not 0 < seconds <= _MOST_SECONDS:
        raise not_accepted("dst_duration")
    return {"dst_duration": seconds}


def _video_price(params: Params) -> int:
    seconds = params["dst_duration"]
    assert isinstance(seconds, int | float)  # noqa: S101 - `_read_video` made it so
    return int(-(-seconds // 2))


_OTHERS: Final = (
    _skin("v2.0"),
    _skin("v2.1"),
    Feature(
        name="skin-tone-analysis",
        formats=frozenset({"jpeg"}),
        read=_read_tones,
        outputs=lambda _: 0,
        price=lambda _: 20,
        answer=_tones,
    ),
    Feature(
        name="cloth-v4",
        formats=_PICTURES,
        read=_read_clothes,
        outputs=lambda _: 1,
        # The price of V4 is not published; the price of V3 is assumed.
        price=lambda _: 2,
        inputs=(SRC, Input("ref", optional=True)),
    ),
    Feature(
        name="2d-vto/ring",
        formats=_PICTURES,
        read=_read_ring,
        outputs=lambda _: 1,
        price=lambda params: 1 if params["rings"] == 1 else 2,
        inputs=(SRC, _RINGS, _RING_MASK, _RING_MASKS),
    ),
    Feature(
        name="generative-fill",
        formats=_PICTURES,
        read=_read_nothing,
        outputs=lambda _: 1,
        price=lambda _: 1,
        inputs=(SRC, Input("msk")),
    ),
    Feature(
        name="text-to-image/youcam",
        formats=frozenset(),
        read=_read_prompt,
        outputs=lambda _: 1,
        price=lambda _: 1,
        inputs=(),
    ),
    Feature(
        name="video-sr",
        formats=_VIDEOS,
        read=_read_video,
        outputs=lambda _: 1,
        price=_video_price,
        kind=lambda _: "mp4",
    ),
)
FEATURES: Final = {feature.key: feature for feature in (*TYPED, *_OTHERS)}
"""All features, by path and, unless it is v2.0, version."""
NAMES: Final = {feature.name: feature for feature in FEATURES.values()}
"""One feature for each path, since the registration of files ignores the version."""
