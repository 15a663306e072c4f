"""What codecs and scalers do to a clean picture: training frames are worn so that other renderers look familiar."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Wear:
    """One clip's degradation: the same for all its frames, as a codec's would be."""

    blur: float
    """Radius of a Gaussian, pixels; 0: none."""
    jpeg_quality: int
    """0: no compression."""
    shrink: float
    """Factor of a detour over another size; 1: none."""
    grain: float
    """Standard deviation of noise, grey levels; 0: none."""


def random_wear(rng: np.random.Generator) -> Wear:
    """Each respect by a draw of its own: half to two thirds of the clips stay clean in it."""
    return Wear(
        blur=float(rng.choice([0, 0, rng.uniform(0.2, 0.9)])),
        jpeg_quality=int(rng.choice([0, int(rng.integers(35, 95))])),
        shrink=float(rng.choice([1, 1, rng.uniform(0.6, 1.6)])),
        grain=float(rng.choice([0, rng.uniform(0, 6)])),
    )


def degrade(picture: Picture, wear: Wear, rng: np.random.Generator) -> Picture:
    """(H, W, 3) uint8 to the same: resample, blur, compress, add grain."""
    image = Image.fromarray(picture)
    if wear.shrink != 1:
        side = (max(8, round(image.width * wear.shrink)), max(8, round(image.height * wear.shrink)))
        image = image.resize(side, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)
    if wear.blur:
        image = image.filter(ImageFilter.GaussianBlur(wear.blur))
    if wear.jpeg_quality:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=wear.jpeg_quality)
        image = Image.open(packed)
    worn = np.asarray(image)
    if wear.grain:
        worn = np.clip(worn + rng.normal(0, wear.grain, worn.shape), 0, 255).astype(np.uint8)
    return worn
