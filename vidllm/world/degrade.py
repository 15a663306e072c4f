"""What cameras, codecs and scalers do to a clean picture, applied to training frames so that other renderers look familiar."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Wear:
    """One clip's degradation: the same for all its frames, as a codec's would be. Zero means none."""

    blur: float
    jpeg_quality: int
    shrink: float
    grain: float


def random_wear(rng: np.random.Generator) -> Wear:
    """Half of the clips stay clean in each respect."""
    return Wear(
        blur=float(rng.choice([0, 0, rng.uniform(0.2, 0.9)])),
        jpeg_quality=int(rng.choice([0, rng.integers(35, 95)])),
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
