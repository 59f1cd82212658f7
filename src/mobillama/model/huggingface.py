"""Makes transformers know MobiLlama in this process: the Auto classes load and save it without remote code."""

from __future__ import annotations

from mobillama.errors import missing_extra


def register() -> None:
    """Register MobiLlamaConfig and MobiLlamaForCausalLM with transformers' Auto classes; again is harmless.

    What transformers saves from them carries the remote-code file, so that the folder loads anywhere.
    Errors: MissingExtraError without transformers.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise missing_extra("hf", error) from None
    from mobillama.model.modeling_mobillama import MobiLlamaConfig, MobiLlamaForCausalLM

    AutoConfig.register("mobillama", MobiLlamaConfig, exist_ok=True)
    AutoModelForCausalLM.register(MobiLlamaConfig, MobiLlamaForCausalLM, exist_ok=True)
    MobiLlamaConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
    MobiLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
