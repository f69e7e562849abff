"""Every guide in docs/how-to is followed from its first block to its last, and keeps its promises.

A command ends with exit code 0, or with the one that a comment behind it names. A Python block that
begins with a file's name becomes that file; any other is run.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import TypeAlias

import numpy as np
import onnx
import pytest
import torch
import typer
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.core import TyperGroup

import triptych.runtimes
from triptych.bundle import apple
from triptych.cli.app import app
from triptych.testing import write_single_file
from triptych.workflows.export import ExportRequest, export_bundles

GUIDES = Path(__file__).parents[2] / "docs" / "how-to"
PAGES = sorted(page.name for page in GUIDES.glob("*.md"))
ONLY_AN_ENGINE = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
sys.modules.update(dict.fromkeys(("torch", "diffusers", "transformers")))
from triptych.cli.app import main
for line in sys.stdin:
    sys.argv = ["triptych", *json.loads(line)]
    with redirect_stdout(StringIO()) as stdout, redirect_stderr(StringIO()) as stderr:
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, stdout.getvalue(), stderr.getvalue()]), flush=True)
"""

Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
BuiltOnce: TypeAlias = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def golden(triptych: Cli, checkpoint: Path, built_once: BuiltOnce) -> Path:
    """A recording with floors."""

    def build(folder: Path) -> None:
        run = ("--num-inference-steps", "2", "--profile", "full")
        done = triptych("record", checkpoint, folder / "golden", *run)
        assert done.returncode == 0, done.stderr

    return built_once("how-to-golden", build) / "golden"


