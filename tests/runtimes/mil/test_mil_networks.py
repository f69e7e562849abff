"""The tiny SDXL's networks, converted by coremltools and interpreted, against PyTorch."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import coremltools
import coremltools.optimize.coreml as compression
import numpy as np
import pytest
import torch

from triptych.errors import NonFiniteError
from triptych.mil.program import Operation
from triptych.mil.weights import Weight
from triptych.models.checkpoint import open_checkpoint
from triptych.models.modules import load_module
from triptych.runtimes._mil.interpreter import open_program, run
from triptych.runtimes._mil.values import Mode
from triptych.types import ComponentName

pytestmark = [
    pytest.mark.slow,
    # torch.jit.trace is what coremltools converts, old as it is.
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    # coremltools 9.0 makes scalars of arrays of one element.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # It warns of the outputs that it names itself, and of the -inf it makes of float32's minimum.
    pytest.mark.filterwarnings("ignore:Output, '.*', of the source model:UserWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning"),
]

Conversion = Callable[[], AbstractContextManager[None]]
Feed = dict[str, np.ndarray]

FUSED_NORMS = "common::fuse_elementwise_to_batchnorm"
"""Writes a norm's gamma and beta as a batch_norm of variance 1, and forgets its default epsilon:
each result is smaller by 5e-6."""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


FEEDS: Mapping[ComponentName, Feed] = {
    "unet": {
        "sample": noise(2, 4, 8, 8),
        "timestep": np.array([999.0], np.float32),
        "encoder_hidden_states": noise(2, 77, 80),
        "text_embeds": noise(2, 64),
        "time_ids": np.array([[128, 128, 0, 0, 128, 128]] * 2, np.float32),
    },
    "vae_decoder": {"latents": noise(1, 4, 8, 8)},
    "text_encoder_2": {
        "input_ids": np.array([[0, *range(40, 60), *[2] * 56]], np.int32),
    },
}


@dataclass(frozen=True)
class Network:
    """A network as PyTorch runs it and as converters take it."""

    traced: torch.jit.ScriptModule
    expected: list[np.ndarray]


Networks = dict[ComponentName, Network]


@pytest.fixture(scope="session")
def networks(checkpoint: Path) -> Networks:
    """Each component traced, and its results in float32."""
    made = {}
    for name, feed in FEEDS.items():
        module = load_module(open_checkpoint(checkpoint), name, dtype=torch.float32)
        inputs = tuple(torch.from_numpy(array) for array in feed.values())
        with torch.no_grad():
            trace: Callable[..., torch.jit.ScriptModule] = torch.jit.trace
            traced = trace(module, inputs, check_trace=False)
            made[name] = Network(traced, [output.numpy() for output in module(*inputs)])
    return made


@pytest.fixture(scope="session")
def convert(
    networks: Networks,
    conversion: Conversion,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Converts a component, each way once; by default to float32 and without fused norms.

    In float16 norms are always fused: compression and cutting run that pass again, and it fails on
    float16 norms that are not.
    """
    folder, converted = tmp_path_factory.mktemp("networks"), {}

    def convert(
        name: ComponentName,
        *,
        precision: str = "FLOAT32",
        target: str = "iOS17",
        fuse_norms: bool = False,
    ) -> Path:
        key = f"{name}_{precision}_{target}_{fuse_norms}"
        if key not in converted:
            passes = coremltools.PassPipeline.DEFAULT
            if precision == "FLOAT32" and not fuse_norms:
                passes.remove_passes({FUSED_NORMS})
            converted[key] = folder / f"{key}.mlpackage"
            with conversion():
                coremltools.convert(
                    networks[name].traced,
                    inputs=[
                        coremltools.TensorType(name=each, shape=array.shape, dtype=array.dtype.type)
                        for each, array in FEEDS[name].items()
                    ],
                    compute_precision=getattr(coremltools.precision, precision),
                    minimum_deployment_target=getattr(coremltools.target, target),
                    pass_pipeline=passes,
                    skip_model_load=True,
                    package_dir=str(converted[key]),
                )
        return converted[key]

    return convert


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def errors(
    package: Path,
    name: ComponentName,
    networks: Networks,
    *,
    mode: Mode = "fp32",
) -> list[float]:
    outputs = run(open_program(package), FEEDS[name], mode=mode)
    assert len(outputs) == len(networks[name].expected)
    # The converter keeps the order of the outputs, not their names.
    return [
        relative_l2(actual.astype(np.float32), expected)
        for actual, expected in zip(outputs.values(), networks[name].expected, strict=True)
    ]


@pytest.mark.parametrize("name", FEEDS)
def test_a_float32_program_is_the_network(
    name: ComponentName, networks: Networks, convert: Callable[..., Path]
) -> None:
    assert max(errors(convert(name), name, networks)) < 3e-6


