"""A small slice segmenter, trained on real target scans with their true labels: it judges translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Orientationd,
    RandAdjustContrastd,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianSmoothd,
    ScaleIntensityRangePercentilesd,
    SqueezeDimd,
)
from monai.utils import set_determinism

from plugins.data import LoadScand
from plugins.engines import ShowProgress
from plugins.files import whole_file

KEYS = ["image", "label"]


def train_segmenter(
    scans: Sequence[Mapping[str, Any]], output_file: Path, epochs: int = 150, size: int = 64, seed: int = 0
) -> None:
    """Train on slices of hrT2 scans with labels and write TorchScript for :class:`plugins.evaluation.SliceSegmenter`.

    Args:
        scans: ``{"image", "label"}``, real target scans.
        output_file: TorchScript; slices in [-1, 1] to logits.
        epochs: of eight windows a scan.
        size: of the windows, in pixels.
        seed: of everything.
    """
    set_determinism(seed)
    transforms = Compose(
        [
            LoadScand(KEYS),
            EnsureChannelFirstd(KEYS),
            AsDiscreted("label", rounding="torchrounding"),
            Orientationd(KEYS, axcodes="LPS", labels=None),
            ScaleIntensityRangePercentilesd("image", lower=0.1, upper=99.9, b_min=0, b_max=1, clip=True),
            RandCropByLabelClassesd(
                KEYS, "label", (size, size, 1), ratios=[1, 1, 1], num_classes=3, num_samples=8, warn=False
            ),
            SqueezeDimd(KEYS, dim=-1),
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandAdjustContrastd("image", prob=0.5, gamma=(0.6, 1.6)),
            RandGaussianSmoothd("image", prob=0.3, sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0)),
        ]
    )
    data = CacheDataset(scans, transforms, progress=False)
    network = BasicUNet(spatial_dims=2, in_channels=1, out_channels=3, features=(16, 16, 32, 64, 64, 16))
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size=4, shuffle=True),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
        loss_function=DiceCELoss(softmax=True, to_onehot_y=True, include_background=False),
        prepare_batch=lambda batch, device, *_, **__: (batch["image"].as_tensor() * 2 - 1, batch["label"].as_tensor()),
        train_handlers=[ShowProgress("segmenter of the target")],
        decollate=False,
    )
    trainer.run()
    with whole_file(output_file) as part:
        torch.jit.script(network.eval()).save(str(part))
