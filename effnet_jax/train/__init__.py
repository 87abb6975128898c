"""The training loop and its parts; `python -m effnet_jax.train` is its command."""
