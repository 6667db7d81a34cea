"""The page: whole, self-contained, saying what the files say."""

from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import write_json
from lvmmed_monai.report import build_report
from lvmmed_monai.report.build import headlines
from lvmmed_monai.report.collect import collect


class Page(HTMLParser):
    """Tags, addresses, and words of a page; fails on tags that are not closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def page(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(build_report([project], tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8"))


def test_needs_no_other_file_and_no_script(page: Page) -> None:
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)


def test_style_refers_to_nothing(project: Path, tmp_path: Path) -> None:
    text = build_report([project], tmp_path / "report.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_every_picture_decodes_and_is_described(page: Page) -> None:
    assert len(page.images) >= 6 + 3 + 2 * (1 + 3)
    for image in page.images:
        assert image["alt"]
        head, data = (image["src"] or "").split(",", 1)
        content = base64.b64decode(data, validate=True)
        assert content.startswith(b"\x89PNG" if "png" in head else b"<?xml")


def test_says_what_was_left_out_and_why(page: Page) -> None:
    for words in (
        "24 series taken in, 1 left out",
        "GEO-004",
        "gap of 7.5 mm after slice 12",
        "export the series again",
        "FILE-001",
    ):
        assert words in page.words


def test_sets_chance_and_the_untrained_network_beside(page: Page) -> None:
    table = page.words.split("Better", 1)[0][-300:] + page.words.split("Better", 1)[1][:300]
    for words in ("Chance", "Untrained", "0.062", "0.180", "0.550"):
        assert words in table


def test_names_best_median_and_worst_case(page: Page) -> None:
    for rank in ("Best", "Median", "Worst"):
        assert page.words.count(rank) == 2


def test_tells_a_value_that_could_not_be_computed_from_zero(page: Page) -> None:
    cases = page.words.split("Every case", 1)[1][:1500]
    assert "–" in cases


def test_states_seeds_versions_commands_and_provenance(page: Page) -> None:
    for words in (
        "lvmmed run lvmmed_pretrain train",
        "Seed",
        "highdicom",
        "Peak memory",
        "torso",
        "ab12ab12ab12",
        "lvm_med",
        "resnet18 (width 16)",
        "cd34cd34cd34",
        "random weights",
    ):
        assert words in page.words


def test_text_from_files_cannot_become_markup(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "copy")
    path = copy / "runs" / "pretrain_2d" / "results.json"
    path.write_text(path.read_text().replace('"torso"', '"<script>alert(1)</script>"'))
    text = build_report([copy], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_same_files_give_the_same_pictures(project: Path, tmp_path: Path) -> None:
    first, second = (build_report([project], tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in "ab")
    pictures = re.compile(r'src="([^"]+)"')
    assert pictures.findall(first) == pictures.findall(second)


def test_a_broken_file_is_named_and_the_rest_is_reported(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "copy")
    write_json(copy / "runs" / "pretrain_2d" / "results.json", {"format": "lvmmed-results/1"})
    words = Page(build_report([copy], tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert "Left out of this report: not a valid results file" in words
    assert "VoCo segmentation 3D" in words


def test_a_missing_picture_is_left_out(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "copy")
    for preview in (copy / "runs" / "voco_segmentation_3d" / "previews").iterdir():
        preview.unlink()
    assert Page(build_report([copy], tmp_path / "report.html").read_text(encoding="utf-8")).words.count("Median") == 1


def test_headlines_are_the_numbers_of_the_files(project: Path) -> None:
    found = {headline.title: headline for headline in headlines(collect([project]))}
    assert found["Series taken in"].value == "24"
    accuracy = found["LVM-Med pretrain: Matching accuracy"]
    assert (accuracy.value, accuracy.note) == ("0.550", "chance 0.062; untrained 0.180")
    assert "95 % interval" in found["LVM-Med segmentation 2D: Mean Dice"].note


@pytest.mark.parametrize("make", [False, True])
def test_a_missing_or_empty_folder_is_one_sentence(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "none"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match="no results.json" if make else "not a folder"):
        build_report([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_named_twice_is_read_once(project: Path) -> None:
    assert len(collect([project, project / "runs"]).runs) == len(collect([project]).runs) == 3
