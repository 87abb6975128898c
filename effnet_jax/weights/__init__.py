"""Weights: reading TensorFlow checkpoints, translating, storing."""
