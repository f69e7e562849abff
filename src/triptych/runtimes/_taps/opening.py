"""Which engines can be looked into, and opening one of them so."""

from triptych.bundle.bundle import Artifact
from triptych.errors import UsageError
from triptych.runtimes._taps.base import Tapper
from triptych.runtimes._taps.coreml_reference import CoreMlReferenceTapper
from triptych.runtimes._taps.onnxruntime import OnnxRuntimeTapper
from triptych.runtimes._taps.openvino import OpenVinoTapper
from triptych.runtimes.base import Runtime
from triptych.runtimes.coreml_reference import CoreMlReference
from triptych.runtimes.onnxruntime import OnnxRuntime
from triptych.runtimes.openvino import OpenVino

TAPPED_RUNTIMES = ("onnxruntime", "openvino", "coreml-reference")
"""The engines with a tapper, by name."""


def open_tapper(runtime: Runtime, artifact: Artifact) -> Tapper:
    """A component in an engine, with every value of its graph within reach.

    Raises:
        UsageError: the engine shows nothing of its inside.
        BundleError: the engine cannot read the artifact.
        MissingDependencyError: the engine is not installed.
    """
    match runtime:
        case OnnxRuntime():
            return OnnxRuntimeTapper(runtime, artifact)
        case OpenVino():
            return OpenVinoTapper(runtime, artifact)
        case CoreMlReference():
            return CoreMlReferenceTapper(runtime, artifact)
        case _:
            raise UsageError(
                f"runtime: got {runtime.name}, which shows nothing of its inside, want one of "
                f"{', '.join(TAPPED_RUNTIMES)}."
            )
