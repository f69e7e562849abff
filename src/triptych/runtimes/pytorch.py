"""PyTorch: the reference. Runs a checkpoint's own modules, in float32 that is really float32."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, final

from triptych.bundle.bundle import Artifact
from triptych.dependencies import import_optional
from triptych.errors import BackendError, MissingDependencyError, UsageError
from triptych.models.sdxl import component_precision
from triptych.runtimes.base import Execution, Probe, RuntimeSettings, absent_probe
from triptych.tensors import TensorSpec
from triptych.types import Array, FormatName, Precision, TensorMap

if TYPE_CHECKING:
    import torch

_DTYPES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@final
class PytorchSession:
    """One component as a torch module on one device."""

    def __init__(
        self, module: "torch.nn.Module", *, artifact: Artifact, execution: Execution
    ) -> None:
        self._module: torch.nn.Module | None = module
        self.execution = execution
        self.inputs = artifact.spec.inputs
        outputs: tuple[str, ...] = module.output_names  # type: ignore[assignment]  # a ComponentModule
        specs = {
            binding.artifact_name: spec
            for spec, binding in zip(artifact.spec.outputs, artifact.bindings.outputs, strict=True)
        }
        self._names = outputs
        self.outputs = tuple(
            TensorSpec(name=name, dtype="float32", shape=specs[name].shape)
            for name in outputs
            if name in specs
        )

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs with TF32 and autograd off."""
        import torch

        if self._module is None:
            raise BackendError("pytorch: got a run on a closed session. Open it again.")
        # Copies: torch can share neither memory that is read-only nor the caller's trust in it.
        arguments = [
            torch.tensor(feed[spec.name], device=self.execution.device) for spec in self.inputs
        ]
        with torch.inference_mode(), exact_arithmetic():
            try:
                results = self._module(*arguments)
            except (RuntimeError, IndexError) as error:  # IndexError: an id beyond a vocabulary
                raise BackendError(f"pytorch: could not run the module. {error}") from error
        named = dict(zip(self._names, results, strict=True))
        return {name: named[name].float().cpu().numpy() for name in outputs}

    def close(self) -> None:
        """Release the weights."""
        self._module = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pytorch:
    """PyTorch on one device.

    Attributes:
        settings: `device` is cpu, cuda or mps; `precision` fp32 unless asked otherwise, and the
            VAE stays fp32 where its config says force_upcast.
        rounded_weights: round weights to this precision before they are widened to `precision`:
            what an engine does that computes a narrow file in float32. None leaves them alone.
    """

    settings: RuntimeSettings
    rounded_weights: Precision | None = None
    name: str = "pytorch"
    formats: tuple[FormatName, ...] = ("diffusers",)

    def open(self, artifact: Artifact) -> PytorchSession:
        """Build one component and map its weights."""
        torch = _import_engine()
        from triptych.models.modules import load_lean_module, load_module

        device = self.settings.device or "cpu"
        if not _is_present(device):
            raise BackendError(
                f"pytorch: got no device {device!r}, want one of those present: "
                f"{', '.join(_devices())}."
            )
        if self.settings.cache_dir is not None:
            raise UsageError("pytorch: got --cache-dir, but it keeps no cache. Leave it out.")
        if self.settings.precision not in (None, *_DTYPES):
            raise UsageError(
                f"pytorch: got precision {self.settings.precision}, want {', '.join(_DTYPES)}."
            )
        checkpoint = artifact.checkpoint
        if checkpoint is None:
            raise BackendError(
                f"pytorch: got a {artifact.format} artifact, want a checkpoint in diffusers layout."
            )
        component = artifact.spec.name
        precision = component_precision(
            component, checkpoint.config, self.settings.precision or "fp32"
        )
        if self.settings.num_threads is not None:
            torch.set_num_threads(self.settings.num_threads)
        stored = component_precision(
            component, checkpoint.config, self.rounded_weights or precision
        )
        dtype = getattr(torch, _DTYPES[precision])
        if self.settings.low_memory and stored == precision and device == "cpu":
            module = load_lean_module(checkpoint, component, dtype=dtype)
        else:
            loaded = load_module(checkpoint, component, dtype=getattr(torch, _DTYPES[stored]))
            module = loaded.to(device, dtype)
        if device == "cpu":
            normalise_contiguous(module)
        return PytorchSession(
            module,
            artifact=artifact,
            execution=Execution(
                runtime=self.name,
                version=str(torch.__version__),
                device=device,
                precision=precision,
                details={
                    "tf32": "off",
                    "deterministic_cudnn": "on",
                    "threads": str(torch.get_num_threads()),
                    **_device_details(device),
                },
            ),
        )

    def probe(self) -> Probe:
        """Version and devices."""
        try:
            torch = _import_engine()
        except MissingDependencyError as error:
            return absent_probe(self.name, error)
        devices = _devices()
        return Probe(
            runtime=self.name,
            installed=True,
            versions={"torch": torch.__version__},
            devices=devices,
            precision={
                device: "float32, TF32 off" if device == "cuda" else "float32" for device in devices
            },
            remedy="",
        )


