"""The five ways of `tiny_pretrain.py`: what the models see, and what each method asks of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  as all of the field calls it

PATCH = 4
"""Side in pixels of the patches of tiny-vit."""

# --- Augmentations: (n, 1, h, w) in [0, 1] -> the same, each image by its own random draw ---


def uniform(images: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """One number per image, (n, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, generator=rng) * (high - low) + low


def affine(
    images: Tensor, rng: torch.Generator, *, turn: float, zoom: float, shift: float
) -> Tensor:
    """Images turned by up to `turn` radians, zoomed by up to a factor, moved by parts of a side."""
    angle = uniform(images, -turn, turn, rng).flatten()
    scale = (uniform(images, -1, 1, rng).flatten() * math.log(zoom)).exp()
    move = (torch.rand(len(images), 2, generator=rng) * 2 - 1) * 2 * shift
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cosine, -sine, move[:, 0]], 1), torch.stack([sine, cosine, move[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def blur(images: Tensor, rng: torch.Generator) -> Tensor:
    """Half of the images through one to three 3 x 3 means."""
    times = (uniform(images, -3, 4, rng)).floor()
    for already in range(3):
        soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = torch.where(times > already, soft, images)
    return images


def light(images: Tensor, rng: torch.Generator) -> Tensor:
    """Contrast, brightness and grain as of another camera."""
    images = images * uniform(images, 0.3, 1, rng)
    images = images + (1 - images.amax((1, 2, 3), keepdim=True)) * uniform(images, 0, 1, rng)
    grain = torch.randn(images.shape, generator=rng) * uniform(images, 0, 0.15, rng)
    return (images + grain).clamp(0, 1)


def erase(images: Tensor, rng: torch.Generator) -> Tensor:
    """A grey square of 8 to 14 pixels somewhere in half of the images."""
    side = images.shape[-1]
    length = uniform(images, 8, 14, rng) * (uniform(images, 0, 1, rng) < 0.5)
    place = torch.arange(side)
    top, left = uniform(images, 0, side - 8, rng), uniform(images, 0, side - 8, rng)
    inside_rows = (place[:, None] >= top) & (place[:, None] < top + length)
    inside = inside_rows & (place >= left) & (place < left + length)
    return torch.where(inside, uniform(images, 0, 1, rng), images)


def weak(images: Tensor, rng: torch.Generator) -> Tensor:
    """What supervised learning, rotation prediction and the auto-encoder see, as model input."""
    return as_input(affine(images, rng, turn=0.15, zoom=1.1, shift=0.08))


def strong(images: Tensor, rng: torch.Generator) -> Tensor:
    """A view for the two methods that compare views, as model input."""
    images = affine(images, rng, turn=0.5, zoom=1.4, shift=0.12)
    return as_input(erase(light(blur(images, rng), rng), rng))


def as_input(images: Tensor) -> Tensor:
    """Three channels with mean and std 0.5 taken out, as the models' configuration says."""
    return ((images - 0.5) / 0.5).expand(-1, 3, -1, -1)


# --- Methods: a head, and the loss of backbone and head on one batch ---


def embed(backbone: nn.Module, images: Tensor) -> Tensor:
    """(n, d) features, those that are benchmarked."""
    return backbone.forward_head(backbone.forward_features(images), pre_logits=True)


class Supervised(nn.Module):
    """Cross-entropy of a linear classifier on the labels."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(backbone.num_features, 10)

    def forward(
        self, backbone: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Loss of one batch."""
        return F.cross_entropy(self.head(embed(backbone, weak(images, rng))), labels)


class Rotation(nn.Module):
    """Which of four quarter turns an image got (Gidaris et al., 2018)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(backbone.num_features, 4)

    def forward(
        self, backbone: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Loss of one batch."""
        turns = torch.randint(4, (len(images),), generator=rng)
        images = weak(images, rng)
        turned = torch.stack(
            [one.rot90(int(turn), (1, 2)) for one, turn in zip(images, turns, strict=True)]
        )
        return F.cross_entropy(self.head(embed(backbone, turned)), turns)


def projector(width: int, out: int) -> nn.Sequential:
    """Two-layer perceptron between features and the space where views are compared."""
    return nn.Sequential(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, out))


class SimCLR(nn.Module):
    """Each view must find the other view of its image among all views (Chen et al., 2020)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.head = projector(backbone.num_features, 64)

    def forward(
        self, backbone: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Loss of one batch."""
        views = torch.cat([strong(images, rng), strong(images, rng)])
        points = F.normalize(self.head(embed(backbone, views)), dim=1)  # (2n, 64)
        similarity = points @ points.T / 0.2
        similarity = similarity.masked_fill(torch.eye(len(views), dtype=torch.bool), -torch.inf)
        return F.cross_entropy(similarity, torch.arange(len(views)).roll(len(images)))


class BarlowTwins(nn.Module):
    """Correlation between the two views' features close to the identity (Zbontar et al., 2021)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.head = projector(backbone.num_features, 128)

    def forward(
        self, backbone: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Loss of one batch."""
        views = torch.cat([strong(images, rng), strong(images, rng)])
        one, two = self.head(embed(backbone, views)).chunk(2)
        one, two = (F.batch_norm(z, None, None, training=True) for z in (one, two))
        correlation = one.T @ two / len(images)  # (128, 128)
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + 0.01 * off_diagonal


class MaskedAutoEncoder(nn.Module):
    """Pixels of the three quarters of patches the transformer did not see (He et al., 2022)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        width, self.patches = backbone.num_features, backbone.patch_embed.num_patches
        self.mask = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 1 + self.patches, width) * 0.02)
        self.decoder = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        self.pixels = nn.Linear(width, PATCH**2)

    def forward(
        self, backbone: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Loss of one batch."""
        images = weak(images, rng)
        order = torch.rand(len(images), self.patches, generator=rng).argsort(1)[..., None]
        seen, hidden = order.tensor_split([self.patches // 4], dim=1)
        tokens = backbone.patch_embed(images) + backbone.pos_embed[:, 1:]
        tokens = tokens.take_along_dim(seen, 1)  # (n, patches / 4, width)
        start = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(len(images), -1, -1)
        encoded = backbone.norm(backbone.blocks(torch.cat([start, tokens], 1)))
        # The seen tokens back to their places, the mask token everywhere else.
        everywhere = self.mask.expand(len(images), self.patches, -1)
        filled = everywhere.scatter(1, seen.expand(-1, -1, encoded.shape[2]), encoded[:, 1:])
        decoded = self.decoder(torch.cat([encoded[:, :1], filled], 1) + self.place)
        target = F.unfold(images[:, :1], PATCH, stride=PATCH).transpose(1, 2)  # (n, patches, 16)
        error = (self.pixels(decoded[:, 1:]) - target).square()
        return error.take_along_dim(hidden, 1).mean()


METHODS: dict[str, type[nn.Module]] = {
    "supervised": Supervised,
    "simclr": SimCLR,
    "barlow": BarlowTwins,
    "rotation": Rotation,
    "mae": MaskedAutoEncoder,
}
