"""The page of an ingest: says everything that ``qc.json`` says, shows nothing as markup, stays small."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from synthetic_dicom import save, series

from lvmmed_monai.ingest.findings import ERROR, NOTE, WARNING
from lvmmed_monai.ingest.page import MOST_SERIES, page_text, write_page
from lvmmed_monai.ingest.pipeline import ingest
from lvmmed_monai.ingest.reasons import REASONS


def finding(code: str, severity: str = ERROR, **words: str) -> dict[str, str]:
    texts = {"measured": f"measured for {code}", "expected": f"expected for {code}", "remedy": f"remedy for {code}"}
    return {"code": code, "severity": severity, **texts, **words}


def entry(number: int, *findings: dict[str, str], accepted: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{number:016x}",
        "modality": "CT",
        "accepted": accepted,
        "shape": [512, 512, 40] if accepted else None,
        "spacing_mm": [0.796875, 0.796875, 5.0] if accepted else None,
        "value_range": [-1024.0, 1377.0] if accepted else None,
        "labels": None,
        "preview": f"previews/{number:016x}.png" if accepted else None,
        "findings": list(findings),
        **more,
    }


def record(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "format": "lvmmed-qc/1",
        "source": {"files": 7000, "archives": 2, "instances": 6000},
        "series": list(entries),
        "files": [{"code": "F02", "count": 1234, "remedy": "nothing, if it is no image"}],
        "datalists": ["datalist.json"],
        "timings": {"headers": 1.5},
        **more,
    }


class Page(HTMLParser):
    """Ids, links, pictures and text of a page; checks that elements are closed in order."""

    _VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [values["href"]] if values.get("href") else []
        self.pictures += [values] if tag == "img" else []
        self._open += [] if tag in self._VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_what_needs_attention_comes_first():
    made = record(
        entry(1, finding("R01")),
        entry(2, accepted=True),
        entry(3, finding("W05", WARNING), accepted=True),
        entry(4, finding("G01"), finding("G08", WARNING)),
    )
    page = page_text(made)
    places = [page.index(f"{number:016x}</code>") for number in (4, 3, 2, 1)]
    assert all(earlier < later for earlier, later in pairwise(places))
    text = Page(page).text
    for tile in ("Refused 1", "Accepted 1", "To look at 1", "Set aside 1", "Files passed over 1,234"):
        assert tile in text
    assert "2 volumes; 0 with labels" in text


def test_remarks_that_ask_for_nothing_do_not_ask_for_a_look():
    nothing = finding("W01", WARNING, remedy="none; positions win")
    text = Page(page_text(record(entry(1, nothing, finding("W03", NOTE), accepted=True)))).text
    assert "To look at 0" in text
    assert "measured for W01 expected: expected for W01 what to do: none; positions win" in text
    assert "Accepted, but look at these" not in text


def test_a_refused_series_says_reason_number_expectation_and_remedy():
    page = Page(page_text(record(entry(1, finding("G01"), finding("G03")))))
    for code in ("G01", "G03"):
        assert f"measured for {code} expected: expected for {code} what to do: remedy for {code}" in page.text
    assert f"G01 {REASONS['G01'].title} 1 {REASONS['G01'].meaning}" in page.text


def test_what_a_group_shares_is_said_once():
    made = record(*(entry(number, finding("G07", measured=f"{number} slices")) for number in (1, 2)))
    text = Page(page_text(made)).text
    assert text.count("expected for G07") == text.count("remedy for G07") == 1
    assert "Expected: expected for G07. What to do: remedy for G07." in text
    assert "1 slices" in text
    assert "2 slices" in text


def test_every_code_is_explained_and_every_link_lands():
    made = record(*(entry(number, finding(code)) for number, code in enumerate(REASONS)))
    page = Page(page_text(made))
    assert {f"code-{code}" for code in REASONS} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner <= set(page.ids)
    for reason in REASONS.values():
        assert reason.meaning in page.text
        assert reason.remedy in page.text


def test_only_codes_that_occur_are_explained():
    page = Page(page_text(record(entry(1, finding("G01")))))
    assert [name for name in page.ids if name.startswith("code-")] == ["code-F02", "code-G01"]


def test_a_code_of_another_version_is_shown_without_explanation():
    page = Page(page_text(record(entry(1, finding("X99")))))
    assert "measured for X99" in page.text


def test_nothing_becomes_markup():
    nasty = '<script>alert(1)</script><img src=x onerror="alert(2)">&"\''
    made = record(
        entry(1, finding("G01", measured=nasty, expected=nasty, remedy=nasty), modality=nasty),
        entry(
            2, finding("W05", WARNING, measured=nasty), accepted=True, labels=[nasty], decoders=[nasty], modality=nasty
        ),
        entry(3, accepted=True, modality=nasty, preview=f'x"{nasty}'),
        datalists=[nasty],
        files=[{"code": "F02", "count": 1, "remedy": nasty}],
    )
    page = Page(page_text(made))
    assert page.tags.count("script") == 1  # ours
    assert all(set(picture) == {"loading", "src", "alt"} for picture in page.pictures)
    assert len(page.pictures) == 2
    assert nasty in " ".join(page.words)


def test_pictures_are_linked_and_lazy_also_for_refused_series():
    made = record(entry(1, accepted=True), entry(2, finding("G01"), preview="previews/2.png"), entry(3, finding("G01")))
    pictures = Page(page_text(made)).pictures
    assert sorted(str(picture["src"]) for picture in pictures) == ["previews/0000000000000001.png", "previews/2.png"]
    assert all(picture["loading"] == "lazy" for picture in pictures)


def test_no_address_outside():
    page = page_text(record(entry(1, accepted=True), entry(2, finding("G01"))))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.replace("// Only", ""))
    assert "default-src 'none'" in page


def test_facts_of_the_new_kinds():
    made = record(
        entry(1, accepted=True, labels=["liver", "kidney_left"], label_channels=["liver", "tumour"]),
        entry(
            2, accepted=True, modality="MR", kind="volume", time_point=2, time_points=4, decoders=["pylibjpeg", "gdcm"]
        ),
        entry(3, accepted=True, modality="US", kind="image", frames=30, spacing_mm=[0.3, 0.3], value_range=[0, 255]),
    )
    text = Page(page_text(made)).text
    assert "512 × 512 × 40 0.7969 × 0.7969 × 5 mm -1024 to 1377 HU labels: liver, kidney_left" in text
    assert "label channels: liver, tumour" in text
    assert "time point 2 of 4" in text
    assert "decoded by pylibjpeg, gdcm" in text
    assert "0.3 × 0.3 mm 30 frames 0 to 255" in text
    assert "2 volumes, 1 image; 1 with labels" in text


def test_many_series_stay_small_and_every_group_is_seen():
    made = record(
        *(entry(number, finding("R01")) for number in range(9000)),
        *(entry(number, finding("G01")) for number in range(9000, 9010)),
        *(entry(number, accepted=True) for number in range(9010, 12_000)),
    )
    page = page_text(made)
    assert len(page) < 1_500_000
    assert page.count('<div class="card">') == MOST_SERIES
    assert all(f"{number:016x}</code>" in page for number in range(9000, 9010))
    text = Page(page).text
    assert "8,005 more like these are not shown here; all stand in qc.json" in text
    assert "1,995 more like these" in text


@pytest.mark.parametrize("most", [0, 1, 7, 100])
def test_never_more_than_asked_for(most):
    made = record(*(entry(number, finding(code)) for number, code in enumerate(["G01"] * 5 + ["R01"] * 9 + ["D02"])))
    assert page_text(made, most).count('<div class="card">') == min(most, 15)


def test_an_empty_record():
    text = Page(page_text(record(files=[], source={"files": 0, "archives": 0, "instances": 0}))).text
    assert "Files passed over 0 of 0" in text


def test_the_same_record_writes_nothing_again(tmp_path):
    path = tmp_path / "qc.html"
    write_page(path, record(entry(1, accepted=True)))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_page(path, record(entry(1, accepted=True), timings={"headers": 9.9}))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    write_page(path, record(entry(2, accepted=True)))
    assert f"{2:016x}" in path.read_text(encoding="utf-8")


def test_the_page_of_a_real_run(tmp_path):
    save(series(6, patient="NOBODY-1"), tmp_path / "src" / "good")
    save(series(2, patient="NOBODY-2"), tmp_path / "src" / "short")
    (tmp_path / "src" / "note.txt").write_text("no image")
    ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key")
    made = json.loads((tmp_path / "out" / "qc.json").read_text(encoding="utf-8"))
    write_page(tmp_path / "out" / "qc.html", made)
    page = Page((tmp_path / "out" / "qc.html").read_text(encoding="utf-8"))
    for item in made["series"]:
        assert item["id"] in page.text
        assert all(found["measured"] in page.text for found in item["findings"])
    assert page.pictures
    assert all((Path(tmp_path, "out") / str(picture["src"])).is_file() for picture in page.pictures)
    assert "NOBODY" not in page.text
