"""``lvmmed doctor``: what this machine can do, in ten lines."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Annotated

import typer

from lvmmed_monai import __version__
from lvmmed_monai.cli._memory import memory_gb

__all__ = ["Check", "doctor", "examine"]

OK, NOTE, MISSING = "ok", "note", "missing"
_LEAST_MEMORY_GB = 6.0
_LEAST_DISK_GB = 2.0


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was found, and what to do about it (empty when nothing)."""

    name: str
    status: str
    found: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Say what this machine can do: versions, GPU, memory, disk, optional parts. Exits with 1 if a part is missing.

    Example: lvmmed doctor --json
    """
    checks = examine(Path.cwd())
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            remedy = f"  -> {check.remedy}" if check.remedy else ""
            print(f"{check.status:>7}  {check.name:<9} {check.found}{remedy}")
    if any(check.status == MISSING for check in checks):
        raise typer.Exit(1)


def examine(folder: Path) -> list[Check]:
    """The ten checks, in the order in which they are printed.

    Args:
        folder: where the disk space counts.
    """
    return [
        _python(),
        _package(),
        _libraries(),
        _gpu(),
        _processor(),
        _memory(),
        _disk(folder),
        _dicom(),
        _extras(),
        _tools(),
    ]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", OK, found)


def _package() -> Check:
    root = Path(__file__).resolve().parents[2]
    source = "checkout" if (root / "pyproject.toml").is_file() else "installed wheel"
    return Check("lvmmed", OK, f"{__version__} ({source})")


def _libraries() -> Check:
    versions = {name: _version(name) for name in ("torch", "monai", "pytorch-ignite", "numpy")}
    missing = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        return Check("libraries", MISSING, found or "none", f"pip install {' '.join(missing)}")
    return Check("libraries", OK, found)


def _gpu() -> Check:
    if util.find_spec("torch") is None:
        return Check("gpu", NOTE, "unknown without torch")
    import torch

    if not torch.cuda.is_available():
        remedy = ""
        if shutil.which("nvidia-smi"):
            remedy = "an NVIDIA driver is here: install the CUDA build of torch (pytorch.org, Get Started)"
        return Check("gpu", NOTE, "none that torch can use; everything runs on the CPU", remedy)
    parts = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        parts.append(f"{torch.cuda.get_device_name(index)} ({total / 2**30:.0f} GiB, {free / 2**30:.0f} free)")
    return Check("gpu", OK, f"{'; '.join(parts)}, CUDA {torch.version.cuda}")


def _processor() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    remedy = "" if usable >= 2 else "two or more cores are recommended; training on one takes about twice as long"
    return Check("cpu", OK if usable >= 2 else NOTE, f"{usable} of {os.cpu_count()} cores usable", remedy)


def _memory() -> Check:
    sizes = memory_gb()
    if sizes is None:
        return Check("memory", NOTE, "this system does not say how much")
    total, available = sizes
    found = f"{total:.1f} GB, {available:.1f} GB available"
    if available < _LEAST_MEMORY_GB:
        return Check("memory", NOTE, found, f"the demo needs up to {_LEAST_MEMORY_GB:.0f} GB: close other programs")
    return Check("memory", OK, found)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    if free < _LEAST_DISK_GB:
        return Check(
            "disk", NOTE, f"{free:.1f} GB free here", f"the demo needs {_LEAST_DISK_GB:.0f} GB: free some space"
        )
    return Check("disk", OK, f"{free:.1f} GB free here")


def _dicom() -> Check:
    needed = ("pydicom", "highdicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle")
    missing = [name for name in needed if _version(name) is None]
    if missing:
        return Check("dicom", MISSING, f"without {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check(
        "dicom", OK, f"pydicom {_version('pydicom')}, highdicom {_version('highdicom')}; JPEG, JPEG 2000, RLE decoders"
    )


def _extras() -> Check:
    parts = {
        "onnx": ("ONNX export", "onnx"),
        "onnxruntime": ("ONNX check", "onnx"),
        "dicomweb-client": ("DICOMweb", "dicomweb"),
        "distributed": ("Dask", "dask"),
        "python-gdcm": ("GDCM decoders", "dicom"),
    }
    missing = {name: part for name, part in parts.items() if _version(name) is None}
    if missing:
        found = ", ".join(f"{what} ({name})" for name, (what, _) in missing.items())
        extras = ",".join(dict.fromkeys(extra for _, extra in missing.values()))
        return Check("extras", NOTE, f"optional, not here: {found}", f"pip install 'lvmmed-monai[{extras}]'")
    return Check("extras", OK, ", ".join(what for what, _ in parts.values()))


def _tools() -> Check:
    from lvmmed_monai.ingest.mosaic import converter

    packages = {"dciodvfy": "dicom3tools", "dcm2niix": "dcm2niix"}
    found = {"dciodvfy": shutil.which("dciodvfy"), "dcm2niix": converter()}
    missing = [tool for tool in packages if found[tool] is None]
    if missing:
        names = " ".join(packages[tool] for tool in missing)
        return Check(
            "tools", NOTE, f"optional, not here: {', '.join(missing)}", f"on Debian or Ubuntu: apt-get install {names}"
        )
    return Check("tools", OK, ", ".join(packages))
