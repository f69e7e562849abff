"""A textual inversion: vectors that a token stands for, in one text encoder or both.

Source:
    Gal et al. 2022, arXiv:2208.01618. Layouts: diffusers 0.39 loaders/textual_inversion.py for
    one named tensor; sd-scripts' SDXL trainer for clip_l and clip_g; A1111 for emb_params.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from triptych.errors import CheckpointError
from triptych.models.stored_tensor import StoredTensor, read_header

EMBEDDINGS: Final = "text_model.embeddings.token_embedding.weight"
"""A text encoder's table of token embeddings, [vocabulary, width]."""

_NETWORKS: Final = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_UNNAMED: Final = "emb_params"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TextualInversion:
    """Vectors as they lie in a file.

    Attributes:
        token: what prompts call them.
        vectors: [number, width], or [width], for each text encoder that has some.
    """

    token: str
    vectors: Mapping[str, StoredTensor]


def read_textual_inversion(
    file: Path, networks: Mapping[str, Mapping[str, StoredTensor]], *, token: str | None
) -> TextualInversion:
    """Find a textual inversion's vectors and the text encoders that they are for.

    Args:
        file: in safetensors.
        networks: the weights of each network; widths tell which text encoder one tensor is for.
        token: what prompts shall call it; None takes the name in the file, or the file's own.

    Raises:
        CheckpointError: it is no textual inversion, or not for this model.
    """
    widths = {
        name: tensors[EMBEDDINGS].shape[1]
        for name, tensors in networks.items()
        if name in _NETWORKS.values()
    }
    found = {tensor.key: tensor for tensor in read_header(file)}
    if found and found.keys() <= _NETWORKS.keys():
        vectors = {_NETWORKS[key]: tensor for key, tensor in found.items()}
        named = None
    elif len(found) == 1:
        [(key, tensor)] = found.items()
        fitting = [name for name, width in widths.items() if tensor.shape[-1:] == (width,)]
        vectors = dict.fromkeys(fitting, tensor) if len(fitting) == 1 else {"": tensor}
        named = None if key == _UNNAMED else key
    else:
        raise CheckpointError(
            f"{file}: got {', '.join(sorted(found)[:3]) or 'no tensors'}, want a textual "
            f"inversion: one tensor named as its token, {_UNNAMED}, or clip_l and clip_g."
        )
    for name, tensor in vectors.items():
        if len(tensor.shape) not in (1, 2) or tensor.shape[-1:] != (widths.get(name),):
            wanted = ", ".join(f"{width} for {name}" for name, width in widths.items())
            raise CheckpointError(
                f"{file} {tensor.key!r}: got {list(tensor.shape)}, want vectors of this model's "
                f"width: {wanted}. It was made for another model."
            )
    return TextualInversion(token=token or named or file.stem, vectors=vectors)
