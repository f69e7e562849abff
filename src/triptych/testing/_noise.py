"""Random weights that keep signals their size and let every input be felt."""

from collections.abc import Mapping

import numpy as np

from triptych.types import Array

OUTPUT_GAINS: Mapping[str, float] = {"unet": 2.0, "vae": 0.5}
"""Found by trying: noise_pred of standard deviation around 1, few pixels beyond -1 to 1."""


def draw_parameter(
    name: str, shape: tuple[int, ...], generator: np.random.Generator, *, output_gain: float
) -> Array:
    """Draw one parameter of a network, in float32.

    Default initialisation shrinks signals layer by layer (kaiming_uniform with a = sqrt(5)), until
    the U-Net hardly hears its conditioning. It also leaves norms at 1 and many biases at 0, so that
    an exporter could drop them unnoticed. Weights here have variance 1/fan_in, scales are around 1
    and biases around 0; `output_gain` multiplies the weights of a final convolution (conv_out).

    NumPy draws the numbers: torch's own depend on the vector width of the processor.

    Source:
        LeCun et al. 1998, Efficient BackProp, section 4.6, for the variance.
    """
    noise = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        gain = output_gain if name.endswith("conv_out.weight") else 1.0
        noise *= gain * (noise.size / shape[0]) ** -0.5
    else:
        noise *= 0.1
        noise += name.endswith("weight")
    return noise
