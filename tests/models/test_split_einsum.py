"""Transformers in the layout of Apple's Neural Engine, beside those of diffusers."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import coremltools
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from triptych.errors import CheckpointError, UsageError
from triptych.mil.program import Program
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.modules import load_module, skeleton_module
from triptych.models.split_einsum import use_split_einsum
from triptych.runtimes._mil.interpreter import open_program, run
from triptych.testing.tiny import UNET

TRANSFORMERS = {
    "down_blocks.1.attentions.0": 16,
    "mid_block.attentions.0": 32,
    "up_blocks.0.attentions.2": 32,
}
"""Some of the tiny U-Net's, with their channels."""


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(checkpoint)


@pytest.fixture
def original(opened: Checkpoint) -> nn.Module:
    return load_module(opened, "unet", dtype=torch.float32)


@pytest.fixture
def rewritten(opened: Checkpoint) -> nn.Module:
    module = load_module(opened, "unet", dtype=torch.float32)
    use_split_einsum(module.get_submodule("unet"))
    return module


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_layout(states: Tensor) -> Tensor:
    """[batch, tokens, channels] as [batch, channels, 1, tokens]."""
    return states.transpose(1, 2).unsqueeze(2)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def feed(batch: int, height: int, width: int, timestep: float) -> dict[str, Tensor]:
    ids = [8.0 * height, 8.0 * width, 3, 5, 8.0 * height, 8.0 * width]
    return {
        "sample": noise(batch, 4, height, width),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": noise(batch, 77, 80, seed=1),
        "text_embeds": noise(batch, 64, seed=2),
        "time_ids": torch.tensor([ids] * batch),
    }


@pytest.mark.parametrize("timestep", [999.0, 500.5, 1.0])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 12), (24, 4)])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_rewritten_unet_gives_what_diffusers_gives(
    batch: int,
    height: int,
    width: int,
    timestep: float,
    original: nn.Module,
    rewritten: nn.Module,
) -> None:
    fed = feed(batch, height, width, timestep)
    (expected,) = original(**fed)
    (actual,) = rewritten(**fed)
    assert relative_l2(actual, expected) <= 2e-6


@torch.no_grad()
def test_encoder_states_in_either_layout_are_the_same(rewritten: nn.Module) -> None:
    fed = feed(2, 8, 8, 999.0)
    (expected,) = rewritten(**fed)
    fed["encoder_hidden_states"] = in_layout(fed["encoder_hidden_states"])
    (actual,) = rewritten(**fed)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_each_step_of_a_transformer_is_that_of_diffusers(
    name: str, original: nn.Module, rewritten: nn.Module
) -> None:
    """Each step is fed what diffusers computed, so that a wrong one cannot hide behind another."""
    theirs, ours = (module.get_submodule(f"unet.{name}") for module in (original, rewritten))
    image, text = noise(2, TRANSFORMERS[name], 6, 5), noise(2, 77, 80, seed=1)
    tokens: Tensor = theirs.norm(image).flatten(2).transpose(1, 2)  # type: ignore[operator]
    tokens = theirs.proj_in(tokens)  # type: ignore[operator]
    projected = ours.proj_in(ours.norm(image))  # type: ignore[operator]
    assert relative_l2(projected.flatten(2).transpose(1, 2), tokens) <= 1e-6
    pairs = zip(
        theirs.get_submodule("transformer_blocks").children(),
        ours.get_submodule("transformer_blocks").children(),
        strict=True,
    )
    for block, own in pairs:
        parts: Mapping[str, nn.Module] = dict(block.named_children())
        own_parts: Mapping[str, nn.Module] = dict(own.named_children())
        for norm, step, attended in (("norm1", "attn1", None), ("norm2", "attn2", text)):
            normed = parts[norm](tokens)
            own_normed = own_parts[norm](in_layout(tokens))
            assert relative_l2(own_normed, in_layout(normed)) <= 1e-6
            result = parts[step](normed, encoder_hidden_states=attended)
            keys = in_layout(normed if attended is None else attended)
            own_result = own_parts[step](in_layout(normed), keys)
            assert relative_l2(own_result, in_layout(result)) <= 1e-6
            tokens = tokens + result
        result = parts["ff"](parts["norm3"](tokens))
        own_result = own_parts["ff"](own_parts["norm3"](in_layout(tokens)))
        assert relative_l2(own_result, in_layout(result)) <= 1e-6
        tokens = tokens + result
    (expected,) = theirs(image, text, return_dict=False)
    (actual,) = ours(image, text)
    assert relative_l2(actual, expected) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parameters_keep_their_names_order_and_memory(
    dtype: torch.dtype, opened: Checkpoint
) -> None:
    module = load_module(opened, "unet", dtype=dtype)
    before = dict(module.named_parameters())
    use_split_einsum(module.get_submodule("unet"))
    after = dict(module.named_parameters())
    assert list(after) == list(before)
    for name, parameter in after.items():
        assert parameter.data_ptr() == before[name].data_ptr()
        assert torch.equal(parameter.reshape(before[name].shape), before[name])
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in after.values())


