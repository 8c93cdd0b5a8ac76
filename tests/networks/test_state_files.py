"""Files of `torch.save` with every single bit flipped."""

import hashlib

import pytest
import torch

from dag.networks import state_files
from dag.networks.training_common import save

WEIGHTS = {"first.weight": torch.tensor([1.5, -2.25, 3.0, 0.0]), "first.bias": torch.tensor([0.5])}


def same(found: dict) -> bool:
    return found.keys() == WEIGHTS.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in WEIGHTS.items()
    )


def flip(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_every_flipped_bit_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "weights.pt"
    save(WEIGHTS, path)
    content = path.read_bytes()
    assert same(state_files.read(path))
    for bit in range(8 * len(content)):
        path.write_bytes(flip(content, bit))
        with pytest.raises(ValueError, match=".") as error:
            state_files.read(path)
        assert "\n" not in str(error.value)
    start = content.index(WEIGHTS["first.weight"].numpy().tobytes())
    path.write_bytes(flip(content, 8 * start))
    with pytest.raises(ValueError, match="^it is damaged; delete it and download or train it again$"):
        state_files.read(path)
    path.unlink()
    save(WEIGHTS, path)  # trained again
    assert same(state_files.read(path))


@pytest.mark.parametrize("kept", [1, 10, 22, 71, 72, 100])
def test_a_cut_file_is_refused(tmp_path, kept):
    path = tmp_path / "weights.pt"
    save(WEIGHTS, path)
    content = path.read_bytes()
    for cut in content[:kept], content[:-kept]:
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="."):
            state_files.read(path)


def test_other_programs_read_the_file_and_files_of_others_are_read(tmp_path):
    save(WEIGHTS, tmp_path / "ours.pt")
    assert same(torch.load(tmp_path / "ours.pt", weights_only=True))
    assert same(torch.load(tmp_path / "ours.pt", weights_only=True, mmap=True))
    content = (tmp_path / "ours.pt").read_bytes()
    assert content[-64:].decode() == hashlib.sha256(content[:-71]).hexdigest()
    torch.save(WEIGHTS, tmp_path / "theirs.pt")
    assert same(state_files.read(tmp_path / "theirs.pt"))
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(state_files.read(tmp_path / "old.pt"))
