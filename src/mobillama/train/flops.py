"""Operations that a model's training takes by definition, whatever a program spends: what utilisation is measured in.

No torch.
"""

from __future__ import annotations

from mobillama.config import ModelConfig
from mobillama.model.cost import cost


def model_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Forward and backward operations of one token in a row of `seq_len`.

    6 for each executed weight that is multiplied (an FFN once per layer that uses it, the head, not the embedding) and
    12 x layers x hidden size x row length for attention (PaLM, arXiv 2204.02311, appendix B). Causal kernels do half of
    that last part and recomputed activations come on top; neither changes this number.

    >>> model_flops_per_token(ModelConfig(), 2048) / 1e9
    8.282701824
    """
    return 3.0 * cost(model).flops_per_token + 12.0 * model.num_hidden_layers * model.hidden_size * seq_len
