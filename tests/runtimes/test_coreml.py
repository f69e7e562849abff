"""Core ML's runtime over a stand-in for coremltools that interprets instead of predicting.

The stand-in is as strict as coremltools 9.0 on a Mac: arrays must be writeable and may not be
float16, MLModel knows its inputs' names, and results are float32 in memory of its own, which it
uses again. What Core ML itself computes, only a Mac can tell: the contract test runs there.
"""

import gc
import platform
import shutil
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import coremltools
import numpy as np
import pytest
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Function, Program, Var, types
from typing_extensions import override

from triptych.bundle.bundle import Artifact, make_artifact, open_bundle
from triptych.bundle.manifest import ComponentRecord, TensorRecord
from triptych.errors import BackendError, BundleError, UsageError
from triptych.exporters.base import ExportSettings
from triptych.models.sdxl import read_sdxl_config
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes._mil.interpreter import open_program, run
from triptych.runtimes.base import RuntimeSettings, Session
from triptych.testing import check_runtime
from triptych.types import ComponentName
from triptych.workflows.export import ExportRequest, export_bundles

UNITS = ("all", "cpu_and_gpu", "cpu_only", "cpu_and_ne")
WHOLE = "Stable_Diffusion_version_tiny_unet.mlpackage"
CHUNKS = tuple(f"Stable_Diffusion_version_tiny_unet_chunk{number}.mlpackage" for number in (1, 2))
FEED: dict[str, np.ndarray] = {
    "x": np.arange(6, dtype=np.float16).reshape(2, 3) / 4,
    "y": np.full((2, 3), 0.5, np.float32),
}


