"""Draws a friendly face for a number.

The comment of the picture has the number of the face. The engine reads it and draws the face again
with another mouth, which imitates the editing of a face.
"""

from __future__ import annotations

import io
import random
import re
from typing import Literal

from PIL import Image, ImageDraw, PngImagePlugin

Mouth = Literal["neutral", "teeth", "closed"]
_Box = tuple[float, float, float, float]
_Colour = str | tuple[int, int, int]

# Pixels per side of a result: large enough to view, and fast to draw for a thousand jobs.
SIDE = 320

_SKINS = ("#f6d3b8", "#eabf9a", "#d9a377", "#b97d52", "#8d5a3a", "#6b4229")
_HAIRS = ("#2b1d16", "#4a2f20", "#7a4a26", "#b8843f", "#d9b36a", "#8f8f94", "#5a2a27")
_WALLS = ("#a8d5e2", "#f9dcc4", "#d8e2dc", "#e8c7de", "#c7e8ca", "#fde9a9", "#c9c9f0")
_SHIRTS = ("#34495e", "#c0392b", "#16a085", "#8e44ad", "#d35400", "#2c3e50", "#7f8c8d")
_EYES = ("#3b2a1e", "#2d5f8a", "#4b7a45", "#5b5b5b")
_MARK = re.compile(rb"sandbox portrait (\d{1,20})\.")
# Faces are drawn at twice the size and reduced, since Pillow does not smooth edges.
_FINE = 2


def portrait(seed: int, size: int = 480) -> bytes:
    """Draw a portrait with a neutral mouth as a JPEG of `size` x `size` px (32 or more).

        job = Smile(portrait(1))

    The same seed gives the same face; different seeds differ in skin, hair, eyes and clothes.
    """
    return encode(draw_portrait(seed, "neutral", size), seed=seed)


def seed_of(data: bytes) -> int | None:
    """Return the number of a drawn face, or None for other bytes."""
    # In both formats the comment is near the beginning, before the pixels.
    found = _MARK.search(data[:4096])
    return None if found is None else int(found[1])


def encode(image: Image.Image, *, seed: int | None = None, png: bool = False) -> bytes:
    """Encode a picture as JPEG or PNG, with the number of the face in its comment."""
    out = io.BytesIO()
    mark = "" if seed is None else f"sandbox portrait {seed}."
    if png:
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", mark or "sandbox")
        image.save(out, "PNG", pnginfo=notes, compress_level=3)
    else:
        image.save(out, "JPEG", quality=85, comment=mark or "sandbox")
    return out.getvalue()


def draw_portrait(seed: int, mouth: Mouth, size: int = SIDE) -> Image.Image:
    """Draw the face of this number with this mouth, `size` x `size` px, RGB."""
    rng = random.Random(f"portrait/{seed}")
    face = _Face(size * _FINE, rng)
    face.paint(mouth)
    return face.image.resize((size, size), Image.Resampling.BOX)


