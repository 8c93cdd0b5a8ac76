"""Dense Adversary Generation: adversarial examples for segmentation and detection."""

__version__ = "0.1.0"
