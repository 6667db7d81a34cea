"""The comparison of 2D pre-trainings: who does which run, what is measured, and what the table says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvmmed_monai.data.datalist import read_datalist
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import read_json, write_json
from lvmmed_monai.metrics import area_under_curve
from lvmmed_monai.networks import build_encoder
from lvmmed_monai.results import environment, read_results

NAMES = ("_runs", "_measures_2d", "_compare_table", "compare_2d")


@pytest.fixture
def scripts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The benchmark's modules by name."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def datalists(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """40 dark and bright pictures with classes, and 20 others without."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    found = []
    for name, count, labelled in (("bright", 40, True), ("plain", 20, False)):
        items = []
        for i in range(count):
            pixels = rng.integers(0, 150, (24, 24, 3)) + 100 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}{i}.png")
            label = {"label": i % 2} if labelled else {}
            items.append({"image": f"{name}{i}.png", "subject": f"{name}{i}", **label})
        parts = {"training": items[: count // 2], "validation": [], "test": items[count // 2 :]}
        about = {"task": "classification", "labels": {"0": "dark", "1": "bright"}} if labelled else {"labels": {}}
        content = {"format": "lvmmed-datalist/1", "name": name, "task": "unlabelled", "modality": "COLOR", **about}
        write_json(folder / f"{name}.json", {**content, **parts})
        found.append(str(folder / f"{name}.json"))
    return found


SMALL = [
    *("--methods", "lvm_med", "no_such_method", "--settings", "warmup_steps=0", "--encoder-options", "width=4"),
    *("--steps", "2", "--seeds", "3", "--batch", "16", "--size", "32", "--tune-steps", "2", "--tune-batch", "8"),
    *("--fractions", "0.25", "1", "--labels", "8", "--draws", "2", "--tune-draws", "3"),
]


def test_commits_name_the_code_that_figures_are_of(scripts: dict[str, Any], tmp_path: Path) -> None:
    runs = scripts["_runs"]
    paths = [tmp_path / f"{number}.json" for number in range(4)]
    write_json(paths[0], {"dice": 0.5})
    write_json(paths[1], {"dice": 0.5, "commit": "aaaa"})
    write_json(paths[2], {"dice": 0.5, "commit": "aaaa"})
    assert runs.commits(paths) == "Figures of commit aaaa (2 runs), unknown (1 runs)"
    runs.keep(paths[3], {"dice": 0.5})
    assert read_json(paths[3], "figures") == {"dice": 0.5, "commit": environment()["commit"]}


def test_a_claim_ends_with_the_work_and_with_the_process(scripts: dict[str, Any], tmp_path: Path) -> None:
    claimed = scripts["_runs"].claimed
    path = tmp_path / "run.json"
    with claimed(path) as mine:
        assert mine
        with claimed(path) as again:
            assert not again
    # A process that dies without its result gives the run back.
    code = "import os, sys; from _runs import claimed; c = claimed(__import__('pathlib').Path(sys.argv[1])); "
    code += "print(c.__enter__(), flush=True); os._exit(9)"
    folder = Path(scripts["_runs"].__file__).parent
    died = subprocess.run([sys.executable, "-c", code, str(path)], cwd=folder, capture_output=True, text=True)
    assert died.stdout.strip() == "True", died.stderr
    with claimed(path) as mine:
        assert mine
        path.write_text("{}")
    with claimed(path) as mine:
        assert not mine


@pytest.mark.slow
def test_whole_comparison(
    scripts: dict[str, Any], datalists: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*datalists, *SMALL, "--folder", str(tmp_path / "f"), "--out", str(tmp_path / "results.json")]
    threads = torch.get_num_threads()
    scripts["compare_2d"].main(words)
    shown = capsys.readouterr().out
    assert "no_such_method, seed 3, is left out: unknown method 'no_such_method'; pre-training; choose" in shown
    metrics = read_results(tmp_path / "results.json")["metrics"]
    for start in ("random weights", "8 x 8 pixels", "lvm_med"):
        for way in ("probe, 25 %", "probe, 100 %", "probe, 8 labels"):
            assert f"| bright, {way} | {start} |" in shown
        assert metrics[f"bright, probe, 100 %/{start}"]["value"] > 0.7
        low, high = metrics[f"bright, probe, 25 %/{start}"]["interval_over_images"]
        assert 0 <= low <= metrics[f"bright, probe, 25 %/{start}"]["value"] <= high <= 1
    assert "bright, fine-tuned, 100 %/lvm_med/minus_reference" in metrics
    assert "bright, fine-tuned, 100 %/8 x 8 pixels" not in metrics
    assert metrics["r@1/lvm_med"]["n"] == 1
    # Ten pictures are too few for a value of their own.
    assert "bright, r@1/lvm_med" in metrics
    assert "plain, r@1/lvm_med" not in metrics
    (archive,) = (tmp_path / "f").glob("lvm_med-3-*.npz")
    with np.load(archive) as scores:
        for part in ("25 %", "100 %"):
            tuned = scores[f"bright, fine-tuned, {part}"]
            assert tuned.shape == (3, 20)
            assert len(np.unique(tuned, axis=0)) == 3
    # What is done is not done again.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "f").glob("*-3-*.json")}
    assert len(files) == 3
    scripts["compare_2d"].main(words)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "f").glob("*-3-*.json")} == files
    torch.set_num_threads(threads)


