"""One ResNet generator for TANQ, QS-Attn, CUT and CycleGAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from monai.networks.layers.factories import Conv, Norm
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from plugins.config.signatures import refused_by
from plugins.errors import InputError
from plugins.networks.codes import CodeAffine
from plugins.networks.fast_conv import Conv3x3, DoubledConv3x3, HeadConv
from plugins.networks.initialisation import Kind, initialise
from plugins.networks.region_norm import Statistics
from plugins.networks.regions import Reduction, Regions, list_regions, one_hot_regions
from plugins.networks.resample import BlurDown, BlurUp

NormName = Literal["instance", "region", "rain"]
REFLECTION_PAD = {2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d}
ENCODER = ("stem", "stem_norm", "down1", "down1_norm", "down2", "down2_norm", "blocks")


class _Norm(NamedTuple):
    """Name of a norm in MONAI's factory and, for those that know regions, its arguments."""

    name: str
    settings: dict[str, Any]


class _Normalise(nn.Module):
    """A norm layer that takes regions if it knows them."""

    __constants__ = ("regional",)

    def __init__(self, spatial_dims: int, channels: int, norm: _Norm):
        super().__init__()
        self.regional = norm.name != "instance"
        kind = Norm[norm.name, spatial_dims]
        self.norm = kind(channels, **norm.settings) if self.regional else kind(channels)

    def forward(self, x: Tensor, regions: Regions | None) -> Tensor:
        if self.regional:
            return self.norm(x, regions)
        return self.norm(x)


def _conv3(dims: int, in_channels: int, out_channels: int, **settings: int) -> nn.Module:
    if dims == 2 and "stride" not in settings:
        return Conv3x3(in_channels, out_channels, **settings)
    return Conv["conv", dims](in_channels, out_channels, 3, **settings)


class _ResidualBlock(nn.Module):
    def __init__(self, spatial_dims: int, channels: int, norm: _Norm):
        super().__init__()
        self.pad = REFLECTION_PAD[spatial_dims](1)
        self.conv1 = _conv3(spatial_dims, channels, channels)
        self.norm1 = _Normalise(spatial_dims, channels, norm)
        self.conv2 = _conv3(spatial_dims, channels, channels)
        self.norm2 = _Normalise(spatial_dims, channels, norm)

    def forward(self, x: Tensor, regions: Regions | None) -> Tensor:
        y = torch.relu_(self.norm1(self.conv1(self.pad(x)), regions))
        return x + self.norm2(self.conv2(self.pad(y)), regions)


