"""One wrapper around every session: names, dtypes, shapes, finiteness and time, written once."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import final

import numpy as np

from triptych.bundle.bundle import Artifact, Bundle
from triptych.bundle.clip_skip import with_clip_skip
from triptych.bundle.layouts import Layout
from triptych.errors import BundleError, NonFiniteError, TensorMismatchError
from triptych.models.component import ComponentSpec
from triptych.runtimes.base import Execution, Runtime, Session
from triptych.tensors import TensorSpec, check_tensors, describe, fixed_axes
from triptych.types import Array, ComponentName, TensorMap

_GRAPH_DTYPES = ("float32", "float16", "float64", "int64", "int32")
"""What the border's tensors can be cast to and from; NumPy has no bfloat16."""


@final
class CheckedSession:
    """A session that speaks triptych's names and float32, and lets nothing wrong pass.

    Attributes:
        spec: the component's contract.
        call_seconds: wall time of each run of the engine, in order.
    """

    def __init__(self, session: Session, artifact: Artifact) -> None:
        self._session = session
        self._where = artifact.path
        self._inputs = _match_ports(session.inputs, artifact, outputs=False)
        self._outputs = _match_ports(session.outputs, artifact, outputs=True)
        shapes = {port.name: port.shape for _, port in self._inputs.values()}
        self._fixed_axes = fixed_axes(artifact.ports.inputs, shapes)
        self.spec: ComponentSpec = artifact.spec
        self.call_seconds: list[float] = []

    @property
    def execution(self) -> Execution:
        """What really runs."""
        return self._session.execution

    def run(self, feed: TensorMap) -> dict[str, Array]:
        """Run the component.

        A graph of a fixed batch is run once for each part of the feed's batch.

        Args:
            feed: the spec's inputs, by name.

        Returns:
            The spec's outputs, by name, as the spec's dtypes, C-contiguous.

        Raises:
            TensorMismatchError: an input or output is not as the spec says, or of a size that the
                graph was not built for.
            NonFiniteError: an output holds NaN or infinity.
            BackendError: the engine failed.
        """
        axes = check_tensors(feed, self.spec.inputs, component=self.spec.name)
        self._check_size(axes)
        rows = self._fixed_axes.get("batch", axes["batch"])
        parts = [
            self._run_part(_rows(feed, slice(start, start + rows), self.spec), rows)
            for start in range(0, max(axes["batch"], 1), max(rows, 1))
        ]
        dtypes = {output.name: output.dtype for output in self.spec.outputs}
        outputs = {
            name: np.ascontiguousarray(_joined([part[name] for part in parts]), dtype=dtypes[name])
            for name in self._outputs
        }
        check_tensors(outputs, self.spec.outputs, component=self.spec.name, axes=axes)
        self._check_finite(outputs)
        return outputs

    def _check_size(self, axes: Mapping[str, int]) -> None:
        """Refuse a size that a graph of fixed shapes was not built for; nothing is padded."""
        differing = {
            name: length
            for name, length in self._fixed_axes.items()
            if (axes[name] % length if name == "batch" else axes[name] != length)
        }
        if differing:
            raise TensorMismatchError(
                component=self.spec.name,
                tensor=", ".join(differing),
                actual=", ".join(str(axes[name]) for name in differing),
                expected=", ".join(
                    f"{'a multiple of ' if name == 'batch' else ''}{length}"
                    for name, length in differing.items()
                ),
                hint=self._size_hint(differing.keys()),
            )

    def _size_hint(self, differing: Collection[str]) -> str:
        axes = ", ".join(f"{name} {length}" for name, length in self._fixed_axes.items())
        remedy = " Export it with --coreml-batch 1." if set(differing) == {"batch"} else ""
        return f"{self._where.name} was built for {axes}.{remedy}"

    def _run_part(self, feed: TensorMap, rows: int) -> dict[str, Array]:
        graph_feed = {
            port.name: _cast(_laid_out(feed[name], layout, rows), port, component=self.spec.name)
            for name, (layout, port) in self._inputs.items()
        }
        names = tuple(port.name for _, port in self._outputs.values())
        started = time.perf_counter()
        results = self._session.run(graph_feed, names)
        self.call_seconds.append(time.perf_counter() - started)
        return {name: results[port.name] for name, (_, port) in self._outputs.items()}

    def close(self) -> None:
        """Give the engine's memory back."""
        self._session.close()

    def __enter__(self) -> "CheckedSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_finite(self, outputs: TensorMap) -> None:
        for name, output in outputs.items():
            finite = np.isfinite(output)
            if not finite.all():
                raise NonFiniteError(
                    component=self.spec.name,
                    tensor=name,
                    count=int(output.size - finite.sum()),
                    size=output.size,
                    hint="Its weights hold NaN, or its arithmetic overflows: try --precision fp32.",
                )


