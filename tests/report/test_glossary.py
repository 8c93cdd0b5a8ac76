"""The glossary explains what a page uses, and nothing else."""

from dag.report.glossary import glossary


def terms(page):
    return [term for term, _ in glossary(page)]


def test_only_terms_that_are_used_are_explained():
    assert terms("<p>Nothing.</p>") == []
    assert terms("<td>mIoU</td><td>FCN-VGG*</td>") == ["mIoU", "*"]
    assert terms("<td>foreground mIoU</td><td>area mAP</td>") == ["foreground mIoU", "area mAP"]
    assert terms("<th>FR-ZF-0712</th><th>float</th><th>8-bit</th>") == ["-0712", "float", "8-bit"]
    assert terms("<th>FR-ZF-07 (nms-50, permuted)</th><td>p&#58; 3</td>") == ["p", "NMS, nms-50", "-07", "permuted"]


def test_style_sheets_and_links_use_no_terms():
    assert terms('<style>.victim { }</style><a href="tables/mIoU.csv" class="white-box">file</a>') == []


def test_no_term_is_explained_twice():
    everything = "mIoU foreground mIoU mAP area mAP IoU NMS permuted r1 p = 1 max |r| A* A-07 A-0712 8-bit float ↓"
    assert len(terms(everything)) == len(set(terms(everything))) >= 14
