"""Glyphs-100: a hundred characters, drawn here, so that everything can be tried offline in minutes.

It has the shapes of CIFAR-100 (3 x 32 x 32, 100 classes) and look-alike classes (O and 0; l, I and 1; p and
rho), which is what a teacher's soft answers are about. It says nothing about CIFAR-100. The fonts are the
DejaVu family that matplotlib ships; the same versions of Pillow, numpy and matplotlib draw the same bytes
each time.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ikdlib.data import cache as caching
from ikdlib.data.base import Decoded, ImageSet, decoded

# Left out is what nothing could tell apart: letters that differ from another one here in size alone (c, o, s,
# v, w, x, z) or not at all (Greek and Cyrillic capitals that look Latin), and those that become another one
# here in the mirror (d, q, and the Cyrillic I and Ya), because half of the views are flipped.
CHARACTERS = "".join(
    sorted(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabefghijklmnprtuyαβγδεηθλμξπρσφψωΓΔΘΛΞΠΣΦΨΩБДЖЛЦЧШЩЫЭЮ!?&@#$%+=*"
    )
)
CLASSES = tuple(unicodedata.name(character).lower().replace(" ", "_") for character in CHARACTERS)
MEAN = (0.25, 0.25, 0.25)
STD = (0.225, 0.225, 0.225)
PADDING = 4

# How many, and how hard: so that twelve epochs, minutes on two cores, teach a resnet20 most of
# it, and a resnet8 less than half of it without a teacher (the views shift and mirror every image besides).
# Every number here is in the key of the cache, and so is the text of this file.
SEED = 100
TRAIN_PER_CLASS = 44
TEST_PER_CLASS = 20
SIZE = 32
FONT_SIZES = (18, 28)  # pixels
SHIFT = 1.5  # pixels, either way, of the glyph's centre
ROTATION = 10.0  # degrees, either way
SHEAR = 0.15  # either way
CONTRAST = 0.4  # least difference in brightness of glyph and background; 1 is white on black
INVERTED = 0.0  # how often dark on light; at 0.5 a resnet8 learns next to nothing in so few steps
TINT = 0.12  # standard deviation of a colour's channels around its brightness
TEXTURE = 0.06  # standard deviation of the background's slow changes
LINES = 0  # at most, drawn across
NEIGHBOUR = 0.15  # how often another character looks in from the side
NOISE = (0.0, 0.08)  # standard deviation, of pixels scaled to 0..1
BLUR = (0.0, 0.8)  # pixels

FONTS = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)


def shape() -> tuple[int, int, int, int]:
    """Classes, height, width, training images."""
    return len(CLASSES), SIZE, SIZE, len(CLASSES) * TRAIN_PER_CLASS


def decode(root: str | Path | None = None, cache: str | Path | None = None) -> Decoded:
    """Glyphs-100, drawn or from the cache; `root` is not used."""
    return caching.fetch("glyphs100", _key(), draw, cache)


def draw(train_per_class: int | None = None, test_per_class: int | None = None) -> Decoded:
    """Draw the data set: each split from a generator of its own, in order of the classes.

    Args:
        train_per_class, test_per_class: images a class; None for this file's constants.
    """
    train = _split(TRAIN_PER_CLASS if train_per_class is None else train_per_class, 0)
    test = _split(TEST_PER_CLASS if test_per_class is None else test_per_class, 1)
    return decoded(CLASSES, train, test)


def _split(per_class: int, number: int) -> ImageSet:
    rng = np.random.default_rng([SEED, number])
    targets = np.repeat(np.arange(len(CHARACTERS)), per_class)
    masks = np.stack([_mask(rng, CHARACTERS[target]) for target in targets])
    images = _paint(rng, masks)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(targets.astype(np.int64)))


def _mask(rng: np.random.Generator, character: str) -> np.ndarray:
    """uint8 [SIZE, SIZE]: how far glyph, neighbour and lines cover the background."""
    from PIL import Image, ImageDraw, ImageFilter

    # Drawn at twice the size, so that turning and shearing leave smooth edges.
    side = 2 * SIZE
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    font = _font(FONTS[rng.integers(len(FONTS))], int(2 * rng.uniform(*FONT_SIZES)))
    _write(pen, font, character, side / 2)
    if rng.random() < NEIGHBOUR:
        away = rng.choice([-1, 1]) * rng.uniform(0.62, 0.8) * side
        _write(pen, font, CHARACTERS[rng.integers(len(CHARACTERS))], side / 2 + away)

    # PIL wants the way back, from a pixel of the result to one of the canvas.
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION))
    cos, sin, shear = np.cos(angle), np.sin(angle), rng.uniform(-SHEAR, SHEAR)
    a, b, c, d = cos + shear * sin, sin - shear * cos, -sin, cos
    x, y = side / 2 + 2 * rng.uniform(-SHIFT, SHIFT, 2)
    affine = (a, b, side / 2 - a * x - b * y, c, d, side / 2 - c * x - d * y)
    canvas = canvas.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)

    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(LINES + 1)):
        ends = [tuple(end) for end in rng.uniform(-0.1, 1.1, (2, 2)) * side]
        pen.line(ends, fill=int(rng.integers(120, 256)), width=2)
    return np.asarray(canvas.reduce(2).filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR))))


def _write(pen: Any, font: Any, character: str, x: float) -> None:
    """Draw a character with the middle of its ink at (x, SIZE)."""
    left, top, right, bottom = font.getbbox(character)
    pen.text((x - (left + right) / 2, SIZE - (top + bottom) / 2), character, fill=255, font=font)


def _paint(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """Colour, texture and noise: uint8 [n, SIZE, SIZE] masks -> uint8 [n, SIZE, SIZE, 3] images."""
    n = len(masks)
    # Ink and ground are CONTRAST apart or more in brightness, each with a tint of its own.
    contrast = rng.uniform(CONTRAST, 0.9, (n, 1))
    dark = rng.uniform(0, 1 - contrast)
    swap = rng.random((n, 1)) < INVERTED
    back = np.where(swap, dark + contrast, dark) + rng.normal(0, TINT, (n, 3))
    ink = np.where(swap, dark, dark + contrast) + rng.normal(0, TINT, (n, 3))

    # Slow changes: a coarse 5 x 5 pattern, interpolated; by einsum without BLAS, whose sums keep their order.
    weights = _interpolation(5)
    coarse = rng.normal(0, TEXTURE, (n, 5, 5, 3))
    slow = np.einsum("xj,nyjc->nyxc", weights, np.einsum("yi,nijc->nyjc", weights, coarse))
    cover = masks[..., None] / 255.0
    images = (back[:, None, None] + slow) * (1 - cover) + ink[:, None, None] * cover
    sigma = rng.uniform(*NOISE, (n, 1, 1, 1))
    images += sigma * rng.standard_normal(images.shape, np.float32)
    return np.round(images.clip(0, 1) * 255).astype(np.uint8)


def _interpolation(knots: int) -> np.ndarray:
    """[SIZE, knots]: weights of linear interpolation between `knots` points spread over SIZE pixels."""
    place = np.linspace(0, knots - 1, SIZE)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots)))


@functools.cache
def _font(name: str, size: int) -> Any:
    from PIL import ImageFont

    # BASIC: the other layout engine depends on what is installed beside Pillow.
    return ImageFont.truetype(str(_font_folder() / name), size, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _key() -> str:
    """What the drawing follows from: this file, the fonts, and the libraries that draw."""
    import PIL

    sha = hashlib.sha256(f"Pillow {PIL.__version__}, numpy {np.__version__}".encode())
    sha.update(Path(__file__).read_bytes())
    for name in FONTS:
        sha.update((_font_folder() / name).read_bytes())
    return sha.hexdigest()
