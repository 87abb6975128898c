"""Reading, ordering, preprocessing and augmenting images."""
