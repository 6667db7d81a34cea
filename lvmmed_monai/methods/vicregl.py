"""VICRegL: VICReg of pictures, and of positions that show the same place (Bardes et al., arXiv 2210.01571)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.gathering import gathered
from lvmmed_monai.methods._projection import checked_widths, mlp
from lvmmed_monai.methods._siamese import Embedder, SiameseMethod, embedding_numbers
from lvmmed_monai.methods.vicreg import WeightedVICReg
from lvmmed_monai.networks import Encoder
from lvmmed_monai.options import true_or_false
from lvmmed_monai.transforms.views_2d import location_grids

__all__ = ["VICRegL", "VICRegLNetwork", "best_matches", "local_loss"]

# The paper's maps have 7 positions a side at 224 pixels; coarser ones show most of a view in each.
_POSITIONS_A_SIDE = 7


def best_matches(distances: Tensor, matches: int) -> tuple[Tensor, Tensor]:
    """The positions whose nearest counterpart is nearest of all.

    Args:
        distances: (M, P, P') of the positions of the first maps and those of the second.
        matches: how many are kept, at most.

    Returns:
        (M, matches) positions in the first, and their counterparts in the second.
    """
    nearest, counterparts = distances.min(dim=2)
    kept = nearest.topk(min(matches, nearest.shape[1]), dim=1, largest=False).indices
    return kept, counterparts.gather(1, kept)


def local_loss(
    maps: tuple[Tensor, Tensor], grids: tuple[Tensor, Tensor], criterion: WeightedVICReg, matches: int
) -> Tensor:
    """The local criteria of section 3 of the paper, by location and by features, each the mean of both directions.

    Statistics are those of the k-th best match over the pictures, as in the authors' code.

    Args:
        maps: two (M, P, F).
        grids: two (M, P, 2), places of the positions in the original pictures.
        criterion: VICReg's.
        matches: gamma of the paper, the matches that are kept of each picture.
    """
    total = maps[0].new_zeros(())
    for first, second in ((0, 1), (1, 0)):
        for by in (grids, tuple(one.detach() for one in maps)):
            here, there = best_matches(torch.cdist(by[first], by[second]), matches)
            pairs = _rows(maps[first], here), _rows(maps[second], there)
            total = total + criterion(pairs[0].transpose(0, 1), pairs[1].transpose(0, 1))["loss"] / 2
    return total


def _rows(maps: Tensor, positions: Tensor) -> Tensor:
    return maps.gather(1, positions.unsqueeze(2).expand(-1, -1, maps.shape[2]))


class VICRegLNetwork(Embedder):
    """Encoder, projector of pooled features and projector of single positions.

    Args:
        encoder: 2D encoder.
        projector: pooled features to (M, F).
        local_projector: features of positions to (N, F').
        map_level: which of the encoder's maps the positions are of.
        criterion: VICReg's.
        alpha: share of the global term.
        matches: positions of a picture that are compared.
        gather: compare the pictures of all processes, not of each alone.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        local_projector: nn.Module,
        *,
        map_level: int,
        criterion: WeightedVICReg,
        alpha: float,
        matches: int,
        gather: bool,
    ) -> None:
        super().__init__(encoder, projector)
        self.local_projector = local_projector
        self.map_level, self.criterion, self.alpha, self.matches = map_level, criterion, alpha, matches
        self.gather = gather

    def forward(self, view1: Tensor, view2: Tensor, location1: Tensor, location2: Tensor) -> dict[str, Tensor]:
        """ "loss" and numbers of a batch: alpha * global + (1 - alpha) * (by location + by features).

        Args:
            view1, view2: (M, in_channels, H, W).
            location1, location2: (M, 5) places of the views.
        """
        levels = self.encoder(torch.cat([view1, view2]))
        parts = list(self.projector(levels[-1].float().mean(dim=(2, 3))).float().chunk(2))
        level = levels[self.map_level]
        positions = self.local_projector(level.flatten(2).transpose(1, 2).flatten(0, 1)).float()
        parts += positions.unflatten(0, (len(level), -1)).chunk(2)
        parts += [location_grids(one, *level.shape[2:]).flatten(1, 2) for one in (location1, location2)]
        with torch.autocast(view1.device.type, enabled=False):
            z1, z2, map1, map2, grid1, grid2 = map(gathered, parts) if self.gather else parts
            terms = self.criterion(z1, z2)
            local = local_loss((map1, map2), (grid1, grid2), self.criterion, self.matches)
            terms["loss"] = self.alpha * terms["loss"] + (1 - self.alpha) * local
            return {**terms, "local_loss": local, **embedding_numbers(z1, z2)}


class VICRegL(SiameseMethod):
    """The method, on the two large views.

    Args:
        coefficients: of invariance, variance and covariance.
        alpha: share of the global term, 0 to 1.
        matches: positions of a picture that are compared; gamma of the paper.
        map_level: which of the encoder's feature maps the positions are of, -1 the coarsest; None for the coarsest of
            the last three with at least 7 positions a side, else the finest of these.
        projector: widths of the projector's layers; the paper's are (8192, 8192, 8192).
        local_projector: the same of the projector of positions; the paper's are (512, 512, 512).
        gather: compare the pictures of all processes; without, statistics are those of a process's own.
        **common: of `PictureMethod`.

    Raises:
        UserError: an option that cannot be.
    """

    name = "vicregl"
    inputs = ("view1", "view2", "location1", "location2")

    def __init__(
        self,
        *,
        coefficients: Sequence[float] = (25.0, 25.0, 1.0),
        alpha: float = 0.75,
        matches: int = 20,
        map_level: int | None = None,
        projector: Sequence[int] = (512, 512, 512),
        local_projector: Sequence[int] = (128, 128, 128),
        gather: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(projector=projector, **common)
        self._criterion = WeightedVICReg(coefficients, self.name)
        if not 0 < alpha < 1 or matches < 1:
            raise UserError(
                f"alpha must lie between 0 and 1 and matches be at least 1, got {alpha} and {matches}; vicregl; "
                "correct them"
            )
        self.coefficients, self.alpha, self.matches, self.map_level = tuple(coefficients), alpha, matches, map_level
        self.local_projector = checked_widths(local_projector, "local_projector", self.name)
        self.gather = true_or_false(gather, "gather")

    def build(self, encoder: Encoder) -> VICRegLNetwork:
        """Encoder and both projectors."""
        level = self.map_level
        if level is None:
            level = local_level(encoder.strides, self._view_settings.size)
        if not -len(encoder.strides) <= level < len(encoder.strides):
            raise UserError(
                f"map_level must be one of the encoder's {len(encoder.strides)} maps, got {level}; vicregl; correct it"
            )
        return VICRegLNetwork(
            encoder,
            self.make_projector(encoder),
            mlp(encoder.channels[level], self.local_projector),
            map_level=level,
            criterion=self._criterion,
            alpha=self.alpha,
            matches=self.matches,
            gather=self.gather,
        )


def local_level(strides: Sequence[int], size: int) -> int:
    """Number of the map for views of ``size`` pixels; see ``map_level`` of `VICRegL`."""
    last = range(max(0, len(strides) - 3), len(strides))
    return next((level for level in reversed(last) if size // strides[level] >= _POSITIONS_A_SIDE), last[0])