def open_session(
    runtime: Runtime, bundle: Bundle, component: ComponentName, *, clip_skip: int = 0
) -> CheckedSession:
    """Open one component of a bundle, checked.

    Args:
        runtime: the engine.
        bundle: holds the component.
        component: which one.
        clip_skip: of a text encoder; above 0 it gives `SKIPPED_HIDDEN_STATES` as well.

    Raises:
        UsageError: there is no such hidden state.
        BundleError: the bundle lacks it, the engine cannot read it, or its graph does not have
            the tensors that SDXL needs.
        BackendError: the engine or the device is missing.
    """
    artifact = (
        with_clip_skip(bundle, component, clip_skip) if clip_skip else bundle.artifact(component)
    )
    if artifact.format not in runtime.formats:
        raise BundleError(
            f"{artifact.path}: got the {artifact.format} format, {runtime.name} reads "
            f"{', '.join(runtime.formats)}. Choose another runtime."
        )
    session = runtime.open(artifact)
    try:
        return CheckedSession(session, artifact)
    except BaseException:
        session.close()
        raise


def _match_ports(
    ports: Iterable[TensorSpec], artifact: Artifact, *, outputs: bool
) -> dict[str, tuple[Layout, TensorSpec]]:
    """Pair each tensor of the spec with the graph's port, and check that they can meet."""
    by_name = {port.name: port for port in ports}
    wanted = artifact.ports.outputs if outputs else artifact.ports.inputs
    bindings = artifact.bindings.outputs if outputs else artifact.bindings.inputs
    matched = {}
    for spec, binding in zip(wanted, bindings, strict=True):
        port = by_name.get(spec.name)
        if port is None:
            raise BundleError(
                f"{artifact.path}: got {'outputs' if outputs else 'inputs'} "
                f"{', '.join(sorted(by_name))}, want {spec.name!r} among them. "
                f"This is not an SDXL {artifact.spec.name} in {artifact.format} layout."
            )
        if not _can_meet(port, spec):
            raise TensorMismatchError(
                component=artifact.spec.name,
                tensor=port.name,
                actual=f"{port.text()} in the graph",
                expected=spec.text(),
                hint="The graph and the configs beside it are of different models.",
            )
        if port.dtype not in _GRAPH_DTYPES:
            raise TensorMismatchError(
                component=artifact.spec.name,
                tensor=port.name,
                actual=f"{port.text()} in the graph",
                expected=f"one of {', '.join(_GRAPH_DTYPES)}",
                hint="Export it again with such inputs and outputs.",
            )
        matched[binding.name] = (binding.layout, port)
    unknown = set(by_name) - {port.name for _, port in matched.values()}
    if unknown and not outputs:
        raise BundleError(
            f"{artifact.path}: got inputs {', '.join(sorted(unknown))} that SDXL has no tensor for."
        )
    return matched


def _can_meet(port: TensorSpec, spec: TensorSpec) -> bool:
    if spec.shape == ():
        return port.shape in ((), (1,)) or (len(port.shape) == 1 and isinstance(port.shape[0], str))
    return len(port.shape) == len(spec.shape) and all(
        isinstance(have, str) or isinstance(want, str) or have == want
        for have, want in zip(port.shape, spec.shape, strict=True)
    )


def _rows(feed: TensorMap, part: slice, spec: ComponentSpec) -> dict[str, Array]:
    """A part of the batch; what has no batch is whole in every part."""
    batched = {tensor.name for tensor in spec.inputs if "batch" in tensor.shape}
    return {name: value[part] if name in batched else value for name, value in feed.items()}


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _laid_out(tensor: Array, layout: Layout, rows: int) -> Array:
    """A tensor of the spec as it lies in the graph."""
    match layout:
        case "plain":
            return tensor
        case "bc1s":
            return tensor.transpose(0, 2, 1)[:, :, np.newaxis, :]
        case "per_row":
            return np.repeat(tensor, rows)


def _cast(tensor: Array, port: TensorSpec, *, component: str) -> Array:
    """Convert to the graph's dtype and rank; refuse what would change an integer or a timestep."""
    scalar = tensor.ndim == 0
    ranked = tensor.reshape((1,)) if scalar and port.shape else tensor
    converted = ranked if scalar and not port.shape else np.ascontiguousarray(ranked)
    if str(converted.dtype) == port.dtype:
        return converted
    cast: Array = converted.astype(port.dtype)
    floats = np.issubdtype(cast.dtype, np.floating) and np.issubdtype(tensor.dtype, np.floating)
    if not floats and not np.array_equal(cast, converted):
        raise TensorMismatchError(
            component=component,
            tensor=port.name,
            actual=describe(tensor),
            expected=port.text(),
            hint="The graph's integer input cannot hold this value.",
        )
    return cast
