"""Measures of generated samples, each in the module of its name.

Features and probabilities come from `companion.metrics.features`; the measures themselves take plain arrays of
them and know nothing of any network.
"""

from companion.metrics.compare import compare
from companion.metrics.fid import (
    FeatureStatistics,
    FIDInfinity,
    fid,
    fid_infinity,
    frechet_distance,
)
from companion.metrics.inception_score import (
    ClassEntropies,
    InceptionScore,
    class_entropies,
    inception_score,
)
from companion.metrics.kid import KID, kid
from companion.metrics.precision_recall import (
    NearestNeighbours,
    PrecisionRecall,
    nearest_neighbours,
    precision_recall,
)
from companion.metrics.psnr import psnr, ssim
from companion.metrics.sharpness import sharpness

__all__ = [
    "KID",
    "ClassEntropies",
    "FIDInfinity",
    "FeatureStatistics",
    "InceptionScore",
    "NearestNeighbours",
    "PrecisionRecall",
    "class_entropies",
    "compare",
    "fid",
    "fid_infinity",
    "frechet_distance",
    "inception_score",
    "kid",
    "nearest_neighbours",
    "precision_recall",
    "psnr",
    "sharpness",
    "ssim",
]
