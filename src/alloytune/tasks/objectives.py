"""What a kind of model was pretrained to foretell."""

from typing import Literal

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

Objective = Literal["masked", "next"]


def objective_of(source: str) -> Objective | None:
    """Tell whether a model foretells masked tokens or the next one; None where transformers has no such head for it.

    An encoder has a head for the next token as well in transformers, but sees that token unless it is set up as a
    decoder.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    is_decoder = getattr(config, "is_decoder", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder:
        return "masked"
    return "next" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None
