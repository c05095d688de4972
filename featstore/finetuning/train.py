"""One training: the loop and its checkpoints."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from featstore.errors import DivergedError
from featstore.finetuning.data import Plan, Samples, load
from featstore.finetuning.net import Machine, Net, hits_of, loss_of
from featstore.finetuning.optimise import length, make_optimiser, rate_factor
from featstore.finetuning.presets import Candidate, Finetune

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 120.0  # between two of them: the most that is lost when the process dies
_LOOK = 50  # steps between looks at the loss, since on a GPU each look waits for it

Tell = Callable[[int, int, dict[str, Any] | None], None]
"""Called with steps done, steps in all and, where an epoch ends, what came of it."""


@dataclass
class Curves:
    """Mean loss and accuracy of each epoch's images, as they were trained on; and a stopwatch.

    Attributes
    ----------
    before : seconds until the checkpoint that it went on from
    begun : when it was made, by a monotonic clock
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    before: float = 0.0
    begun: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Since it began, as of now; what was lost between a checkpoint and an end is not in it."""
        return self.before + time.monotonic() - self.begun


@dataclass(frozen=True)
class Checkpoints:
    """The last two states of a training, each there whole or not at all."""

    folder: Path
    name: str

    def paths(self) -> list[Path]:
        """Files, the oldest first."""
        return sorted(self.folder.glob(f"{self.name}-*.pt"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state after so many steps."""
        path = self.folder / f"{self.name}-{step:09d}.pt"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        for old in self.paths()[:-2]:
            old.unlink()

    def clear(self) -> None:
        """Delete them."""
        for path in self.paths():
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last state that can be read, on the CPU; None if there is none."""
        for path in reversed(self.paths()):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, UnpicklingError, OSError) as error:
                log.warning("%s cannot be read (%s); an earlier one is taken", path, error)
            else:
                return state
        return None


def fit(
    net: Net,
    samples: Samples,
    protocol: Finetune,
    candidate: Candidate,
    curves: Curves,
    *,
    smoothing: float,
    machine: Machine,
    checkpoints: Checkpoints,
    tell: Tell = lambda done, total, record: None,
) -> None:
    """Train a network, from its last checkpoint if there is one; on a CPU to the same bits.

    Its curves are filled. Of several processes the first's checkpoint counts. All that is random
    follows from the samples' seed, the epoch and the step, so that a checkpoint holds no
    generator's state.

    Raises
    ------
    DivergedError
        The loss is NaN or infinite; says at which step.
    BadImageError
        An image cannot be decoded; names it.
    """
    training = _Training(net, samples, protocol, candidate, curves, smoothing, machine)
    if state := machine.agreed(checkpoints.load):
        training.restore(state)
    saved = time.monotonic()
    gpus = [machine.device] if machine.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        for done, record in training.steps():
            late = time.monotonic() - saved >= CHECKPOINT_SECONDS
            if machine.rank == 0 and late and training.sound:
                checkpoints.save(done, training.state())
                saved = time.monotonic()
            tell(done, training.total, record)


class _Training:
    """State of a training between two steps."""

    def __init__(
        self,
        net: Net,
        samples: Samples,
        protocol: Finetune,
        candidate: Candidate,
        curves: Curves,
        smoothing: float,
        machine: Machine,
    ) -> None:
        device = machine.device
        # Typed without `memory_format`, which it takes.
        self.net = net.to(device, memory_format=machine.layout).train()  # type: ignore[call-overload]
        self.run = torch.compile(net) if machine.compile else net
        self.samples, self.protocol = samples, protocol
        self.smoothing, self.machine = smoothing, machine
        self.plan = Plan(
            len(samples), protocol.batch_size, samples.seed,
            machine.accumulate, machine.rank, machine.world,
        )  # fmt: skip
        self.total = length(protocol, self.plan.per_epoch)
        self.optimiser = make_optimiser(net.backbone, net.head, candidate, protocol)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=machine.precision == "fp16")
        self.curves = curves
        self.done = self.rows = 0  # steps in all, images in this epoch
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of loss and hits, of these
        self.bad_step = torch.tensor(float("inf"), device=device)

    @property
    def sound(self) -> bool:
        """Whether no step so far was bad; of one that was, all processes raise at the next look."""
        return bool(self.bad_step.isinf())

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs."""
        return {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "curves": (self.curves.loss, self.curves.accuracy, self.curves.seconds),
            "done": self.done,
            "rows": self.rows,
            "sums": self.sums,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.curves.loss, self.curves.accuracy, self.curves.before = state["curves"]
        self.done, self.rows = state["done"], state["rows"]
        self.sums.copy_(state["sums"])

    def steps(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Steps done and, where an epoch ends, what came of it; a step is taken for each."""
        loaded = load(
            self.samples, self.plan, range(self.done, self.total),
            num_workers=self.machine.num_workers, pin=self.machine.device.type == "cuda",
        )  # fmt: skip
        while self.done < self.total:
            self._step(loaded)
            ends = self.done % self.plan.per_epoch == 0 or self.done == self.total
            if ends or self.done % _LOOK == 0:
                self._check()
            yield self.done, self._record() if ends else None

    def _step(self, loaded: Iterator[tuple[Tensor, Tensor]]) -> None:
        step, machine = self.done, self.machine
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate_factor(self.protocol, step, self.plan.per_epoch)
        size = len(self.plan.batch(step))
        _seed(machine.device, self.samples.seed, step, machine.rank)
        stats = torch.zeros_like(self.sums)
        parts = self.plan.parts(step)
        if not parts:  # the batch is smaller than the number of processes
            self.optimiser.zero_grad()
        for number, part in enumerate(parts):
            images, labels = next(loaded)
            images = images.to(machine.device, memory_format=machine.layout, non_blocking=True)
            labels = labels.to(machine.device, non_blocking=True)
            with machine.autocast():
                logits = self.run(images).float()
            # Meant over the batch of all parts and processes, whose gradients are added up.
            loss = loss_of(logits, labels, self.smoothing) * (len(part) / size)
            if number == 0:  # so late that its memory is taken up at once: 5 % faster on a CPU
                self.optimiser.zero_grad()
            self.scaler.scale(loss).backward()
            stats += torch.stack([loss.detach() * size, hits_of(logits.detach(), labels)])
        if machine.world > 1:
            _add_up(self.parameters, stats)
        first = self.bad_step.clamp(max=step)
        self.bad_step = torch.where(stats[0].isfinite(), self.bad_step, first)
        if self.protocol.clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.parameters, self.protocol.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.sums += stats
        self.rows += size
        self.done += 1

    def _check(self) -> None:
        if not self.sound:
            step = int(self.bad_step)
            raise DivergedError(
                f"diverged: the loss is no finite number at step {step + 1} of {self.total}, "
                f"in epoch {step // self.plan.per_epoch + 1}. Lower the learning rate, as by "
                f"{self.protocol.slower}"
            )

    def _record(self) -> dict[str, Any]:
        loss, accuracy = (self.sums / self.rows).tolist()
        self.curves.loss.append(loss)
        self.curves.accuracy.append(accuracy)
        self.sums.zero_()
        self.rows = 0
        lr = self.optimiser.param_groups[-1]["lr"]
        return {"epoch": len(self.curves.loss), "step": self.done, "loss": loss,
                "accuracy": accuracy, "lr": lr}  # fmt: skip


def _seed(device: torch.device, *key: int) -> None:
    """Seed what dropout and stochastic depth draw from."""
    word = int(np.random.SeedSequence(key).generate_state(1)[0])
    torch.default_generator.manual_seed(word)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(word)


def _add_up(parameters: list[nn.Parameter], stats: Tensor) -> None:
    """Sum gradients and statistics over processes, in one piece."""
    for one in parameters:
        if one.grad is None:  # this process has no row, or the result does not depend on it
            one.grad = torch.zeros_like(one)
    pieces = [*(one.grad for one in parameters if one.grad is not None), stats]
    flat = torch.cat([piece.flatten().to(torch.float32) for piece in pieces])
    dist.all_reduce(flat)
    for piece, summed in zip(pieces, flat.split([p.numel() for p in pieces]), strict=True):
        piece.copy_(summed.view_as(piece))
