"""What the target is to look like, beside the image: a code of its site, or of one of its images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from monai.networks.layers.factories import Conv
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from plugins.config.signatures import refused_by
from plugins.errors import InputError


def check_sites(sites: Sequence[str], site: str | None) -> None:
    """Refuse sites of which one is there twice, none at all, and a wanted one that is not among them.

    Raises:
        InputError: naming them.
    """
    if not sites or len({*sites}) < len(sites):
        raise InputError(f"sites is {[*sites]}. Give the name of each site of the target once.")
    if site is not None and site not in sites:
        raise InputError(f"site is {site!r}. Give one of {', '.join(sites)}, or null for all of them alike.")


@refused_by(check_sites)
class SiteCode(nn.Module):
    """The site of an image as a one-hot vector.

    Args:
        sites: names of the sites of the target, one channel each.
        site: to which a network translates when it is used; ``None`` gives all sites the same share, which lies between
            them.

    Shape:
        - output: :math:`(N, K)`.

    Raises:
        InputError: see :func:`check_sites`.

    Example:
        >>> SiteCode(["etz", "ldn"], "ldn")(1), SiteCode(["etz", "ldn"])(1)
        (tensor([[0., 1.]]), tensor([[0.5000, 0.5000]]))
    """

    code: Tensor

    def __init__(self, sites: Annotated[Sequence[str], Field(min_length=1)], site: str | None = None):
        super().__init__()
        check_sites(sites, site)
        self.sites, self.channels = [*sites], len(sites)
        wanted = [1.0 / len(sites) if site is None else float(name == site) for name in sites]
        self.register_buffer("code", torch.tensor([wanted]), persistent=False)

    @torch.jit.unused
    def of(self, images: Tensor, sites: Sequence[str] | None) -> Tensor:
        """The codes of images of the target, by the names of their sites.

        Raises:
            InputError: if there are no names, or one is not among the sites.
        """
        for site in sites or ["unknown"]:
            if site not in self.sites:
                cure = f"Its sites are {', '.join(self.sites)}: add this one, or leave its scans out"
                raise InputError(f"a real scan is of the site {site!r}, which has no code. {cure}.")
        return torch.eye(self.channels, device=images.device)[[self.sites.index(site) for site in sites or ()]]

    def forward(self, samples: int) -> Tensor:
        """The code to use where none is given, for each sample."""
        return self.code.expand(samples, -1)


class StyleCode(nn.Module):
    r"""A vector that a small network reads from an image of the target, of whatever site.

    Three convolutions halve the image, their mean over all positions goes through a linear layer and tanh. Nothing is
    normalised: brightness and contrast are what is to be read. Where no image is given, the code is the mean over the
    images of the training: of the first hundred batches exactly, then a moving one of decay .99.

    Args:
        channels: of the code.
        spatial_dims: 2 or 3.
        in_channels: of the image.
        width: of the first convolution; the others double it.

    Shape:
        - image: :math:`(N, C_{in}, ...)`; output: :math:`(N, K)`.
    """

    mean: Tensor
    batches: Tensor

    def __init__(
        self, channels: PositiveInt = 8, spatial_dims: int = 2, in_channels: PositiveInt = 1, width: PositiveInt = 16
    ):
        super().__init__()
        self.channels = channels
        widths = [in_channels, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [Conv["conv", spatial_dims](before, after, 3, stride=2, padding=1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, channels)
        self.register_buffer("mean", torch.zeros(1, channels))
        self.register_buffer("batches", torch.zeros(()))

    @torch.jit.unused
    def of(self, images: Tensor, sites: Sequence[str] | None = None) -> Tensor:
        """The codes of images of the target; in training they move the mean."""
        codes = self.read(images)
        if self.training:
            with torch.no_grad():
                self.batches += 1
                share = (1 / self.batches).clamp_min(0.01)
                self.mean += share * (codes.detach().to(self.mean.dtype).mean(0, keepdim=True) - self.mean)
        return codes

    def read(self, images: Tensor) -> Tensor:
        """The codes of images."""
        return torch.tanh(self.head(self.convolutions(images).flatten(2).mean(2)))

    def forward(self, samples: int) -> Tensor:
        """The code to use where none is given, for each sample."""
        return self.mean.expand(samples, -1)


class CodeAffine(nn.Module):
    r"""Scales and shifts each channel of a normalised map by what a code says: :math:`(1 + A c) x + B c`.

    :math:`A` and :math:`B` begin with zeros, so that a network begins as the one without a code.

    Source: conditional instance normalisation of Dumoulin et al., ICLR 2017, with a vector in place of an index.

    Args:
        code_channels: :math:`K`.
        channels: :math:`C`.

    Shape:
        - x: :math:`(N, C, ...)`; code: :math:`(N, K)`; output: as x.
    """

    def __init__(self, code_channels: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * channels, code_channels))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Change ``x``."""
        scale, shift = nn.functional.linear(code.to(x.dtype), self.weight.to(x.dtype)).chunk(2, dim=1)
        size = [x.shape[0], x.shape[1]] + [1] * (x.dim() - 2)
        return x * (1 + scale.reshape(size)) + shift.reshape(size)
