"""Omni- and semi-supervised pre-training: gradients, teacher, switch, data, resume, outputs, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.losses import DiceCELoss
from monai.networks.nets import SwinUNETR
from omni_material import LABELS, SMALL, anatomy, build_run, write_set

from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.handlers import ResumableCheckpoint
from lvmmed_monai.methods import build_method
from lvmmed_monai.methods._omni_alarms import omni_alarms
from lvmmed_monai.methods._omni_network import confident_labels, masked_dice_ce
from lvmmed_monai.methods.voco_omni import VoCoOmni

SEMI: dict[str, Any] = {"voco_weight": 0.0, "detach": False}


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    return write_set(tmp_path, "unlabelled", {"training": [0, 1, 2, 3]}, labels=None)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., VoCoOmni]:
    """A method on three labelled training volumes, and one that is held out."""
    labelled = write_set(tmp_path, "labelled", {"training": [10, 11, 12], "validation": [13]})

    def build(**options: Any) -> VoCoOmni:
        torch.manual_seed(0)
        return VoCoOmni(**{**SMALL, "labelled_datalists": [labelled], "switch_step": 1, "confidence": 0.0, **options})

    return build


def batch_of(method: VoCoOmni, unlabelled: Path, cache: Path, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    dataset = method.dataset([unlabelled], "training", cache, 0)
    return torch.utils.data.default_collate([dataset[key] for key in keys])


class TestLoss:
    def test_with_all_voxels_it_is_that_of_monai(self) -> None:
        torch.manual_seed(0)
        logits, labels = torch.randn(3, 4, 5, 6, 7), torch.randint(0, 4, (3, 5, 6, 7))
        expected = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        found = masked_dice_ce(logits, labels, torch.ones_like(labels, dtype=torch.bool))
        torch.testing.assert_close(found, expected(logits, labels.unsqueeze(1)))

    def test_voxels_that_do_not_count_change_nothing(self) -> None:
        torch.manual_seed(0)
        logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
        kept = torch.rand(2, 4, 4, 4) > 0.5
        other, other_labels = logits.clone(), labels.clone()
        other.movedim(1, -1)[~kept] = torch.randn(int((~kept).sum()), 3)
        other_labels[~kept] = 0
        torch.testing.assert_close(masked_dice_ce(logits, labels, kept), masked_dice_ce(other, other_labels, kept))

    def test_without_any_voxel_it_is_nothing(self) -> None:
        logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
        loss = masked_dice_ce(logits, torch.zeros(1, 4, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, 4).bool())
        loss.backward()
        assert float(loss.detach()) == 0
        assert not logits.grad.any()

    def test_confidence(self) -> None:
        logits = torch.log(torch.tensor([[0.95, 0.05], [0.3, 0.7], [0.5, 0.5]])).T[None, :, :, None, None]
        labels, kept = confident_labels(logits, 0.7)
        assert labels.flatten().tolist()[:2] == [0, 1]
        assert kept.flatten().tolist() == [True, True, False]
        assert confident_labels(logits, 0.0)[1].all()


class TestGradient:
    @pytest.mark.parametrize("encoder_name", ["swinunetr_tiny", "segresnet_tiny"])
    @pytest.mark.parametrize("detach", [True, False])
    def test_point_29_pseudo_labels_leave_the_encoder_alone(
        self, encoder_name: str, detach: bool, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        """Hidden state 3 too: with ``detach`` no parameter of the encoder gets any gradient, without it all do."""
        options = {} if encoder_name == "swinunetr_tiny" else {"encoder_options": None}
        method = make(detach=detach, encoder_name=encoder_name, **options)
        method.network().advance()
        batch = batch_of(method, unlabelled, tmp_path / "cache", [(0, 0)])
        terms = method.step(batch, method.network())
        terms["pseudo"].backward()
        gradients = {name: weight.grad for name, weight in method.encoder().named_parameters()}
        assert "layers3c.0.layer.conv1.conv.weight" in str(gradients.keys()) or encoder_name != "swinunetr_tiny"
        if detach:
            assert all(gradient is None for gradient in gradients.values())
        else:
            assert all(gradient is not None and gradient.any() for gradient in gradients.values())
        decoder = [
            weight.grad
            for name, weight in method.network().segmentation.named_parameters()
            if not name.startswith("encoder.")
        ]
        assert decoder
        assert all(gradient is not None for gradient in decoder)
        assert all(weight.grad is None for weight in method.network().teacher.parameters())

    def test_labels_teach_everything(self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path) -> None:
        method = make()
        batch = batch_of(method, unlabelled, tmp_path / "cache", [(0, 0)])
        method.step(batch, method.network())["supervised"].backward()
        for name, weight in method.network().segmentation.named_parameters():
            assert weight.grad is not None, name

    @pytest.mark.parametrize("options", [{}, SEMI])
    def test_every_trained_weight_gets_a_gradient_before_and_after_the_switch(
        self, options: dict[str, Any], make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        """What distributed training asks for: it stops on a weight that takes no part in the loss."""
        method = make(**options)
        network = method.network()
        batch = batch_of(method, unlabelled, tmp_path / "cache", [(0, 0)])
        for _ in range(2):
            network.zero_grad(set_to_none=True)
            method.step(batch, network)["loss"].backward()
            method.after_step(network)
            missing = [n for n, w in network.named_parameters() if w.requires_grad and w.grad is None]
            assert missing == []


class TestSwitch:
    def test_nothing_is_decoded_for_pseudo_labels_before_it(
        self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        method = make(switch_step=3, crops_per_volume=2)
        network = method.network()
        batch = batch_of(method, unlabelled, tmp_path / "cache", [(0, 0)])
        decoded: list[int] = []
        network.segmentation.register_forward_hook(lambda module, inputs, output: decoded.append(len(output)))
        network.teacher.register_forward_hook(lambda module, inputs, output: decoded.append(-len(output)))
        for step in range(4):
            decoded.clear()
            terms = method.step(batch, network)
            assert decoded == ([2] if step < 3 else [2, -2, 2])
            assert ("pseudo" in terms) == (step == 3)
            method.after_step(network)

    def test_loss_is_the_weighted_sum(self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path) -> None:
        method = make(voco_weight=0.5, pseudo_weight=2.0, confidence=0.36)
        network = method.network().eval()
        network.advance()
        batch = batch_of(method, unlabelled, tmp_path / "cache", [(0, 0), (1, 1)])
        with torch.no_grad():
            terms = {name: float(value) for name, value in method.step(batch, network).items()}
        expected = 0.5 * terms["voco"] + terms["supervised"] + 2 * terms["pseudo"]
        assert terms["loss"] == pytest.approx(expected, rel=1e-5)
        assert terms["voco"] == pytest.approx(terms["intra"] + terms["inter"] + terms["base"], rel=1e-5)
        with torch.no_grad():
            probability, labels = network.teacher(batch["weak"].flatten(0, 1)).softmax(1).max(1)
            logits = network.segmentation(batch["strong"].flatten(0, 1))
        kept = probability >= 0.36
        assert terms["kept_share"] == pytest.approx(float(kept.float().mean()))
        assert terms["pseudo"] == pytest.approx(float(masked_dice_ce(logits, labels, kept)), rel=1e-4)

    def test_frozen_teacher_is_the_network_at_the_switch(self, make: Callable[..., VoCoOmni]) -> None:
        network = make(switch_step=3).network()
        for step in range(1, 6):
            for weight in network.segmentation.parameters():
                weight.data.fill_(float(step))
            network.advance()
        assert all(torch.equal(weight, torch.full_like(weight, 3.0)) for weight in network.teacher.parameters())
        assert int(network.steps_done) == 5

    def test_moving_average_begins_as_a_plain_mean_without_the_first_weights(
        self, make: Callable[..., VoCoOmni]
    ) -> None:
        network = make(teacher="ema", teacher_momentum=0.6).network()
        expected, seen = 0.0, []
        for step in range(1, 6):
            for weight in network.segmentation.parameters():
                weight.data.fill_(float(step))
            network.advance()
            expected += (1 - min(0.6, 1 - 1 / step)) * (step - expected)
            seen.append(float(next(network.teacher.parameters()).flatten()[0]))
            assert seen[-1] == pytest.approx(expected)
        # Means of 1; 1 and 2; then from the third step on momentum .6.
        assert seen[:3] == pytest.approx([1.0, 1.5, 2.1])


class TestData:
    def test_weak_and_strong_lie_alike_and_differ_in_grey(
        self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        dataset = make(crops_per_volume=3).dataset([unlabelled], "training", tmp_path / "cache", 0)
        sample = dataset[(5, 1)]
        assert sample["weak"].shape == sample["strong"].shape == (3, 1, 16, 16, 16)
        for weak, strong in zip(sample["weak"], sample["strong"], strict=True):
            assert not torch.equal(weak, strong)
            pair = np.stack([weak.numpy().ravel(), strong.numpy().ravel()])
            assert np.corrcoef(pair)[0, 1] > 0.5
        again = make(crops_per_volume=3).dataset([unlabelled], "training", tmp_path / "cache", 0)[(5, 1)]
        assert all(torch.equal(sample[key], again[key]) for key in sample)

    def test_a_weak_crop_is_a_turned_window_of_its_volume(
        self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        dataset = make().dataset([unlabelled], "training", tmp_path / "cache", 0)
        volume = np.rint((anatomy(1)[0] + 500).clip(0, 900) / 900 * 255)
        present = set(volume.ravel().astype(int))
        found = np.rint(dataset[(0, 1)]["weak"].numpy() * 255).astype(int)
        assert set(found.ravel()) - {0} <= present

    def test_point_29_the_labelled_list_never_ends(
        self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        dataset = make().dataset([unlabelled], "training", tmp_path / "cache", 0)
        turns = [[dataset.labelled_index(3 * turn + place) for place in range(3)] for turn in range(40)]
        assert all(sorted(turn) == [0, 1, 2] for turn in turns)
        assert len({tuple(turn) for turn in turns}) == 6
        label = dataset[(10_000, 2)]["label"]
        assert label.shape == (1, 16, 16, 16)

    def test_labels_of_unlabelled_volumes_are_not_looked_at(
        self, make: Callable[..., VoCoOmni], tmp_path: Path
    ) -> None:
        both = write_set(tmp_path, "both", {"training": [5, 6]})
        for path in tmp_path.glob("both_*_label.nii.gz"):
            path.unlink()
        dataset = make(**SEMI).dataset([both], "training", tmp_path / "cache", 0)
        assert dataset[(0, 0)].keys() == {"weak", "strong", "labelled", "label"}

    def test_held_out_sections_may_lack_either_kind(
        self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        method = make()
        held_out = method.dataset([unlabelled], "validation", tmp_path / "cache", 0)
        assert (held_out.contrast, held_out.pairs) == (None, None)
        assert len(held_out) == 1
        assert method.monitors(held_out).keys() == {"dice"}
        other = write_set(tmp_path, "other", {"validation": [4, 5]}, labels=None)
        found = method.monitors(method.dataset([other], "validation", tmp_path / "cache", 0))
        assert {"dice", "argmax_accuracy_aug"} <= found.keys() <= method.metric_directions.keys()
        with pytest.raises(DataError, match="no volumes"):
            method.dataset([unlabelled], "test", tmp_path / "cache", 0)
        empty = write_set(tmp_path, "empty", {"validation": [7]})
        with pytest.raises(DataError, match="no labelled volumes"):
            make(labelled_datalists=empty).dataset([unlabelled], "training", tmp_path / "cache", 0)


class TestMonitors:
    def test_dice_of_whole_volumes(
        self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A network that finds the bright ball and nothing else has Dice 1 and 0: .5 on average."""
        method = make(**SEMI)
        dataset = method.dataset([unlabelled], "validation", tmp_path / "cache", 0)

        def forward(image: torch.Tensor) -> torch.Tensor:
            bright = (image > 0.75).float()
            return torch.cat([0.5 + 0 * bright, bright, 0 * bright], 1)

        monkeypatch.setattr(method.network().segmentation, "forward", forward)
        assert method.monitors(dataset) == {"dice": pytest.approx(0.5, abs=0.01)}

    def test_alarms(self, make: Callable[..., VoCoOmni]) -> None:
        def history(kept: float, structures: float, dice: list[float]) -> dict[str, Any]:
            curves = {"kept_share": kept, "structure_share": structures, "pseudo": 1.0}
            return {
                "curves": {name: [[step, value] for step in range(51, 101)] for name, value in curves.items()},
                "monitors": [[25 * number, {"dice": value}] for number, value in enumerate(dice)],
            }

        assert omni_alarms(history(0.6, 0.2, [0.1, 0.4, 0.5, 0.45, 0.5]), 0.9) == []
        assert "passes the confidence threshold of 0.9" in omni_alarms(history(0.0, 0.0, []), 0.9)[0]
        assert "nearly everything background" in omni_alarms(history(0.9, 0.0, []), 0.9)[0]
        assert "fallen from 0.50 to 0.30" in omni_alarms(history(0.6, 0.2, [0.1, 0.4, 0.5, 0.4, 0.3]), 0.9)[0]
        young = {"curves": {"kept_share": [[51, 0.0]]}, "monitors": [[0, {"dice": 0.2}]]}
        assert omni_alarms(young, 0.9) == []
        assert make(**SEMI).alarms(history(0.0, 0.0, [])) == omni_alarms(history(0.0, 0.0, []), 0.0)