class _Decoder(nn.Module):
    """Two upsampling stages and a 7x7 head; the caller applies the last activation."""

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        out_channels: int,
        norm: _Norm,
        anti_aliased: bool,
        code_channels: int = 0,
    ):
        super().__init__()

        def up(width: int) -> nn.Module:
            if not anti_aliased:
                transposed = Conv["convtrans", spatial_dims]
                return transposed(width, width // 2, 3, stride=2, padding=1, output_padding=1)
            if spatial_dims == 2:
                return DoubledConv3x3(width, width // 2)
            return nn.Sequential(BlurUp(spatial_dims), _conv3(spatial_dims, width, width // 2, padding=1))

        self.up1, self.up2 = up(4 * channels), up(2 * channels)
        self.norm1 = _Normalise(spatial_dims, 2 * channels, norm)
        self.norm2 = _Normalise(spatial_dims, channels, norm)
        conv = HeadConv if spatial_dims == 2 else Conv["conv", spatial_dims]
        self.head = nn.Sequential(REFLECTION_PAD[spatial_dims](3), conv(channels, out_channels, 7))
        self.affine1 = CodeAffine(code_channels, 2 * channels) if code_channels else None
        self.affine2 = CodeAffine(code_channels, channels) if code_channels else None

    def forward(self, x: Tensor, half: Regions | None, full: Regions | None, code: Tensor | None = None) -> Tensor:
        x = self.norm1(self.up1(x), half)
        if self.affine1 is not None and code is not None:
            x = self.affine1(x, code)
        x = self.norm2(self.up2(torch.relu_(x)), full)
        if self.affine2 is not None and code is not None:
            x = self.affine2(x, code)
        return self.head(torch.relu_(x))


def check_blocks(num_res_blocks: int, feature_blocks: Sequence[int], seg_classes: int) -> None:
    """Refuse features of blocks that are not there, and a SegDecoder without a class for each label.

    Raises:
        InputError: naming them.
    """
    if len({*feature_blocks}) < len(feature_blocks) or not all(0 <= block < num_res_blocks for block in feature_blocks):
        fault = f"feature_blocks is {list(feature_blocks)} with num_res_blocks {num_res_blocks}"
        raise InputError(f"{fault}. Give numbers from 0 to {num_res_blocks - 1}, each once.")
    if seg_classes in (1, 2):
        raise InputError(f"seg_classes is {seg_classes}. Give 3, one for each label, or 0 for no SegDecoder.")


@refused_by(check_blocks)
class ResnetGenerator(nn.Module):
    r"""ResNet encoder-decoder whose normalisation may follow the regions of a label map.

    A 7x7 stem, two stages that halve the map and double the channels, residual blocks, two stages back, a 7x7 head and
    tanh. Borders are reflected in stem, blocks and head. The encoder, residual blocks included, normalises the regions
    {others, cochlea}; the decoder {others, VS, cochlea}, of which ``"rain"`` gives the VS the style of "others".

    - TANQ: the defaults
    - TANQ without RAIN: ``decoder_norm="region"``
    - RN on both structures: ``decoder_norm="region", encoder_separates_vs=True``
    - QS-Attn, CUT: ``encoder_norm="instance", decoder_norm="instance", seg_classes=0``
    - CycleGAN: those, and ``num_res_blocks=9, anti_aliased=False, init="normal"``

    Source: Kang et al., Scientific Reports 14:27883 (2024), section "Target-aware encoder-decoder construction".

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image; neighbouring slices may be channels.
        out_channels: channels of the translation.
        channels: width of the stem.
        num_res_blocks: residual blocks.
        encoder_norm: ``"instance"``, ``"region"`` (RN) or ``"rain"``.
        decoder_norm: the same for the decoder.
        anti_aliased: blur before subsampling and interpolate before convolving, instead of strides.
        seg_classes: classes of the SegDecoder; 0 for none.
        feature_blocks: residual blocks whose outputs are contrastive features.
        encoder_separates_vs: make the VS a region of the encoder too; with ``"rain"`` there it always is.
        region_reduction: how label maps shrink, see :func:`plugins.networks.list_regions`.
        min_region_pixels: smaller regions share the statistics of "others".
        region_statistics: see :class:`plugins.networks.RegionNorm`.
        residual: translate :math:`x` to :math:`\tanh(\operatorname{artanh}(0.98 x) + d)`, where :math:`d` is what the
            decoder gives: for images that are nearly in the target's contrast, such as redrawn scans.
        init: see :func:`plugins.networks.initialise`.
        code: what the target is to look like, :class:`plugins.networks.SiteCode` or
            :class:`plugins.networks.StyleCode`, by which the decoder scales and shifts its normalised maps; ``None``
            for nothing.
        encoder_of: another generator, whose encoder, residual blocks included, becomes that of this one too; ``None``
            for an encoder of its own.

    Shape:
        - x: :math:`(N, C_{in}, ...)`, each axis a multiple of 4.
        - condition: label map :math:`(N, 1, ...)` of the same size; 0 others, 1 VS, 2 cochlea.
        - output: :math:`(N, C_{out}, ...)` in (-1, 1).

    Raises:
        InputError: see :func:`check_blocks`; if ``encoder_of`` has an encoder of other settings.
        ValueError: if another argument is out of its range.
    """

    __annotations__ = {"feature_blocks": list[int]}

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: PositiveInt = 64,
        num_res_blocks: PositiveInt = 6,
        encoder_norm: NormName = "region",
        decoder_norm: NormName = "rain",
        anti_aliased: bool = True,
        seg_classes: NonNegativeInt = 3,
        feature_blocks: Sequence[int] = (0, 4),
        encoder_separates_vs: bool = False,
        region_reduction: Reduction = "any",
        min_region_pixels: PositiveInt = 1,
        region_statistics: Statistics = "sample",
        residual: bool = False,
        init: Kind = "xavier",
        code: nn.Module | None = None,
        encoder_of: nn.Module | None = None,
    ):
        super().__init__()
        for norm in (encoder_norm, decoder_norm):
            if norm not in get_args(NormName):
                raise ValueError(f"Norm must be one of {', '.join(get_args(NormName))}, not {norm!r}.")
        check_blocks(num_res_blocks, feature_blocks, seg_classes)
        conv = Conv["conv", spatial_dims]
        encoder_regions = 3 if encoder_norm == "rain" or encoder_separates_vs else 2
        inner = _Norm(encoder_norm, {"num_regions": encoder_regions, "statistics": region_statistics})
        outer = _Norm(decoder_norm, {"num_regions": 3, "statistics": region_statistics})
        self.encoder_regions = encoder_regions
        self.feature_blocks = sorted(feature_blocks)
        self.uses_regions = encoder_norm != "instance" or decoder_norm != "instance"
        self.region_reduction, self.min_region_pixels = region_reduction, min_region_pixels
        self.anti_aliased, self.residual = anti_aliased, residual
        self.in_channels, self.channels = in_channels, channels

        self.pad = REFLECTION_PAD[spatial_dims](3)
        self.stem = conv(in_channels, channels, 7)
        self.stem_norm = _Normalise(spatial_dims, channels, inner)
        step = {"padding": 1} if anti_aliased else {"padding": 1, "stride": 2}
        self.down1 = _conv3(spatial_dims, channels, 2 * channels, **step)
        self.down1_norm = _Normalise(spatial_dims, 2 * channels, inner)
        self.down2 = _conv3(spatial_dims, 2 * channels, 4 * channels, **step)
        self.down2_norm = _Normalise(spatial_dims, 4 * channels, inner)
        self.halve = BlurDown(spatial_dims) if anti_aliased else nn.Identity()
        self.blocks = nn.ModuleList(_ResidualBlock(spatial_dims, 4 * channels, inner) for _ in range(num_res_blocks))
        code_channels = 0 if code is None else int(getattr(code, "channels"))  # noqa: B009 - mypy
        self.decoder = _Decoder(spatial_dims, channels, out_channels, outer, anti_aliased, code_channels)
        self.seg_decoder: nn.Module | None = None
        if seg_classes:
            self.seg_decoder = _Decoder(spatial_dims, channels, seg_classes, _Norm("instance", {}), anti_aliased)
        initialise(self, init)
        self.target_code = code
        if encoder_of is not None:
            self._share(encoder_of)

    def _share(self, other: nn.Module) -> None:
        """Take the encoder of another generator: both train the same weights."""

        def kind(generator: Any) -> Any:
            shapes = {name: value.shape for name, value in generator.state_dict().items() if name.startswith(ENCODER)}
            return shapes, generator.anti_aliased

        if kind(self) != kind(other):
            raise InputError("encoder_of is a generator with another encoder. Give both the same settings.")
        for name in ENCODER:
            setattr(self, name, getattr(other, name))

    @property
    def feature_channels(self) -> list[int]:
        """Channels of the contrastive features, shallowest first."""
        return [self.in_channels, 2 * self.channels] + [4 * self.channels] * (1 + len(self.feature_blocks))

    @torch.jit.export
    def regions(self, condition: Tensor | None, size: list[int]) -> list[Regions | None]:
        """Regions for the encoder at full, half and quarter size and for the decoder at half and full size."""
        regions: list[Regions | None] = []
        if condition is None or not self.uses_regions:
            for _ in range(5):
                regions.append(None)
            return regions
        if list(condition.shape[2:]) != list(size):
            raise ValueError(f"The condition must have the image's size {size}, not {list(condition.shape[2:])}.")
        targets = one_hot_regions(condition)[:, 1:]
        encoder = targets if self.encoder_regions == 3 else targets[:, 1:]
        half, quarter = [axis // 2 for axis in size], [axis // 4 for axis in size]
        for masks, shape in ((encoder, size), (encoder, half), (encoder, quarter), (targets, half), (targets, size)):
            regions.append(list_regions(masks, shape, self.region_reduction, self.min_region_pixels))
        return regions

    @torch.jit.export
    def encode(
        self, x: Tensor, regions: list[Regions | None], features_only: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Deepest map and contrastive features: padded image, two downsampling convolutions, chosen blocks.

        With ``features_only`` the blocks behind the deepest feature are left out.
        """
        full, half, quarter = regions[0], regions[1], regions[2]
        if not self.anti_aliased:
            after1, after2 = half, quarter
        else:
            after1, after2 = full, half
        features = [self.pad(x)]
        x = torch.relu_(self.stem_norm(self.stem(features[0]), full))
        x = self.down1(x)
        features.append(x)
        x = self.halve(torch.relu_(self.down1_norm(x, after1)))
        x = self.down2(x)
        features.append(x)
        x = self.halve(torch.relu_(self.down2_norm(x, after2)))
        deepest = self.feature_blocks[-1] if len(self.feature_blocks) > 0 else -1
        for index, block in enumerate(self.blocks):
            if not features_only or index <= deepest:
                x = block(x, quarter)
                if index in self.feature_blocks:
                    features.append(x)
        return x, features

    @torch.jit.unused
    def code_of(self, reals: Tensor, sites: Sequence[str] | None = None) -> Tensor | None:
        """Codes :math:`(N, K)` of real images, of which ``sites`` are the sites' names; ``None`` without a code."""
        if self.target_code is None:
            return None
        codes: Tensor = self.target_code.of(reals, sites)  # type: ignore[operator]
        return codes

    @torch.jit.export
    def decode(
        self, deepest: Tensor, regions: list[Regions | None], x: Tensor | None = None, code: Tensor | None = None
    ) -> Tensor:
        """Translation from the encoder's deepest map; a residual one needs the image as well.

        Without ``code`` it is the one that is used where none is given.
        """
        if self.target_code is not None and code is None:
            code = self.target_code(deepest.shape[0])
        change = self.decoder(deepest, regions[3], regions[4], code)
        if self.residual:
            if x is None:
                raise ValueError("A residual generator decodes beside the image: give it.")
            change = change + torch.atanh(0.98 * x.clamp(-1.0, 1.0))  # so that air and bright fluid can still change
        return torch.tanh(change)

    def segment(self, deepest: Tensor) -> Tensor:
        """Logits of the SegDecoder, eq. (8); training only."""
        if self.seg_decoder is None:
            raise ValueError("This generator has no SegDecoder: set seg_classes.")
        logits: Tensor = self.seg_decoder(deepest, None, None)
        return logits

    def forward(self, x: Tensor, condition: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """Translate ``x``; without ``condition`` every pixel is "others"; ``code`` as in :meth:`decode`."""
        size = list(x.shape[2:])
        for axis in size:
            if axis % 4 != 0:
                raise ValueError(f"Each axis of the image must be a multiple of 4, not {size}.")
        regions = self.regions(condition, size)
        return self.decode(self.encode(x, regions, False)[0], regions, x, code)
