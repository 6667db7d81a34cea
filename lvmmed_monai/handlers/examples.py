"""Examples of what a pre-training has learnt, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lvmmed_monai.files import atomic_path

__all__ = ["write_examples"]


def write_examples(method: Any, held_out: Any, folder: Path) -> list[dict[str, Any]]:
    """Write the pictures of a method's ``examples(held_out)`` and give what stands in the results file.

    An example's ``slice`` (X, Y) is shown as a radiologist expects: the patient's right on the left, anterior at the
    top; its ``picture`` (H, W) or (H, W, 3) as it is. An example may have neither.

    Args:
        method: a method that has such a function; none are written for others.
        held_out: the dataset that the method monitors on; None writes none.
        folder: of the results file; pictures go to ``examples`` in it.
    """
    if held_out is None or not hasattr(method, "examples"):
        return []
    written = []
    for number, example in enumerate(method.examples(held_out), start=1):
        about = {key: value for key, value in example.items() if key not in ("slice", "picture")}
        shown = example["slice"][::-1].T[::-1].copy() if "slice" in example else example.get("picture")
        if shown is not None:
            path = folder / "examples" / f"{number}.png"
            with atomic_path(path) as temporary:
                Image.fromarray(shown).save(temporary, format="PNG")
            about["picture"] = f"examples/{number}.png"
        written.append({"name": f"held-out volume {number}", **about})
    return written
