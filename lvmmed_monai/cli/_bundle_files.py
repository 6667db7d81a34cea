"""The files of a bundle: found, generated from their shared parts, copied for another task."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import output_folder, read_json, write_json

__all__ = ["build_bundle", "bundle_folders", "bundles_root", "copy_bundle", "describe_bundle", "generated_configs"]

# What stands in a bundle folder beside the configurations and belongs to it; models and outputs of runs do not.
_SHIPPED = ("LICENSE", "docs")
_COMMON = "common"


def bundles_root() -> Path:
    """The folder of the bundles: inside an installed package, or at the top of a checkout.

    Raises:
        UserError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_bundles", package.parent / "bundles"):
        if folder.is_dir():
            return folder
    raise UserError("no bundles; this installation; install the package again")


def bundle_folders() -> list[Path]:
    """Folders of all bundles, sorted by name."""
    return sorted(path.parent.parent for path in bundles_root().glob("*/configs/metadata.json"))


def describe_bundle(folder: Path) -> str:
    """The bundle's description, from its metadata."""
    return str(read_json(folder / "configs" / "metadata.json", "bundle metadata").get("description", ""))


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge left to right as ``monai.bundle run --config_file`` does: ``a#b`` reaches in, ``+a`` extends."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    parser = ConfigParser(config={})
    for part in parts:
        for key, value in json.loads(json.dumps(part)).items():
            merge_kv(parser, key, value)
    return parser.get()


def _is_parameter(value: Any) -> bool:
    """Whether a reader may want to change this value: nothing in it is built or run."""
    text = json.dumps(value)
    return not any(mark in text for mark in ("_target_", '"$@', '["$'))


def _parameters_first(config: Mapping[str, Any]) -> dict[str, Any]:
    """``imports``, then the parameters, then what is built from them."""

    def rank(entry: tuple[str, Any]) -> int:
        return 0 if entry[0] == "imports" else 1 if _is_parameter(entry[1]) else 2

    return dict(sorted(config.items(), key=rank))


def _label_metadata(metadata: dict[str, Any], labels: Mapping[str, str], modality: str) -> None:
    """Write labels and modality into a segmentation bundle's metadata."""
    formats = metadata["network_data_format"]
    formats["inputs"]["image"]["modality"] = modality
    formats["outputs"]["pred"]["num_channels"] = len(labels)
    formats["outputs"]["pred"]["channel_def"] = dict(labels)


def generated_configs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(file name, content)`` of each configuration that a bundle's ``params.json`` and the shared parts make.

    ``params.json`` holds ``shared`` (a folder of ``_shared``), ``common`` (for train and inference), one
    object for each configuration, merged over the shared file of its name, and ``overlays``: further ones
    of this bundle alone, by name, to be laid over train; one that says ``like`` begins with another one's content.
    """
    params = read_json(folder / "params.json", "bundle parameters")
    shared = folder.parent / "_shared" / params["shared"]
    parts = {path.stem: read_json(path, "shared configuration") for path in sorted(shared.glob("*.json"))}
    common = parts.pop(_COMMON)
    metadata = _merged(parts.pop("metadata"), params["metadata"])
    for name, part in parts.items():
        own = params.get(name, {})
        if name in ("train", "inference"):
            config = _parameters_first(_merged(common, params["common"], part, own))
            if "labels" in config:
                _label_metadata(metadata, config["labels"], config["modality"])
        else:
            config = _merged_overlay(part, own)
        yield f"{name}.json", config
    overlays = params.get("overlays", {})
    for name, overlay in overlays.items():
        whole = {**overlays.get(overlay.get("like"), {}), **overlay}
        yield f"{name}.json", {key: value for key, value in whole.items() if key != "like"}
    yield "metadata.json", metadata


def _merged_overlay(part: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Overlays keep their ``a#b`` keys: they reach into the configuration that they are laid over."""
    return {**part, **own}


def build_bundle(folder: Path) -> list[Path]:
    """Write a bundle's configurations, logging.conf and licence; gives the files whose content changed."""
    changed = []
    for name, config in generated_configs(folder):
        path = folder / "configs" / name
        if not path.is_file() or read_json(path, "configuration") != config:
            changed.append(path)
        write_json(path, config)
    shared = folder.parent / "_shared"
    for source, target in ((shared / "logging.conf", folder / "configs"), (shared / "LICENSE", folder)):
        path = target / source.name
        if not path.is_file() or path.read_bytes() != source.read_bytes():
            changed.append(path)
            shutil.copyfile(source, path)
    return changed


def _relabel(folder: Path, datalist: Path) -> None:
    """Make a copied segmentation bundle one for the labels and modality of a datalist."""
    from lvmmed_monai.data import read_datalist

    content = read_datalist(datalist)
    if content["task"] != "segmentation":
        raise UserError(
            f"the datalist is for {content['task']}, labels are taken from one for segmentation; {datalist}; "
            "leave --datalist out or choose another"
        )
    labels = {str(number): content["labels"][str(number)] for number in range(len(content["labels"]))}
    for name in ("train", "inference"):
        path = folder / "configs" / f"{name}.json"
        config = read_json(path, "configuration")
        if "labels" not in config:
            raise UserError(f"this bundle has no labels; {folder.name}; leave --datalist out")
        write_json(path, {**config, "labels": labels, "modality": content["modality"]})
    path = folder / "configs" / "metadata.json"
    metadata = read_json(path, "bundle metadata")
    _label_metadata(metadata, labels, content["modality"])
    write_json(path, metadata)


def copy_bundle(name: str, destination: Path, datalist: Path | None = None) -> Path:
    """Copy a bundle, complete on its own, to ``<destination>/<name>``, or to ``destination`` if that has its name.

    Args:
        name: one of the bundles.
        destination: a folder; must not hold the bundle yet.
        datalist: a segmentation datalist; its labels and modality replace those in the copy.

    Returns:
        The new folder; nothing is left behind when something fails.

    Raises:
        UserError: no such bundle, it is there already, or the datalist does not fit.
    """
    sources = {folder.name: folder for folder in bundle_folders()}
    if name not in sources:
        raise UserError(f"no bundle {name!r}; lvmmed bundles copy; choose from {', '.join(sources)}")
    target = destination if destination.name == name else destination / name
    if target.exists():
        raise UserError(f"a bundle is there already; {target}; remove it or copy to another folder")
    output_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as temporary:
        part = Path(temporary) / name
        shutil.copytree(sources[name] / "configs", part / "configs")
        for entry in _SHIPPED:
            source = sources[name] / entry
            if source.is_dir():
                shutil.copytree(source, part / entry)
            else:
                shutil.copyfile(source, part / entry)
        if datalist is not None:
            _relabel(part, datalist)
        part.rename(target)
    return target.resolve()
