"""What the sampler runs a component with."""

from typing import Protocol, runtime_checkable

from triptych.types import Array, TensorMap


@runtime_checkable
class Network(Protocol):
    """Anything that runs one component in triptych's vocabulary: an open, checked session."""

    def run(self, feed: TensorMap) -> dict[str, Array]:
        """Compute the component's outputs from its inputs."""
