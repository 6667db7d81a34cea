"""What the report shows of a VoCo pre-training: alarms, and true beside predicted positions."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
from PIL import Image

from lvmmed_monai.report import build_report
from lvmmed_monai.report.position import position_figure
from lvmmed_monai.results import new_results, write_results

CROP = {
    "center": [0.75, 1.5],
    "true": [0.0, 0.75, 0.0, 0.0, 0.25, 0.0],
    "predicted": [0.11, 0.22, 0.33, 0.44, 0.0, 1.0],
}


def words(address: str) -> list[str]:
    """The texts of a figure, in the order in which they are drawn."""
    kind, content = address.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    return re.findall(r"<text[^>]*>([^<]+)</text>", base64.b64decode(content).decode())


def test_shares_stand_where_a_radiologist_expects_them(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((36, 24), np.uint8)).save(tmp_path / "1.png")
    found = [word for word in words(position_figure(tmp_path / "1.png", [2, 3], [CROP])) if re.match(r"\d\.\d\d", word)]
    # Base (i, j) is number 3i + j; rows from anterior (j = 2) down, columns from the patient's right (i = 1).
    assert found[:6] == ["0.00", "0.00", "0.25", "0.75", "0.00", "0.00"]
    assert found[6:] == ["1.00", "0.33", "0.00", "0.22", "0.44", "0.11"]


def test_layers_are_summed_and_a_missing_picture_is_left_out(tmp_path: Path) -> None:
    crop = {"center": [0.5, 0.5], "true": [0.25, 0.5, 0.0, 0.25], "predicted": [0.0, 0.125, 0.5, 0.0]}
    found = [word for word in words(position_figure(tmp_path / "none.png", [2, 1, 2], [crop])) if "." in word]
    assert found == ["0.25", "0.75", "0.50", "0.12"]


def test_page_of_a_run_with_an_alarm(tmp_path: Path) -> None:
    record = new_results("pretraining", "voco_pretrain", seed=0)
    record["alarms"] = [{"first_step": 100, "last_step": 1200, "text": "intra loss has stood at 0.58 <for ever>"}]
    record["examples"] = [{"name": "held-out volume 1", "picture": "examples/1.png", "grid": [2, 3], "crops": [CROP]}]
    (tmp_path / "examples").mkdir()
    Image.fromarray(np.zeros((36, 24), np.uint8)).save(tmp_path / "examples" / "1.png")
    write_results(tmp_path / "results.json", record)
    page = build_report([tmp_path], tmp_path / "report.html").read_text()
    assert "<strong>Steps 100 to 1 200:</strong> intra loss has stood at 0.58 &lt;for ever&gt;" in page
    assert "Is position learnt?" in page
    (picture,) = re.findall(r'<img src="([^"]+)" alt="True and predicted positions', page)
    assert "predicted" in words(picture)
