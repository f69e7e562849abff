"""What OpenVINO really runs of a U-Net: the operators of the compiled network, counted by kind.

Attention that was fused is ScaledDotProductAttention, or a Subgraph of the plugin's own; attention
that was not leaves a Softmax between two products.

    python benchmarks/openvino_operators.py [--precision f32] IR.xml...
"""

import argparse
from collections import Counter
from pathlib import Path

ATTENTION = (
    "ScaledDotProductAttention", "Subgraph", "Softmax", "MatMul", "FullyConnected", "Convolution"
)  # fmt: skip


def operators(path: Path, precision: str) -> Counter[str]:
    """The kinds of the operators that run, as the CPU plugin names them."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return Counter(
        str(node.get_rt_info()["layerType"].value)
        for node in compiled.get_runtime_model().get_ordered_ops()
    )


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("--precision", default="f32")
    options = parser.parse_args()
    print("| network | " + " | ".join(ATTENTION) + " | all |")
    print("|---" * (len(ATTENTION) + 2) + "|")
    for path in options.networks:
        counts = operators(path, options.precision)
        row = [str(counts[kind]) for kind in ATTENTION]
        print(f"| {path} | " + " | ".join(row) + f" | {counts.total()} |", flush=True)


if __name__ == "__main__":
    main()
