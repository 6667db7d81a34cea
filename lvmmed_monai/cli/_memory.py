"""How much memory this machine has left, and what happens when a command asks for more."""

from __future__ import annotations

from pathlib import Path

__all__ = ["limit_memory", "memory_gb"]

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# The system and files that are being read need some, too.
_SHARE = 0.95


def memory_gb() -> tuple[float, float] | None:
    """Total and available memory in GB, the container's limit included; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: float(line.split()[1]) * 1024 / 1e9 for line in lines if len(line.split()) > 1}
    total, available = sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemFree"])
    for limit in map(Path, _CGROUP_LIMITS):
        if limit.is_file() and limit.read_text().strip().isdigit():
            total = min(total, int(limit.read_text()) / 1e9)
    return total, min(available, total)


def limit_memory() -> None:
    """Let this process have the memory that is available now, and no more.

    A request beyond that fails with an error that can be explained; without a limit Linux kills the process without a
    word. Does nothing where the system does not say how much there is, or torch uses a GPU, whose driver reserves
    address space of any size.
    """
    sizes, used = memory_gb(), _data_bytes()
    if sizes is None or used is None:
        return
    import resource

    import torch

    if not torch.cuda.is_available():
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = used + int(_SHARE * sizes[1] * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _data_bytes() -> int | None:
    """Bytes that count towards the limit already (``VmData``)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
