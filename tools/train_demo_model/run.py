"""One stage of training: so many steps, logged, saved now and then, taken up where it ended."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
import torch

Losses: TypeAlias = Mapping[str, torch.Tensor]
"""Scalars; the one named "loss" is what is minimised."""

ComputeLosses: TypeAlias = Callable[[int, np.random.Generator], Losses]
"""Told the step, and given a generator that is the same whenever that step is taken."""

_LOG_EVERY, _SAVE_EVERY, _WARM_UP_STEPS = 50, 500, 100


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is trained, for how long.

    Attributes:
        name: of its files in the run's folder.
        seed: decides what every step sees.
        steps: how many.
        decay_steps: over which the learning rate falls with a cosine: as many, or more for a
            stage that another follows.
        learning_rate: the highest, after a rise over 100 steps.
        ema_decay: of the running mean of weights that is kept at the end; 0 keeps the last weights.
    """

    name: str
    seed: int
    steps: int
    decay_steps: int
    learning_rate: float
    ema_decay: float


def train(network: torch.nn.Module, compute: ComputeLosses, *, stage: Stage, folder: Path) -> None:
    """Train a network in place, or take its training up again; at the end it has the kept weights.

    Writes `<name>.pt` to the folder, whole or not at all, and adds to log.jsonl.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    means = {name: value.detach().clone() for name, value in network.named_parameters()}
    state_file, first = folder / f"{stage.name}.pt", 0
    if state_file.is_file():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        means, first = state["means"], state["step"]
    started = time.monotonic()
    for step in range(first, stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(stage, step)
        losses = compute(step, np.random.default_rng([stage.seed, step]))
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        _update_means(means, network, decay=min(stage.ema_decay, (1 + step) / (10 + step)))
        done = step + 1
        if done % _LOG_EVERY == 0:
            seconds = (time.monotonic() - started) / (done - first)
            _log(folder, stage=stage.name, step=done, seconds_per_step=seconds, losses=losses)
        if done % _SAVE_EVERY == 0 or done == stage.steps:
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "means": means,
                "step": done,
            }
            scratch = state_file.with_suffix(".part")
            torch.save(state, scratch)
            scratch.replace(state_file)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(means[name])


def _learning_rate(stage: Stage, step: int) -> float:
    rise = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return stage.learning_rate * rise * (0.02 + 0.98 * (1 + cos(pi * step / stage.decay_steps)) / 2)


@torch.no_grad()
def _update_means(
    means: dict[str, torch.Tensor], network: torch.nn.Module, *, decay: float
) -> None:
    values = dict(network.named_parameters())
    torch._foreach_lerp_(list(means.values()), [values[name].detach() for name in means], 1 - decay)


def _log(folder: Path, *, stage: str, step: int, seconds_per_step: float, losses: Losses) -> None:
    numbers = {name: round(float(value.detach()), 6) for name, value in losses.items()}
    line = {"stage": stage, "step": step, "seconds_per_step": round(seconds_per_step, 4), **numbers}
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
