"""How many floating-point operations a run of a component takes."""

from collections.abc import Mapping

from triptych.dependencies import import_optional
from triptych.models.component import ComponentSpec
from triptych.types import TensorMap


def count_flops(spec: ComponentSpec, network_config: Mapping[str, object], feed: TensorMap) -> int:
    """Count the operations of matrix products, convolutions and attention; nothing is computed.

    A multiplication and the addition of its product are two. What is done element by element is
    left out.

    Args:
        spec: the component's contract.
        network_config: its network's config.json.
        feed: the inputs of the run; only their shapes are looked at.

    Raises:
        MissingDependencyError: torch, diffusers or transformers is not installed.

    Source:
        torch.utils.flop_counter, on the meta device. T-GATE publishes 149.438 T multiplications for
        25 guided steps of SDXL at 1024 x 1024 px without attention's own products
        (https://github.com/HaozheLiu-ST/T-GATE), which is 5.977 TFLOP for one sample; with those
        products it is 6.761.
    """
    import_optional("torch", "accelerate", "diffusers", "transformers", extra="export")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from triptych.models.modules import empty_module

    module = empty_module(spec.name, network_config).eval().to("meta")
    arguments = [
        torch.empty(feed[tensor.name].shape, dtype=getattr(torch, tensor.dtype), device="meta")
        for tensor in spec.inputs
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*arguments)
    return int(counter.get_total_flops())
