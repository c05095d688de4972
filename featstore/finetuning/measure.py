"""From a cell that is missing to what is recorded of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from featstore.datasets import Dataset, ImageSplit, Transform
from featstore.errors import DivergedError, NotApplicableError, ProbeError
from featstore.extraction.asked import Asked
from featstore.extraction.loader import batches_of, decode
from featstore.finetuning.data import Samples, drawn_rows, per_category, rows_digest
from featstore.finetuning.net import Machine, Net, make_head
from featstore.finetuning.optimise import drop_paths, is_transformer
from featstore.finetuning.presets import Candidate, Finetune
from featstore.finetuning.train import Checkpoints, Curves, fit
from featstore.kernels.calibration import fit_temperature
from featstore.kernels.metrics import own_score
from featstore.keys import sha256_json
from featstore.probes import Measured
from featstore.probes.base import accuracy, calibration, precision, scaled_calibration, summary
from featstore.probes.held_out import permuted_share

Callback = Callable[[dict[str, Any]], None]
"""Called where an epoch ends: cell, training, epoch, step, loss, accuracy, lr."""


@dataclass(frozen=True)
class Work:
    """What a cell is measured on, and how.

    Attributes
    ----------
    asked : the model, made to take the size of the transform's images
    splits : those that are read, as of `splits_of`
    """

    asked: Asked
    site: str
    dataset: Dataset
    splits: dict[str, ImageSplit]
    transform: Transform
    protocol: Finetune
    seed: int
    machine: Machine

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that changes the result and is not in the cell's name, in hex."""
        model = self.asked.model
        return sha256_json(
            {
                "weights": model.weights,
                "arch": model.arch,
                "site": self.site or "pre-logits",
                "mean": list(model.data_config["mean"]),
                "std": list(model.data_config["std"]),
                "transform": self.transform.spec,
                "images": {name: split.fingerprint for name, split in self.splits.items()},
                "precision": self.machine.precision,
                "settings": self.protocol.computed,
            }
        )

    @cached_property
    def rows(self) -> np.ndarray:
        """Train images that are drawn, by their ascending positions."""
        return drawn_rows(self.splits["train"], self.protocol, self.seed)

    def net(self) -> Net:
        """The network before its training."""
        backbone = copy.deepcopy(self.asked.model.module)
        if self.protocol.drop_path and is_transformer(backbone):
            drop_paths(backbone, self.protocol.drop_path)
        width, categories = self.asked.widths[self.site], len(self.splits["train"].categories)
        head = make_head(width, categories, self.protocol, self.seed)
        config = self.asked.model.data_config
        return Net(backbone, head, self.protocol, site=self.site, data_config=config)

    def samples(self, parts: Sequence[tuple[str, np.ndarray]], crop: str) -> Samples:
        """Some rows of some splits, as they are trained on."""
        sizes = np.cumsum([0, *(len(self.splits[name]) for name, _ in parts)])
        rows = [one + start for (_, one), start in zip(parts, sizes[:-1], strict=True)]
        transform = self.transform.augmented() if crop == "random" else self.transform
        splits = tuple(self.splits[name] for name, _ in parts)
        return Samples(splits, np.concatenate(rows), transform, self.seed)

    def scores(self, net: Net, split: str, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities (m, c) float32 of some rows; of several labels a row, logits.

        Raises
        ------
        DivergedError
            Some are no finite numbers.
        """
        machine = self.machine
        net.eval()
        if machine.world > 1:  # each process has its own running statistics; the first's count
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)
        most = -(-self.protocol.batch_size // (machine.world * machine.accumulate))
        batches = batches_of(range(len(rows)), most)
        found = []
        with torch.inference_mode():
            for pixels, _, _ in decode(
                self.splits[split], rows, [self.transform], batches[machine.rank :: machine.world],
                num_workers=machine.num_workers, skip_errors=False,
                pin=machine.device.type == "cuda",
            ):  # fmt: skip
                images = (pixels or [])[0].to(machine.device, memory_format=machine.layout)
                with machine.autocast():
                    logits = net(images).float()
                if self.splits[split].labels.ndim == 1:
                    logits = logits.log_softmax(dim=1)
                found.append(logits.cpu().numpy())
        parts = machine.gathered(found)
        scores = np.concatenate([parts[i % len(parts)].pop(0) for i in range(len(batches))])
        if not np.isfinite(scores).all():  # the loss was looked at before the last step, not after
            raise DivergedError(
                f"diverged: after the last step the network's scores are no finite numbers. Lower "
                f"the learning rate, as by {self.protocol.slower}"
            )
        return scores


def splits_of(
    dataset: Dataset,
    split_of: Callable[[str], ImageSplit],
    protocol: Finetune,
    transform: Transform,
) -> dict[str, ImageSplit]:
    """Splits that a protocol reads: train, test, and val where it is there.

    Of several trainings val chooses one, and is then trained on; else only the temperature is
    fitted on it. A part of train goes without: val would be more labels than are asked for.

    Raises
    ------
    ProbeError, MissingDatasetError
        It has no such split, or no augmentation; it is not on disk.
    """
    tried = protocol.candidates()
    whole = protocol.fraction == 1 and not protocol.shots
    names = ["train", *["val"] * (whole and "val" in dataset.splits), "test"]
    if not {"train", "test"} <= set(dataset.splits):
        raise ProbeError(f"{dataset.name} has {', '.join(dataset.splits)}, not train and test")
    if any(one.crop == "random" for one in tried):
        try:
            transform.augmented()
        except ValueError as error:
            raise ProbeError(
                f"{dataset.name} publishes no augmentation to train by. Give it another transform, "
                f"as @ericsson, or the protocol +crop=centre"
            ) from error
    return {name: split_of(name) for name in names}


@dataclass(frozen=True)
class Run:
    """The trainings of one cell, which go on where they stopped.

    Attributes
    ----------
    folder : of checkpoints ; what : the cell's name
    progress : called with images done and images in all
    """

    work: Work
    folder: Path
    what: str
    progress: Callable[[int, int], None]
    callbacks: Sequence[Callback] = ()

    def measure(self) -> Measured:
        """The dataset's metrics on test, after the last step of the training that was chosen.

        Raises
        ------
        NotApplicableError, DivergedError, BadImageError
            It cannot be trained; the training came to nothing; an image cannot be decoded.
        """
        work, protocol = self.work, self.work.protocol
        train, test = work.splits["train"], work.splits["test"]
        rows = work.rows
        if len(rows) < 2:
            raise NotApplicableError(
                f"{protocol.name} needs two train images, there is {len(rows)}"
            )
        tried = protocol.candidates()
        certificate: dict[str, Any] = {}
        if protocol.shots or protocol.fraction < 1:
            certificate["subset"] = {
                "per_category": per_category(train, protocol),
                "seed": protocol.subset_seed + work.seed,
                "images": len(rows),
                "sha256": rows_digest(rows),
            }
        chosen, temperature, seconds = tried[0], None, 0.0
        parts, val = [("train", rows)], np.arange(len(work.splits.get("val", ())))
        if len(tried) > 1:
            chosen, temperature, seconds = self._choose(rows, certificate)
            parts += [("val", val)] if len(val) else []
        samples = work.samples(parts, chosen.crop)
        curves = Curves()
        net = self._train(samples, chosen, len(tried) if len(tried) > 1 else 0, curves)
        scores = work.scores(net, "test", np.arange(len(test)))
        if len(tried) == 1 and len(val) and test.labels.ndim == 1:
            unseen = work.scores(net, "val", val)
            temperature = fit_temperature(unseen, work.splits["val"].labels)
        machine = work.machine
        certificate |= {
            "chosen": chosen._asdict(),
            "transformer": is_transformer(work.asked.model.module),
            "images": len(samples),
            "loss": [round(one, 6) for one in curves.loss],
            "accuracy": [round(one, 6) for one in curves.accuracy],
            "batch": {"images": protocol.batch_size, "processes": machine.world,
                      "parts": machine.accumulate},
            "precision": machine.precision,
        }  # fmt: skip
        kept = {"index": np.arange(len(test)), "label": test.labels}
        if test.labels.ndim == 2:
            metrics = precision(scores, test.labels)
            kept["scores"] = scores
            return Measured(metrics, kept, certificate, seconds + curves.seconds)
        kept |= summary(scores, test.labels, xp=np)
        metrics = accuracy(kept, len(train.categories)) | calibration(kept, certificate)
        metrics |= scaled_calibration(scores, test.labels, temperature, certificate)
        return Measured(metrics, kept, certificate, seconds + curves.seconds)

    def _choose(
        self, rows: np.ndarray, certificate: dict[str, Any]
    ) -> tuple[Candidate, float | None, float]:
        """The first of the best on validation, its temperature there, and seconds it took."""
        work, protocol = self.work, self.work.protocol
        if "val" in work.splits:
            kept, name, held = rows, "val", np.arange(len(work.splits["val"]))
        else:  # as Ericsson et al. draw it, so that seed 0 is theirs
            out = np.sort(permuted_share(len(rows), protocol.held_out, work.seed))
            kept, name, held = np.delete(rows, out), "train", rows[out]
        if not len(held) or len(kept) < 2:
            raise NotApplicableError(
                f"{protocol.name}: {len(rows)} train images are too few to hold "
                f"{protocol.held_out:g} of them out"
            )
        found = []
        for number, candidate in enumerate(protocol.candidates()):
            path = self.folder / f"{number:02d}.json"
            known = work.machine.agreed(partial(_text, path))
            if not known:
                known = json.dumps(self._try(candidate, number, kept, name, held))
                if work.machine.rank == 0:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    unfinished = path.with_suffix(".partial")
                    unfinished.write_text(known, encoding="utf-8")
                    unfinished.replace(path)
                    self._checkpoints(number).clear()  # its score is all that is wanted of it
            found.append(json.loads(known))
        scores = [one["score"] for one in found]
        certificate["held_out_rows"] = len(held)
        certificate["tried"] = [
            {**candidate._asdict(), "score": score}
            for candidate, score in zip(protocol.candidates(), scores, strict=True)
        ]
        if all(score is None for score in scores):
            raise DivergedError(f"all {len(scores)} trainings {found[-1]['why']}")
        best = max(range(len(scores)), key=lambda i: -1.0 if scores[i] is None else scores[i])
        seconds = sum(one["seconds"] for one in found)
        return protocol.candidates()[best], found[best]["temperature"], seconds

    def _try(
        self, candidate: Candidate, number: int, kept: np.ndarray, name: str, held: np.ndarray
    ) -> dict[str, Any]:
        """Score of one training on validation, none if it diverges; and seconds of both."""
        curves = Curves()
        samples = self.work.samples([("train", kept)], candidate.crop)
        try:
            net = self._train(samples, candidate, number, curves)
            scores = self.work.scores(net, name, held)
        except DivergedError as error:
            return {"score": None, "seconds": curves.seconds, "why": str(error)}
        labels = self.work.splits[name].labels[held]
        return {
            "score": own_score(scores, labels, self.work.dataset.info["metric"]),
            "temperature": fit_temperature(scores, labels) if labels.ndim == 1 else None,
            "seconds": curves.seconds,
        }

    def _train(self, samples: Samples, candidate: Candidate, number: int, curves: Curves) -> Net:
        """A trained network; `number` of the training within the cell."""
        work, protocol = self.work, self.work.protocol
        trainings = len(protocol.candidates())
        trainings += trainings > 1

        def tell(done: int, total: int, record: dict[str, Any] | None) -> None:
            size = protocol.batch_size
            self.progress((number * total + done) * size, trainings * total * size)
            if record and work.machine.rank == 0:
                for callback in self.callbacks:
                    callback({"cell": self.what, "training": number, **record})

        net = work.net()
        vit = is_transformer(net.backbone)
        fit(
            net, samples, protocol, candidate, curves,
            smoothing=protocol.label_smoothing if vit else 0.0,
            machine=work.machine, checkpoints=self._checkpoints(number), tell=tell,
        )  # fmt: skip
        return net

    def _checkpoints(self, number: int) -> Checkpoints:
        return Checkpoints(self.folder, f"{number:02d}")


def _text(path: Path) -> str:
    """What a file says, nothing if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""
