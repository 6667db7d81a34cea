"""The settings that `learning_3d.py` compares: volume contrast as it stands here, and what makes it fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lvmmed_monai.methods._voco_network import VoCoNetwork, standardise
from lvmmed_monai.methods.voco import VoCo

__all__ = ["SETTINGS", "Setting"]


class LayerNormProjector(nn.Module):
    """The projector with layer normalisation: nothing removes what all crops of a volume share."""

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_features, hidden):
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, out_features))

    def forward(self, features: Tensor, counted: Tensor) -> Tensor:
        return self.layers(features)


class RawDropoutNetwork(VoCoNetwork):
    """Dropout before the features are standardised, as in the published code (there of whole rows)."""

    def forward(self, crops: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        features = self.pooled(crops)
        student = self.projector(standardise(nn.functional.dropout(features, 0.2, self.training), counted), counted)
        return student, self.teacher(standardise(features, counted), counted)


@dataclass(frozen=True)
class Setting:
    """Options of VoCo, the highest learning rate, and what is changed in the method after it is built."""

    options: dict[str, Any] = field(default_factory=dict)
    rate: float = 1e-3
    change: Callable[[VoCo], None] | None = None

    def method(self, **form: Any) -> VoCo:
        method = VoCo(**form, **self.options)
        if self.change:
            self.change(method)
        return method


SETTINGS: dict[str, Setting] = {
    "fixed": Setting(),
    "pooled means alone": Setting({"pooling": ["mean"]}),
    "no gradient through the bases": Setting({"base_gradient": False}),
    "two-way (v1)": Setting({"loss_mode": "v1"}),
    "paper form": Setting({"loss_mode": "paper"}),
    "8 random crops": Setting({"crops_per_volume": 8}),
    "rate 2e-3": Setting(rate=2e-3),
    "rate 3e-4": Setting(rate=3e-4),
    "rate 1e-4": Setting(rate=1e-4),
    "no teacher": Setting({"momentum": 0.0}),
    "teacher .99": Setting({"momentum": 0.99}),
}
