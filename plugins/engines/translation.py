"""What the trainers of both translators share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Annotated, Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from plugins.config.names import refuse_unknown
from plugins.config.signatures import Methods, passes_on, signature
from plugins.engines.augmentation import gradient_penalty, regions_of_logits
from plugins.errors import InputError
from plugins.finite import refuse_diverged

Losses = dict[str, Tensor]
# what the trainers need of the generator that is exported; plugins.networks.ResnetGenerator has it
Generator = Annotated[nn.Module, Methods(("regions", "encode", "decode", "segment", "code_of", "feature_channels"))]


UNUSED = frozenset(
    ("loss_function", "prepare_batch", "iteration_update", "inferer", "optim_set_to_none", "to_kwargs")
) | {"accumulation_steps", "compile", "compile_kwargs"}
"""Arguments of MONAI's trainer that a step of ours has no use for."""


@passes_on(SupervisedTrainer, but=UNUSED)
class TranslationTrainer(SupervisedTrainer, ABC):
    """A MONAI trainer for one exported generator, its helpers and its discriminators.

    Subclasses implement :meth:`_translate`, :meth:`_generator_losses` and :meth:`_discriminator_losses`. An iteration
    emits ``image``, ``label``, ``pred``, ``loss`` (the generators' weighted sum), ``d_loss`` and every term by name,
    and fires the events of MONAI's trainers. In a process group, weights start equal and gradients are averaged.

    A batch holds ``image`` (source), ``label`` (its label map), ``reals`` (unpaired target) and optionally
    ``reals_label``: each :math:`(N, 1, ...)`; and the names of the target's sites, ``reals_site``, if the network has a
    code for them. With any code, a source is translated to the code of the real image beside it, and discriminators of
    the target see the code as further channels, so that a translation must fit it.

    Args:
        device: where to train.
        max_epochs: epochs in all.
        train_data_loader: batches as above.
        network: the generator that is exported, source to target.
        optimizer: of all that is trained on the generators' loss.
        discriminators: networks trained on the discriminators' loss; the last of their outputs holds the logits.
        d_optimizer: of the discriminators.
        adversarial_loss: ``(logits, target_is_real, for_discriminator) -> scalar``.
        loss_weights: weight of each term of the generators' loss.
        segmentation_loss: ``(logits, labels) -> scalar``; ``None`` leaves that term out.
        clip_norm: largest norm of the gradients of an optimiser's parameters; ``None`` for no limit.
        r1_weight: of half the penalty of each discriminator's slope, :func:`gradient_penalty`; 0 leaves it out.
        r1_interval: steps from one penalty to the next; each counts as many times.
        discriminator_augmentation: applied to all that a discriminator sees, real and translated; ``None`` for nothing.
        region_balanced: whether the generators' adversarial loss is the mean over the regions of the translation
            (others, VS, cochlea; those that are there) of its mean over the logits of each. Discriminators need
            ``logit_stride`` then, as :class:`plugins.networks.PatchDiscriminator` has it.
        **settings: of :class:`monai.engines.SupervisedTrainer`, e.g. ``train_handlers``, ``amp``.

    Raises:
        InputError: if ``loss_weights`` names a term that the trainer does not have or lacks one in use, if an epoch
            has no batch, or if ``r1_weight`` or ``r1_interval`` is out of its range; in training, at the first loss
            that is not finite.
    """

    terms: tuple[str, ...] = ()

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: PositiveInt,
        train_data_loader: Iterable[Any],
        network: nn.Module,
        optimizer: Optimizer,
        discriminators: Sequence[nn.Module],
        d_optimizer: Optimizer,
        adversarial_loss: Callable[..., Tensor],
        loss_weights: Mapping[Any, float],
        segmentation_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        clip_norm: float | None = None,
        r1_weight: float = 0.0,
        r1_interval: int = 16,
        discriminator_augmentation: Callable[[Tensor], Tensor] | None = None,
        region_balanced: bool = False,
        **settings: Any,
    ):
        refuse_unknown(settings, signature(TranslationTrainer).parameters, type(self).__name__)
        refuse_unknown(loss_weights, self.terms, "loss_weights")
        used = [name for name in self.terms if name != "segmentation" or segmentation_loss is not None]
        absent = [name for name in used if name not in loss_weights]
        if absent:
            raise InputError(f"loss_weights has no {absent[0]!r}. Give each of {', '.join(used)}.")
        if isinstance(train_data_loader, Sized) and len(train_data_loader) == 0:
            raise InputError("an epoch has no whole batch. Set slices_per_epoch to batch_size or more.")
        if r1_weight < 0 or r1_interval < 1:
            raise InputError("r1_weight or r1_interval is out of its range. Give 0 or more, and 1 or more.")
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=adversarial_loss,
            **settings,
        )
        self.discriminators, self.d_optimizer = list(discriminators), d_optimizer
        self.adversarial_loss, self.loss_weights, self.clip_norm = adversarial_loss, loss_weights, clip_norm
        self.segmentation_loss = segmentation_loss
        self.r1_weight, self.r1_interval = r1_weight, r1_interval
        self.discriminator_augmentation, self.region_balanced = discriminator_augmentation, region_balanced
        self.add_event_handler(Events.STARTED, self._equalise_ranks)

    @abstractmethod
    def _translate(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Everything the two losses need; ``pred`` is the translation of the source."""

    @abstractmethod
    def _generator_losses(self, batch: dict[str, Any], made: dict[str, Any]) -> Losses:
        """Unweighted terms of the generators' loss."""

    @abstractmethod
    def _discriminator_losses(self, batch: dict[str, Any], made: dict[str, Any]) -> Losses:
        """Unweighted terms of the discriminators' loss."""

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            key: value.to(self.state.device, non_blocking=self.non_blocking) if isinstance(value, Tensor) else value
            for key, value in batchdata.items()
        }
        self.network.train()
        with self._autocast():
            made = self._translate(batch)
        self.state.output = {"image": batch["image"], "label": batch.get("label"), "pred": made["pred"].detach()}
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self._steps(batch, made)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _steps(self, batch: dict[str, Any], made: dict[str, Any]) -> None:
        """One step of the discriminators, then one of the generators."""
        self._discriminator_step(batch, made)
        self._generator_step(batch, made)

    def _generator_step(self, batch: dict[str, Any], made: dict[str, Any]) -> None:
        for discriminator in self.discriminators:
            discriminator.requires_grad_(False)
        with self._autocast():
            losses = self._generator_losses(batch, made)
            loss = torch.stack([self.loss_weights[name] * value for name, value in losses.items()]).sum()
        self.state.output |= {name: value.detach() for name, value in losses.items()} | {"loss": loss.detach()}
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        refuse_diverged(loss, losses, f"step {self.state.iteration}")
        self._update(loss, self.optimizer)
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)

    def _discriminator_step(self, batch: dict[str, Any], made: dict[str, Any]) -> None:
        for discriminator in self.discriminators:
            discriminator.requires_grad_(True)
        with self._autocast():
            losses = self._discriminator_losses(batch, made)
            loss = torch.stack(list(losses.values())).sum()
        self.state.output |= {name: value.detach() for name, value in losses.items()} | {"d_loss": loss.detach()}
        refuse_diverged(loss, losses, f"step {self.state.iteration}")
        self._update(loss, self.d_optimizer)

    def _discriminator_loss(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Half the sum of the losses on real and on translated images, in one pass over both; at times the penalty."""
        seen = self._seen(torch.cat([real, fake.detach()]))
        on_real, on_fake = discriminator(seen)[-1].split([real.shape[0], fake.shape[0]])
        loss: Tensor = 0.5 * (
            self.adversarial_loss(on_real, target_is_real=True, for_discriminator=True)
            + self.adversarial_loss(on_fake, target_is_real=False, for_discriminator=True)
        )
        if self.r1_weight and self.state.iteration % self.r1_interval == 0:
            penalty = gradient_penalty(discriminator, seen[: real.shape[0]])
            loss = loss + 0.5 * self.r1_weight * self.r1_interval * penalty
        return loss

    def _fooling_loss(self, discriminator: nn.Module, fake: Tensor, label: Tensor | None = None) -> Tensor:
        """How far a discriminator is from taking translations for real; ``label`` tells their regions."""
        if not self.region_balanced or label is None:
            logits = discriminator(self._seen(fake))[-1]
            return self.adversarial_loss(logits, target_is_real=True, for_discriminator=False)
        seen = self._seen(torch.cat([fake, label.to(fake.dtype)], dim=1))  # regions move with the image
        logits = discriminator(seen[:, : fake.shape[1]])[-1]
        stride: Any = discriminator.logit_stride
        regions = regions_of_logits(seen[:, fake.shape[1] :], list(logits.shape[2:]), stride)
        means = [
            self.adversarial_loss(logits[:, 0][inside][None, None], target_is_real=True, for_discriminator=False)
            for inside in regions.unbind(1)
            if inside.any()
        ]
        return torch.stack(means).mean()

    @staticmethod
    def _told(images: Tensor, code: Tensor | None) -> Tensor:
        """Images with a code as further channels, as a discriminator of the target sees them."""
        if code is None:
            return images
        maps = code.detach().to(images.dtype).reshape([*code.shape] + [1] * (images.ndim - 2))
        return torch.cat([images, maps.expand(-1, -1, *images.shape[2:])], dim=1)

    def _seen(self, images: Tensor) -> Tensor:
        return images if self.discriminator_augmentation is None else self.discriminator_augmentation(images)

    def _update(self, loss: Tensor, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._average_gradients(parameters)
        if self.scaler is not None:  # behind the average: an overflow on one rank must stop the step of all
            self.scaler.unscale_(optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.state.device.type, enabled=self.amp, **self.amp_kwargs)

    def _equalise_ranks(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for optimizer in (self.optimizer, self.d_optimizer):
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        torch.distributed.broadcast(parameter.data, src=0)

    @staticmethod
    def _average_gradients(parameters: list[Tensor]) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in parameters:
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= torch.distributed.get_world_size()
