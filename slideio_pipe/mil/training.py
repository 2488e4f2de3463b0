"""Train one model on one division of a cohort: steps, epochs, checkpoints; with Lightning Fabric.

Random numbers of a step depend only on (seed, epoch, step, rank), so a run continued from a checkpoint makes the same
steps as an uninterrupted one.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slideio_pipe.augment.draw import hashed
from slideio_pipe.errors import ConfigError, SkippedWarning, require
from slideio_pipe.features.encoders.encoder import parameter_dtype
from slideio_pipe.mil.bag_tiles import LostBagError
from slideio_pipe.mil.checkpoint import Checkpoints, Progress
from slideio_pipe.mil.config import TrainConfig
from slideio_pipe.mil.models.bag_model import MilOutput
from slideio_pipe.mil.models.two_pass import EncodedBag, TwoPass
from slideio_pipe.mil.objective import Objective
from slideio_pipe.mil.progress_texts import epoch_words, step_words
from slideio_pipe.mil.sources import Example, Source
from slideio_pipe.mil.tasks import Classification, Task
from slideio_pipe.progress import Note


class Training:
    """Trains a model, with or without an encoder; ``run`` continues from the last checkpoint.

    Parameters
    ----------
    fabric : lightning_fabric.Fabric
        Launched.
    model : nn.Module
        From (N, D) features of a bag to a ``MilOutput``.
    encoder : nn.Module or None
        From tiles to features, trained together with the model. None: the source has features.
    task : Task
    train, validation : Source
        Without ``validation`` every epoch counts as better than the one before.
    config : TrainConfig
    checkpoints : Checkpoints
        Files of the state.
    objective : Objective, optional
        Its loss and metrics, by default those of the task.
    on_epoch : callable, optional
        Called after each epoch with the history so far, a row per epoch.
    note : callable, optional
        Called with texts on the progress, see ``progress.narrated``.
    """

    def __init__(
        self,
        fabric: Any,
        model: nn.Module,
        encoder: nn.Module | None,
        task: Task,
        train: Source,
        validation: Source | None,
        config: TrainConfig,
        checkpoints: Checkpoints,
        *,
        objective: Objective | None = None,
        on_epoch: Callable[[list[dict[str, Any]]], object] | None = None,
        note: Note | None = None,
    ) -> None:
        self.fabric, self.task, self.config = fabric, task, config
        self.objective = objective or Objective(task)
        self.train, self.validation, self.checkpoints = train, validation, checkpoints
        self.progress = Progress()
        self._on_epoch = on_epoch or (lambda history: None)
        self._note = note
        self._targets = task.targets(list(train.cohort)).to(fabric.device)
        fit = config.fit
        groups = [{"params": list(model.parameters()), "lr": fit.lr}]
        self.trains_encoder = encoder is not None and config.encoder.trainable
        if encoder is not None:
            if not self.trains_encoder:
                encoder.requires_grad_(False)
            groups.append(
                {"params": [p for p in encoder.parameters() if p.requires_grad], "lr": config.encoder.lr or fit.lr}
            )
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=fit.weight_decay)
        self.model = fabric.setup_module(model)
        self.encoder = encoder
        if encoder is not None:
            self.encoder = fabric.setup_module(encoder) if self.trains_encoder else encoder.to(fabric.device).eval()
        self.optimizer = fabric.setup_optimizers(optimizer)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self._passes = None if self.encoder is None else self._two_pass()

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self, report: Callable[[int, int], object]) -> Progress:
        """Train until the last epoch or until validation stops improving; return the final state."""
        state = self.checkpoints.resume(self)
        epochs = self.config.fit.epochs
        report(self.progress.epoch, epochs)
        while not self.progress.finished:
            began = time.perf_counter()
            self._epoch(state)
            state = None
            self._end_epoch(time.perf_counter() - began)
            report(epochs if self.progress.finished else self.progress.epoch, epochs)
        return self.progress

    def _epoch(self, state: dict[str, Any] | None) -> None:
        """Make the steps of an epoch: equally many in every process, because gradients are averaged over them."""
        fit, now = self.config.fit, self.progress
        self.model.train()
        if self.encoder is not None and self.trains_encoder:
            self.encoder.train()
        with closing(self.train.epoch(now.epoch, shuffle=True, state=state)) as bags:
            while now.position < self._bags_per_epoch:
                size = min(fit.bags_per_step, self._bags_per_epoch - now.position)
                self._seed(now.step)
                self._step(itertools.islice(bags, size), size)
                now.step += 1
                now.position += size
                if self._note is not None:
                    self._note(step_words(now.position, self._bags_per_epoch, now.loss / max(now.bags, 1)))
                if fit.save_every and now.step % fit.save_every == 0 and now.position < self._bags_per_epoch:
                    self.checkpoints.save_last(self)

    @property
    def _bags_per_epoch(self) -> int:
        """Bags per process; a remainder that cannot be divided evenly is left to other epochs."""
        return len(self.train.cohort) // int(self.fabric.world_size)

    def _step(self, bags: Iterator[Example], size: int) -> None:
        losses = self._step_per_bag(bags, size) if self.objective.separable else self._step_over_bags(bags, size)
        if not losses:
            return
        loss = float(torch.stack(losses).sum())
        if not math.isfinite(loss):
            where = f"in step {self.progress.step} of epoch {self.progress.epoch}"
            raise ConfigError(f"the loss is {loss} {where}", remedy="lower fit.lr, or look at the labels")
        if self.config.fit.clip is not None:  # one norm over all trained parameters, encoder and model
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.fit.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.loss += loss
        self.progress.bags += len(losses)

    def _step_per_bag(self, bags: Iterator[Example], size: int) -> list[Tensor]:
        """Backpropagate bag by bag: the loss of a step is the mean of theirs."""
        losses = []
        for k, example in enumerate(bags):
            sync = k == size - 1
            with self._no_sync(self.model, not sync):
                found = self._features(example, sync=sync, keep_graph=True)
                if found is None:
                    continue
                features, encoded = found
                target = self._targets[example.number]
                out = self.model(features, example.coords, self._class(target))
                loss = self.objective.loss(out.logits[None].float(), target[None])
                if out.auxiliary is not None:
                    loss = loss + out.auxiliary
                self.fabric.backward(loss / size)
            if encoded is not None:
                encoded.backward()
            losses.append(loss.detach())
        return losses

    def _step_over_bags(self, bags: Iterator[Example], size: int) -> list[Tensor]:
        """Backpropagate one loss over all bags of the step, for losses that compare bags."""
        logits, encodings, targets, own = [], [], [], []
        for k, example in enumerate(bags):
            found = self._features(example, sync=k == size - 1, keep_graph=False)
            if found is None:
                continue
            features, encoded = found
            encodings.append(encoded)
            targets.append(self._targets[example.number])
            out = self.model(features, example.coords, self._class(targets[-1]))
            logits.append(out.logits)
            own += [] if out.auxiliary is None else [out.auxiliary]
        if not logits:
            return []
        loss = self.objective.loss(torch.stack(logits).float(), torch.stack(targets))
        if own:
            loss = loss + torch.stack(own).mean()
        self.fabric.backward(loss)
        for encoded in encodings:
            if encoded is not None:
                encoded.backward()
        return [loss.detach()] * len(logits)

    def _class(self, target: Tensor) -> Tensor | None:
        """Return the target of a model's own loss.

        It is a cross-entropy of two classes: with a number as target it would fall forever.
        """
        return target if isinstance(self.task, Classification) else None

    def _features(
        self, example: Example, *, sync: bool, keep_graph: bool, passes: TwoPass | None = None
    ) -> tuple[Tensor, EncodedBag | None] | None:
        """Return the features of a bag, and the object that passes their gradient on; None if it cannot be read."""
        passes = passes or self._passes
        if passes is None or example.pixels is None:
            assert example.features is not None
            return example.features.to(self._dtype), None
        try:
            encoded = passes.encode(example.pixels, sync=sync, keep_graph=keep_graph)
        except LostBagError as lost:
            if self.fabric.world_size > 1:  # the other processes wait for this one's gradient
                raise lost.error from lost
            name = self.train.cohort[example.number].name
            warnings.warn(f"{name} is left out of this epoch: {lost.error}", SkippedWarning, stacklevel=2)
            return None
        return encoded.features.to(self._dtype), encoded

    # -- validation ----------------------------------------------------------------------------------------------

    def _end_epoch(self, seconds: float) -> None:
        fit, now = self.config.fit, self.progress
        loss, bags = self._sum(now.loss), self._sum(now.bags)
        row: dict[str, Any] = {"epoch": now.epoch, "lr": self.scheduler.get_last_lr()[0], "loss": loss / max(bags, 1)}
        if self.validation is not None:
            logits, targets, _ = self.predict(self.validation)
            row["val_loss"] = float(self.objective.loss(logits, targets))
            measured = self.objective.measure(logits, targets, bootstrap=0)
            row |= {f"val_{name}": metric.value for name, metric in measured.items()}
        row["seconds"] = round(seconds, 3)
        now.history.append(row)
        now.epoch += 1
        now.loss, now.bags, now.position = 0.0, 0, 0
        better = self._is_better(row)
        now.stale = 0 if better else now.stale + 1
        stalled = fit.patience is not None and self.validation is not None and now.stale >= fit.patience
        now.finished = now.epoch >= fit.epochs or stalled
        if better:
            now.best_epoch = now.epoch - 1
            self.checkpoints.save_best(self)
        self.checkpoints.save_last(self)
        if self.fabric.is_global_zero:
            self._on_epoch(now.history)
        if self._note is not None:
            self._note(epoch_words(now, fit.epochs, chosen=fit.monitor != "none"), lasting=True)

    def _is_better(self, row: dict[str, Any]) -> bool:
        """Compare this epoch with the best so far; at equal metrics the lower loss is better."""
        now = self.progress
        if self.validation is None or self.config.fit.monitor == "none":
            return True
        metric = row[next(name for name in row if name.startswith("val_") and name != "val_loss")]
        by_loss = self.config.fit.monitor == "loss" or math.isnan(metric)
        value = [-row["val_loss"] if by_loss else metric, -row["val_loss"]]
        better = not now.best or value > now.best
        if better:
            now.best = value
        return better

    def predict(self, source: Source) -> tuple[Tensor, Tensor, list[int]]:
        """Return logits, targets and slide numbers of all bags of a source, from all processes, in order."""
        numbers, logits = [], []
        for number, out in self.outputs(source):
            numbers.append(number)
            logits.append(out.logits.float().cpu())
        shares = self.gather(list(zip(numbers, logits, strict=True)))
        found = sorted((pair for share in shares for pair in share), key=lambda pair: pair[0])
        order = [number for number, _ in found]
        if not order:
            raise ConfigError("no slide is left to validate with", remedy="look at the splits of the cohort")
        targets = self.task.targets([source.cohort[number] for number in order])
        return torch.stack([logit for _, logit in found]), targets, order

    def outputs(self, source: Source) -> Iterator[tuple[int, MilOutput]]:
        """Yield the model's output for each bag of this process."""
        modules = [module for module in (self.model, self.encoder) if module is not None]
        for module in modules:
            module.eval()
        with torch.no_grad(), closing(source.epoch(0, shuffle=False)) as bags:
            for example in bags:
                out = self._evaluated(example)
                if out is not None:
                    yield example.number, out

    def _evaluated(self, example: Example) -> MilOutput | None:
        """Return the bare model's output for a bag, None if it cannot be read.

        Without DistributedDataParallel: its forward exchanges buffers, and would wait forever for a process that has no
        slide left.
        """
        passes = self._passes and TwoPass(_unwrapped(self.encoder))
        with self.fabric.autocast():
            found = self._features(example, sync=False, keep_graph=False, passes=passes)
            if found is None:
                return None
            out: MilOutput = _unwrapped(self.model)(found[0], example.coords)
            return out

    # -- processes, precision, rates -----------------------------------------------------------------------------

    def _two_pass(self) -> TwoPass:
        encoder = self.encoder
        assert encoder is not None
        if not self.config.encoder.trainable:
            return TwoPass(encoder)
        no_sync = (lambda: self.fabric.no_backward_sync(encoder)) if self.fabric.world_size > 1 else None
        return TwoPass(encoder, backward=self._backward, no_sync=no_sync)

    def _backward(self, features: Tensor, gradient: Tensor) -> None:
        """Backpropagate through Fabric without scaling again a gradient that already has half precision's scale."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        self.fabric.backward(features.to(gradient.dtype), gradient / scale)

    def _no_sync(self, module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        if not wanted or self.fabric.world_size == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = self.fabric.no_backward_sync(module)
        return context

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the model's weights."""
        return parameter_dtype(self.model)

    def _rate(self, step: int) -> float:
        """Return the factor of the learning rate at a step: linear warm-up, then half a cosine."""
        fit = self.config.fit
        each = math.ceil(self._bags_per_epoch / fit.bags_per_step)
        total = each * fit.epochs
        rising = round(fit.warmup * total)
        if step < rising:
            return (step + 1) / rising
        if fit.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))

    def _seed(self, step: int) -> None:
        seed = hashed(self.config.seed, "step", step, self.fabric.global_rank, digest_bytes=8) >> 1
        # Not torch.manual_seed: without a GPU it stores the stack of every call, for later CUDA initialisation.
        torch.default_generator.manual_seed(seed)
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _sum(self, value: float) -> float:
        if self.fabric.world_size == 1:
            return value
        total = torch.tensor(float(value), dtype=torch.float64, device=self.fabric.device)
        return float(self.fabric.all_reduce(total, reduce_op="sum"))

    def where(self) -> list[dict[str, Any]]:
        """Return the state of each process's source within its epoch."""
        return self.gather(self.train.state())

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.fabric.world_size == 1:
            return [value]
        every: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(every, value)
        return every


def _unwrapped(module: Any) -> Any:
    """Return a module without Fabric's wrappers."""
    return module.module if isinstance(module, require("lightning_fabric.wrappers", "train")._FabricModule) else module
