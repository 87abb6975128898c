"""Weights written for other programs: one format a file."""
