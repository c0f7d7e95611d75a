"""Training of CycleGAN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from plugins.config.signatures import passes_on
from plugins.engines.image_pool import ImagePool
from plugins.engines.translation import Generator, Losses, TranslationTrainer

Term = Literal["adversarial_target", "adversarial_source", "cycle", "identity", "segmentation"]


@passes_on(TranslationTrainer, but=("discriminators",))
class CycleGANTrainer(TranslationTrainer):
    r"""Two-sided translation by adversarial, cycle and identity losses.

    .. math::
        L_{cycle} = \lVert F(G(I_s)) - I_s \rVert_1 + \lVert G(F(I_t)) - I_t \rVert_1

    Source: Zhu et al., ICCV 2017; Kang et al., Scientific Reports 14:27883 (2024), eq. (11)-(12).

    Args:
        network: generator source to target, with ``regions``, ``encode``, ``decode``, ``segment`` and ``code_of``.
        generator_ts: generator target to source.
        discriminator_t: of target images.
        discriminator_s: of source images.
        loss_weights: weight of each term of the generators' loss.
        segmentation_loss: ``(logits, labels) -> scalar`` for a SegDecoder of ``network``; ``None`` leaves it out.
        pool_size: see :class:`ImagePool`.
        **settings: of :class:`TranslationTrainer`; ``optimizer`` holds the parameters of both generators.
    """

    terms = get_args(Term)

    def __init__(
        self,
        network: Generator,
        generator_ts: nn.Module,
        discriminator_t: nn.Module,
        discriminator_s: nn.Module,
        loss_weights: Mapping[Term, float],
        segmentation_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        pool_size: NonNegativeInt = 50,
        **settings: Any,
    ):
        settings |= {"loss_weights": loss_weights, "segmentation_loss": segmentation_loss}
        super().__init__(network=network, discriminators=[discriminator_t, discriminator_s], **settings)
        self.generator_ts = generator_ts
        self.pool_t, self.pool_s = ImagePool(pool_size), ImagePool(pool_size)

    def _translate(self, batch: dict[str, Any]) -> dict[str, Any]:
        source, target = batch["image"], batch["reals"]
        label = batch.get("label", torch.zeros_like(source))
        nothing = torch.zeros_like(label)
        size = list(source.shape[2:])
        regions = self.network.regions(torch.cat([label, nothing]), size)
        images = torch.cat([source, target])
        deepest, _ = self.network.encode(images, regions)
        code = self.network.code_of(target, batch.get("reals_site"))
        codes = None if code is None else torch.cat([code, code])
        fake_t, identity_t = self.network.decode(deepest, regions, images, codes).chunk(2)
        fake_s, identity_s = self.generator_ts(torch.cat([target, source])).chunk(2)
        return {
            "pred": fake_t,
            "fake_s": fake_s,
            "identity_t": identity_t,
            "identity_s": identity_s,
            "cycled_s": self.generator_ts(fake_t),
            "cycled_t": self.network(fake_s, None, code),
            "deepest": deepest[: source.shape[0]],
            "code": code,
        }

    def _steps(self, batch: dict[str, Any], made: dict[str, Any]) -> None:
        self._generator_step(batch, made)
        self._discriminator_step(batch, made)

    def _generator_losses(self, batch: dict[str, Any], made: dict[str, Any]) -> Losses:
        source, target = batch["image"], batch["reals"]
        told = self._told(made["pred"], made["code"])
        losses = {
            "adversarial_target": self._fooling_loss(self.discriminators[0], told, batch.get("label")),
            "adversarial_source": self._fooling_loss(self.discriminators[1], made["fake_s"], batch.get("reals_label")),
            "cycle": F.l1_loss(made["cycled_s"], source) + F.l1_loss(made["cycled_t"], target),
            "identity": F.l1_loss(made["identity_t"], target) + F.l1_loss(made["identity_s"], source),
        }
        if self.segmentation_loss is not None:
            logits = self.network.segment(made["deepest"])
            losses["segmentation"] = self.segmentation_loss(logits, batch["label"][:, 0].round().long())
        return losses

    def _discriminator_losses(self, batch: dict[str, Any], made: dict[str, Any]) -> Losses:
        real_t, fake_t = (self._told(images, made["code"]) for images in (batch["reals"], made["pred"]))
        fake_t, fake_s = self.pool_t.query(fake_t), self.pool_s.query(made["fake_s"])  # a fake keeps its code
        return {
            "discriminator_target": self._discriminator_loss(self.discriminators[0], real_t, fake_t),
            "discriminator_source": self._discriminator_loss(self.discriminators[1], batch["image"], fake_s),
        }