@pytest.fixture(scope="session")
def small_folder(checkpoint: Path, built_once: BuiltOnce) -> Path:
    """A bundle that can draw what was encoded elsewhere, and nothing more."""

    def build(folder: Path) -> None:
        request = ExportRequest(
            checkpoint=checkpoint,
            output=folder,
            formats=["onnx"],
            components=["unet", "vae_decoder"],
            num_jobs=1,
        )
        export_bundles(request)

    return built_once("how-to-small", build) / "onnx"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder where a reader works; what Python imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(triptych.runtimes, "__path__", list(triptych.runtimes.__path__))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def without_torch(desk: Path) -> Iterator[Cli]:
    """The command on a machine where only engines are installed."""
    with subprocess.Popen(
        [sys.executable, "-c", ONLY_AN_ENGINE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=desk,
    ) as process:
        typed, printed = process.stdin, process.stdout
        assert typed is not None
        assert printed is not None

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            typed.write(json.dumps(arguments) + "\n")
            typed.flush()
            code, stdout, stderr = json.loads(printed.readline())
            return subprocess.CompletedProcess(arguments, code, stdout=stdout, stderr=stderr)

        yield run


def blocks(page: str) -> list[tuple[str, str]]:
    """Languages and texts of a page's fences, in order."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [(language, dedent(body)) for _, language, body in found]


def follow(page: str, run: Cli) -> Iterator[tuple[str, str]]:
    """Run a guide; after each command or script, what it was and what it printed."""
    for language, body in blocks(page):
        if language == "bash":
            for line in filter(None, body.splitlines()):
                yield line, _commanded(line, run)
        elif language == "python" and (named := re.match(r"# (\S+\.py)\n", body)):
            path = Path(named[1])
            path.parent.mkdir(exist_ok=True)
            path.write_text(body, encoding="utf-8")
        elif language == "python":
            with redirect_stdout(StringIO()) as printed:
                exec(compile(body, page, "exec"), {})  # noqa: S102  a guide's own
            yield body, printed.getvalue()


def _commanded(line: str, run: Cli) -> str:
    name, *arguments = shlex.split(line, comments=True)
    assert name == "triptych"
    wanted = re.search(r"# exit (\d)$", line)
    done = run(*arguments)
    assert done.returncode == int(wanted[1] if wanted else 0), f"{line}: {done.stderr}"
    return done.stdout + done.stderr


def link(**targets: Path) -> None:
    """Put shared folders where the guides have them."""
    for name, target in targets.items():
        path = Path(name.replace("__", "/"))
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)


def printed_by(command: str, ran: dict[str, str]) -> str:
    """What the only command that begins so has printed."""
    [printed] = [text for line, text in ran.items() if line.startswith(command)]
    return printed


@pytest.mark.slow
def test_a_checkpoint_is_exported(triptych: Cli, checkpoint: Path, desk: Path) -> None:
    link(CHECKPOINT=checkpoint)
    write_single_file(checkpoint, desk / "model.safetensors")
    layer = "unet.mid_block.attentions.0.proj_in"
    shapes = {"A": (2, 32), "B": (32, 2)}
    factors = {f"{layer}.lora_{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    save_file(factors, desk / "ink.safetensors")
    ran = dict(follow("export-my-checkpoint.md", triptych))
    assert "ink.safetensors" in printed_by("triptych inspect MINE", ran)
    assert "exported as fp16" in printed_by("triptych inspect OUT/onnx", ran)
    assert "passed: " in printed_by("triptych check OUT/openvino", ran)
    for name in ("triptych.json", "unet/model.onnx", "tokenizer_2", "model_index.json"):
        assert (desk / "OUT" / "onnx" / name).exists()
    assert (desk / "OUT" / "openvino" / "unet" / "openvino_model.bin").is_file()
    assert (desk / "cat" / "final.png").is_file()


@pytest.mark.slow
def test_packages_for_a_mac_are_exported_and_checked(
    triptych: Cli, checkpoint: Path, coreml_folder: Path, golden: Path, desk: Path
) -> None:
    link(CHECKPOINT=checkpoint, OUT__coreml=coreml_folder, GOLDEN=golden)
    ran = dict(follow("deploy-to-a-mac-with-swift.md", triptych))
    checked = printed_by("triptych check OUT/coreml", ran)
    assert "coreml-reference" in checked
    assert re.search(r"^ *contract .*PASSED$", checked, re.MULTILINE)
    assert list((desk / "TRIAL" / "coreml").glob("*_text_encoder.mlpackage"))
    assert "unet: not in this folder" in printed_by("triptych inspect TRIAL", ran)
    page = (GUIDES / "deploy-to-a-mac-with-swift.md").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"\b([a-z_]+(?:_\d|_chunk\d)?):([A-Z]\w+)\b", page))
    assert {"text_encoder_2", "unet_chunk1", "refiner", "vae_decoder"} < set(pairs)
    for name, compiled in pairs.items():
        submodule, _, chunk = name.partition("_chunk")
        assert f"{compiled}.mlmodelc" == apple.compiled_name(
            submodule, chunk=int(chunk) if chunk else None
        )
        if not chunk and name != "refiner":
            assert len(list(coreml_folder.glob(f"*_{name}.mlpackage"))) == 1


@pytest.mark.slow
def test_a_machine_without_torch_draws(
    onnx_folder: Path, small_folder: Path, golden: Path, desk: Path, without_torch: Cli
) -> None:
    link(OUT__onnx=onnx_folder, SMALL__onnx=small_folder, GOLDEN=golden)
    ran = dict(follow("cpu-only-edge-box.md", without_torch))
    assert re.search(r"pytorch\W+not installed", printed_by("triptych doctor", ran))
    assert "passed: " in printed_by("triptych check", ran)
    assert "cold start" in printed_by("triptych bench", ran)
    for name in ("cat", "tiled", "low", "split", "unguided", "small"):
        assert (desk / name / "final.png").is_file()


@pytest.mark.slow
def test_a_golden_is_checked_against_without_torch(
    onnx_folder: Path, golden: Path, desk: Path, without_torch: Cli
) -> None:
    link(OUT__onnx=onnx_folder, GOLDEN=golden)
    ran = dict(follow("cuda-goldens.md", without_torch))
    assert "passed: " in printed_by("triptych check OUT/onnx --reference GOLDEN --json", ran)
    assert {path.name for path in desk.iterdir()} > {"report.json", "report.html", "budget.json"}


@pytest.mark.slow
def test_a_changed_weight_is_found(
    triptych: Cli, checkpoint: Path, onnx_folder: Path, golden: Path, desk: Path
) -> None:
    link(CHECKPOINT=checkpoint, GOLDEN=golden)
    shutil.copytree(onnx_folder, desk / "OUT" / "onnx")
    good = triptych("check", "OUT/onnx", "--reference", "GOLDEN", "--json", "good.json")
    assert good.returncode == 0, good.stderr
    weight = _change_a_weight(desk / "OUT" / "onnx")
    ran = dict(follow("why-outputs-differ.md", triptych))
    checked = printed_by("triptych check", ran).splitlines()
    failed = {
        line.split()[1]
        for line in checked
        if line.split()[:1] == ["component"] and "FAILED" in line
    }
    assert failed == {"text_encoder_2"}
    assert "text_encoder_2" in printed_by("triptych compare", ran)
    assert "carried by text_encoder_2" in printed_by("triptych bisect", ran)
    assert f"{weight} differs from the checkpoint" in printed_by("triptych locate", ran)


def _change_a_weight(bundle: Path) -> str:
    """Change one of the second text encoder's, as an exporter's bug would, and give its name."""
    (bundle / "triptych.json").unlink()  # it has the file's hash
    path = bundle / "text_encoder_2" / "model.onnx"
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.name.endswith("0.mlp.fc1.bias"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[7] += 2
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    return str(weight.name)


@pytest.mark.slow
def test_callbacks_steer_a_run(triptych: Cli, onnx_folder: Path, desk: Path) -> None:
    link(OUT__onnx=onnx_folder)
    ran = dict(follow("write-a-callback.md", triptych))
    for name in ("centred", "both"):
        latents = load_file(desk / name / "latents.safetensors")["final"]
        assert np.abs(latents.mean(axis=(2, 3))).max() < 1e-5
    centred, both = (
        load_file(desk / name / "latents.safetensors")["final"] for name in ("centred", "both")
    )
    assert not np.array_equal(centred, both)
    assert "callback" not in (desk / "both" / "run.json").read_text(encoding="utf-8")
    [stopped] = [text for block, text in ran.items() if block.startswith("from pathlib")]
    assert len(stopped.splitlines()) == 2


@pytest.mark.slow
def test_a_dataset_is_made_and_made_whole_again(
    triptych: Cli, onnx_folder: Path, desk: Path
) -> None:
    link(OUT__onnx=onnx_folder)
    [prompts] = [body for language, body in blocks("generate-a-dataset.md") if language == "json"]
    (desk / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    picture = desk / "dataset" / "proxy_images_sdxl_step8" / "combined" / "combined_cat_1.jpg"
    made: list[bytes] = []
    parts: set[str] = set()
    for command, printed in follow("generate-a-dataset.md", triptych):
        if "--dry-run" in command:
            assert not picture.exists()
        elif command.endswith("--save-steps 1,4,8"):
            made.append(picture.read_bytes())
            picture.unlink()
        elif command.endswith("--shard 1/2"):
            parts = {path.name for path in (desk / "parts").rglob("*.jpg")}
        elif "exit 2" in command:
            assert "guidance_scale: got 5, want 7.5" in printed
    assert len(made) == 2
    assert made[0] == made[1]
    assert parts == {"combined_cat_0.jpg", "combined_cat_1.jpg", "combined_dog_0.jpg"}
    ledger = next((desk / "dataset" / "ledger").glob("*.jsonl"))
    line = json.loads(ledger.read_text(encoding="utf-8").splitlines()[0])
    assert set(line) >= {"id", "prompt", "seed", "step", "sha256", "seconds"}
    assert not list((desk / "parts").glob("proxy*"))


@pytest.mark.slow
def test_a_runtime_from_elsewhere_keeps_the_contract(
    triptych: Cli, onnx_folder: Path, golden: Path, desk: Path
) -> None:
    link(OUT__onnx=onnx_folder, GOLDEN=golden)
    arguments = ("--runtime", "reference-evaluator", "--prompt", "a cat", "--output", "cat")
    refused = triptych("sample", "OUT/onnx", *arguments)
    assert refused.returncode == 2
    assert "onnxruntime, openvino" in refused.stderr
    [used, registered] = [text for _, text in follow("add-a-runtime.md", triptych)]
    assert "passed" in used
    assert "failed" not in used
    assert not registered
    [line] = [
        line
        for language, body in blocks("add-a-runtime.md")
        if language == "sh"
        for line in body.splitlines()
        if " sample " in line
    ]
    done = subprocess.run(
        [sys.executable, *shlex.split(line)[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run = json.loads((desk / "cat" / "run.json").read_text(encoding="utf-8"))
    assert run["runtime"]["name"] == "reference-evaluator"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    """Those too that a test cannot run: for other machines, or within a sentence."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    typed = "".join(body for language, body in blocks(page) if language in ("bash", "sh"))
    lines = re.findall(r"^ *(?:python my_)?(triptych.*)", typed, re.MULTILINE)
    lines += re.findall(r"`(triptych [^`]+)`", text)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for line in lines:
        name, *words = shlex.split(line, comments=True)[1:]
        command = group.commands[name]
        known = {word for option in command.params for word in option.opts + option.secondary_opts}
        given = {word for word in words if word.startswith("--")}
        assert given <= known, f"{line}: {given - known}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (GUIDES / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https:)([^)#]+)\)", text)
    assert all((GUIDES / target).exists() for target in links)
    if page == "README.md":
        assert set(links) == set(PAGES) - {"README.md"}
