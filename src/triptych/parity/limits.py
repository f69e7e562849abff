"""How far a candidate may be from float32 PyTorch, by the arithmetic it declares."""

import math
from collections.abc import Iterable, Mapping

from triptych.types import PRECISIONS, Precision

COMPONENT_REL_L2: Mapping[Precision, float] = {
    "fp32": 1e-5,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "palette8": 4e-2,
    "int8": 1e-1,
    "int8-dynamic": 1.2e-1,
    "palette6": 2e-1,
    "hybrid": 5e-1,
    "palette4": 6e-1,
    "int4": 8e-1,
    "palette2": 1.0,
    "palette1": 1.2,
}
"""Relative L2 of one component on one feed.

Measured floors of a 48.5 million parameter SDXL U-Net against float64 PyTorch: float32 1e-6 on
every engine, float16 1.6e-3, bfloat16 1.3e-2. The limits leave a factor of four to ten for depth.

Nobody publishes one for integer weights. Measured on the tiny checkpoint, the worst case of U-Net
and text encoders; every limit leaves a factor of about 2.5. Narrow layers are the hard case, so a
real model should be nearer.

              OpenVINO           ONNX               Core ML
int8          3.9e-2 and 1.6e-2  2.4e-2 and 1.5e-2  1.5e-2 and 1.7e-2
int8-dynamic  3.5e-2 and 2.1e-2  4.0e-2 and 4.2e-2
hybrid        2.1e-1
int4          3.3e-1 and 1.7e-1  2.0e-1 and 2.1e-1  1.5e-1 and 1.4e-1

Palettes, measured likewise with coremltools' k-means: 8 bits 1.5e-2, 6 bits 7.7e-2, 4 bits 2.6e-1,
2 bits 8.0e-1, 1 bit 1.0. An output that has nothing to do with the reference is at 1.4, so that the
last two say little more than that it is not NaN: look at the pictures.
"""

TRAJECTORY_REL_L2: Mapping[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 5e-2,
    "bf16": 2e-1,
    "palette8": 1e-1,
    "int8": 3e-1,
    "int8-dynamic": 3.5e-1,
    "palette6": 4e-1,
    "hybrid": 9e-1,
    "palette4": 1.0,
    "int4": 1.2,
    "palette2": 1.5,
    "palette1": 1.5,
}
"""Relative L2 of latents and images after a free run, where errors feed back into the model."""


def guided_limit(precision: Precision, guidance_scale: float) -> float:
    """The component limit for a guided prediction.

    Guidance w multiplies an error that is independent in the two halves by
    sqrt(w^2 + (w - 1)^2): 6.4 at w = 5, 9.9 at 7.5. Without guidance it changes nothing.
    """
    if guidance_scale <= 1:
        return COMPONENT_REL_L2[precision]
    return COMPONENT_REL_L2[precision] * math.hypot(guidance_scale, guidance_scale - 1)


def coarsest(precisions: Iterable[Precision]) -> Precision:
    """The least exact of several precisions: what a run through all of them can be held to."""
    return max(precisions, key=PRECISIONS.index, default="fp32")
