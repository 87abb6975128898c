"""The operations of AutoAugment and RandAugment (in work)."""


def make_layers(policy, randaugment):
    """Not there yet."""
    if policy or randaugment:
        raise NotImplementedError
    return None