class TestRun:
    @pytest.mark.parametrize("options", [{"teacher": "frozen"}, {"teacher": "ema", **SEMI}])
    def test_point_29_a_run_stopped_on_either_side_of_the_switch_ends_like_one_that_was_not(
        self, options: dict[str, Any], make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        class StoppedError(Exception):
            pass

        def run(folder: Path | None, stop: int | None) -> VoCoOmni:
            method = make(switch_step=3, **options)
            handlers = [ResumableCheckpoint(folder / "checkpoint.pt", 1)] if folder else []
            trainer = build_run(method, unlabelled, tmp_path / "cache", steps=6, handlers=handlers)
            if stop is None:
                trainer.run()
                return method

            def interrupt(engine: Any) -> None:
                if engine.state.iteration == stop:
                    raise StoppedError

            trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
            with pytest.raises(StoppedError):
                trainer.run()
            return method

        whole = run(None, None).network().state_dict()
        cut = tmp_path / "cut"
        cut.mkdir()
        run(cut, 2)
        run(cut, 4)
        found = run(cut, None).network().state_dict()
        assert int(found["steps_done"]) == 6
        assert whole.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in whole.items())

    def test_point_30_twenty_semi_supervised_steps_cross_the_switch(
        self, make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
    ) -> None:
        method = make(**SEMI, switch_step=10, teacher="ema")
        held_out = method.dataset([unlabelled], "validation", tmp_path / "cache", 0)
        outputs = {"output_dir": tmp_path / "out", "encoder_path": tmp_path / "out" / "encoder.pt"}
        trainer = build_run(method, unlabelled, tmp_path / "cache", steps=20, held_out=held_out, **outputs)
        trainer.run()
        curves = trainer.history["curves"]
        assert [step for step, _ in curves["supervised"]] == list(range(1, 21))
        assert [step for step, _ in curves["pseudo"]] == list(range(11, 21))
        assert {value for _, value in curves["kept_share"]} == {1.0}
        assert all(value is not None for _, value in curves["loss"])
        assert not {"voco", "intra"} & curves.keys()
        assert [list(values) for _, values in trainer.history["monitors"]] == [["dice"], ["dice"]]
        written = torch.load(tmp_path / "out" / "segmentation.pt", weights_only=True)
        method.network().segmentation.load_state_dict(written)

    def test_the_result_is_a_full_swin_unetr(
        self, make: Callable[..., VoCoOmni], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lvmmed_monai.networks import swin

        small = {"feature_size": 12, "window_size": 2}
        monkeypatch.setattr(
            swin, "swinunetr_b", lambda in_channels: swin.SwinUNETREncoder("swinunetr_b", in_channels, **small)
        )
        method = make(encoder_name="swinunetr_b", encoder_options=None)
        written = method.exports()["segmentation"]
        assert len(written) == 167
        theirs = SwinUNETR(in_channels=1, out_channels=len(LABELS), use_v2=True, **small)
        theirs.load_state_dict(written, strict=True)
        image = torch.rand(1, 1, 64, 32, 32)
        with torch.no_grad():
            ours = method.network().segmentation.eval()(image)
            torch.testing.assert_close(theirs.eval()(image), ours, rtol=0, atol=1e-5)
        assert method.network().segmentation.encoder is method.encoder() is method.network().encoder


class TestOptions:
    def test_built_by_name(self, make: Callable[..., VoCoOmni], tmp_path: Path) -> None:
        method = build_method("voco_omni", **SMALL, labelled_datalists=str(tmp_path / "labelled.json"))
        assert method.name == "voco_omni"
        assert method.labels == LABELS

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"switch_step": 0}, "switch_step"),
            ({"teacher": "ema2"}, "teacher"),
            ({"confidence": 1.5}, "confidence"),
            ({"positive_share": -0.1}, "positive_share"),
            ({"pseudo_weight": -1.0}, "weights"),
            ({"labelled_datalists": ()}, "no labelled datalist"),
        ],
    )
    def test_refuses_impossible_options(
        self, options: dict[str, Any], message: str, make: Callable[..., VoCoOmni]
    ) -> None:
        with pytest.raises(UserError, match=message):
            make(**options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, SEMI], ids=["omni", "semi"])
def test_learns_to_segment(
    options: dict[str, Any], make: Callable[..., VoCoOmni], unlabelled: Path, tmp_path: Path
) -> None:
    encoder = {"encoder_name": "segresnet_tiny", "encoder_options": None}
    method = make(**options, **encoder, switch_step=30, confidence=0.8)
    held_out = method.dataset([unlabelled], "validation", tmp_path / "cache", 0)
    trainer = build_run(method, unlabelled, tmp_path / "cache", steps=60, held_out=held_out, lr=3e-3)
    trainer.run()
    before, after = (values["dice"] for _, values in trainer.history["monitors"])
    assert before < 0.3
    assert after > 0.6
