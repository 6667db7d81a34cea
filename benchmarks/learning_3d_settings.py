"""The settings that `learning_3d.py` compares: volume contrast as it stands here, changed in one thing each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lvmmed_monai.methods.voco import VoCo

__all__ = ["SETTINGS", "Setting"]


@dataclass(frozen=True)
class Setting:
    """Options of VoCo and the highest learning rate."""

    options: dict[str, Any] = field(default_factory=dict)
    rate: float = 1e-3

    def method(self, **form: Any) -> VoCo:
        """The method with random weights."""
        return VoCo(**form, **self.options)


SETTINGS: dict[str, Setting] = {
    "fixed": Setting(),
    "pooled means alone": Setting({"pooling": ["mean"]}),
    "4 random crops": Setting({"crops_per_volume": 4}),
    "8 random crops": Setting({"crops_per_volume": 8}),
    "32 random crops": Setting({"crops_per_volume": 32}),
    "pooled means, 4 random crops": Setting({"pooling": ["mean"], "crops_per_volume": 4}),
    "no gradient through the bases": Setting({"base_gradient": False}),
    "two-way (v1)": Setting({"loss_mode": "v1"}),
    "paper form": Setting({"loss_mode": "paper"}),
    "no dropout": Setting({"dropout": 0.0}),
    "no dropout, rate 15e-4": Setting({"dropout": 0.0}, rate=1.5e-3),
    "no dropout, rate 15e-4, teacher .97": Setting({"dropout": 0.0, "momentum": 0.97}, rate=1.5e-3),
    "no dropout, rate 2e-3": Setting({"dropout": 0.0}, rate=2e-3),
    "rate 15e-4": Setting(rate=1.5e-3),
    "rate 2e-3": Setting(rate=2e-3),
    "rate 3e-4": Setting(rate=3e-4),
    "rate 1e-4": Setting(rate=1e-4),
    "no teacher": Setting({"momentum": 0.0}),
    "teacher .99": Setting({"momentum": 0.99}),
}
