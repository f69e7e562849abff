import sys
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch

from triptych.bundle.bundle import Bundle
from triptych.errors import BackendError, MissingDependencyError
from triptych.models.feeds import unet_feed
from triptych.models.sdxl import COMPONENTS
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.runtimes.checked import open_session
from triptych.runtimes.pytorch import PytorchSession, exact_arithmetic, normalise_contiguous
from triptych.types import Array, ComponentName, Precision

IDS = np.arange(77, dtype=np.int64).reshape(1, 77)

PRECISIONS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")


def engine(**settings: object) -> Runtime:
    return make_runtime("pytorch", RuntimeSettings(**settings))  # type: ignore[arg-type]


# float32 is float32


def switches() -> dict[str, object]:
    cudnn = torch.backends.cudnn
    return {
        **{name: attrgetter(name)(torch.backends).fp32_precision for name in PRECISIONS},
        "enabled": cudnn.enabled,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
    }


def set_precision(name: str, value: str) -> None:
    attrgetter(name)(torch.backends).fp32_precision = value


@pytest.fixture(params=["untouched", "medium", "high", "allow_tf32", "fp32_precision", "benchmark"])
def callers_switches(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """What a caller may have set before, by PyTorch's older and newer names."""
    before = switches()
    match request.param:
        case "medium" | "high":
            torch.set_float32_matmul_precision(request.param)
        case "allow_tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        case "fp32_precision":
            set_precision("cuda.matmul", "tf32")
            set_precision("mkldnn.matmul", "bf16")
            set_precision("cudnn.conv", "ieee")
        case "benchmark":
            torch.backends.cudnn.benchmark = True
        case _:
            pass
    yield switches()
    torch.set_float32_matmul_precision("highest")
    for name in PRECISIONS:
        set_precision(name, str(before[name]))
    torch.backends.cudnn.benchmark = bool(before["benchmark"])


EXACT = {
    **dict.fromkeys(PRECISIONS, "ieee"),
    "enabled": True,
    "benchmark": False,
    "deterministic": True,
}


def test_inside_the_block_nothing_is_rounded_and_after_it_all_is_as_before(
    callers_switches: dict[str, object],
) -> None:
    with exact_arithmetic():
        assert switches() == EXACT
    assert switches() == callers_switches


def test_an_error_in_the_block_restores_too(callers_switches: dict[str, object]) -> None:
    with pytest.raises(KeyError), exact_arithmetic():
        raise KeyError
    assert switches() == callers_switches


def test_a_run_restores_the_switches_and_heeds_none_of_them(
    callers_switches: dict[str, object], checkpoint_bundle: Bundle
) -> None:
    with open_session(engine(), checkpoint_bundle, "text_encoder") as session:
        actual = session.run({"input_ids": IDS})
        assert switches() == callers_switches
        with exact_arithmetic():
            expected = session.run({"input_ids": IDS})
    assert np.array_equal(actual["hidden_states"], expected["hidden_states"])


def test_the_older_switch_is_as_it_was() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_arithmetic():
            pass
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


# Precision and device


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_precision_is_taken_where_the_component_allows_it_and_reported(
    component: ComponentName, precision: Precision, checkpoint_bundle: Bundle
) -> None:
    session = engine(precision=precision).open(checkpoint_bundle.artifact(component))
    kept = component.startswith("vae")
    assert session.execution.precision == ("fp32" if kept else precision)


def unet_output(bundle: Bundle, precision: Precision | None) -> Array:
    random = np.random.default_rng(0)
    feed = unet_feed(bundle.config, batch=1, height=8, width=8, random=random)
    with open_session(engine(precision=precision), bundle, "unet") as session:
        return session.run(feed)["noise_pred"]


@pytest.mark.slow
def test_half_precisions_are_really_computed_in(checkpoint_bundle: Bundle) -> None:
    exact = unet_output(checkpoint_bundle, None)
    assert np.array_equal(unet_output(checkpoint_bundle, "fp32"), exact)
    scale = float(np.abs(exact).max())
    errors = [
        float(np.abs(unet_output(checkpoint_bundle, precision) - exact).max()) / scale
        for precision in ("fp16", "bf16")
    ]
    assert 1e-5 < errors[0] < errors[1] < 0.2


def test_the_execution_says_what_runs(checkpoint_bundle: Bundle) -> None:
    session = engine().open(checkpoint_bundle.artifact("text_encoder"))
    execution = session.execution
    assert (execution.runtime, execution.device, execution.precision) == ("pytorch", "cpu", "fp32")
    assert execution.version == torch.__version__
    assert execution.details["tf32"] == "off"
    assert execution.details["threads"] == str(torch.get_num_threads())


def test_threads_are_as_asked_for(checkpoint_bundle: Bundle) -> None:
    before = torch.get_num_threads()
    try:
        session = engine(num_threads=1).open(checkpoint_bundle.artifact("text_encoder"))
        assert session.execution.details["threads"] == "1"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["cuda:2", "cuda:-1", "cuda:", "cuda:x", "cpu:1"])
