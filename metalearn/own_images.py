"""The former name of :mod:`metalearn.image_classifier`: importable in this release, gone in the next."""

from metalearn.image_classifier import ImageClassifier, adapt_to_folder

__all__ = ["ImageClassifier", "adapt_to_folder"]
