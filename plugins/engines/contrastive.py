"""Training of TANQ, QS-Attn and CUT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from plugins.config.signatures import passes_on
from plugins.engines.translation import Generator, Losses, TranslationTrainer
from plugins.errors import InputError

Term = Literal["adversarial", "contrastive_source", "contrastive_target", "segmentation"]


@passes_on(TranslationTrainer, but=("discriminators",))
class ContrastiveTranslationTrainer(TranslationTrainer):
    r"""One-sided translation by adversarial, contrastive and segmentation losses.

    .. math::
        L_G = L_{adv} + L_{con}^X + L_{con}^Y + L_{seg}

    Source and target pass the encoder once, together; that pass also gives the keys. Translation and identity pass it
    once more up to the deepest feature; that gives the queries.

    Source: Kang et al., Scientific Reports 14:27883 (2024), eq. (8) and (10).

    Args:
        network: with ``regions``, ``encode``, ``decode``, ``segment`` and ``code_of``, as
            :class:`plugins.networks.ResnetGenerator`.
        discriminator: of target images.
        projector: takes the selected features of all layers to unit vectors.
        loss_weights: weight of each term of the generators' loss.
        contrastive_loss: ``(source features, translated features, projector) -> scalar``.
        segmentation_loss: ``(logits, labels) -> scalar``; ``None`` leaves the SegDecoder out.
        **settings: of :class:`TranslationTrainer`; ``optimizer`` holds the parameters of network and projector.
    """

    terms = get_args(Term)

    def __init__(
        self,
        network: Generator,
        discriminator: nn.Module,
        projector: nn.Module,
        loss_weights: Mapping[Term, float],
        contrastive_loss: Callable[..., Tensor],
        segmentation_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        **settings: Any,
    ):
        settings |= {"loss_weights": loss_weights, "segmentation_loss": segmentation_loss}
        super().__init__(network=network, discriminators=[discriminator], **settings)
        selections, channels = getattr(contrastive_loss, "selections", None), getattr(network, "feature_channels", None)
        if isinstance(selections, Sized) and isinstance(channels, Sized) and len(selections) != len(channels):
            raise InputError(
                f"selections has {len(selections)} entries, but the network has {len(channels)} features (the image, "
                "two downsampling convolutions, and one for each of feature_blocks). Give as many."
            )
        self.projector = projector
        self.contrastive_loss = contrastive_loss

    def _translate(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = torch.cat([batch["image"], batch["reals"]])
        target_labels = batch.get("reals_label", torch.zeros_like(batch["label"]))
        regions = self.network.regions(torch.cat([batch["label"], target_labels]), list(images.shape[2:]))
        deepest, keys = self.network.encode(images, regions)
        code = self.network.code_of(batch["reals"], batch.get("reals_site"))
        codes = None if code is None else torch.cat([code, code])
        translated, identity = self.network.decode(deepest, regions, images, codes).chunk(2)
        made = {"pred": translated, "identity": identity, "deepest": deepest, "keys": keys, "regions": regions}
        return made | {"code": code}

    def _discriminator_losses(self, batch: dict[str, Any], made: dict[str, Any]) -> Losses:
        real, fake = (self._told(images, made["code"]) for images in (batch["reals"], made["pred"]))
        return {"discriminator": self._discriminator_loss(self.discriminators[0], real, fake)}

    def _generator_losses(self, batch: dict[str, Any], made: dict[str, Any]) -> Losses:
        told = self._told(made["pred"], made["code"])
        losses = {"adversarial": self._fooling_loss(self.discriminators[0], told, batch["label"])}
        outputs = torch.cat([made["pred"], made["identity"]])
        queries = self.network.encode(outputs, made["regions"], features_only=True)[1]
        halves = zip(("contrastive_source", "contrastive_target"), _halves(made["keys"]), _halves(queries), strict=True)
        for name, keys, own_queries in halves:
            losses[name] = self.contrastive_loss(keys, own_queries, self.projector)
        if self.segmentation_loss is not None:
            logits = self.network.segment(made["deepest"][: batch["image"].shape[0]])
            losses["segmentation"] = self.segmentation_loss(logits, batch["label"][:, 0].round().long())
        return losses


def _halves(features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [layer.chunk(2) for layer in features]
    return [first for first, _ in pairs], [second for _, second in pairs]
