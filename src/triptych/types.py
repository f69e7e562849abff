"""The array and name types that everything speaks. Shapes are written here and nowhere else."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

Array: TypeAlias = np.ndarray
"""Any NumPy array; C-contiguous at every border."""

TensorMap: TypeAlias = Mapping[str, np.ndarray]
"""Named tensors: the feed or the outputs of one run."""

ComponentName: TypeAlias = Literal[
    "text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder", "preview_decoder"
]
"""The five networks of SDXL, named as diffusers names their folders, and a small decoder for
previews, which a model need not have."""

FormatName: TypeAlias = Literal["diffusers", "onnx", "openvino", "coreml"]
"""How an artifact is stored: a diffusers checkpoint itself, or what an exporter wrote."""

Precision: TypeAlias = Literal[
    "fp32",
    "fp16",
    "palette8",
    "bf16",
    "int8",
    "int8-dynamic",
    "palette6",
    "hybrid",
    "palette4",
    "int4",
    "palette2",
    "palette1",
]
"""The arithmetic a component is declared, or was seen, to run in; of an export, also how its
weights are stored. Weights of int8, int4 and of palettes are widened before they are multiplied.
int8-dynamic rounds what they are multiplied with to 8 bits too, by its extremes at every run;
hybrid does so with convolutions and attention's scores, by extremes seen in a calibration. The
number of a palette is the bits that name one of its entries. `models/precisions.py` says which
format has which."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Every precision, the most exact first."""

CoreMlAttention: TypeAlias = Literal["original", "split-einsum"]
"""original: all heads in one product, for CPU and GPU. split-einsum: one product a head in the
layout [batch, channels, 1, tokens], for the Neural Engine. Apple's words, as its converter's."""

DeploymentTarget: TypeAlias = Literal["macOS13", "macOS14", "macOS15", "iOS16", "iOS17", "iOS18"]
"""The oldest system that runs the program: what Apple's converter offers."""

PaletteBits: TypeAlias = Literal[1, 2, 4, 6, 8]
"""Bits of the index into a Core ML palette."""

Verdict: TypeAlias = Literal["passed", "warned", "failed", "not_run"]
"""The outcome of a check. warned: passed, but further off than it should be. A check that did not
run has not passed."""

InputIds: TypeAlias = Int64[np.ndarray, "batch tokens"]
"""CLIP token ids, padded to the encoder's 77 positions."""

TextIds: TypeAlias = Int64[np.ndarray, "texts tokens"]
"""CLIP token ids, one row a text: a prompt that blends several texts has several rows."""

Latents: TypeAlias = Float32[np.ndarray, "batch channels height width"]
"""x_t in the loop, unscaled: 4 channels, one cell for 8 x 8 image pixels."""

NoisePred: TypeAlias = Float32[np.ndarray, "batch channels height width"]
"""The U-Net's output after guidance, shaped as the latents."""

HiddenStates: TypeAlias = Float32[np.ndarray, "batch tokens width"]
"""Token embeddings: SDXL's U-Net wants 77 tokens of width 2048."""

TextEmbeds: TypeAlias = Float32[np.ndarray, "batch projection"]
"""Pooled, projected output of text_encoder_2: 1280 wide in SDXL."""

TimeIds: TypeAlias = Float32[np.ndarray, "batch ids"]
"""Micro-conditioning in pixels: original size, crop, target size; height before width."""

ImageFloats: TypeAlias = Float32[np.ndarray, "batch 3 height_px width_px"]
"""What the VAE decodes: nominally -1 to 1, not clipped."""

ImageMask: TypeAlias = Float32[np.ndarray, "masks 1 mask_height_px mask_width_px"]
"""What of a picture is made anew: 1 is, 0 is kept."""

LatentMask: TypeAlias = Float32[np.ndarray, "batch 1 height width"]
"""An image mask in latent cells."""

ImagePixels: TypeAlias = UInt8[np.ndarray, "batch height_px width_px 3"]
"""Finished pictures, channels last, 0 to 255."""

Picture: TypeAlias = UInt8[np.ndarray, "height_px width_px 3"]
"""One of them."""

Sigmas: TypeAlias = Float[np.ndarray, "steps+1"]
"""Noise levels, descending, one more than the timesteps."""

Timesteps: TypeAlias = Float[np.ndarray, "steps"]
"""Positions on the training schedule, 0 to 999, fractional for some spacings."""
