"""What lies in a dataset's folder: step folders with pictures, and what readers put beside them."""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from triptych.errors import BrokenInputError
from triptych.workflows.generation.names import normal_form, step_folder_name, step_of_folder

PICTURES_FOLDER = "combined"
"""In each step folder. Readers take every file in it for a picture of the dataset."""

FEATURE_CACHES = "aug_features_*.npz"
"""What readers of a step folder compute once, and then believe whatever its pictures are."""


def find_step_folders(output: Path) -> Mapping[int, Path]:
    """The folders of all steps that are there, by step, the first first."""
    if not output.is_dir():
        return {}
    found = {step_of_folder(path.name): path for path in output.iterdir() if path.is_dir()}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


def find_feature_caches(output: Path, *, steps: Iterable[int]) -> tuple[Path, ...]:
    """Caches computed from these steps' pictures, and those beside them, of no step known."""
    folders = [output, *(output / step_folder_name(step) for step in steps)]
    return tuple(path for folder in folders for path in sorted(folder.glob(FEATURE_CACHES)))


def find_strangers(
    output: Path, *, steps: Iterable[int], expected: Container[str]
) -> tuple[str, ...]:
    """Paths in the picture folders that are not expected; readers would take them for pictures.

    Args:
        output: the dataset's folder.
        steps: whose folders are looked into.
        expected: the paths of all pictures in `normal_form`, relative to the dataset.

    Raises:
        BrokenInputError: a folder cannot be read.
    """
    strangers: list[str] = []
    for step in steps:
        folder = f"{step_folder_name(step)}/{PICTURES_FOLDER}"
        try:
            names = sorted(path.name for path in (output / folder).iterdir())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BrokenInputError(
                f"{output / folder}: got {error.strerror}, want a folder of pictures."
            ) from error
        paths = (f"{folder}/{name}" for name in names)
        strangers.extend(path for path in paths if normal_form(path) not in expected)
    return tuple(strangers)