def test_no_linear_layer_is_left_in_the_transformers(
    original: nn.Module, rewritten: nn.Module
) -> None:
    linears = {name for name, part in original.named_modules() if isinstance(part, nn.Linear)}
    left = {name for name, part in rewritten.named_modules() if isinstance(part, nn.Linear)}
    assert left == {name for name in linears if "attentions" not in name}
    assert len(left) < len(linears)


def test_a_skeleton_stays_one(opened: Checkpoint) -> None:
    """No rewritten parameter occupies more than the one element of a skeleton's."""
    skeleton, _ = skeleton_module(opened, "unet", dtype=torch.float32)
    use_split_einsum(skeleton.get_submodule("unet"))
    assert {parameter.untyped_storage().nbytes() for parameter in skeleton.parameters()} == {4}


def test_a_second_rewriting_is_refused(rewritten: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="got no Transformer2DModel"):
        use_split_einsum(rewritten.get_submodule("unet"))


def spoil_nothing(unet: nn.Module) -> None:
    """The change to the config is the fault."""


def fuse_projections(unet: nn.Module) -> None:
    unet.fuse_qkv_projections()  # type: ignore[operator]


def add_a_group_norm(unet: nn.Module) -> None:
    attention = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    assert isinstance(attention, Attention)
    attention.norm_cross = nn.GroupNorm(4, 80)


def wrap_a_linear_layer(unet: nn.Module) -> None:
    class LoraLinear(nn.Linear):
        """As an adapter makes them."""

    attention = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    attention.register_module("to_q", LoraLinear(32, 32))


def rescale_an_output(unet: nn.Module) -> None:
    attention = unet.get_submodule("up_blocks.1.attentions.1.transformer_blocks.0.attn1")
    assert isinstance(attention, Attention)
    attention.rescale_output_factor = 2.0


def drop_a_norms_weights(unet: nn.Module) -> None:
    block = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0")
    block.register_module("norm2", nn.LayerNorm(32, elementwise_affine=False))


CROSS_BLOCKS = ("DownBlock2D", "SimpleCrossAttnDownBlock2D", "CrossAttnDownBlock2D")
SELF_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D")


@pytest.mark.parametrize(
    ("changes", "spoil", "message"),
    [
        ({"use_linear_projection": False}, spoil_nothing, "proj_in': got Conv2d, want Linear"),
        ({"upcast_attention": True}, spoil_nothing, "upcast_attention: got True, want False"),
        ({"down_block_types": CROSS_BLOCKS}, spoil_nothing, "got Attention, want every"),
        ({"down_block_types": SELF_BLOCKS}, spoil_nothing, "got Attention, want every"),
        ({"dual_cross_attention": True}, spoil_nothing, "got DualTransformer2DModel"),
        ({"attention_type": "gated"}, spoil_nothing, "fuser': got GatedSelfAttentionDense"),
        ({"only_cross_attention": True}, spoil_nothing, "only_cross_attention: got True"),
        ({"encoder_hid_dim": 48}, spoil_nothing, "'encoder_hid_proj': got a projection"),
        ({}, fuse_projections, r"attn1.to_qkv': got Linear, want nothing"),
        ({}, add_a_group_norm, r"attn2.norm_cross': got GroupNorm, want nothing"),
        ({}, wrap_a_linear_layer, r"attn2.to_q': got LoraLinear, want Linear"),
        ({}, rescale_an_output, "rescale_output_factor: got 2.0, want 1.0"),
        ({}, drop_a_norms_weights, r"norm2' elementwise_affine: got False, want True"),
    ],
)
def test_what_sdxl_does_not_have_is_refused_before_anything_changes(
    changes: dict[str, object], spoil: Callable[[nn.Module], None], message: str
) -> None:
    unet = UNet2DConditionModel(**{**UNET, **changes})
    spoil(unet)
    before = dict(unet.named_modules())
    with pytest.raises(CheckpointError, match=message):
        use_split_einsum(unet)
    assert dict(unet.named_modules()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": torch.ones(1, 1, 64)},
        {"encoder_attention_mask": torch.ones(1, 1, 77)},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"return_dict": True},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_masks_and_other_arguments_are_refused(
    arguments: dict[str, object], rewritten: nn.Module
) -> None:
    transformer = rewritten.get_submodule("unet.mid_block.attentions.0")
    with pytest.raises(UsageError, match="want n"):
        transformer(noise(1, 32, 8, 8), noise(1, 77, 80), **arguments)


