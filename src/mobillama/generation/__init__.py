"""From logits to text, whatever computes the logits: choosing a token, stop strings, text as it comes. No torch."""