def test_labels_and_test_images_stay_out_of_pretraining(
    scripts: dict[str, Any], datalists: list[str], tmp_path: Path
) -> None:
    options = scripts["compare_2d"].parse([*datalists, *SMALL, "--folder", str(tmp_path), "--most", "12"])
    data = scripts["compare_2d"].Data.read(options)
    for path, count in zip(data.unlabelled, (12, 10), strict=True):
        content = read_datalist(path)
        assert [len(content[section]) for section in ("training", "validation", "test")] == [count, 0, 0]
        assert not any("label" in item for item in content["training"])
        own = {item["subject"] for item in read_datalist(Path(datalists[0]).parent / f"{content['name']}.json")["test"]}
        assert not own & {item["subject"] for item in content["training"]}
    assert [one.name for one in data.labelled] == ["bright"]
    assert np.bincount(data.set_of).tolist() == [20, 10]


def test_a_datalist_is_probed_on_without_being_trained_on(
    scripts: dict[str, Any], datalists: list[str], tmp_path: Path
) -> None:
    compare = scripts["compare_2d"]
    bright, plain = (Path(path) for path in datalists)
    content = read_datalist(plain)
    items = [scripts["_runs"].absolute(item, plain.parent) for item in content["training"] + content["test"]]
    write_json(tmp_path / "plain.json", {**content, "training": items[:4], "test": items[4:]})
    probe = ["--folder", str(tmp_path), "--probe", str(bright)]
    options = compare.parse([str(tmp_path / "plain.json"), *SMALL, *probe])
    data = compare.Data.read(options)
    assert (data.labelled, [one.name for one in data.probed]) == ([], ["bright"])
    assert [read_datalist(path)["name"] for path in data.unlabelled] == ["plain"]
    values, _ = compare.measure(build_encoder("resnet18", 3, width=4), 3, data, options)
    ways = ("25 %", "100 %", "8 labels")
    assert {name for name in values if name.startswith("bright")} == {f"bright, probe, {way}" for way in ways}
    # Figures without the probe are kept under another name.
    start, without = compare.Start(compare.RANDOM), compare.parse([str(tmp_path / "plain.json"), *SMALL, *probe[:2]])
    assert compare.result_path(start, 3, data, options) != compare.result_path(start, 3, data, without)


def test_what_is_probed_on_must_not_be_trained_on(
    scripts: dict[str, Any], datalists: list[str], tmp_path: Path
) -> None:
    bright, plain = (Path(path) for path in datalists)
    taught = [{"image": str(plain.parent / "bright39.png"), "subject": "bright39"}]
    write_json(tmp_path / "shared.json", {**read_datalist(plain), "training": taught, "test": []})
    options = scripts["compare_2d"].parse(
        [str(tmp_path / "shared.json"), "--folder", str(tmp_path), "--probe", str(bright)]
    )
    with pytest.raises(UserError, match=r"1 of the 20 subjects in test of .*bright.json are in training of .*shared"):
        scripts["compare_2d"].Data.read(options)


