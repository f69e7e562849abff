"""Record the tiny checkpoint on this machine's GPU, for `test_cuda_goldens.py` to read.

Run it from the project's root: python tests/golden/record_cuda.py
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

RUN = ("--num-inference-steps", "3", "--height-px", "64", "--width-px", "64", "--device", "cuda")


def main() -> None:
    """Write cuda-GPU/fp32, fp16 and bf16 beside this file."""
    import torch

    gpu = torch.cuda.get_device_name().lower().replace("nvidia", "").strip().replace(" ", "-")
    folder = Path(__file__).parent.relative_to(Path.cwd()) / f"cuda-{gpu}"
    with TemporaryDirectory() as parent:
        checkpoint = Path(parent) / "tiny"
        triptych("tiny-checkpoint", checkpoint)
        for precision in ("fp32", "fp16", "bf16"):
            profile = "full" if precision == "fp32" else "quick"
            triptych(
                *("record", checkpoint, folder / precision, *RUN, "--overwrite"),
                *("--precision", precision, "--profile", profile),
            )


def triptych(*arguments: str | Path) -> None:
    """Run the command as a user would."""
    subprocess.run([sys.executable, "-m", "triptych.cli", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