@pytest.fixture(scope="module")
def convert(
    opened: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Program]:
    """The rewritten U-Net as an ML program of fixed shapes; in float32 without fused norms.

    coremltools writes scale and shift of a norm as a batch_norm of variance 1 and forgets that its
    epsilon is not 0: each result is smaller by 5e-6.
    """
    module = load_module(opened, "unet", dtype=torch.float32)
    use_split_einsum(module.get_submodule("unet"))
    fed = apple_feed()
    with torch.no_grad():
        trace: Callable[..., torch.jit.ScriptModule] = torch.jit.trace
        traced = trace(module, tuple(fed.values()), check_trace=False)
    folder = tmp_path_factory.mktemp("split_einsum")

    def convert(precision: str) -> Program:
        passes = coremltools.PassPipeline.DEFAULT
        if precision == "FLOAT32":
            passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})
        package = folder / f"{precision}.mlpackage"
        coremltools.convert(
            traced,
            inputs=[
                coremltools.TensorType(name=name, shape=tensor.shape, dtype=np.float32)
                for name, tensor in fed.items()
            ],
            outputs=[coremltools.TensorType(name="noise_pred")],
            convert_to="mlprogram",
            compute_precision=getattr(coremltools.precision, precision),
            minimum_deployment_target=coremltools.target.macOS13,
            pass_pipeline=passes,
            skip_model_load=True,
            package_dir=str(package),
        )
        return open_program(package)

    return convert


def apple_feed() -> dict[str, Tensor]:
    """As Apple's own packages take it: batch 2, encoder states [batch, width, 1, tokens]."""
    fed = feed(2, 16, 16, 999.0)
    return fed | {"encoder_hidden_states": in_layout(fed["encoder_hidden_states"])}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize(("precision", "limit"), [("FLOAT32", 3e-6), ("FLOAT16", 1e-2)])
@torch.no_grad()
def test_a_converted_program_is_the_network(
    precision: str, limit: float, convert: Callable[[str], Program], original: nn.Module
) -> None:
    program = convert(precision)
    (expected,) = original(**feed(2, 16, 16, 999.0))
    (actual,) = run(program, {name: each.numpy() for name, each in apple_feed().items()}).values()
    assert relative_l2(torch.from_numpy(actual), expected) <= limit

    attentions = [part for part in original.modules() if isinstance(part, Attention)]
    linears = [name for name, part in original.named_modules() if isinstance(part, nn.Linear)]
    norms = [part for part in original.modules() if isinstance(part, nn.LayerNorm)]
    counts = Counter(operation.type for operation in program.operations)
    assert counts["linear"] == sum("attentions" not in name for name in linears)
    assert counts["einsum"] == sum(2 * attention.heads for attention in attentions)
    assert counts["matmul"] == 0
    assert counts["layer_norm"] == len(norms)
    # One for the keys of each attention; the encoder states need none.
    assert counts["transpose"] == len(attentions)
    # Nothing is folded into the weights.
    suffix = "_to_fp16" if precision == "FLOAT16" else ""
    for name, parameter in original.named_parameters():
        if "attentions" in name and parameter.ndim > 1:
            assert name.replace(".", "_") + suffix in program.constants
