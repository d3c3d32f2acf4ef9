"""Loops that train networks; they import no model."""

from companion.training.classifier import accuracy, fit_classifier, random_affine

__all__ = ["accuracy", "fit_classifier", "random_affine"]
