"""Made-up images that look like an axial FLAIR of a head, and like a CT of a chest. They are of nobody.

Every function gives the same pixels for the same seed.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE = 256
FLAIR_SLICES = 12
CT_SLICES = 6
SLICE_THICKNESS_MM = 6.0
PIXEL_SPACING_MM = 0.94
_WHITE_LEVEL = 2400.0
_LESION_SLICES = (5.0, 2.6)
_CENTRE = 128.0
_CLEFT_HALF_WIDTH = 0.8


@dataclass(frozen=True, slots=True)
class _Head:
    """Half axes of the head in one slice, in pixels, and how open the ventricles are."""

    half_width: float
    half_length: float
    ventricles: float


def head_flair(seed: int, *, lesion: bool) -> NDArray[np.uint16]:
    """Return (slices, rows, columns), 12 bits, from the basal ganglia upwards.

    The same seed with and without a lesion, which spans five slices, differs by the lesion alone.
    """
    random = np.random.default_rng(seed)
    texture, growth = _TextureSource(random), _TextureSource(np.random.default_rng(seed + 1))
    side = -1 if seed % 2 else 1
    slices = [_flair_slice(_head_at(index), texture) for index in range(FLAIR_SLICES)]
    if lesion:
        slices = [_with_lesion(image, index, side, growth) for index, image in enumerate(slices)]
    return np.stack([_with_noise(image, random) for image in slices])


def chest_ct(seed: int) -> NDArray[np.int16]:
    """Return (slices, rows, columns), Hounsfield units."""
    random = np.random.default_rng(seed)
    texture = _TextureSource(random)
    return np.stack([_ct_slice(index, texture, random) for index in range(CT_SLICES)])


class _TextureSource:
    """Smooth random fields, zero mean, unit spread."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def field(self, scale: float) -> Float:
        noise = self._random.standard_normal((SIDE, SIDE)).astype(np.float32)
        smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), scale), np.float32)
        field: Float = (smooth - smooth.mean()) / smooth.std()
        return field


def _head_at(index: int) -> _Head:
    height = index / (FLAIR_SLICES - 1)
    narrowing = float(np.sqrt(1.0 - 0.62 * height**2.2))
    return _Head(
        half_width=80.0 * narrowing,
        half_length=98.0 * narrowing,
        ventricles=float(np.clip(1.15 - 1.9 * abs(height - 0.3), 0.0, 1.0)),
    )


