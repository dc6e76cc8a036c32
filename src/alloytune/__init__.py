"""Alloytune: fine-tune pretrained language models with full, partial and adapter stages in one run."""

__version__ = "0.1.0"
