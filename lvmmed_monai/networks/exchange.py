"""The way out: weights of an encoder of this package for networks of other libraries.

| layout | networks | tensors |
|---|---|---|
| ``torchvision`` | torchvision's ResNets, and MONAI's with ``conv1_t_stride=2, bias_downsample=False`` | 318 |
| ``flexible_unet`` | ``monai.networks.nets.FlexibleUNet`` | 318 |
| ``transformers`` | ``transformers.SamModel`` | 171, with a neck 177 |
| ``sam`` | SAM's own ``Sam`` | 171, with a neck 177 |

The numbers are those of ResNet-50 and ViT-B. An encoder without absolute positions gives a table of zeros, which adds
nothing to the patches: SAM's own table would be wrong for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks._matching import LoadReport, match
from lvmmed_monai.networks.contract import Encoder
from lvmmed_monai.networks.resnet import ResNetEncoder
from lvmmed_monai.networks.sam import SAMEncoder, original_name

__all__ = ["LAYOUTS", "export_weights", "fill_network"]

logger = logging.getLogger(__name__)


def _same(key: str) -> str:
    return key


class _Layout(NamedTuple):
    family: type[Encoder]
    prefix: str
    rename: Callable[[str], str]
    # Parts that the network may keep as it is: below the prefix, of those that an encoder need not have.
    others: tuple[str, ...]


LAYOUTS: dict[str, _Layout] = {
    "torchvision": _Layout(ResNetEncoder, "", _same, ("fc.",)),
    "flexible_unet": _Layout(ResNetEncoder, "encoder.", _same, ()),
    "transformers": _Layout(SAMEncoder, "vision_encoder.", _same, ("neck.",)),
    "sam": _Layout(SAMEncoder, "image_encoder.", original_name, ("neck.",)),
}


def _layout(encoder: Encoder, name: str) -> _Layout:
    fitting = [key for key, layout in LAYOUTS.items() if isinstance(encoder, layout.family)]
    if name not in fitting:
        remedy = f"choose {' or '.join(fitting)}" if fitting else "only this package reads it"
        raise UserError(f"the encoder {encoder.name!r} has no layout {name!r}; exchange of weights; {remedy}")
    return LAYOUTS[name]


def _own_weights(encoder: Encoder) -> dict[str, Tensor]:
    weights = {key: value.detach() for key, value in encoder.state_dict().items()}
    if isinstance(encoder, SAMEncoder) and "pos_embed" not in weights:
        side = encoder.options["image_size"] // encoder.options["patch_size"]
        weights["pos_embed"] = next(encoder.parameters()).new_zeros(1, side, side, encoder.options["width"])
    return weights


def export_weights(encoder: Encoder, layout: str) -> dict[str, Tensor]:
    """Weights of ``encoder`` under the names of another library; they share memory with it.

    Args:
        encoder: a ResNet or a ViT of SAM.
        layout: a key of `LAYOUTS` that fits it.

    Raises:
        UserError: another layout.
    """
    chosen = _layout(encoder, layout)
    return {chosen.prefix + chosen.rename(key): value for key, value in _own_weights(encoder).items()}


def fill_network(network: nn.Module, encoder: Encoder, layout: str) -> LoadReport:
    """Copy the weights of ``encoder`` into a network of another library, so that it computes the same features.

    Tables of positions are interpolated to the network's image size. What the network has beside the encoder, its
    decoder, a classifier, or a neck that ``encoder`` has not, stays as it is.

    Returns:
        what fitted, of the network's part that is the encoder.

    Raises:
        UserError: a layout that does not fit the encoder, or a network that is of another architecture or would
            compute something else with these weights; it is then untouched.
    """
    chosen = _layout(encoder, layout)
    _check_stride(network, encoder, chosen)
    own = {chosen.prefix + chosen.rename(key): key for key in _own_weights(encoder)}
    weights = export_weights(encoder, layout)
    target = {key: value for key, value in network.state_dict().items() if key.startswith(chosen.prefix)}
    fitting, report = match(
        weights,
        target,
        in_channels=encoder.in_channels,
        present_name=_same,
        fit=lambda key, value, shape: encoder.fitted(own[key], value, shape),
    )
    lost = [key for key in report.unexpected if weights[key].any()]
    empty = [key for key in report.missing if not key.startswith(tuple(chosen.prefix + one for one in chosen.others))]
    if lost or empty or not fitting:
        raise UserError(
            f"the network is of another architecture than the encoder {encoder.name}: {report}, "
            f"e.g. {next(iter([*lost, *empty]), 'no tensor')}; layout {layout}; build it with the encoder's sizes"
        )
    network.load_state_dict(fitting, strict=False)
    logger.info("encoder %s in the layout %s: %s", encoder.name, layout, report)
    return report


def _check_stride(network: nn.Module, encoder: Encoder, layout: _Layout) -> None:
    """MONAI's ResNets take the same weights with a first stride of 1, their default, and give other features."""
    if layout.family is not ResNetEncoder:
        return
    strides = [module.stride for name, module in network.named_modules() if name == layout.prefix + "conv1"]
    if strides and strides[0] != encoder.get_submodule("conv1").stride:
        raise UserError(
            f"the network's first convolution has the stride {strides[0]}, the encoder's 2: with the same weights it "
            "would give other features; exchange of weights; build MONAI's ResNet with conv1_t_stride=2"
        )
