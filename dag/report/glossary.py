"""Glossary of the page: the terms that it uses, and no others."""

from __future__ import annotations

import re
from html import unescape

# Term, pattern of its use, meaning.
_TERMS = [
    ("source", r"\bsource\b", "Network whose gradient the attack follows."),
    ("victim", r"\bvictims?\b", "Network that is shown the perturbed image."),
    ("white box", r"\bwhite[ -]box\b", "The victim is the source, or one of the sources of a sum."),
    ("black box", r"\bblack[ -]box\b", "The victim is not among the sources."),
    ("target", r"\btargets?\b", "Pixel or proposal that the attack tries to have recognised as something else."),
    (
        "proposal",
        r"\bproposals?\b",
        "Box in which a detector looks for an object; overlapping proposals are removed by NMS.",
    ),
    ("r", r"(?<!\w)r(?: |\||,|\d)", "Perturbation, i.e. the sum of all steps; r1, r2, … are those of single networks."),
    (
        "p",
        r"(?<!\w)p(?:,|:| =| is| /| ·|<)",
        "Perceptibility: root mean square, over the pixels, of the length of the change of colour with channels scaled "
        "to [0, 1]; one grey level in every channel is 6.8 · 10⁻³.",
    ),
    ("max |r|", r"max \|r\||largest \|r\|", "Largest change of any channel of any pixel, in grey levels (of 255)."),
    (
        "IoU",
        r"\bIoU\b",
        "Intersection over union of two boxes or regions: their common area over the area of both together.",
    ),
    (
        "mIoU",
        r"(?<!foreground )\bmIoU\b",
        "Score of segmentation: mean of the IoU of predicted and true pixels over the classes, background included.",
    ),
    ("foreground mIoU", r"\bforeground mIoU\b", "mIoU without the background."),
    (
        "mAP",
        r"(?<!area )\bmAP\b",
        "Score of detection: mean over the classes of average precision, by VOC 2007's rule with 11 recall levels; "
        "a detection counts if its IoU with an object is at least 0.5.",
    ),
    ("area mAP", r"\barea mAP\b", "mAP with the area under the precision-recall curve (VOC 2010 and later)."),
    (
        "COCO AP",
        r"\bCOCO AP\b",
        "Score of detection, AP@[.5:.95]: mean over the classes and ten least IoUs, 0.5 to 0.95, of the precision at "
        "101 recall levels.",
    ),
    ("F1", r"\bF1\b", "Harmonic mean of precision and recall of the detections."),
    ("NMS, nms-50", r"\bNMS\b|\bnms-\d", "Non-maximum suppression, and its IoU threshold in percent."),
    ("*", r"\w\*(?!\w)", "The network was trained on other images than the one without the asterisk; see its weights."),
    ("-07", r"\w-07\b", "Trained on VOC 2007, or on what stands for it here."),
    ("-0712", r"\w-0712\b", "Trained on VOC 2007 and VOC 2012, or on what stands for them here."),
    (
        "ε, eps",
        r"\bε\b|\beps\b",
        "Budget: the largest change that the attack may make to a value, in grey levels (of 255).",
    ),
    (
        "passes",
        r"\bpasses\b",
        "Forward passes of the network that an attack makes for one image; all but the last go back.",
    ),
    ("lineage", r"\blineages?\b", "Networks that were trained on from one another, parents and children."),
    (
        "matched",
        r"\bmatched are\b",
        "Pairs of two lineages that differ in what a parent and its child differ in, such as the resolution.",
    ),
    ("image mIoU", r"\bimage mIoU\b", "Mean over the images of the mIoU of each image alone."),
    ("pixel accuracy", r"\bpixel accuracy\b", "Share of the pixels of all images that have their true class."),
    ("algorithm-1", r"\balgorithm-1\b", "Attack by Algorithm 1 as it is printed in the paper."),
    ("float", r"\bfloat\b", "Pixels of the perturbed image as computed, not rounded."),
    ("8-bit", r"\b8-bit\b", "Pixels of the perturbed image rounded to whole grey levels."),
    ("JPEG", r"\bJPEG\b|\bjpeg-\d", "The perturbed image saved with loss; the number is the quality."),
    ("permuted", r"\bpermuted\b", "Control: rows and columns of the perturbation in random order."),
    ("random signs", r"\brandom signs\b", "Control: every value of the perturbation with a random sign."),
    ("Gaussian noise", r"\bGaussian noise\b", "Control: independent normal values with the same p."),
    ("↓ ↑", r"[↓↑]", "The score differs from that of the clean images by more than chance."),
]


def glossary(page: str) -> list[tuple[str, str]]:
    """Terms that a page uses, with their meaning.

    Parameters
    ----------
    page : str
        HTML; style sheets, tags and links do not count as use.
    """
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())
    return [(term, meaning) for term, use, meaning in _TERMS if re.search(use, text)]