class _Face:
    """One drawing; coordinates are per mille of the side, so that it looks equal at any size."""

    def __init__(self, side: int, rng: random.Random) -> None:
        self._unit = side / 1000
        self._skin = rng.choice(_SKINS)
        self._hair = rng.choice(_HAIRS)
        self._wall = rng.choice(_WALLS)
        self._shirt = rng.choice(_SHIRTS)
        self._eye = rng.choice(_EYES)
        self._long = rng.choice((True, False))
        self._glasses = rng.choice((True, False, False, False))
        self._fringe = rng.randint(300, 360)
        self._wide = rng.randint(215, 250)
        self._gap = rng.randint(88, 104)
        self.image = Image.new("RGB", (side, side), self._wall)
        self._draw = ImageDraw.Draw(self.image)

    def paint(self, mouth: Mouth) -> None:
        """Paint all parts, back to front."""
        wide = self._wide
        if self._long:
            self._round((500 - wide - 55, 170, 500 + wide + 55, 860), 190, self._hair)
        self._round((210, 800, 790, 1200), 170, self._shirt)
        self._round((425, 640, 575, 870), 60, self._shade(0.88))
        self._oval((500 - wide - 28, 440, 500 - wide + 40, 560), self._shade(0.92))
        self._oval((500 + wide - 40, 440, 500 + wide + 28, 560), self._shade(0.92))
        self._oval((500 - wide - 22, 150, 500 + wide + 22, 620), self._hair)
        self._oval((500 - wide, 210, 500 + wide, 770), self._skin)
        self._chord((500 - wide - 8, 165, 500 + wide + 8, 2 * self._fringe - 130), self._hair)
        for side in (-1, 1):
            self._paint_eye(500 + side * self._gap, smiling=mouth != "neutral")
        self._arc((470, 500, 530, 575), (20, 160), self._shade(0.75), 9)
        if self._glasses:
            self._paint_glasses()
        self._paint_mouth(mouth)

    def _paint_eye(self, x: int, *, smiling: bool) -> None:
        self._arc((x - 52, 375, x + 52, 440), (200, 340), self._hair, 13)
        self._oval((x - 42, 428, x + 42, 488), "#ffffff")
        self._oval((x - 24, 433, x + 24, 483), self._eye)
        self._oval((x - 11, 446, x + 11, 470), "#111111")
        self._oval((x + 2, 442, x + 12, 452), "#ffffff")
        if smiling:
            # A smile lifts the cheeks and makes them pink.
            self._arc((x - 46, 474, x + 46, 520), (200, 340), self._shade(0.8), 8)
            self._oval((x - 48, 535, x + 48, 592), self._blush())

    def _paint_glasses(self) -> None:
        for side in (-1, 1):
            x = 500 + side * self._gap
            box = self._box((x - 66, 404, x + 66, 512))
            self._draw.ellipse(box, outline="#222222", width=self._width(9))
        self._draw.line(
            self._box((500 - self._gap + 66, 452, 500 + self._gap - 66, 452)),
            "#222222",
            self._width(9),
        )

    def _paint_mouth(self, mouth: Mouth) -> None:
        lips = "#a8433f"
        if mouth == "neutral":
            self._draw.line(self._box((438, 655, 562, 655)), lips, self._width(15))
        elif mouth == "closed":
            self._arc((395, 540, 605, 690), (25, 155), lips, 16)
            for x in (402, 598):
                self._arc((x - 22, 620, x + 22, 664), (40, 140), self._shade(0.78), 8)
        else:
            self._draw.chord(self._box((385, 540, 615, 730)), 8, 172, fill="#5e1f24")
            self._draw.chord(self._box((400, 552, 600, 700)), 10, 170, fill="#ffffff")
            for x in (440, 470, 500, 530, 560):
                self._draw.line(self._box((x, 640, x, 697)), "#d9dde2", self._width(3))
            self._arc((385, 540, 615, 730), (8, 172), lips, 15)

    def _shade(self, share: float) -> tuple[int, int, int]:
        red, green, blue = (int(self._skin[i : i + 2], 16) for i in (1, 3, 5))
        return int(red * share), int(green * share), int(blue * share)

    def _blush(self) -> tuple[int, int, int]:
        red, green, blue = self._shade(1.0)
        return min(red + 14, 255), int(green * 0.86), int(blue * 0.86)

    def _box(self, box: _Box) -> list[float]:
        return [value * self._unit for value in box]

    def _width(self, width: float) -> int:
        return max(round(width * self._unit), 1)

    def _oval(self, box: _Box, fill: _Colour) -> None:
        self._draw.ellipse(self._box(box), fill=fill)

    def _chord(self, box: _Box, fill: _Colour) -> None:
        self._draw.chord(self._box(box), 180, 360, fill=fill)

    def _round(self, box: _Box, radius: float, fill: _Colour) -> None:
        self._draw.rounded_rectangle(self._box(box), radius * self._unit, fill=fill)

    def _arc(self, box: _Box, angles: tuple[float, float], fill: _Colour, width: float) -> None:
        self._draw.arc(self._box(box), *angles, fill=fill, width=self._width(width))
