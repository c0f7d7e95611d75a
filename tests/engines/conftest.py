import pytest
import torch
from monai.losses import PatchAdversarialLoss
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from plugins.engines import ContrastiveTranslationTrainer, CycleGANTrainer, Resume, constant_then_linear
from plugins.networks import (
    AttentionQueries,
    ContrastiveLoss,
    FeatureProjector,
    PatchDiscriminator,
    RandomQueries,
    ResnetGenerator,
)

INSTANCE = {"encoder_norm": "instance", "decoder_norm": "instance", "seg_classes": 0}


class Pairs(Dataset):
    """Eight pairs of random slices or volumes, each with a tumour and a cochlea; targets of two sites in turn."""

    def __init__(self, channels=1, size=(32, 32)):
        self.channels, self.size = channels, size

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image, reals = torch.rand(2, self.channels, *self.size, generator=generator) * 2 - 1
        label = torch.zeros(1, *self.size)
        label[:, 4:12, 4 + index : 12 + index], label[:, 20:23, 20:23] = 1, 2
        nothing, site = torch.zeros_like(label), ("etz", "ldn")[index % 2]
        return {"image": image, "label": label, "reals": reals, "reals_label": nothing, "reals_site": site}


def loader(num_workers=0):
    sampler = DistributedSampler(Pairs(), num_replicas=1, rank=0, seed=0)
    return DataLoader(Pairs(), batch_size=2, sampler=sampler, num_workers=num_workers)


def adam(*networks):
    return torch.optim.Adam([p for network in networks for p in network.parameters()], lr=2e-4, betas=(0.5, 0.999))


def generator(channels=4, **settings):
    return ResnetGenerator(channels=channels, num_res_blocks=2, feature_blocks=(0, 1), init="normal", **settings)


def code_channels(network):
    return 0 if network.target_code is None else network.target_code.channels


def shared_settings(network, optimizer, d_optimizer, objects, folder, max_epochs, num_workers, attributes=()):
    schedules = {name: constant_then_linear(o, 4) for name, o in (("s", optimizer), ("d_s", d_optimizer))}
    handlers = []
    if folder is not None:
        objects = objects | schedules | {"optimizer": optimizer, "d_optimizer": d_optimizer, "network": network}
        handlers = [Resume(folder / "resume.pt", objects, attributes)]
    return {
        "device": "cpu",
        "max_epochs": max_epochs,
        "train_data_loader": loader(num_workers),
        "network": network,
        "optimizer": optimizer,
        "d_optimizer": d_optimizer,
        "adversarial_loss": PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True),
        "train_handlers": handlers,
        "decollate": False,
    }


def tanq(folder=None, max_epochs=4, num_workers=0, slices=1, spatial_dims=2, code=None, **settings):
    torch.manual_seed(0)
    network = generator(in_channels=slices, out_channels=slices, spatial_dims=spatial_dims, code=code and code())
    seen = slices + code_channels(network)
    discriminator = PatchDiscriminator(spatial_dims, in_channels=seen, channels=4, num_layers_d=2)
    projector = FeatureProjector(network.feature_channels, channels=8)
    optimizer, d_optimizer = adam(network, projector), adam(discriminator)
    random, attention = RandomQueries(16), AttentionQueries(16)
    contrastive_loss = ContrastiveLoss([random] * 3 + [attention] * 2)
    weights = dict.fromkeys(("adversarial", "contrastive_source", "contrastive_target"), 1.0) | {"segmentation": 0.5}
    settings = {"loss_weights": weights, "contrastive_loss": contrastive_loss} | settings
    objects = {"discriminator": discriminator, "projector": projector}
    return ContrastiveTranslationTrainer(
        discriminator=discriminator,
        projector=projector,
        segmentation_loss=torch.nn.CrossEntropyLoss(),
        **shared_settings(network, optimizer, d_optimizer, objects, folder, max_epochs, num_workers) | settings,
    )


def cyclegan(folder=None, max_epochs=4, num_workers=0, code=None, shared_encoder=False, **settings):
    weights = {"adversarial_target": 1.0, "adversarial_source": 1.0, "cycle": 10.0, "identity": 5.0}
    settings = {"loss_weights": weights, "pool_size": 3} | settings
    torch.manual_seed(0)
    network = generator(anti_aliased=False, code=code and code(), **INSTANCE)
    back = generator(anti_aliased=False, encoder_of=network if shared_encoder else None, **INSTANCE)
    of_target, of_source = (
        PatchDiscriminator(in_channels=1 + further, channels=4, num_layers_d=2, anti_aliased=False)
        for further in (code_channels(network), 0)
    )
    optimizer, d_optimizer = adam(torch.nn.ModuleList([network, back])), adam(of_target, of_source)
    objects = {"back": back, "of_target": of_target, "of_source": of_source}
    return CycleGANTrainer(
        generator_ts=back,
        discriminator_t=of_target,
        discriminator_s=of_source,
        **shared_settings(
            network, optimizer, d_optimizer, objects, folder, max_epochs, num_workers, ("pool_t", "pool_s")
        )
        | settings,
    )


@pytest.fixture(params=[tanq, cyclegan], ids=["TANQ", "CycleGAN"])
def trainer(request):
    return request.param


@pytest.fixture
def tanq_trainer():
    return tanq


@pytest.fixture
def cyclegan_trainer():
    return cyclegan


@pytest.fixture
def pairs():
    return Pairs
