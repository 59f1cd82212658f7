"""Evaluation: benchmarks of lm-evaluation-harness on any model, each shared context computed once."""
