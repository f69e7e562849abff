"""Callbacks that want torch tensors, as diffusers gives them, in runs that know none."""

from collections.abc import Iterable, Mapping
from typing import final

from triptych.dependencies import import_optional
from triptych.sampling.callbacks import AskingCallback, SamplingRun, StepCallback
from triptych.types import Array


def with_torch_tensors(callback: StepCallback) -> StepCallback:
    """A callback that is given torch tensors on the CPU, and may give them back.

    For functions that use what NumPy's arrays do not have, such as `prompt_embeds.chunk(2)` in
    diffusers' documentation. What a callback gives back may be on any device, of any float dtype.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    import_optional("torch", extra="export")
    if isinstance(callback, AskingCallback):
        return _AskingTorchCallback(callback, tensor_inputs=callback.tensor_inputs)
    return _TorchCallback(callback)


class _TorchCallback:
    def __init__(self, callback: StepCallback) -> None:
        self._callback = callback

    def __call__(
        self,
        run: SamplingRun,
        step_index: int,
        timestep: float,
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        torch = import_optional("torch", extra="export")
        tensors = {name: torch.from_numpy(array) for name, array in callback_kwargs.items()}
        returned: object = self._callback(run, step_index, timestep, tensors)
        if not isinstance(returned, Mapping):
            return returned  # type: ignore[return-value]  # the loop says what is wrong with it
        return {
            name: value.detach().cpu().float().numpy() if torch.is_tensor(value) else value
            for name, value in returned.items()
        }


@final
class _AskingTorchCallback(_TorchCallback):
    """As the callback that it wraps, it says itself which tensors it takes."""

    def __init__(self, callback: StepCallback, *, tensor_inputs: Iterable[str]) -> None:
        super().__init__(callback)
        self.tensor_inputs = tuple(tensor_inputs)