def test_a_device_is_one_of_those_that_are_there(
    device: str, checkpoint_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BackendError, match=rf"no device '{device}', want .*: cpu, cuda"):
        engine(device=device).open(checkpoint_bundle.artifact("text_encoder"))


@pytest.mark.parametrize("device", ["xpu", "tpu:0", "nonsense"])
def test_an_absent_device_is_an_error_that_lists_those_present(
    device: str, checkpoint_bundle: Bundle
) -> None:
    with pytest.raises(BackendError, match=rf"no device '{device}', want .*: cpu"):
        engine(device=device).open(checkpoint_bundle.artifact("text_encoder"))


@pytest.mark.parametrize("package", ["torch", "diffusers", "transformers"])
def test_a_missing_package_is_told_how_to_install_it(
    package: str, monkeypatch: pytest.MonkeyPatch, checkpoint_bundle: Bundle
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
    probe = engine().probe()
    assert not probe.installed
    assert f"{package} is not installed" in probe.remedy
    assert "pip install 'triptych[export]'" in probe.remedy
    with pytest.raises(MissingDependencyError):
        engine().open(checkpoint_bundle.artifact("text_encoder"))


def test_an_artifact_without_a_checkpoint_is_refused(checkpoint_bundle: Bundle) -> None:
    artifact = replace(checkpoint_bundle.artifact("unet"), checkpoint=None)
    with pytest.raises(BackendError, match="want a checkpoint in diffusers layout"):
        engine().open(artifact)


# Running


@pytest.fixture
def _every_warning() -> Iterator[None]:
    """Warn each time, not once a process: another test may have been the first."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_every_warning")
def test_read_only_feeds_are_taken_without_a_warning(checkpoint_bundle: Bundle) -> None:
    ids = IDS.copy()
    ids.flags.writeable = False
    with open_session(engine(), checkpoint_bundle, "text_encoder") as session:
        assert session.run({"input_ids": ids})["hidden_states"].shape == (1, 77, 32)


def test_a_failure_of_the_engine_is_a_backend_error(checkpoint_bundle: Bundle) -> None:
    beyond = np.full((1, 77), 10**6, np.int64)
    with (
        open_session(engine(), checkpoint_bundle, "text_encoder") as session,
        pytest.raises(BackendError, match="pytorch: could not run the module"),
    ):
        session.run({"input_ids": beyond})


def test_a_run_leaves_autograd_as_it_was(checkpoint_bundle: Bundle) -> None:
    with open_session(engine(), checkpoint_bundle, "text_encoder") as session:
        session.run({"input_ids": IDS})
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_a_closed_session_does_not_run(checkpoint_bundle: Bundle) -> None:
    session = open_session(engine(), checkpoint_bundle, "text_encoder")
    session.close()
    with pytest.raises(BackendError, match="closed session"):
        session.run({"input_ids": IDS})


# What PyTorch itself gets wrong


def test_a_group_norm_of_channels_last_values_is_as_exact_as_of_others() -> None:
    values = torch.randn(2, 64, 512, 512, generator=torch.Generator().manual_seed(0)) + 0.5
    values = values.to(memory_format=torch.channels_last)
    norm = torch.nn.GroupNorm(32, 64).requires_grad_(requires_grad=False)
    network = torch.nn.Sequential(norm)
    exact = torch.nn.GroupNorm(32, 64).double().requires_grad_(requires_grad=False)(values.double())
    torch_alone = float((network(values) - exact).norm() / exact.norm())
    normalise_contiguous(network)
    ours = float((network(values) - exact).norm() / exact.norm())
    assert ours < 5e-7
    assert torch_alone > 1e-5, "PyTorch has become exact: this need not be done any more"


def test_every_group_norm_sees_plain_values(checkpoint_bundle: Bundle) -> None:
    session = make_runtime("pytorch").open(checkpoint_bundle.artifact("vae_decoder"))
    assert isinstance(session, PytorchSession)
    seen = []
    norms = [part for part in session._module.modules() if isinstance(part, torch.nn.GroupNorm)]  # type: ignore[union-attr]
    for part in norms:
        part.register_forward_pre_hook(
            lambda _, values: seen.append(values[0].is_contiguous())  # after ours, of what it gave
        )
    session.run({"latents": np.ones((2, 4, 16, 16), np.float32)}, ("image",))
    assert len(seen) == len(norms) > 5
    assert all(seen)
