"""The networks of an ensemble in one module that TorchScript takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from torch import Tensor, cat, nn

from plugins.errors import InputError
from plugins.segmentation.model import LABELS, EnsembleMember, SegmentationModel

ARCHITECTURES = {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}
CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def make_unet(member: EnsembleMember) -> nn.Module:
    """nnU-Net's network of a member, without deep supervision, untrained.

    Raises:
        InputError: if the architecture is not one of nnU-Net's, or its arguments do not fit.
    """
    if member.architecture not in ARCHITECTURES:
        raise InputError(f"architecture {member.architecture!r} is not known. Choose from {', '.join(ARCHITECTURES)}.")
    try:
        network: nn.Module = ARCHITECTURES[member.architecture](
            input_channels=1,
            num_classes=len(LABELS),
            conv_op=CONVOLUTIONS[len(member.patch_size)],
            conv_bias=True,
            norm_op=_instance_norm,
            norm_op_kwargs={"eps": 1e-5},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=False,
            **member.arguments,
        )
    except (TypeError, AssertionError) as error:
        fault = f"the arguments of {member.architecture} do not fit ({error})"
        raise InputError(f"{fault}. Train the model anew.") from error
    return network


def _instance_norm(channels: int, eps: float) -> nn.Module:
    """Instance norm as groups of one channel: torch's kernel for groups is several times faster on the CPU."""
    return nn.GroupNorm(channels, channels, eps=eps)


class UNet(nn.Module):
    """The modules of one of nnU-Net's networks with a forward pass that TorchScript can read.

    Args:
        network: of :func:`make_unet`.

    Shape:
        - image: :math:`(N, 1, *)`; output: logits :math:`(N, 3, *)`.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        for block in network.modules():
            if isinstance(block, BasicBlockD):  # TorchScript reads branches that are never taken
                for name in ("skip", "drop_path", "squeeze_excitation"):
                    if not isinstance(getattr(block, name, None), nn.Module):
                        setattr(block, name, nn.Identity())
        encoder: Any = network.encoder
        decoder: Any = network.decoder
        self.stem: nn.Module = getattr(encoder, "stem", None) or nn.Identity()
        self.encoder: nn.Sequential = encoder.stages
        self.up: nn.ModuleList = decoder.transpconvs
        self.decoder: nn.ModuleList = decoder.stages
        self.head: nn.Module = decoder.seg_layers[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a patch."""
        x = self.stem(image)
        skips = [x]
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        depth = 2
        for up, stage in zip(self.up, self.decoder):  # noqa: B905 - TorchScript knows no strict
            x = stage(cat([up(x), skips[len(skips) - depth]], 1))
            depth += 1
        logits: Tensor = self.head(x)
        return logits


class FoldEnsemble(nn.Module):
    """Mean of the folds' logits; a patch with two axes goes to the 2D networks, one with three to the 3D networks.

    Where there are no 3D networks, the 2D networks take the slices of a patch with three axes.

    Args:
        model: whose members are built, untrained.

    Shape:
        - image: :math:`(N, 1, H, W)` or :math:`(N, 1, D, H, W)`.
        - output: logits :math:`(N, 3, *)`.

    Raises:
        InputError: if two members have networks of equally many axes.
    """

    def __init__(self, model: SegmentationModel):
        super().__init__()
        by_axes: dict[int, EnsembleMember] = {}
        for name, member in model.members.items():
            if len(member.patch_size) in by_axes:
                raise InputError(f"{name} is a second {len(member.patch_size)}D member. Combine one 2D and one 3D.")
            by_axes[len(member.patch_size)] = member
        self.folds_2d, self.folds_3d = (
            nn.ModuleDict({f"fold_{fold}": UNet(make_unet(by_axes[axes])) for fold in model.folds if axes in by_axes})
            for axes in (2, 3)
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take the weights of these folds, and leave those of others."""
        here = {f"{axes}.{fold}" for axes in ("folds_2d", "folds_3d") for fold in getattr(self, axes)}
        ours = {key: value for key, value in state_dict.items() if ".".join(key.split(".")[:2]) in here}
        return super().load_state_dict(ours, *args, **kwargs)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch of patches."""
        logits: list[Tensor] = []
        by_slices = image.dim() == 5 and len(self.folds_3d) == 0
        slices = image.transpose(1, 2).flatten(0, 1) if by_slices else image
        if slices.dim() == 4:
            for network in self.folds_2d.values():
                logits.append(network(slices))
        else:
            for network in self.folds_3d.values():
                logits.append(network(image))
        if len(logits) == 0:
            raise ValueError("the model has no network for patches with this number of axes")
        total = logits[0]
        for other in logits[1:]:
            total = total + other
        total = total / len(logits)
        if by_slices:
            _, channels, height, width = total.shape
            total = total.reshape(image.shape[0], image.shape[2], channels, height, width).transpose(1, 2)
        return total
