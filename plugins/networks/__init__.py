"""Networks of the translators."""

from plugins.networks.discriminator import PatchDiscriminator
from plugins.networks.generator import ResnetGenerator
from plugins.networks.initialisation import initialise
from plugins.networks.projector import FeatureProjector

__all__ = ["FeatureProjector", "PatchDiscriminator", "ResnetGenerator", "initialise"]
