"""The variants and the network."""
