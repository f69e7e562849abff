"""Train the demo model: python tools/train_demo_model RUN. README.md says how long it takes."""

import argparse
import datetime as dt
import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from architecture import Networks, load_networks, make_networks, make_pipeline
from autoencoder import (
    draw_reconstructions,
    encode_all,
    equalise_latents,
    train_autoencoder,
    train_decoder,
)
from denoiser import Lesson, train_denoiser
from evaluation import evaluate
from examples import Examples, make_examples
from run import Stage

STEPS = {
    "autoencoder": 1800,
    "autoencoder-edges": 1400,
    "denoiser": 2500,
    "denoiser-places": 1800,
    "denoiser-crops": 1600,
    "denoiser-sizes": 1000,
    "decoder": 700,
}
"""The stages, in their order, and how long each is."""

EDGE_WEIGHT = 8.0
LESSONS = {
    "denoiser": Lesson(whole=0.8, cropped=0.1),
    "denoiser-places": Lesson(
        whole=0.8, cropped=0.1, upper=0.6, upper_levels=750, of_pictures=True
    ),
    "denoiser-crops": Lesson(
        whole=0.15, cropped=0.8, upper=0.85, upper_levels=800, of_pictures=True
    ),
    "denoiser-sizes": Lesson(whole=0.5, cropped=0.3, upper=0.6, upper_levels=750, of_pictures=True),
}
"""What there is, then where it is, then how a crop moves it, then all of it."""

PROMPTS = 200


def main() -> None:
    """Train every stage, save the pipeline in half precision, draw held-out prompts, record."""
    wishes = _wishes()
    folder: Path = wishes.run
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    examples = make_examples(seed=wishes.seed)
    networks = make_networks(seed=wishes.seed, vocabulary=folder / "vocabulary")
    if wishes.start_from is not None:
        load_networks(networks, wishes.start_from)
    for network in (networks.vae, networks.denoising()):
        network.to(wishes.device)
    if wishes.start_from is None:
        _train_autoencoder(networks, examples, wishes)
    latents = _latents(networks, examples, wishes)
    factor = float(networks.vae.config.scaling_factor)
    _train_denoiser(networks, examples, latents * factor, wishes)
    decoder = _stage("decoder", wishes, learning_rate=1e-3, ema_decay=0.995)
    train_decoder(
        networks.vae, examples, latents, edge_weight=EDGE_WEIGHT, stage=decoder, folder=folder
    )
    draw_reconstructions(networks.vae, examples, folder / "autoencoder.png")
    pipeline = make_pipeline(networks)
    pipeline.to("cpu", torch.float16)
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    pipeline.to(wishes.device, torch.float32)  # what was kept, rounded to half
    shares = evaluate(pipeline, prompts=wishes.prompts, grid=folder / "grid.png")
    _write_record(wishes, shares=shares, seconds=time.monotonic() - started)


def _wishes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a folder; an unfinished run in it is taken up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--start-from", type=Path, help="a model made by this, whose VAE is kept")
    parser.add_argument(
        "--start-at", choices=(*LESSONS, "decoder"), help="its first stage; with --start-from"
    )
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="held-out ones to draw")
    wishes = parser.parse_args()
    if wishes.start_at is not None and wishes.start_from is None:
        parser.error(f"--start-at: got {wishes.start_at}, want --start-from MODEL with it.")
    return wishes


def _train_autoencoder(networks: Networks, examples: Examples, wishes: argparse.Namespace) -> None:
    """All of a picture, then its edges."""
    for name, edge_weight in (("autoencoder", 1.0), ("autoencoder-edges", EDGE_WEIGHT)):
        stage = _stage(name, wishes, learning_rate=2e-3, ema_decay=0.995)
        train_autoencoder(
            networks.vae, examples, edge_weight=edge_weight, stage=stage, folder=wishes.run
        )


def _train_denoiser(
    networks: Networks, examples: Examples, latents: torch.Tensor, wishes: argparse.Namespace
) -> None:
    for name, lesson in LESSONS.items():
        if not _is_due(name, wishes):
            continue
        stage = _stage(name, wishes, learning_rate=1e-3, ema_decay=0.998)
        if name != list(LESSONS)[-1]:
            # A rate that has not fallen to its lowest yet serves the stage that follows.
            stage = replace(stage, decay_steps=2 * stage.steps)
        train_denoiser(networks, examples, latents, lesson=lesson, stage=stage, folder=wishes.run)


def _is_due(name: str, wishes: argparse.Namespace) -> bool:
    names = list(STEPS)
    return wishes.start_at is None or names.index(name) >= names.index(wishes.start_at)


def _stage(
    name: str, wishes: argparse.Namespace, *, learning_rate: float, ema_decay: float
) -> Stage:
    steps = getattr(wishes, f"{name.replace('-', '_')}_steps")
    return Stage(
        name=name,
        seed=wishes.seed + 1 + list(STEPS).index(name),
        steps=steps,
        decay_steps=steps,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
    )


def _latents(networks: Networks, examples: Examples, wishes: argparse.Namespace) -> torch.Tensor:
    """All latents, unscaled; the autoencoder is told what makes their standard deviation 1."""
    kept = wishes.run / "latents.pt"
    if kept.is_file():
        latents: torch.Tensor = torch.load(kept, weights_only=True)
    else:
        latents = encode_all(networks.vae, examples.pictures)
        torch.save(latents, kept)
    if wishes.start_from is None:
        latents = equalise_latents(networks.vae, latents)
        networks.vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return latents


def _record_of(model: Path | None) -> object:
    """How the model was made that this one goes on from."""
    kept = None if model is None else model / "training.json"
    if kept is None or not kept.is_file():
        return None
    return json.loads(kept.read_text(encoding="utf-8"))


def _write_record(
    wishes: argparse.Namespace, *, shares: Mapping[str, float], seconds: float
) -> None:
    folder: Path = wishes.run
    model = folder / "model"
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607  wherever git is
        capture_output=True,
        text=True,
        check=False,
    )
    record = {
        "command": "python tools/train_demo_model RUN"
        + ("" if wishes.start_from is None else " --start-from MODEL"),
        "options": {
            name: value for name, value in vars(wishes).items() if name not in ("run", "start_from")
        },
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "seconds_of_this_call": round(seconds),
        "last_losses": {line["stage"]: line for line in map(json.loads, lines)},
        "held_out": shares,
        "started_from": _record_of(wishes.start_from),
        "sha256": {
            str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(model.rglob("*.safetensors"))
        },
    }
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
