"""Dense Adversary Generation: adversarial examples for segmentation and detection."""

__version__ = "0.1.0"


def attack_image(*arguments, **settings):
    """Attack one image from Python; see `dag.attack.single.attack_image`."""
    from dag.attack import single  # not before it is needed: it imports torch

    return single.attack_image(*arguments, **settings)
