"""Perceptual-neural-physical (PNP) sound matching: the library under the book, one module a chapter."""

__version__ = "0.1.0"
