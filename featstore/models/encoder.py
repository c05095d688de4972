"""An encoder: model + BN mode + embedding sites, from images to embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featstore.errors import UnknownNameError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a module; a model without any is the same in every BN mode."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


class Encoder:
    """Embeddings of one model at several sites, from one forward pass.

    Parameters
    ----------
    module : timm model without a classifier; moved to the device, in eval mode
    sites : names from `SITES`, or "" for the model's own pre-logits
    mean, std : of the input, per channel, on the scale 0..1
    device : of the computation ; precision : fp32, bf16 or fp16 (autocast)

    Raises
    ------
    UnknownNameError
        The model has no such site.
    """

    def __init__(
        self,
        module: nn.Module,
        sites: Sequence[str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        self.module = module.eval().to(device)
        self.sites = tuple(sites)
        self.device = device
        self.dtype = DTYPES[precision]
        self.adapted = False
        self._mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self._pixels = torch.empty(0, device=device)

    def use_batch_statistics(self) -> None:
        """BN mode `batch`: every BatchNorm normalises by the batch it sees, and keeps no memory."""
        for layer in batch_norms(self.module):
            # In eval mode PyTorch falls back to batch statistics exactly when there are no others.
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None

    @contextmanager
    def adapting(self) -> Iterator[None]:
        """BN mode `adapt`: what is embedded within re-estimates the running statistics.

        They start anew, are averaged cumulatively over batches, and are frozen at the end.
        """
        layers = batch_norms(self.module)
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # PyTorch's spelling of a cumulative average
            layer.train()
        try:
            yield
            self.adapted = True
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
                layer.eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Embedding of (n, 3, h, w) uint8 images at each site, (n, d) float32."""
        if self._pixels.shape[1:] != images.shape[1:] or len(self._pixels) < len(images):
            self._pixels = torch.empty(images.shape, device=self.device)
        # Always the same memory: fresh pages would cost several times the arithmetic.
        pixels = self._pixels[: len(images)].copy_(images)
        pixels = pixels.div_(255).sub_(self._mean).div_(self._std)
        reduced = self.dtype is not torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=reduced):
            embeddings = embed(self.module, pixels, self.sites)
        return {site: self._own(rows.float()) for site, rows in embeddings.items()}

    def _own(self, rows: Tensor) -> Tensor:
        """Rows that the next batch does not overwrite, even of a module that returns its input."""
        mine = self._pixels.untyped_storage().data_ptr()
        return rows.clone() if rows.untyped_storage().data_ptr() == mine else rows


def embed(module: nn.Module, pixels: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
    """Embeddings at each site, (n, d), from one forward pass over normalised (n, 3, h, w) pixels.

    `cls` is the class token after the final norm; `avg` the mean of the patch tokens, or over
    space; `cls+avg` both side by side (DINOv2, arXiv:2304.07193, section 7.1); `cls-last4` the
    class tokens after the last four blocks, each through the final norm (DINO, arXiv:2104.14294).

    Of a module without timm's `forward_features` and `forward_head`, its output is the embedding.

    Raises
    ------
    UnknownNameError
        The model has no class token, no blocks to take it from, or nothing to average.
    ValueError
        The output of a module that is not timm's is no embedding.
    """
    if not (hasattr(module, "forward_features") and hasattr(module, "forward_head")):
        return {site: _output(module, pixels, site) for site in sites}
    has_cls = getattr(module, "cls_token", None) is not None
    needs_cls = [site for site in sites if site.startswith("cls")]
    if needs_cls and not has_cls:
        raise UnknownNameError(
            f"{type(module).__name__} has no class token, so no site @{needs_cls[0]}; use @avg"
        )
    last: list[Tensor] = []
    if "cls-last4" in sites:
        _check_has_blocks(module)
        features, intermediates = module.forward_intermediates(  # type: ignore[operator]  # timm's
            pixels, indices=4, norm=True, return_prefix_tokens=True, output_fmt="NLC"
        )
        last = [prefix[:, 0] for _, prefix in intermediates]
    else:
        features = module.forward_features(pixels)  # type: ignore[operator]  # timm's
    found: dict[str, Tensor] = {}
    for site in sites:
        if site == "cls":
            found[site] = features[:, 0]
        elif site == "avg":
            found[site] = _average(module, features)
        elif site == "cls+avg":
            found[site] = torch.cat([features[:, 0], _average(module, features)], dim=1)
        elif site == "cls-last4":
            found[site] = torch.cat(last, dim=1)
        else:
            found[site] = module.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return found


def _output(module: nn.Module, pixels: Tensor, site: str) -> Tensor:
    """What a module returns, (n, d), or (n, d, 1, 1) as a global pool leaves it."""
    kind = type(module).__name__
    if site:
        raise UnknownNameError(
            f"{kind} has no forward_features and forward_head as timm's models have, so its output "
            f"is its one embedding; leave @{site} out"
        )
    rows = module(pixels)
    if isinstance(rows, Tensor) and rows.ndim == 4 and rows.shape[2:] == (1, 1):
        rows = rows.flatten(1)
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(pixels):
        found = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(
            f"{kind} must return (n, d) or (n, d, 1, 1) for {len(pixels)} images, got {found}"
        )
    return rows


def _check_has_blocks(module: nn.Module) -> None:
    """Refuse a model that does not hand out class tokens block by block."""
    parameters = inspect.signature(getattr(module, "forward_intermediates", lambda: 0)).parameters
    if "return_prefix_tokens" not in parameters or len(getattr(module, "blocks", ())) < 4:
        raise UnknownNameError(
            f"{type(module).__name__} has no four blocks that end in a class token, so no site "
            f"@cls-last4; use @cls"
        )


def _average(module: nn.Module, features: Tensor) -> Tensor:
    """Mean over patch tokens of (n, tokens, d), or over space of (n, d, h, w) or (n, h, w, d)."""
    if not isinstance(features, Tensor):  # some families end in several feature maps
        raise UnknownNameError(
            f"{type(module).__name__} ends in several feature maps, so no site @avg; leave the "
            f"site out"
        )
    if features.ndim == 3:
        cls_token = getattr(module, "cls_token", None)
        before = 0 if cls_token is None else cls_token.shape[1]  # where timm does not say it
        patches = features[:, getattr(module, "num_prefix_tokens", before) :]
        if not patches.shape[1]:
            raise UnknownNameError(
                f"{type(module).__name__} ends in class tokens alone, so no site @avg; use @cls"
            )
        return patches.mean(dim=1)
    return features.mean(dim=(1, 2) if getattr(module, "output_fmt", "") == "NHWC" else (2, 3))
