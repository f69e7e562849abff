"""Train the demo model: python tools/train_demo_model RUN. README.md says how long it takes."""

import argparse
import datetime as dt
import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from architecture import Networks, make_networks, make_pipeline
from autoencoder import draw_reconstructions, encode_all, equalise_latents, train_autoencoder
from denoiser import train_denoiser
from evaluation import evaluate
from examples import Examples, make_examples
from run import Stage

AUTOENCODER_STEPS, EDGE_STEPS, DENOISER_STEPS, PLACE_STEPS = 1800, 1400, 2500, 1800
EDGE_WEIGHT = 8.0
PROMPTS = 200


def main() -> None:
    """Train both stages, save the pipeline in half precision, draw held-out prompts, record."""
    wishes = _wishes()
    folder: Path = wishes.run
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    examples = make_examples(seed=wishes.seed)
    networks = make_networks(seed=wishes.seed, vocabulary=folder / "vocabulary")
    for network in (networks.vae, networks.denoising()):
        network.to(wishes.device)
    autoencoder, edges, denoiser, places = _stages(wishes)
    train_autoencoder(networks.vae, examples, edge_weight=1.0, stage=autoencoder, folder=folder)
    train_autoencoder(networks.vae, examples, edge_weight=EDGE_WEIGHT, stage=edges, folder=folder)
    draw_reconstructions(networks.vae, examples, folder / "autoencoder.png")
    latents = _scaled_latents(networks, examples, folder)
    for stage, of_pictures in ((denoiser, False), (places, True)):
        train_denoiser(
            networks,
            examples,
            latents,
            of_pictures=of_pictures,
            stage=stage,
            folder=folder,
        )
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
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_STEPS)
    parser.add_argument("--edge-steps", type=int, default=EDGE_STEPS)
    parser.add_argument("--denoiser-steps", type=int, default=DENOISER_STEPS)
    parser.add_argument("--place-steps", type=int, default=PLACE_STEPS)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="held-out ones to draw")
    return parser.parse_args()


def _stages(wishes: argparse.Namespace) -> tuple[Stage, Stage, Stage, Stage]:
    """The autoencoder's, of all of a picture and then of edges; the U-Net's, then of places."""
    return (
        Stage(
            name="autoencoder",
            seed=wishes.seed + 1,
            steps=wishes.autoencoder_steps,
            decay_steps=wishes.autoencoder_steps,
            learning_rate=2e-3,
            ema_decay=0.995,
        ),
        Stage(
            name="autoencoder-edges",
            seed=wishes.seed + 2,
            steps=wishes.edge_steps,
            decay_steps=wishes.edge_steps,
            learning_rate=2e-3,
            ema_decay=0.995,
        ),
        Stage(
            name="denoiser",
            seed=wishes.seed + 3,
            steps=wishes.denoiser_steps,
            decay_steps=2 * wishes.denoiser_steps,
            learning_rate=1e-3,
            ema_decay=0.999,
        ),
        Stage(
            name="denoiser-places",
            seed=wishes.seed + 4,
            steps=wishes.place_steps,
            decay_steps=wishes.place_steps,
            learning_rate=1e-3,
            ema_decay=0.998,
        ),
    )


def _scaled_latents(networks: Networks, examples: Examples, folder: Path) -> torch.Tensor:
    """All latents, scaled to a standard deviation of 1; the autoencoder is told by what."""
    kept = folder / "latents.pt"
    if kept.is_file():
        latents: torch.Tensor = torch.load(kept, weights_only=True)
    else:
        latents = encode_all(networks.vae, examples.pictures)
        torch.save(latents, kept)
    latents = equalise_latents(networks.vae, latents)
    factor = round(1 / float(latents.std()), 5)
    networks.vae.register_to_config(scaling_factor=factor)
    return latents * factor


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
        "command": "python tools/train_demo_model RUN",
        "options": {name: value for name, value in vars(wishes).items() if name != "run"},
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "seconds_of_this_call": round(seconds),
        "last_losses": {line["stage"]: line for line in map(json.loads, lines)},
        "held_out": shares,
        "sha256": {
            str(path.relative_to(model)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(model.rglob("*.safetensors"))
        },
    }
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