def test_too_few_pictures_are_said_before_anything_is_trained(
    scripts: dict[str, Any], datalists: list[str], tmp_path: Path
) -> None:
    bright = Path(datalists[0])
    content = read_datalist(bright)
    items = [{**item, "image": str(bright.parent / item["image"])} for item in content["test"]]
    few = {**content, "training": items[:4], "test": items[4:19]}
    for name, lists in (("few", few), ("untaught", {**few, "training": [], "test": items})):
        write_json(tmp_path / f"{name}.json", lists)
    read, parse = scripts["compare_2d"].Data.read, scripts["compare_2d"].parse
    with pytest.raises(UserError, match="15 pictures in the sections test, fewer than a matching of 16"):
        read(parse([str(tmp_path / "few.json"), "--folder", str(tmp_path)]))
    with pytest.raises(UserError, match="no picture to pre-train on"):
        read(parse([str(tmp_path / "untaught.json"), "--folder", str(tmp_path)]))
    both = [str(tmp_path / "few.json"), str(tmp_path / "untaught.json")]
    assert len(read(parse([*both, "--folder", str(tmp_path)])).unlabelled) == 1


def test_random_weights_are_those_that_methods_start_from(
    scripts: dict[str, Any], datalists: list[str], tmp_path: Path
) -> None:
    compare = scripts["compare_2d"]
    options = compare.parse([*datalists, *SMALL, "--folder", str(tmp_path), "--rate", "0"])
    data = compare.Data.read(options)
    still, _ = compare.encoder_of(compare.Start("lvm_med", {"method": "lvm_med"}), 3, data, options)
    start, _ = compare.encoder_of(compare.Start(compare.RANDOM), 3, data, options)
    assert all(torch.equal(a, b) for a, b in zip(still.parameters(), start.parameters(), strict=True))


def test_retrieval_of_sets_is_that_of_all_images_told_apart(scripts: dict[str, Any]) -> None:
    measures = scripts["_measures_2d"]
    rng = np.random.default_rng(0)
    set_of = rng.permutation(np.repeat([0, 1, 4], [16, 15, 30]))
    base = rng.normal(size=(2, 61, 8))
    views = torch.from_numpy(np.stack([base, base + rng.normal(size=base.shape)], axis=1))
    found = measures.retrieval_of_sets(lambda images: images, views, set_of)
    assert found.keys() == {0, 4}
    for number, share in found.items():
        hits = []
        for draw in views.numpy():
            first, second = draw - draw.mean(axis=(0, 1))
            for i in np.flatnonzero(set_of == number):
                cosine = [first[i] @ row / np.linalg.norm(first[i]) / np.linalg.norm(row) for row in second]
                hits.append(int(np.argmax(cosine)) == i)
        assert share == pytest.approx(np.mean(hits))
        assert 0.1 < share < 0.9


def test_few_labels_hold_two_of_each_class(scripts: dict[str, Any]) -> None:
    measures = scripts["_measures_2d"]
    labels = np.array([0] * 95 + [1] * 5)
    part = measures.LabelledPictures(torch.zeros(100, 3, 1, 1, dtype=torch.uint8), labels, None)
    data = measures.Labelled("a", part, part, 2)
    for draw in range(20):
        rows = data.some(6, [0, draw])
        assert len(set(rows.tolist())) == 6
        assert np.bincount(labels[rows]).min() >= 2
    assert data.some(6, [0, 1]).tolist() == data.some(6, [0, 1]).tolist() != data.some(6, [0, 2]).tolist()
    assert data.some(500, [0]).tolist() == list(range(100))


