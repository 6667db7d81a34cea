"""``lvmmed manifests``: the data sources that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["manifests"]


def manifests(
    manifest_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="show this one; absent: list all")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the manifests of public data sources, or show one.

    Example: lvmmed manifests busi_ultrasound
    """
    import json as json_format

    from lvmmed_monai.data.manifest import find_manifests, manifest_parts, read_manifest

    if manifest_id is not None:
        print(json_format.dumps(read_manifest(manifest_id), indent=1, ensure_ascii=False))
        return
    known = {name: read_manifest(path) for name, path in find_manifests().items()}
    if json:
        print(json_format.dumps(known, indent=1, ensure_ascii=False))
        return
    print(f"{'id':26} {'modality':10} {'dims':4} {'task':14} {'licence':14} name")
    for name, manifest in known.items():
        modalities = "+".join(part["modality"] for part in manifest_parts(manifest))
        print(
            f"{name:26} {modalities:10} {manifest['spatial_dims']:<4} {manifest['task']:14} "
            f"{manifest['licence']['name']:14} {manifest['name']}"
        )
    print("Import one with: lvmmed ingest --manifest ID --root FOLDER --out FOLDER")
