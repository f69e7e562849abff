"""What Apple's ml-stable-diffusion calls its files and tensors, and what its clients insist on.

Source: apple/ml-stable-diffusion at e12202c. Names and shapes as python_coreml_stable_diffusion/
torch2coreml.py writes them; what must hold as swift/StableDiffusion/pipeline reads them
(StableDiffusionXLPipeline+Resources.swift, TextEncoderXL.swift, Unet.swift, Decoder.swift).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from triptych.errors import BundleError
from triptych.models.configs import read_json
from triptych.models.sdxl import SdxlConfig
from triptych.tensors import PortSpecs, TensorSpec, shape_fits
from triptych.types import ComponentName

VOCABULARY_FILES = ("vocab.json", "merges.txt")
"""The tokenizer that Apple's clients read, in the bundle's root; one for both text encoders."""

TENSOR_NAMES: Mapping[ComponentName, Mapping[str, str]] = {
    "text_encoder": {"hidden_states": "hidden_embeds"},
    "text_encoder_2": {"hidden_states": "hidden_embeds", "text_embeds": "pooled_outputs"},
    "unet": {},
    "vae_encoder": {"image": "x", "moments": "latent"},
    "vae_decoder": {"latents": "z"},
    "preview_decoder": {"latents": "z"},
}
"""Apple's names where they are not ours. Its clients know no preview decoder, which is named as the
VAE's is."""

_COMPILED_NAMES: Mapping[str, str] = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "unet": "Unet",
    "refiner": "UnetRefiner",
    "vae_encoder": "VAEEncoder",
    "vae_decoder": "VAEDecoder",
    "preview_decoder": "PreviewDecoder",
}
_HUB_ID = re.compile(r"^\w[\w.-]*/\w[\w.-]*$")
_CHUNKS = (1, 2)


def submodule_name(component: ComponentName, config: SdxlConfig) -> str:
    """Apple's word for a component: a refiner's U-Net is `refiner`."""
    return "refiner" if component == "unet" and config.kind == "refiner" else component


def model_version(checkpoint_folder: Path) -> str:
    """What a user gives Apple's script as --model-version: the hub id, or the folder's name."""
    name = read_json(checkpoint_folder / "model_index.json").get("_name_or_path")
    if isinstance(name, str) and _HUB_ID.match(name):
        return name
    return checkpoint_folder.resolve().name


def package_name(submodule: str, *, version: str, chunk: int | None = None) -> str:
    """The .mlpackage that Apple's script looks for: torch2coreml.py, _get_out_path."""
    cut = "" if chunk is None else f"_chunk{chunk}"
    return f"Stable_Diffusion_version_{version}_{submodule}{cut}.mlpackage".replace("/", "_")


def find_packages(folder: Path, submodule: str) -> tuple[Path, ...]:
    """The packages of one component in the order they run; none where it is not there.

    Chunks win over the whole, as in Apple's Swift.

    Raises:
        BundleError: packages of several models, or one chunk without the other.
    """
    chunks = [_find_package(folder, f"*_{submodule}_chunk{chunk}.mlpackage") for chunk in _CHUNKS]
    present = tuple(chunk for chunk in chunks if chunk is not None)
    if present and len(present) < len(_CHUNKS):
        raise BundleError(
            f"{folder}: got {present[0].name} alone, want both chunks. Copy the bundle again."
        )
    whole = _find_package(folder, f"*_{submodule}.mlpackage")
    return present or (() if whole is None else (whole,))


def _find_package(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise BundleError(
            f"{folder}: got {', '.join(path.name for path in found)}, want the packages of one "
            "model in a folder."
        )
    return found[0] if found else None


def compiled_name(submodule: str, *, chunk: int | None = None) -> str:
    """The .mlmodelc that Apple's script compiles a package to, in Resources."""
    cut = "" if chunk is None else f"Chunk{chunk}"
    return f"{_COMPILED_NAMES[submodule]}{cut}.mlmodelc"


def contract_ports(component: ComponentName, config: SdxlConfig, ports: PortSpecs) -> PortSpecs:
    """What Apple's clients need: our ports in its layout, and what they insist on besides.

    Swift force-unwraps both outputs of both text encoders, although SDXL pools only the second.
    """
    if component != "text_encoder":
        return ports
    width = config.text_encoders[component].hidden_size
    pooled = TensorSpec(name="pooled_outputs", dtype="float32", shape=("batch", width))
    return PortSpecs(inputs=ports.inputs, outputs=(*ports.outputs, pooled))


def contract_problems(
    component: ComponentName,
    *,
    wanted: PortSpecs,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Iterator[str]:
    """Why Apple's clients could not run a network with these ports; nothing where they can.

    Args:
        component: the component.
        wanted: its ports in Apple's names and layout, with words for sizes.
        inputs: the network's inputs, of all its chunks that a caller has to feed.
        outputs: the network's outputs, of its last chunk.
    """
    axes: dict[str, int] = {}
    sides = (("input", wanted.inputs, inputs), ("output", wanted.outputs, outputs))
    for kind, specs, ports in sides:
        by_name = {port.name: port for port in ports}
        for spec in specs:
            if spec.name not in by_name:
                yield f"{kind}s: got {', '.join(by_name) or 'none'}, want {spec.name!r} among them"
            else:
                yield from _port_problems(by_name[spec.name], spec, kind=kind, axes=axes)
        unknown = [name for name in by_name if name not in {spec.name for spec in specs}]
        if unknown:
            yield f"{kind}s: got {', '.join(unknown)} besides, which Apple's clients do not know"
    batches = (1, 2) if component == "unet" else (1,)
    if axes.get("batch", 1) not in batches:
        yield f"batch: got {axes['batch']}, want {' or '.join(str(size) for size in batches)}"


def _port_problems(
    port: TensorSpec, spec: TensorSpec, *, kind: str, axes: dict[str, int]
) -> Iterator[str]:
    """Inputs may be of either float, because Core ML converts them; outputs are read as float32."""
    dtypes = ("float32", "float16") if kind == "input" else ("float32",)
    lengths = [axis for axis in port.shape if isinstance(axis, int)]
    fits = len(lengths) == len(port.shape) and shape_fits(spec.shape, lengths, bound=axes)
    if port.dtype not in dtypes or not fits:
        known = "".join(f", {name} being {length}" for name, length in axes.items())
        axes_text = ", ".join(str(axis) for axis in spec.shape)
        yield (
            f"{kind} {port.name!r}: got {port.text()}, want {' or '.join(dtypes)} [{axes_text}]"
            f"{known}, of fixed lengths"
        )