def test_fine_tuning_learns_and_leaves_the_encoder_alone(
    scripts: dict[str, Any], datalists: list[str], tmp_path: Path
) -> None:
    measures = scripts["_measures_2d"]
    data = measures.Labelled.read(Path(datalists[0]), "test", tmp_path, 32)
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 3, width=4)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    scores = measures.fine_tuned_scores(encoder, data, np.arange(20), steps=30, batch=16, rate=3e-3, key=[0])
    assert area_under_curve(scores, data.measured.labels) > 0.95
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_light_views_keep_the_middle_and_mirror_only_where_it_is_safe(scripts: dict[str, Any]) -> None:
    light_views = scripts["_measures_2d"].light_views
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(64, 3, 32, 32)
    views = light_views(ramp, False, np.random.default_rng(0))
    assert views.shape == ramp.shape
    assert 0 <= views.min() < views.max() <= 1
    rises = views.mean(dim=(1, 2)).diff(dim=1).sum(dim=1)
    assert (rises > 0).all()
    mirrored = light_views(ramp, True, np.random.default_rng(0)).mean(dim=(1, 2)).diff(dim=1).sum(dim=1)
    assert 10 < (mirrored < 0).sum() < 54


class TestTable:
    def found(self, scripts: dict[str, Any], folder: Path) -> Any:
        """Three starts; the scores of a start and seed are the truth plus noise of a known size."""
        labels = np.arange(60) % 2
        paths: dict[str, dict[int, Path]] = {}
        for number, (name, noise) in enumerate({"random": 3.0, "simclr": 1.0, "lvm_med": 0.7}.items()):
            paths[name] = {}
            for seed in (0, 1, 2):
                rng = np.random.default_rng([number, seed])
                scores = labels + noise * rng.normal(size=(2, 60))
                area = float(np.mean([area_under_curve(row, labels) for row in scores]))
                path = paths[name][seed] = folder / f"{name}-{seed}.json"
                values = {"bright, probe, 1 %": area, "r@1": 0.1 * number + 0.01 * seed, "set": None}
                write_json(path, {"values": values, "pretraining_seconds": 5.0, "measuring_seconds": 2.0})
                np.savez(path.with_suffix(".npz"), **{"bright, probe, 1 %": scores})
            paths[name][3] = folder / "not done.json"
        return scripts["_compare_table"].Found(paths, {"bright": labels}, {"simclr"}, "random")

    def test_means_differences_and_intervals(self, scripts: dict[str, Any], tmp_path: Path) -> None:
        found = self.found(scripts, tmp_path)
        results: dict[str, Any] = {"metrics": {}, "timings": {}}
        text = scripts["_compare_table"].table(found, results)
        areas = {
            name: [run["values"]["bright, probe, 1 %"] for run in runs.values()] for name, runs in found.runs.items()
        }
        metrics = results["metrics"]
        key = "bright, probe, 1 %/lvm_med"
        assert metrics[key]["value"] == pytest.approx(np.mean(areas["lvm_med"]))
        gain = np.subtract(areas["lvm_med"], areas["simclr"])
        assert metrics[f"{key}/minus_best_baseline"]["value"] == pytest.approx(gain.mean())
        half = 4.302653 * gain.std(ddof=1) / 3**0.5
        assert metrics[f"{key}/minus_best_baseline"]["interval"][1] == pytest.approx(gain.mean() + half)
        low, high = metrics[f"{key}/minus_reference"]["interval_over_images"]
        assert 0 < low < metrics[f"{key}/minus_reference"]["value"] < high
        assert "r@1/lvm_med" in metrics
        assert metrics["r@1/lvm_med"]["interval_over_images"] is None
        # Neither what no run could measure nor a difference to itself.
        assert not any(name.startswith("set") for name in metrics)
        assert "r@1/random/minus_reference" not in metrics
        assert "r@1/simclr/minus_best_baseline" not in metrics
        assert "| r@1 | **simclr** | 0.110 ± 0.025 | +0.100 ± 0.000 |  |" in text
        assert "lvm_med: 3 seeds, 5 s of pre-training, 2 s of measuring" in text

    def test_nothing_done_gives_an_empty_table(self, scripts: dict[str, Any], tmp_path: Path) -> None:
        found = scripts["_compare_table"].Found({"a": {0: tmp_path / "a.json"}}, {}, set(), "a")
        assert scripts["_compare_table"].table(found, {"metrics": {}, "timings": {}}).count("\n") == 1