@dataclass
class Mac:
    """What the stand-in was asked for, and how it is to fail.

    Attributes:
        loaded: each model's file and compute units.
        lent: for each prediction, the arrays it was fed.
        refusal: why no package loads; "" where they do.
        is_too_old: programs are newer than the system.
        fault: why no prediction succeeds; "" where they do.
    """

    loaded: list[tuple[str, str]] = field(default_factory=list)
    lent: list[dict[str, "weakref.ref[np.ndarray]"]] = field(default_factory=list)
    refusal: str = ""
    is_too_old: bool = False
    fault: str = ""

    def load(self, path: str, units: object) -> None:
        assert isinstance(units, coremltools.ComputeUnit)
        self.loaded.append((Path(path).name, units.name))

    def predict(self, package: Path, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.fault:
            raise RuntimeError(self.fault)
        if any(not array.flags.writeable or array.dtype == np.float16 for array in data.values()):
            raise RuntimeError("value type not convertible")
        self.lent.append({name: weakref.ref(array) for name, array in data.items()})
        return run(open_program(package), data, mode="declared")


class StandIn:
    """What both kinds of model do."""

    def __init__(self, mac: Mac, package: Path) -> None:
        self.mac = mac
        self.package = package
        self.memory: dict[str, np.ndarray] = {}

    def predict(self, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self.mac.predict(self.package, data)
        for name, value in results.items():
            # Rows are padded, as Core ML pads them.
            wide = (*value.shape[:-1], value.shape[-1] + 1)
            self.memory.setdefault(name, np.empty(wide, np.float32))[..., :-1] = value
        return {name: self.memory[name][..., :-1] for name in results}


def input_names(package: Path) -> set[str]:
    return {spec.name for spec in open_program(package).inputs}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Mac:
    """A Mac, as far as the runtime can see."""
    mac = Mac()

    class MLModel(StandIn):
        def __init__(self, path: str, *, compute_units: object) -> None:
            super().__init__(mac, Path(path))
            mac.load(path, compute_units)
            if mac.refusal:
                reason = f"predict() on this Core ML model. Underlying exception: {mac.refusal}"
                warnings.warn(f"You will not be able to run {reason}", RuntimeWarning, stacklevel=1)

        def get_compiled_model_path(self) -> str:
            if mac.is_too_old:
                raise ValueError("This model was not loaded or compiled.")
            return "a temporary folder"

        @override
        def predict(self, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            if unknown := data.keys() - input_names(self.package):
                raise KeyError(f"Provided key {unknown} does not match")
            return super().predict(data)

    class CompiledMLModel(StandIn):
        def __init__(self, path: str, *, compute_units: object) -> None:
            super().__init__(mac, Path(path) / "source.mlpackage")
            mac.load(path, compute_units)

        @override
        def predict(self, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return super().predict({name: data[name] for name in input_names(self.package)})

    engine = ModuleType("coremltools")
    engine.__dict__.update(
        __version__="9.0",
        ComputeUnit=coremltools.ComputeUnit,
        models=SimpleNamespace(MLModel=MLModel, CompiledMLModel=CompiledMLModel),
    )
    monkeypatch.setitem(sys.modules, "coremltools", engine)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    return mac


def save(body: Callable[..., list[Var]], package: Path, **inputs: object) -> None:
    """Write `body(**inputs)` as a package; each input is [2, 3] of a dtype."""
    placeholders = {
        name: Builder.placeholder(shape=(2, 3), dtype=dtype) for name, dtype in inputs.items()
    }
    program = Program()
    with Function(placeholders, opset_version=coremltools.target.iOS16) as function:
        function.set_outputs(body(**function.inputs))
    program.add_function("main", function)
    with warnings.catch_warnings():
        # Its temporary folder is left to the garbage collector.
        warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)
        coremltools.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT32,
            pass_pipeline=coremltools.PassPipeline.EMPTY,
            skip_model_load=True,
            package_dir=str(package),
        )


def first_chunk(x: Var, y: Var) -> list[Var]:
    return [Builder.mul(x=x, y=Builder.cast(x=y, dtype="fp16"), name="between")]


def second_chunk(x: Var, between: Var) -> list[Var]:
    return [Builder.sub(x=x, y=between, name="noise_pred")]


def whole(x: Var, y: Var) -> list[Var]:
    exact = Builder.add(x=Builder.cast(x=x, dtype="fp32"), y=y, name="exact")
    return [Builder.cast(x=exact, dtype="fp16", name="noise_pred"), exact]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network and, of another, both chunks. Read only: copy what is to change."""
    folder = tmp_path_factory.mktemp("packages")
    save(whole, folder / WHOLE, x=types.fp16, y=types.fp32)
    save(first_chunk, folder / CHUNKS[0], x=types.fp16, y=types.fp32)
    save(second_chunk, folder / CHUNKS[1], x=types.fp16, between=types.fp16)
    return folder


@pytest.fixture
def folder(packages: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packages, tmp_path / "bundle"))


@pytest.fixture
def make(folder: Path, checkpoint: Path) -> Callable[..., Artifact]:
    """An artifact of these packages. Its spec matters to CheckedSession only."""

    def make(*names: str, component: ComponentName = "unet") -> Artifact:
        return make_artifact(
            component,
            read_sdxl_config(checkpoint),
            paths=tuple(folder / name for name in names or (WHOLE,)),
            artifact_format="coreml",
        )

    return make


def open_coreml(artifact: Artifact, **settings: object) -> Session:
    return make_runtime("coreml", RuntimeSettings(**settings)).open(artifact)  # type: ignore[arg-type]


def compile_to(package: Path, compiled: Path) -> None:
    """What coremlcompiler would do, for the stand-in."""
    shutil.copytree(package, compiled / "source.mlpackage")


def test_another_system_is_told_of_the_interpreter(make: Callable[..., Artifact]) -> None:
    if platform.system() == "Darwin":
        pytest.skip("this is a Mac")
    message = (
        f"coreml: runs on macOS only, this is {platform.system()}. Use --runtime coreml-reference, "
        "which interprets the program anywhere."
    )
    with pytest.raises(BackendError) as caught:
        open_coreml(make())
    assert str(caught.value) == message
    probe = make_runtime("coreml").probe()
    assert (probe.installed, probe.remedy, probe.devices) == (False, message, ())
    assert "coreml" in runtimes_for("coreml")


def test_a_mac_without_coremltools_is_told_what_to_install(
    mac: Mac,  # noqa: ARG001
    make: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(BackendError, match=r"pip install 'triptych\[coreml\]'"):
        open_coreml(make())
    probe = make_runtime("coreml").probe()
    assert not probe.installed
    assert "pip install" in probe.remedy


@pytest.mark.usefixtures("mac")
def test_a_mac_has_compute_units() -> None:
    probe = make_runtime("coreml").probe()
    assert probe.installed
    assert probe.versions == {"coremltools": "9.0"}
    assert probe.devices == UNITS
    assert probe.precision.keys() == set(UNITS)


@pytest.mark.parametrize("units", UNITS)
def test_compute_units_reach_core_ml(units: str, mac: Mac, make: Callable[..., Artifact]) -> None:
    session = open_coreml(make(), device=units)
    assert mac.loaded == [(WHOLE, units.upper())]
    assert session.execution.device == units
    assert session.execution.details["compute_units"] == units


def test_every_unit_is_used_unless_told_otherwise(mac: Mac, make: Callable[..., Artifact]) -> None:
    execution = open_coreml(make()).execution
    assert mac.loaded == [(WHOLE, "ALL")]
    assert (execution.runtime, execution.version, execution.precision) == ("coreml", "9.0", "fp16")
    assert execution.declared_precision is None
    assert execution.details == {
        "macos": "15.5",
        "compute_units": "all",
        "loaded": f"{WHOLE} (compiled when opened)",
    }


def test_unknown_units_are_refused_with_all_known_ones(
    mac: Mac, make: Callable[..., Artifact]
) -> None:
    with pytest.raises(BackendError, match="want one of all, cpu_and_gpu, cpu_only, cpu_and_ne"):
        open_coreml(make(), device="ALL")
    assert not mac.loaded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp32"}, "got --precision fp32, .* exported in: fp16"),
        ({"cache_dir": Path("cache")}, "got --cache-dir"),
        ({"num_threads": 2}, "got 2 threads"),
    ],
)
def test_settings_that_core_ml_does_not_have_are_refused(
    settings: dict[str, object], message: str, mac: Mac, make: Callable[..., Artifact]
) -> None:
    with pytest.raises(UsageError, match=message):
        open_coreml(make(), **settings)
    assert not mac.loaded


@pytest.mark.usefixtures("mac")
def test_the_declared_precision_may_be_asked_for(make: Callable[..., Artifact]) -> None:
    assert open_coreml(make(), precision="fp16").execution.precision == "fp16"


@pytest.mark.usefixtures("mac")
def test_ports_are_the_programs(make: Callable[..., Artifact]) -> None:
    session = open_coreml(make())
    assert [spec.text() for spec in session.inputs] == ["float16 [2, 3]", "float32 [2, 3]"]
    assert [spec.name for spec in session.inputs] == ["x", "y"]
    assert [(spec.name, spec.text()) for spec in session.outputs] == [
        ("noise_pred", "float16 [2, 3]"),
        ("exact", "float32 [2, 3]"),
    ]


@pytest.mark.usefixtures("mac")
def test_results_have_the_declared_dtype_and_memory_of_their_own(
    make: Callable[..., Artifact],
) -> None:
    session = open_coreml(make())
    feed = {name: value.copy() for name, value in FEED.items()}
    for value in feed.values():
        value.flags.writeable = False
    names = ("noise_pred", "exact")
    first = session.run(feed, names)
    kept = {name: value.copy() for name, value in first.items()}
    expected = FEED["x"] + FEED["y"]
    for name, dtype in zip(names, (np.float16, np.float32), strict=True):
        np.testing.assert_array_equal(first[name], expected.astype(dtype))
        assert first[name].dtype == dtype
        assert first[name].flags.c_contiguous
    session.run({name: value + 1 for name, value in FEED.items()}, names)
    for name in names:
        np.testing.assert_array_equal(first[name], kept[name])


def test_arrays_lent_to_core_ml_are_never_let_go(mac: Mac, make: Callable[..., Artifact]) -> None:
    """Regression: Python crashes where Core ML holds the last reference, coremltools #2827."""
    session = open_coreml(make())
    session.run(FEED, ("noise_pred",))
    session.run(FEED, ("noise_pred",))
    first, second = mac.lent
    assert all(first[name]() is second[name]() for name in FEED)
    assert not any(np.shares_memory(first[name](), FEED[name]) for name in FEED)
    session.close()
    del session
    gc.collect()
    assert all(array() is not None for array in first.values())


@pytest.mark.parametrize("compiled", [(), (0,), (1,), (0, 1)])
def test_the_second_chunk_is_fed_what_the_first_computed(
    compiled: Sequence[int], mac: Mac, make: Callable[..., Artifact], folder: Path
) -> None:
    for index in compiled:
        name = f"UnetChunk{index + 1}.mlmodelc"
        compile_to(folder / CHUNKS[index], folder / "Resources" / name)
    session = open_coreml(make(*CHUNKS))
    # What the first gives, nobody need feed; what it takes, the second's package does not know.
    assert [spec.name for spec in session.inputs] == ["x", "y"]
    result = session.run(FEED, ("noise_pred",))["noise_pred"]
    np.testing.assert_array_equal(result, FEED["x"] / 2)
    names = [
        f"UnetChunk{index + 1}.mlmodelc" if index in compiled else CHUNKS[index]
        for index in range(2)
    ]
    assert [name for name, _ in mac.loaded] == names
    for index, text in enumerate(session.execution.details["loaded"].split(", ")):
        assert ("compiled beforehand" in text) == (index in compiled)


@pytest.mark.parametrize(
    ("submodule", "component", "compiled"),
    [
        ("text_encoder", "text_encoder", "Resources/TextEncoder.mlmodelc"),
        ("text_encoder_2", "text_encoder_2", "Resources/TextEncoder2.mlmodelc"),
        ("unet", "unet", "Resources/Unet.mlmodelc"),
        ("refiner", "unet", "Resources/UnetRefiner.mlmodelc"),
        ("vae_encoder", "vae_encoder", "Resources/VAEEncoder.mlmodelc"),
        ("vae_decoder", "vae_decoder", "Resources/VAEDecoder.mlmodelc"),
        ("unet", "unet", "version_a_refiner_1.0_unet.mlmodelc"),
        ("refiner", "unet", "version_a_refiner_1.0_refiner.mlmodelc"),
    ],
)
def test_compiled_models_are_found_where_apple_puts_them_or_beside_the_package(
    submodule: str,
    component: ComponentName,
    compiled: str,
    mac: Mac,
    make: Callable[..., Artifact],
    folder: Path,
) -> None:
    name = f"version_a_refiner_1.0_{submodule}.mlpackage"
    (folder / WHOLE).rename(folder / name)
    compile_to(folder / name, folder / compiled)
    # Neither is of this component, unless it is the one above.
    for other in ("Resources/TextEncoder2.mlmodelc", "Resources/UnetChunk1.mlmodelc"):
        (folder / other).mkdir(parents=True, exist_ok=True)
    session = open_coreml(make(name, component=component))
    assert [file for file, _ in mac.loaded] == [Path(compiled).name]
    assert session.execution.details["loaded"].endswith("(compiled beforehand)")
    np.testing.assert_array_equal(
        session.run(FEED, ("noise_pred",))["noise_pred"], (FEED["x"] + 0.5).astype(np.float16)
    )


def test_a_refiners_chunks_are_found(mac: Mac, make: Callable[..., Artifact], folder: Path) -> None:
    names = [name.replace("_unet_", "_refiner_") for name in CHUNKS]
    for number, (old, new) in enumerate(zip(CHUNKS, names, strict=True), start=1):
        (folder / old).rename(folder / new)
        compile_to(folder / new, folder / "Resources" / f"UnetRefinerChunk{number}.mlmodelc")
    open_coreml(make(*names))
    assert [name for name, _ in mac.loaded] == [
        "UnetRefinerChunk1.mlmodelc",
        "UnetRefinerChunk2.mlmodelc",
    ]


def test_without_its_package_a_compiled_model_is_described_by_the_manifest(
    mac: Mac, make: Callable[..., Artifact], folder: Path
) -> None:
    compile_to(folder / WHOLE, folder / "Resources" / "Unet.mlmodelc")
    shutil.rmtree(folder / WHOLE)
    with pytest.raises(BundleError, match="got no such package and no manifest"):
        open_coreml(make())
    record = ComponentRecord(
        name="unet",
        file=WHOLE,
        precision="fp16",
        inputs=tuple(
            TensorRecord(name=None, artifact_name=name, dtype=str(value.dtype), shape=(2, 3))
            for name, value in FEED.items()
        ),
        outputs=(
            TensorRecord(name=None, artifact_name="noise_pred", dtype="float16", shape=(2, 3)),
        ),
        num_parameters=0,
        weight_dtypes={},
        opset=None,
        source_sha256={},
        verification=(),
    )
    session = open_coreml(replace(make(), record=record))
    assert mac.loaded == [("Unet.mlmodelc", "ALL")]
    assert [spec.text() for spec in session.inputs] == ["float16 [2, 3]", "float32 [2, 3]"]
    result = session.run(FEED, ("noise_pred",))["noise_pred"]
    np.testing.assert_array_equal(result, (FEED["x"] + 0.5).astype(np.float16))


def test_a_compiled_model_of_another_network_is_noticed(
    mac: Mac, make: Callable[..., Artifact], folder: Path
) -> None:
    compile_to(folder / CHUNKS[0], folder / "Resources" / "Unet.mlmodelc")
    session = open_coreml(make())
    with pytest.raises(BackendError, match=r"got between computed, want noise_pred\. .* again"):
        session.run(FEED, ("noise_pred",))
    assert len(mac.lent) == 1


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"refusal": "ANECCompile() FAILED"}, "could not load it on all.*ANECCompile"),
        ({"is_too_old": True}, "could not load it on all.*not loaded or compiled"),
    ],
)
def test_a_package_that_core_ml_refuses_is_an_error_when_it_is_opened(
    faults: dict[str, object], message: str, mac: Mac, make: Callable[..., Artifact]
) -> None:
    for name, value in faults.items():
        setattr(mac, name, value)
    with pytest.raises(BackendError, match=message):
        open_coreml(make())


def test_a_failed_prediction_says_why(mac: Mac, make: Callable[..., Artifact]) -> None:
    session = open_coreml(make())
    mac.fault = "Error computing NN outputs."
    with pytest.raises(BackendError, match=r"could not run the model\. Error computing NN outputs"):
        session.run(FEED, ("noise_pred",))


@pytest.mark.usefixtures("mac")
def test_a_closed_session_is_closed(make: Callable[..., Artifact]) -> None:
    session = open_coreml(make())
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed session"):
        session.run(FEED, ("noise_pred",))


@pytest.fixture(scope="module")
def bundle_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two components of the tiny checkpoint in float16."""
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path_factory.mktemp("bundles"),
        formats=["coreml"],
        components=["text_encoder", "vae_decoder"],
        settings=ExportSettings(precision="fp16"),
        num_jobs=1,
    )
    return export_bundles(request)["coreml"]


@pytest.mark.slow
@pytest.mark.usefixtures("mac")
def test_the_runtime_keeps_the_contract_over_a_strict_engine(bundle_folder: Path) -> None:
    check_runtime(make_runtime("coreml"), open_bundle(bundle_folder))