def _grid() -> tuple[Float, Float]:
    """Return x to the patient's left and y to the back, from the middle of the image."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    return x - np.float32(_CENTRE), y - np.float32(_CENTRE)


def _depth(head: _Head, wobble: Float) -> Float:
    """Return roughly how many pixels a point lies under the skin; negative is outside."""
    x, y = _grid()
    # A head is wider behind than in front.
    width = head.half_width * (1.0 + 0.09 * y / head.half_length)
    radius = np.hypot(x / width, y / head.half_length)
    depth: Float = ((1.0 - radius) * head.half_width + 0.8 * wobble).astype(np.float32)
    return depth


def _blend(image: Float, mask: Mask | Float, level: Float | float, softness: float = 0.7) -> Float:
    weight = np.asarray(cv2.GaussianBlur(np.asarray(mask, np.float32), (0, 0), softness), np.float32)
    blended: Float = (image * (1 - weight) + weight * level).astype(np.float32)
    return blended


def _between(depth: Float, upper: float, lower: float = np.inf) -> Mask:
    mask: Mask = (depth > upper) & (depth < lower)
    return mask


def _flair_slice(head: _Head, texture: _TextureSource) -> Float:
    """Return one slice without noise: about 1 is the brightest fat, 0 is air and bone."""
    depth = _depth(head, texture.field(14))
    image = np.zeros((SIDE, SIDE), np.float32)
    image = _blend(image, _between(depth, 0), 0.55 + 0.12 * texture.field(5))
    image = _blend(image, _between(depth, 1, 4.5), 0.85 + 0.1 * texture.field(9))
    image = _blend(image, _between(depth, 5), 0.05 + 0.01 * texture.field(3))
    image = _blend(image, _between(depth, 7, 8.2), 0.2 + 0.05 * texture.field(6))
    image = _blend(image, _between(depth, 10), _brain(depth, texture), 0.9)
    image = _blend(image, _sulci(depth, texture), 0.07)
    image = _blend(image, _ventricles(head), 0.05, 0.9)
    return image * _receive_field(texture)


def _brain(depth: Float, texture: _TextureSource) -> Float:
    """Return grey matter, a little brighter than white in FLAIR, folded into the white matter."""
    folded = depth + 4.5 * texture.field(5)
    cortex = 1 / (1 + np.exp((folded - 19) / 1.6))
    x, y = _grid()
    nuclei = np.exp(-(((np.abs(x) - 24) / 9) ** 2 + ((y + 2) / 15) ** 2))
    level = 0.3 + 0.065 * np.maximum(cortex, 0.6 * nuclei) + 0.012 * texture.field(2.2)
    return np.asarray(level + 0.015 * texture.field(20), np.float32)


def _sulci(depth: Float, texture: _TextureSource) -> Mask:
    """Return thin dark folds near the surface, and the cleft between the halves."""
    x, _ = _grid()
    width = np.clip((22 - depth) / 12, 0, 1)
    winding = np.abs(texture.field(6)) < 0.05 + 0.06 * width
    folds = winding & _between(depth, 9, 25)
    middle = np.abs(x + 0.8 * texture.field(12)) < _CLEFT_HALF_WIDTH
    cleft = middle & _between(depth, 9, 46)
    rim = _between(depth, 9, 11)
    mask: Mask = folds | cleft | rim
    return mask


def _ventricles(head: _Head) -> Mask:
    """Return the two lateral ventricles: a front horn and a back horn on each side."""
    x, y = _grid()
    if head.ventricles <= 0:
        return np.zeros_like(x, dtype=np.bool_)
    scale = 0.45 + 0.55 * head.ventricles
    across = np.abs(x)
    front = np.hypot((across - 8 - 0.22 * np.abs(y + 22)) / (4.6 * scale), (y + 18) / (17 * scale)) < 1
    back = np.hypot((across - 14 - 0.3 * (y - 22)) / (5.0 * scale), (y - 26) / (15 * scale)) < 1
    mask: Mask = front | back
    return mask


def _receive_field(texture: _TextureSource) -> Float:
    """Return the slow change of brightness that a coil leaves."""
    x, y = _grid()
    field: Float = (1 + 0.0006 * x - 0.0008 * y + 0.03 * texture.field(40)).astype(np.float32)
    return field


def _with_lesion(image: Float, index: int, side: int, texture: _TextureSource) -> Float:
    """Return the slice with its part of an uneven bright ball beside the ventricle."""
    middle, half = _LESION_SLICES
    size = np.sqrt(max(0.0, 1 - ((index - middle) / half) ** 2))
    if size == 0:
        return image
    x, y = _grid()
    distance = np.hypot((x - side * 36) / 19, (y + 12) / 23) + 0.1 * texture.field(8)
    weight = (1 / (1 + np.exp((distance - size) / 0.09))).astype(np.float32)
    return _blend(image, weight, 0.66 + 0.05 * texture.field(6), 1.2)


def _with_noise(image: Float, random: np.random.Generator) -> NDArray[np.uint16]:
    """Return the magnitude of a complex signal with noise in both parts: never quite black outside."""
    spread = 0.014
    real = image + spread * random.standard_normal(image.shape)
    imaginary = spread * random.standard_normal(image.shape)
    signal = np.hypot(real, imaginary) * _WHITE_LEVEL
    return np.clip(np.rint(signal), 0, 4095).astype(np.uint16)


def _ct_slice(index: int, texture: _TextureSource, random: np.random.Generator) -> NDArray[np.int16]:
    x, y = _grid()
    chest = np.hypot(x / 112, y / 80) < 1
    inner = np.hypot(x / 103, y / 71) < 1
    lungs = np.hypot((np.abs(x) - 52) / (38 - index), (y + 2) / (52 - 2 * index)) < 1
    vessels = lungs & (texture.field(2) > 2.2)  # noqa: PLR2004 (few and bright)
    spine = np.hypot(x / 15, (y - 55) / 14) < 1
    image = np.full((SIDE, SIDE), -1000, np.float32)
    for mask, level in ((chest, -90), (inner, 45), (lungs, -860), (vessels, 10), (spine, 420)):
        image = _blend(image, mask, level + 12 * texture.field(3), 0.8)
    noisy = image + 14 * random.standard_normal(image.shape)
    return np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)
