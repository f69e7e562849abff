"""Callbacks by name."""

from pathlib import Path

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.sampling.callbacks import SamplingRun, asked_tensors
from triptych.workflows.callback_import import import_callback


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_a_test.py").write_text(
        "NUMBER = 7\n\ndef keep(pipe, index, timestep, callback_kwargs):\n"
        "    return callback_kwargs\n"
    )
    (tmp_path / "torch_for_a_test.py").write_text(
        "import torch\n\ndef halve(pipe, index, timestep, callback_kwargs):\n"
        "    assert torch.is_tensor(callback_kwargs['latents'])\n"
        "    return {'latents': callback_kwargs['latents'].chunk(2)[-1]}\n"
    )
    (tmp_path / "worse_for_a_test.py").write_text("1 / 0\n")
    (tmp_path / "broken_for_a_test.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)


def test_a_function_beside_the_command() -> None:
    callback = import_callback("mine_for_a_test:keep")
    assert callback(None, 0, 999.0, {}) == {}  # type: ignore[arg-type]


def test_what_was_written_for_diffusers_is_given_torch_tensors() -> None:
    callback = import_callback("torch_for_a_test:halve")
    run = SamplingRun(guidance_scale=5.0, num_timesteps=3)
    returned = callback(run, 0, 999.0, {"latents": np.arange(4, dtype=np.float32)})
    assert isinstance(returned["latents"], np.ndarray)
    assert returned["latents"].tolist() == [2, 3]


def test_arrays_as_they_are_asked_for() -> None:
    run = SamplingRun(guidance_scale=5.0, num_timesteps=3)
    tensors = {"latents": np.zeros(2, np.float32)}
    with pytest.raises(AssertionError):
        import_callback("torch_for_a_test:halve", arrays="numpy")(run, 0, 999.0, tensors)
    kept = import_callback("mine_for_a_test:keep", arrays="torch")(run, 0, 999.0, tensors)
    assert isinstance(kept["latents"], np.ndarray)


def test_a_callback_of_diffusers_says_itself_what_it_takes() -> None:
    (Path.cwd() / "cutoff_for_a_test.py").write_text(
        "from diffusers.callbacks import SDXLCFGCutoffCallback\n"
        "cutoff = SDXLCFGCutoffCallback(cutoff_step_ratio=0.4)\n"
    )
    callback = import_callback("cutoff_for_a_test:cutoff")
    assert asked_tensors(callback, ["latents"]) == (
        "prompt_embeds",
        "add_text_embeds",
        "add_time_ids",
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine_for_a_test", "want module:function"),
        (":keep", "want module:function"),
        ("no_such_module_anywhere:f", "cannot import no_such_module_anywhere"),
        ("broken_for_a_test:f", "cannot import broken_for_a_test"),
        ("worse_for_a_test:f", "ZeroDivisionError"),
        ("mine_for_a_test:NUMBER", "can be called: keep"),
        ("mine_for_a_test:absent", "can be called: keep"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        import_callback(name)
