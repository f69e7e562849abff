"""The tensors that go from step to step, and their names in diffusers' callbacks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from triptych.sampling.conditioning import Conditioning
from triptych.sampling.inpaint import Inpaint
from triptych.types import Array, Latents

CALLBACK_TENSORS = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")
"""What a callback may ask for and replace, by diffusers' names."""

MASK_TENSORS = ("mask", "masked_image_latents")
"""What it may besides in a run with a mask; the second where the U-Net is told it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """What a step leaves to the next.

    Attributes:
        latents: after the step.
        conditioning: for the U-Net.
        inpaint: what a run with a mask keeps to.
    """

    latents: Latents
    conditioning: Conditioning
    inpaint: Inpaint | None = None

    def named(self, *, guided: bool) -> dict[str, Array]:
        """As callbacks know them: with guidance, masks are doubled as diffusers doubles them."""
        named = {
            "latents": self.latents,
            "prompt_embeds": self.conditioning.encoder_hidden_states,
            "add_text_embeds": self.conditioning.text_embeds,
            "add_time_ids": self.conditioning.time_ids,
        }
        if self.inpaint is not None:
            times = 2 if guided else 1
            named["mask"] = np.concatenate([self.inpaint.mask] * times)
            if self.inpaint.masked_latents is not None:
                masked = np.concatenate([self.inpaint.masked_latents] * times)
                named["masked_image_latents"] = masked
        return named

    def replaced(self, named: Mapping[str, Array]) -> "StepTensors":
        """With those that a callback gave back, float32; halves of a mask are the same."""
        floats = {
            name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in named.items()
        }
        rows = len(self.latents)
        inpaint = self.inpaint
        if inpaint is not None:
            masked = floats.get("masked_image_latents", inpaint.masked_latents)
            inpaint = replace(
                inpaint,
                mask=floats.get("mask", inpaint.mask)[:rows],
                masked_latents=None if masked is None else masked[:rows],
            )
        return StepTensors(
            latents=floats.get("latents", self.latents),
            conditioning=Conditioning(
                encoder_hidden_states=floats.get(
                    "prompt_embeds", self.conditioning.encoder_hidden_states
                ),
                text_embeds=floats.get("add_text_embeds", self.conditioning.text_embeds),
                time_ids=floats.get("add_time_ids", self.conditioning.time_ids),
            ),
            inpaint=inpaint,
        )
