"""Calls of a model without the memory of keys and values that only writing needs."""

from typing import Any


def call_uncached(model: Any, inputs: dict[str, Any]) -> Any:
    """Call a model that reads whole texts; give its outputs.

    A decoder would keep every layer's keys and values: of 64 texts of 512 tokens, 2 GB in a Llama of a billion weights.
    """
    keeps = getattr(model.config.get_text_config(), "use_cache", False)
    return model(**(inputs | {"use_cache": False} if keeps else inputs))
