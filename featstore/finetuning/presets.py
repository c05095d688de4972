"""What a fine-tuning is: the dataclass, and the published ones by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from featstore.errors import UnknownNameError
from featstore.names import expand_sets
from featstore.probes import PROTOCOLS as OFF_STORE
from featstore.probes import Protocol, find
from featstore.probes.linear import HEADS

CROPS = ("random", "centre", "chosen")
BACKBONE_BN = ("train", "frozen")


class Candidate(NamedTuple):
    """Learning rates, weight decay and crop of one training."""

    lr: float
    lr_head: float
    weight_decay: float
    crop: str


@dataclass(frozen=True, kw_only=True)
class Finetune(Protocol):
    """A classifier on a backbone, both trained by SGD on images; the last step counts.

    `normalisation` is `bn` for an affine BatchNorm (eps 1e-5, momentum 0.1) before the head.

    Where the code of Marks et al. does other than their protocol means, the presets do as meant:
    every vision transformer has its rates by layer and drops paths (in theirs MaskFeat's layer
    names miss the rule for rates, and MAE and MaskFeat ignore drop path), and labels are not read
    through a shuffled loader, so that a subset is balanced. The norm after the last block has that
    block's rate, as in theirs, where an off-by-one makes it so. The drift of a frozen backbone's
    BatchNorm is in the presets `-literal` alone.

    Attributes
    ----------
    fraction : of the train images, int(fraction * n / categories) of each category
    subset_seed : the draw's, to which the cell's is added
    epochs, steps : length, by one of the two; the rate is set anew at each epoch, or at each step
    batch_size : of all processes together, in all parts of an accumulated one
    lr, lr_head : of the backbone and of what follows it (0: the same), for `lr_batch` images in a
        batch, and in proportion for others; 0: whatever the batch
    lrs, decays : absolute learning rates and, divided by these, weight decays that are tried
        instead; the first of the best on validation is trained again on train and validation
    held_out : share of train that validates where the dataset has no val split
    warmup : epochs (or steps) of linear warm-up, before cosine decay to 0; where another length is
        asked for and no warm-up, it keeps its share, rounded
    clip : largest norm of the gradient; 0 for any
    layer_decay, label_smoothing, drop_path : of vision transformers only: the rate of each layer
        by that of the next (a norm after the last block shares that block's), label smoothing, rate
        of stochastic depth in the last block
    trained : whether the backbone is, or else the head alone
    backbone_bn : `train`: its BatchNorm layers normalise by the batch and their running statistics
        move; `frozen`: they stay as shipped. A backbone that is neither trained nor `train` is in
        eval mode altogether
    crop : `random` (area, aspect, place, flip; anew in each epoch), `centre` as in evaluation, or
        `chosen` on validation
    head : `linear`, or `mlp` of three layers with `hidden` units and ReLU between
    head_std : of its layers' normal initial weights; 0 for PyTorch's own initialisation
    """

    fraction: float = 1.0
    subset_seed: int = 42
    epochs: int = 0
    steps: int = 0
    batch_size: int = 256
    lr: float = 0.1
    lr_head: float = 0.0
    lr_batch: int = 256
    weight_decay: float = 0.0
    lrs: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()
    held_out: float = 0.2
    momentum: float = 0.9
    nesterov: bool = False
    warmup: int = 0
    clip: float = 0.5
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    drop_path: float = 0.0
    trained: bool = True
    backbone_bn: str = "train"
    crop: str = "random"
    head: str = "linear"
    hidden: int = 1000
    head_std: float = 0.01
    kind: str = "finetune"

    def __post_init__(self) -> None:
        if self.normalisation not in ("none", "bn"):
            raise ValueError(f"normalisation must be none or bn, got {self.normalisation!r}")
        for setting, known in (("crop", CROPS), ("backbone_bn", BACKBONE_BN)):
            if getattr(self, setting) not in known:
                raise ValueError(
                    f"{setting} must be one of {', '.join(known)}, got {getattr(self, setting)!r}"
                )
        if self.head not in HEADS or self.hidden < 1:
            raise ValueError(
                f"head must be one of {', '.join(HEADS)} and hidden at least 1, got "
                f"{self.head!r} and {self.hidden}"
            )
        if not (0 < self.fraction <= 1 and 0 < self.held_out <= 0.5):
            raise ValueError("fraction must lie in 0..1, held_out in 0..0.5, neither 0")
        if self.shots and self.fraction < 1:
            raise ValueError("give shots or a fraction, not both")
        if min((self.clip, self.lr_head, self.weight_decay, *self.decays)) < 0:
            raise ValueError("clip, lr_head, weight_decay and decays must be at least 0")
        if not 0 <= self.momentum < 1 or (self.nesterov and not self.momentum):
            raise ValueError("momentum must lie in 0..1, and be above 0 with nesterov")
        if min(self.epochs, self.steps) != 0 or max(self.epochs, self.steps) < 1:
            raise ValueError("give epochs or steps, at least 1")
        if self.warmup >= self.length:
            raise ValueError(
                f"warmup must be shorter than the training, got {self.warmup} of {self.length} "
                f"{'steps' if self.steps else 'epochs'}"
            )
        if self.batch_size < 2 or min(self.warmup, self.shots, self.lr_batch) < 0:
            raise ValueError("batch_size must be at least 2; warmup, shots, lr_batch at least 0")
        if bool(self.lrs) != bool(self.decays) or min((self.lr, *self.lrs)) <= 0:
            raise ValueError("lrs and decays belong together, and rates are above 0")
        if not (0 < self.layer_decay <= 1 and min(self.label_smoothing, self.drop_path) >= 0):
            raise ValueError("layer_decay must lie in 0..1; smoothing and drop_path at least 0")
        if max(self.label_smoothing, self.drop_path) >= 1:
            raise ValueError("label_smoothing and drop_path must be below 1")

    def candidates(self) -> list[Candidate]:
        """Trainings among which validation chooses, the first of the best; or the only one."""
        crops = CROPS[:2] if self.crop == "chosen" else (self.crop,)
        scale = self.batch_size / self.lr_batch if self.lr_batch else 1.0
        rates = [(self.lr * scale, (self.lr_head or self.lr) * scale, self.weight_decay)]
        if self.lrs:
            rates = [(lr, lr, decay / lr) for lr in self.lrs for decay in self.decays]
        return [Candidate(*rate, crop) for crop in crops for rate in rates]

    def changed(self, name: str, settings: Mapping[str, Any]) -> Self:
        """The same with other settings; a length in epochs replaces one in steps, or the other.

        Warm-up keeps its share of the length, unless it is given.
        """
        for one, other in (("epochs", "steps"), ("steps", "epochs")):
            if one in settings:
                warmup = round(self.warmup * settings[one] / self.length)
                settings = {other: 0, "warmup": warmup} | dict(settings)
        return super().changed(name, settings)

    @property
    def slower(self) -> str:
        """Name of the same at a tenth of the learning rate."""
        kept = [one for one in self.name.split("+") if not one.startswith("lr=")]
        rate = f"{self.lr / 10:g}".replace("e+", "e")  # a plus would begin another setting
        return "+".join([*kept, f"lr={rate}"])

    @property
    def length(self) -> int:
        """In steps or else in epochs, whichever is given."""
        return self.steps or self.epochs

    def images(self, train: int) -> int:
        """Most images that go through the network in all trainings, of so many in train."""
        trainings = len(self.candidates())
        trainings += trainings > 1  # the best once more
        if self.steps:
            return trainings * self.steps * self.batch_size
        return trainings * self.epochs * int(self.fraction * train)

    @property
    def computed(self) -> dict[str, Any]:
        """The settings that change what is computed."""
        told = {"name", "sets", "source", "headline", "kind", "scale"}
        return {name: value for name, value in self.settings().items() if name not in told}


_MARKS = "Marks et al., arXiv:2407.12210"
_VIT = {"layer_decay": 0.65, "label_smoothing": 0.1, "drop_path": 0.2}
_AS_MEANT = (
    "a ViT's last norm shares the last block's rate, as theirs does by an off-by-one; every ViT "
    "drops paths, unlike theirs"
)
_FEW = {  # lr of the backbone, lr of the head, epochs
    "swav": {10: (0.01, 0.2, 20), 1: (0.02, 5.0, 20)},
    "barlowtwins": dict.fromkeys((10, 1), (0.5, 0.005, 20)),
    "byol1": dict.fromkeys((10, 1), (0.01, 0.01, 30)),
    "byol2": dict.fromkeys((10, 1), (0.1, 0.1, 30)),
}


def _marks(name: str, source: str, **settings: Any) -> Finetune:
    told = f"{_MARKS}: {source}"
    return Finetune(**{"name": name, "sets": ("marks2024",), "source": told} | settings)


def _tiny(percent: int) -> Finetune:
    return Finetune(
        name=f"finetune{percent if percent < 100 else ''}-tiny",
        fraction=percent / 100,
        steps=40 if percent == 100 else 25,
        batch_size=50,
        lr=0.3,
        lr_batch=0,
        warmup=4 if percent == 100 else 3,
        crop="centre",  # digits do not survive a flip, nor a crop of a tenth
        sets=("tiny",),
        source=f"for the tiny study only: {percent} % of train, few steps, no augmentation",
    )


_PLAIN = [
    _marks(
        "finetune-marks",
        f"all of train; {_AS_MEANT}",
        epochs=100, warmup=5, **_VIT,
    ),
    *(
        _marks(
            f"finetune{percent}-marks-{setup}",
            f"{percent} % of train, by the rates of {setup}; the draw is balanced by true labels, "
            f"as the authors meant it (theirs may be read through a shuffled loader); {_AS_MEANT}",
            fraction=percent / 100,
            lr=rates[percent][0],
            lr_head=rates[percent][1],
            epochs=rates[percent][2],
            **_VIT,
        )
        for percent in (10, 1)
        for setup, rates in _FEW.items()
    ),
    *(
        _marks(
            f"linear-marks{form}{'-mlp' * (head == 'mlp')}",
            f"{'linear probe' if head == 'linear' else 'probe by a small network'} {how}",
            epochs=100, warmup=5, batch_size=1024, trained=False, backbone_bn=bn, head=head,
            kind="linear",
        )
        for head in HEADS
        for form, bn, how in (
            (
                "", "frozen",
                "with a fresh augmentation each epoch; the backbone in eval mode, as meant",
            ),
            (
                "-literal", "train",
                "as the authors' trainer runs it: the backbone without gradients but in train "
                "mode, so that its BatchNorm uses batch statistics and drifts to the target data",
            ),
        )
    ),
    Finetune(
        name="finetune-ericsson",
        steps=5000,
        batch_size=64,
        lrs=(1e-1, 1e-2, 1e-3, 1e-4),  # from the largest down, as the authors go
        decays=(0.0, 1e-6, 1e-5, 1e-4, 1e-3),
        nesterov=True,
        clip=0.0,
        crop="chosen",
        head_std=0.0,
        sets=("ericsson2021",),
        source="Ericsson et al., arXiv:2011.13377: 20 pairs of rate and decay and two crops, "
        "chosen on the official validation split or a fifth of train",
    ),
    _tiny(100),
    _tiny(10),
]  # fmt: skip

PROTOCOLS: dict[str, Finetune] = {
    protocol.name: protocol
    for plain in _PLAIN
    for protocol in (plain, replace(plain, name=f"{plain.name}-bn", normalisation="bn"))
}
"""Every fine-tuning that has a name, and with a BatchNorm before the head as NAME-bn."""


def get(name: str) -> Finetune:
    """Fine-tuning of a name; `NAME+field=value` is NAME with a setting changed, under that name.

    Raises
    ------
    UnknownNameError
        No such protocol or setting, or it is answered off the store.
    """
    base = name.split("+")[0]
    if base in OFF_STORE or any(base in one.sets for one in OFF_STORE.values()):
        raise UnknownNameError(f"{base} is answered off the store. Run: featstore probe -p {name}")
    return find(name, PROTOCOLS)


def expand(names: Iterable[str], **changes: float | None) -> list[str]:
    """Protocol names with each set's name replaced by its members, and settings changed in all."""
    plain = expand_sets(names, PROTOCOLS, lambda name: get(name).name)
    suffix = "".join(f"+{k}={v}" for k, v in changes.items() if v is not None)
    return [get(f"{name}{suffix}").name for name in plain]
