"""Core ML packages: compressed, cut in two, written so that equal models are equal bytes, read."""

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from triptych.dependencies import quiet_coremltools
from triptych.exporters.base import ArtifactFacts
from triptych.mil.facts import fed_inputs, weight_dtypes
from triptych.mil.reading import read_program
from triptych.models.precisions import COREML_BLOCK
from triptych.types import PaletteBits, Precision

if TYPE_CHECKING:
    import coremltools

_IDENTIFIERS = uuid.UUID("b1f7a1de-6d0c-4f0e-9d5c-7d1f0a6f5a11")
"""Ours; names of items are made from it, where coremltools draws them by lot."""

_UNSTABLE_METADATA = ("com.github.apple.coremltools.conversion_date",)


def palettize(
    model: "coremltools.models.MLModel", bits: PaletteBits
) -> "coremltools.models.MLModel":
    """Store weights as indices into a palette found by k-means; embeddings stay as they are.

    Source: ml-stable-diffusion's torch2coreml.py, quantize_weights.
    """
    from coremltools.optimize.coreml import (
        OpPalettizerConfig,
        OptimizationConfig,
        palettize_weights,
    )

    config = OptimizationConfig(
        global_config=OpPalettizerConfig(mode="kmeans", nbits=bits),
        op_type_configs={"gather": None},
    )
    # scikit-learn warns of layers with fewer distinct weights than the palette has entries.
    with quiet_coremltools():
        return palettize_weights(model, config)


def quantize(
    model: "coremltools.models.MLModel", precision: Precision
) -> "coremltools.models.MLModel":
    """Store weights as integers, widened when they are used.

    8 bits have a scale and a zero point a channel. 4 bits have a scale for a block of weights;
    embeddings, and what no block divides, keep 8 bits.
    """
    from coremltools.optimize.coreml import (
        OpLinearQuantizerConfig,
        OptimizationConfig,
        linear_quantize_weights,
    )

    eight_bits = OpLinearQuantizerConfig(mode="linear", dtype="int8")
    four_bits = OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=COREML_BLOCK
    )
    with quiet_coremltools():  # it warns of every layer that no block divides
        if precision == "int4":
            model = linear_quantize_weights(
                model, OptimizationConfig(global_config=four_bits, op_type_configs={"gather": None})
            )
        return linear_quantize_weights(model, OptimizationConfig(global_config=eight_bits))


def save_packages(model: "coremltools.models.MLModel", paths: Sequence[Path]) -> None:
    """Write a model as one package, or cut in as many as there are paths."""
    with TemporaryDirectory(dir=paths[0].parent, prefix=".") as scratch:
        whole = Path(scratch) / "model.mlpackage"
        model.save(str(whole))
        parts = [whole] if len(paths) == 1 else _cut(whole, Path(scratch))
        for part, path in zip(parts, paths, strict=True):
            _normalise(part)
            shutil.move(part, path)


def _cut(package: Path, folder: Path) -> list[Path]:
    """Cut a model in two of about equal weights."""
    from coremltools.models.utils import bisect_model

    with quiet_coremltools():  # its own check needs macOS
        bisect_model(str(package), str(folder), check_output_correctness=False)
    return [folder / f"{package.stem}_chunk{chunk}.mlpackage" for chunk in (1, 2)]


def _normalise(package: Path) -> None:
    """Take chance and the date out of a package."""
    from coremltools.models.utils import load_spec

    spec = load_spec(str(package))  # which may touch the manifest, so it is read afterwards
    for name in _UNSTABLE_METADATA:
        spec.description.metadata.userDefined.pop(name, None)
    manifest = package / "Manifest.json"
    content = json.loads(manifest.read_bytes())
    entries = content["itemInfoEntries"]
    names = {old: str(uuid.uuid5(_IDENTIFIERS, entry["path"])) for old, entry in entries.items()}
    content["itemInfoEntries"] = dict(sorted((names[old], entry) for old, entry in entries.items()))
    content["rootModelIdentifier"] = names[content["rootModelIdentifier"]]
    root = content["itemInfoEntries"][content["rootModelIdentifier"]]
    (package / "Data" / root["path"]).write_bytes(spec.SerializeToString(deterministic=True))
    manifest.write_text(json.dumps(content, indent=2), encoding="utf-8")


def describe_packages(paths: Sequence[Path]) -> ArtifactFacts:
    """Read the ports of a network and how its weights are stored.

    Raises:
        BundleError: a package is incomplete or damaged.
    """
    programs = [read_program(path) for path in paths]
    histogram = sum((weight_dtypes(program) for program in programs), Counter[str]())
    return ArtifactFacts(
        inputs=fed_inputs(programs),
        outputs=programs[-1].outputs,
        num_parameters=sum(histogram.values()),
        weight_dtypes=dict(sorted(histogram.items())),
        opset=None,
    )
