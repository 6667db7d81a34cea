"""The bare weights of the inference network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lvmmed_monai.engines.outputs import write_feature_model
from lvmmed_monai.networks import FeatureExtractor, build_encoder


@pytest.mark.parametrize("order", ["monai_1.5", "monai_1.4"])
def test_feature_model_fills_the_default_network_and_gives_the_encoders_features(tmp_path: Path, order: str) -> None:
    """The inference network is built with default options: how patches are merged comes with the weights."""
    encoder = build_encoder("swinunetr_tiny", window_size=2, patch_merging=order).eval()
    write_feature_model(tmp_path / "model.pt", encoder)
    network = FeatureExtractor("swinunetr_tiny", 1, {"window_size": 2}).eval()
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert state.keys() == network.state_dict().keys()
    network.load_state_dict(state)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(image), encoder(image)[-1])
