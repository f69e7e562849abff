"""Watching PyTorch's modules: what each took and gave, while the component runs in float32."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, cast, final

from triptych.bundle.bundle import Artifact
from triptych.dependencies import import_optional
from triptych.errors import BackendError
from triptych.runtimes._taps.trace import Call, Trace
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.pytorch import Pytorch, exact_arithmetic
from triptych.types import Array, TensorMap

if TYPE_CHECKING:
    import torch

    from triptych.models.modules import ComponentModule

TensorObserver: TypeAlias = Callable[[int, Array], None]
"""Told of each tensor of floats, once, by its number; the array is read-only."""


@final
class ReferenceModule:
    """One component of a checkpoint with hooks on all of its modules."""

    def __init__(self, artifact: Artifact, *, device: str = "cpu") -> None:
        """Load the weights.

        Raises:
            MissingDependencyError: torch is not installed.
            BackendError: the device is not there.
        """
        import_optional("torch", "accelerate", "diffusers", "transformers", extra="export")
        import torch

        from triptych.models.modules import load_module

        if artifact.checkpoint is None:
            raise BackendError(
                f"pytorch: got a {artifact.format} artifact, want a checkpoint in diffusers layout."
            )
        present = Pytorch(settings=RuntimeSettings()).probe().devices
        if device.split(":", maxsplit=1)[0] not in present:
            raise BackendError(
                f"pytorch: got no device {device!r}, want one of those present: "
                f"{', '.join(present)}."
            )
        component = artifact.spec.name
        module = load_module(artifact.checkpoint, component, dtype=torch.float32)
        self._module: torch.nn.Module = module.to(device)
        self._device = device
        self._inputs = tuple(spec.name for spec in artifact.spec.inputs)
        named = cast("ComponentModule", module)
        self._outputs = named.output_names
        self.prefix: str = named.prefix
        self.parameters: Mapping[str, torch.Tensor] = dict(module.named_parameters())

    def run(self, feed: TensorMap, observe: TensorObserver) -> tuple[Trace, dict[str, Array]]:
        """Run the component, and tell of every tensor that a module takes or gives.

        Tensors get the same numbers in every run on feeds of the same shapes.

        Returns:
            What its modules did, and its outputs by their names in the checkpoint's bindings.
        """
        import torch

        recorder = _Recorder(observe)
        hooks = list(recorder.hooked(self._module))
        arguments = [torch.tensor(feed[name], device=self._device) for name in self._inputs]
        try:
            with torch.no_grad(), exact_arithmetic():
                results = self._module(*arguments)
        except (RuntimeError, IndexError) as error:
            raise BackendError(f"pytorch: could not run the module. {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        named = dict(zip(self._outputs, results, strict=True))
        return (
            recorder.trace({name: recorder.number(result) for name, result in named.items()}),
            {name: result.float().cpu().numpy() for name, result in named.items()},
        )

    def parameter(self, name: str) -> Array:
        """One parameter of the checkpoint, as float32."""
        values: Array = self.parameters[name].detach().float().cpu().numpy()
        return values


@final
class _Recorder:
    """Numbers tensors and writes down calls. Tensors are not kept alive."""

    def __init__(self, observe: TensorObserver) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self._observe = observe
        self._numbers = WeakTensorKeyDictionary()
        self._shapes: list[tuple[int, ...]] = []
        self._calls: list[Call] = []
        self._open: list[int] = []

    def hooked(self, module: "torch.nn.Module") -> "Iterator[torch.utils.hooks.RemovableHandle]":
        """Hook every module."""
        for name, part in module.named_modules():
            yield part.register_forward_pre_hook(self._entering(name), with_kwargs=True)
            yield part.register_forward_hook(self._leave)

    def number(self, tensor: "torch.Tensor") -> int:
        """The tensor's number; a new one where it is new, or was written to."""
        version = tensor._version  # noqa: SLF001  torch has no public name for it
        if tensor in self._numbers:
            number, numbered_at = self._numbers[tensor]
            if numbered_at == version:
                return int(number)
        number = len(self._shapes)
        self._numbers[tensor] = (number, version)
        self._shapes.append(tuple(tensor.shape))
        array = tensor.detach().cpu().numpy()
        array.flags.writeable = False
        self._observe(number, array)
        return number

    def trace(self, outputs: dict[str, int]) -> Trace:
        """What was written down."""
        return Trace(tuple(self._calls), tuple(self._shapes), outputs)

    def _entering(self, name: str) -> "Callable[..., None]":
        def enter(
            module: "torch.nn.Module", arguments: object, keywords: Mapping[str, object]
        ) -> None:
            parent = self._open[-1] if self._open else None
            call = Call(
                module=name,
                kind=type(module).__name__,
                inputs=tuple(map(self.number, _tensors([arguments, keywords]))),
                outputs=(),
                parent=parent,
                is_leaf=True,
            )
            self._open.append(len(self._calls))
            self._calls.append(call)

        return enter

    def _leave(self, _module: "torch.nn.Module", _arguments: object, results: object) -> None:
        at = self._open.pop()
        numbers = tuple(map(self.number, _tensors(results)))
        is_leaf = at == len(self._calls) - 1
        self._calls[at] = replace(self._calls[at], outputs=numbers, is_leaf=is_leaf)


def _tensors(found: object) -> "Iterator[torch.Tensor]":
    """The tensors of floats in what a module takes or gives."""
    import torch

    if isinstance(found, torch.Tensor):
        if found.is_floating_point() and found.numel():
            yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _tensors(value)
    elif isinstance(found, Collection) and not isinstance(found, str):
        for value in found:
            yield from _tensors(value)