def normalise_contiguous(module: "torch.nn.Module") -> None:
    """Give every group norm in a module values in their plain order.

    PyTorch's kernel for channels-last values on CPUs adds up a whole group in one float32, and
    attention blocks leave such values behind. Measured with torch 2.13 on 2 x 128 channels of 512 x
    512 with mean 0.5 and deviation 1: relative L2 4.4e-5 from float64, and 5.5e-8 in plain order.
    It put the whole VAE decoder off by 4.2e-5, where a float32 check allows 1e-5.
    """
    from torch.nn import GroupNorm

    for part in module.modules():
        if isinstance(part, GroupNorm):
            part.register_forward_pre_hook(_contiguous)


def _contiguous(_: "torch.nn.Module", values: "tuple[torch.Tensor, ...]") -> "torch.Tensor":
    return values[0].contiguous()


def make_runtime(settings: RuntimeSettings) -> Pytorch:
    """PyTorch with these settings."""
    return Pytorch(settings=settings)


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Inside the block float32 means float32, and cuDNN is deterministic. Restored afterwards.

    PyTorch allows TF32 in cuDNN's convolutions by default (10 bits of mantissa, about 1e-3), and
    after `torch.set_float32_matmul_precision("medium")` bfloat16 in matrix products, on CPUs too.

    Source: PyTorch notes, numerical_accuracy and randomness; torch.backends, fp32_precision.
    """
    import torch

    cudnn = torch.backends.cudnn
    engines = attrgetter("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")
    # The older allow_tf32 cannot even be read once a caller has used fp32_precision.
    exact: list[tuple[object, str, object]] = [
        *((engine, "fp32_precision", "ieee") for engine in engines(torch.backends)),
        (cudnn, "enabled", True),
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in exact]
    try:
        for owner, name, value in exact:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _import_engine() -> ModuleType:
    return import_optional("torch", "accelerate", "diffusers", "transformers", extra="export")


def _device_details(device: str) -> dict[str, str]:
    """What the accelerator is, and what drives it."""
    import torch

    if not device.startswith("cuda"):
        return {}
    properties = torch.cuda.get_device_properties(device)
    kernels = ("flash", "mem_efficient", "cudnn", "math")
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "attention_kernels": ", ".join(
            name for name in kernels if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
        ),
    }


def _is_present(device: str) -> bool:
    """Whether PyTorch has a device, which may be one of several: cuda:1."""
    import torch

    kind, colon, index = device.partition(":")
    if kind not in _devices():
        return False
    count = torch.cuda.device_count() if kind == "cuda" else 1
    return not colon or (index.isdecimal() and int(index) < count)


def _devices() -> tuple[str, ...]:
    import torch

    present = ["cpu"]
    if torch.cuda.is_available():
        present.append("cuda")
    if torch.backends.mps.is_available():
        present.append("mps")
    return tuple(present)