@pytest.mark.parametrize("name", FEEDS)
@pytest.mark.parametrize("mode", ["fp32", "declared"])
def test_a_float16_program_is_near_it(
    name: ComponentName,
    mode: Mode,
    networks: Networks,
    convert: Callable[..., Path],
) -> None:
    worst = max(errors(convert(name, precision="FLOAT16"), name, networks, mode=mode))
    assert 1e-5 < worst < 1e-2


def test_the_modes_differ_by_the_rounding_of_results(
    networks: Networks, convert: Callable[..., Path]
) -> None:
    package = convert("vae_decoder", precision="FLOAT16")
    (weights_only,) = errors(package, "vae_decoder", networks, mode="fp32")
    (both,) = errors(package, "vae_decoder", networks, mode="declared")
    assert weights_only < both


def test_the_newest_operators_and_fused_norms(
    networks: Networks, convert: Callable[..., Path]
) -> None:
    """Attention as one operator; and a fault of the converter, which an exact interpreter shows."""
    package = convert("vae_decoder", target="iOS18", fuse_norms=True)
    types = {operation.type for operation in open_program(package).operations}
    assert {"scaled_dot_product_attention", "batch_norm"} <= types
    (fused,) = errors(package, "vae_decoder", networks)
    (plain,) = errors(convert("vae_decoder"), "vae_decoder", networks)
    assert plain < 2e-6 < 4e-6 < fused < 2e-5


@pytest.fixture(scope="session")
def chunks(
    convert: Callable[..., Path], conversion: Conversion, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """The float16 U-Net cut in two."""
    folder, package = tmp_path_factory.mktemp("chunks"), convert("unet", precision="FLOAT16")
    with conversion():
        # Its own check wants a Mac.
        coremltools.models.utils.bisect_model(
            str(package), str(folder), check_output_correctness=False
        )
    return [folder / f"{package.stem}_chunk{number}.mlpackage" for number in (1, 2)]


@pytest.mark.parametrize("mode", ["fp32", "declared"])
def test_two_chunks_are_the_whole_bit_for_bit(
    mode: Mode, chunks: list[Path], convert: Callable[..., Path]
) -> None:
    whole = open_program(convert("unet", precision="FLOAT16"))
    first, second = map(open_program, chunks)
    feed = FEEDS["unet"]
    (want,) = run(whole, feed, mode=mode).values()
    between = run(first, {spec.name: feed[spec.name] for spec in first.inputs}, mode=mode)
    fed = feed | between
    (got,) = run(second, {spec.name: fed[spec.name] for spec in second.inputs}, mode=mode).values()
    assert min(len(first.operations), len(second.operations)) > 100
    np.testing.assert_array_equal(got, want)


def test_a_network_of_palettes_is_its_unpacked_twin(
    convert: Callable[..., Path], conversion: Conversion, tmp_path: Path
) -> None:
    settings = compression.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=512)
    compressed, plain = tmp_path / "compressed.mlpackage", tmp_path / "plain.mlpackage"
    original = str(convert("vae_decoder", precision="FLOAT16"))
    with conversion():
        model = compression.palettize_weights(
            coremltools.models.MLModel(original, skip_model_load=True),
            compression.OptimizationConfig(settings),
        )
        model.save(str(compressed))
        compression.decompress_weights(model).save(str(plain))
        del model
    program = open_program(compressed)
    assert sum(operation.is_decompression for operation in program.operations) > 20
    (got,), (want,) = (
        run(each, FEEDS["vae_decoder"]).values() for each in (program, open_program(plain))
    )
    np.testing.assert_array_equal(got, want)


def test_an_overflow_inside_the_vae_is_named_though_no_output_shows_it(
    convert: Callable[..., Path],
) -> None:
    """What the VAE of SDXL does in half precision: activations too large for its norms."""
    program = open_program(convert("vae_decoder", precision="FLOAT16"))
    conv = next(operation for operation in program.operations if operation.type == "conv")
    (weight,) = conv.inputs["weight"]
    stored = program.constants[weight]
    assert isinstance(stored, Weight)
    grown = stored.load().astype(np.float32) * 3000
    broken = replace(program, constants={**program.constants, weight: grown.astype(np.float16)})
    seen: list[Operation] = []
    outputs = run(
        broken,
        FEEDS["vae_decoder"],
        mode="declared",
        check_finite=False,
        observe=lambda operation, _: seen.append(operation),
    )
    assert len(seen) == len(program.operations)
    assert all(np.isfinite(output).all() for output in outputs.values())
    with pytest.raises(NonFiniteError, match="First shown by square"):
        run(broken, FEEDS["vae_decoder"], mode="declared")
