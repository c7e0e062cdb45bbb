"""Perceptual-neural-physical (PNP) sound matching: the library under the book."""

__version__ = "0.1.0"
