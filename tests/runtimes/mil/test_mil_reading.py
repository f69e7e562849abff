"""Packages that are damaged, incomplete, or hold what the interpreter does not know."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coremltools.converters.mil import Builder
from coremltools.proto import MIL_pb2, Model_pb2

from triptych.errors import BackendError, BundleError
from triptych.mil.weights import Weight
from triptych.runtimes._mil.interpreter import open_program, run

SaveProgram = Callable[..., Path]

FEED = {"x": np.ones((2, 64), np.float32)}
WEIGHTS = [
    np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32) for seed in range(2)
]


def two_layers(x: object) -> object:
    for weight in WEIGHTS:
        x = Builder.linear(x=x, weight=weight)
    return x


@pytest.fixture
def package(save_program: SaveProgram, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    copy = tmp_path / "layers.mlpackage"
    shutil.copytree(save_program(two_layers, FEED), copy)
    return copy


def model_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def weight_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def change(package: Path, edit: Callable[[Model_pb2.Model], None]) -> None:
    """Edit a package's protobuf in place."""
    model = Model_pb2.Model.FromString(model_file(package).read_bytes())
    edit(model)
    model_file(package).write_bytes(model.SerializeToString())


def operations(model: Model_pb2.Model) -> list[MIL_pb2.Operation]:
    function = model.mlProgram.functions["main"]
    return list(function.block_specializations[function.opset].operations)


def test_a_program_as_values(package: Path) -> None:
    program = open_program(package)
    assert (program.name, program.opset) == ("layers", 7)
    assert [spec.text() for spec in program.inputs] == ["float32 [2, 64]"]
    assert [operation.type for operation in program.operations] == ["linear", "linear"]
    assert program.outputs == program.operations[-1].outputs
    assert program.operations[0].inputs["x"] == ("x",)


