"""A history of translated images for the discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ImagePool:
    """Keeps up to ``size`` translated images and sometimes hands back an older one.

    Until it is full, images are stored and returned. Then each image is returned, or, with probability 1/2, swapped
    with a random stored one. Draws come from torch's default generator.

    Source: Shrivastava et al., CVPR 2017, as used by Zhu et al., ICCV 2017.

    Args:
        size: images kept; 0 returns every image as it is.
    """

    def __init__(self, size: int = 50):
        self.size = size
        self._images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """Images ``(N, ...)`` for the discriminator, without gradient, of the same shape as given."""
        images = images.detach()
        if self.size == 0:
            return images
        chosen = []
        for image in images:
            if len(self._images) < self.size:
                self._images.append(image.clone())
                chosen.append(image)
            elif torch.rand(()).item() < 0.5:
                index = int(torch.randint(self.size, ()).item())
                chosen.append(self._images[index])
                self._images[index] = image.clone()
            else:
                chosen.append(image)
        return torch.stack(chosen)

    def state_dict(self) -> dict[str, Any]:
        """The stored images."""
        return {"images": list(self._images)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over stored images."""
        self._images = list(state["images"])
