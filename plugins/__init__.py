"""Target-aware unsupervised domain adaptation for vestibular schwannoma and cochlea segmentation."""

__version__ = "0.1.0"
