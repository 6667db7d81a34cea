"""Encoders behind one contract, the networks built on them, and their weight files."""

from __future__ import annotations

from lvmmed_monai.networks.contract import Encoder, contract_problems
from lvmmed_monai.networks.exchange import export_weights, fill_network
from lvmmed_monai.networks.features import FeatureExtractor
from lvmmed_monai.networks.registry import ENCODERS, build_encoder, encoder_names
from lvmmed_monai.networks.swin_unetr import SwinUNETRNet, load_swinunetr
from lvmmed_monai.networks.unet import SegmentationNet
from lvmmed_monai.networks.weights import LoadReport, load_encoder, load_pretrained, read_encoder_file, save_encoder

__all__ = [
    "ENCODERS",
    "Encoder",
    "FeatureExtractor",
    "LoadReport",
    "SegmentationNet",
    "SwinUNETRNet",
    "build_encoder",
    "contract_problems",
    "encoder_names",
    "export_weights",
    "fill_network",
    "load_encoder",
    "load_pretrained",
    "load_swinunetr",
    "read_encoder_file",
    "save_encoder",
]
