"""What a kind of model was pretrained to foretell."""

from typing import Literal

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedConfig

from alloytune.errors import InputError

Objective = Literal["masked", "next"]


def objective_of(source: str) -> Objective | None:
    """Tell whether a model foretells masked tokens or the next one; None where transformers has no such head for it.

    An encoder has a head for the next token as well in transformers, but sees that token unless it is set up as a
    decoder.
    """
    return objective_in(AutoConfig.from_pretrained(source, trust_remote_code=False))


def objective_in(config: PreTrainedConfig) -> Objective | None:
    """Tell the same of a model's config."""
    is_decoder = getattr(config, "is_decoder", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder:
        return "masked"
    return "next" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None


def decoder_setting(source: str) -> dict[str, bool]:
    """Give what makes an encoder's config that of a decoder, so that no token sees a later one; nothing for decoders.

    Raises InputError for an encoder that transformers cannot set up so.
    """
    if objective_of(source) != "masked":
        return {}
    if not hasattr(AutoConfig.from_pretrained(source, trust_remote_code=False), "is_decoder"):
        what = f"{source!r} is an encoder, and transformers has no decoder for its weights"
        raise InputError("model", what, "choose a decoder, or an encoder with a decoder")
    return {"is_decoder": True}
