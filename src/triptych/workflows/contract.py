"""What a bundle must be for its ecosystem's own clients, read from its files alone."""

from collections.abc import Iterator, Mapping

from triptych.bundle import apple
from triptych.bundle.bundle import Artifact, Bundle
from triptych.errors import BrokenInputError, MissingDependencyError
from triptych.exporters import make_exporter
from triptych.types import ComponentName


def contract_problems(bundle: Bundle) -> Mapping[ComponentName, tuple[str, ...]]:
    """Why Apple's clients could not run each component of a Core ML bundle, found without a Mac.

    Returns:
        Problems by component, none where a component keeps the contract. Without the preview
        decoder, which Apple's clients do not look for. Empty for other formats: what their clients
        need is tested beside the clients themselves.
    """
    if bundle.format != "coreml":
        return {}
    return {
        name: tuple(_component_problems(bundle, artifact))
        for name, artifact in bundle.artifacts.items()
        if name != "preview_decoder"
    }


def _component_problems(bundle: Bundle, artifact: Artifact) -> Iterator[str]:
    component = artifact.spec.name
    try:
        facts = make_exporter(bundle.format).describe(*artifact.paths)
    except (BrokenInputError, MissingDependencyError) as error:
        yield str(error)
        return
    wanted = apple.contract_ports(component, bundle.config, artifact.ports)
    yield from apple.contract_problems(
        component, wanted=wanted, inputs=facts.inputs, outputs=facts.outputs
    )
    yield from _name_problems(bundle, artifact)
    if component in bundle.config.text_encoders:
        for name in apple.VOCABULARY_FILES:
            if not (bundle.folder / name).is_file():
                yield f"{name}: got no such file in the bundle, want the tokenizer's"


def _name_problems(bundle: Bundle, artifact: Artifact) -> Iterator[str]:
    """Apple's bundling script finds packages by their names."""
    submodule = apple.submodule_name(artifact.spec.name, bundle.config)
    found = apple.find_packages(bundle.folder, submodule)
    if found != artifact.paths:
        names = ", ".join(path.name for path in artifact.paths)
        wanted = apple.package_name(submodule, version="MODEL")
        yield f"{names}: got a name that Apple's script does not look for, want {wanted}"