def test_weights_stay_in_their_file(package: Path) -> None:
    program = open_program(package)
    weights = [each for each in program.constants.values() if isinstance(each, Weight)]
    assert len(weights) >= 2
    for weight in weights:
        assert isinstance(weight.raw, np.memmap)
        assert np.shares_memory(weight.load(), weight.raw)
        assert not weight.load().flags.writeable
    loaded = [weight.load() for weight in weights if weight.shape == (64, 64)]
    np.testing.assert_array_equal(loaded, WEIGHTS)


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"Manifest\.json: got .*No such file"):
        open_program(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rootModelIdentifier": "x"}'])
def test_a_manifest_that_names_no_model(text: str, package: Path) -> None:
    (package / "Manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"Manifest\.json: got no JSON object"):
        open_program(package)


def test_a_manifest_that_leads_outside(package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../elsewhere"
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="want one inside the package"):
        open_program(package)


def test_a_missing_model(package: Path) -> None:
    model_file(package).unlink()
    with pytest.raises(BundleError, match=r"model\.mlmodel: got .*No such file"):
        open_program(package)


def test_a_model_that_is_cut_off(package: Path) -> None:
    content = model_file(package).read_bytes()
    model_file(package).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"model\.mlmodel: got .*want a Core ML model"):
        open_program(package)


def test_another_kind_of_model(package: Path) -> None:
    change(package, lambda model: model.neuralNetwork.SetInParent())
    with pytest.raises(BundleError, match="got a model of type neuralNetwork, want an mlProgram"):
        open_program(package)


def test_images_are_refused(package: Path) -> None:
    change(package, lambda model: model.description.input[0].type.imageType.SetInParent())
    with pytest.raises(BundleError, match="got 'x' as an image"):
        open_program(package)


def test_unknown_operators_are_all_named(package: Path) -> None:
    def edit(model: Model_pb2.Model) -> None:
        steps = [step for step in operations(model) if step.type == "linear"]
        steps[0].type, steps[1].type = "lstm", "cond"

    change(package, edit)
    with pytest.raises(BundleError, match=r"cond \(used 1 times\), lstm \(used 1 times\)"):
        open_program(package)


def test_a_step_that_uses_what_comes_later(package: Path) -> None:
    def edit(model: Model_pb2.Model) -> None:
        first = next(step for step in operations(model) if step.type == "linear")
        first.inputs["x"].arguments[0].name = "nothing_of_that_name"

    change(package, edit)
    with pytest.raises(BundleError, match="nothing_of_that_name that nothing before it computes"):
        open_program(package)


def test_an_output_that_nothing_computes(package: Path) -> None:
    def edit(model: Model_pb2.Model) -> None:
        function = model.mlProgram.functions["main"]
        function.block_specializations[function.opset].outputs[0] = "lost"

    change(package, edit)
    with pytest.raises(BundleError, match="got outputs lost that nothing computes"):
        open_program(package)


def test_a_dtype_that_is_not_known(package: Path) -> None:
    def edit(model: Model_pb2.Model) -> None:
        operations(model)[-1].outputs[0].type.tensorType.dataType = MIL_pb2.FLOAT8E5M2

    change(package, edit)
    with pytest.raises(BundleError, match=r"got elements of type 41 .* want one of bool, float16"):
        open_program(package)


def test_missing_weights(package: Path) -> None:
    weight_file(package).unlink()
    with pytest.raises(BundleError, match=r"weight\.bin: got .*want the weights of the program"):
        open_program(package)


@pytest.mark.parametrize("kept_bytes", [0, 64, 100, 128, 10_000, -1])
def test_weights_that_are_cut_off(kept_bytes: int, package: Path) -> None:
    content = weight_file(package).read_bytes()
    weight_file(package).write_bytes(content[:kept_bytes])
    with pytest.raises(BundleError, match=r"weight\.bin: .*(cut off|cannot mmap an empty file)"):
        open_program(package)


def test_weights_of_another_program(package: Path, save_program: SaveProgram) -> None:
    other = save_program(
        lambda x: Builder.linear(x=x, weight=np.ones((32, 64), np.float32) * WEIGHTS[0][:32]), FEED
    )
    shutil.copy(weight_file(other), weight_file(package))
    with pytest.raises(BundleError, match=r"weight\.bin: .*of another program"):
        open_program(package)


def test_a_damaged_record(package: Path) -> None:
    content = bytearray(weight_file(package).read_bytes())
    content[64:68] = bytes(4)
    weight_file(package).write_bytes(content)
    with pytest.raises(BundleError, match="got 0x0, want a record's mark 0xdeadbeef"):
        open_program(package)


def test_a_weight_file_outside_the_package(package: Path) -> None:
    def edit(model: Model_pb2.Model) -> None:
        for step in operations(model):
            value = step.attributes["val"] if step.type == "const" else MIL_pb2.Value()
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = "@model_path/../../../secret"

    change(package, edit)
    with pytest.raises(BundleError, match="Do not trust this package"):
        open_program(package)


def test_values_written_in_place(package: Path) -> None:
    """Programs by other writers may bind a value where coremltools names a constant."""

    def edit(model: Model_pb2.Model) -> None:
        constants = {
            step.outputs[0].name: step.attributes["val"]
            for step in operations(model)
            if step.type == "const"
        }
        for step in operations(model):
            for parameter, argument in step.inputs.items():
                name = argument.arguments[0].name
                if name in constants and parameter != "x":
                    argument.arguments[0].value.CopyFrom(constants[name])

    (before,) = run(open_program(package), FEED).values()
    change(package, edit)
    (after,) = run(open_program(package), FEED).values()
    np.testing.assert_array_equal(after, before)


def test_a_shape_that_contradicts_the_program(package: Path) -> None:
    def edit(model: Model_pb2.Model) -> None:
        dimension = operations(model)[-1].outputs[0].type.tensorType.dimensions[0]
        dimension.constant.size = 3

    change(package, edit)
    with pytest.raises(BackendError, match=r"of \[2, 64\], want float32 \[3, 64\] as the program"):
        run(open_program(package), FEED)
