"""The bytes of shards: what HDF5 reads is what was given, and is smaller than what HDF5 would have written."""

import h5py
import numpy as np
import pytest

from dag.workflow import encoding, store

NOISE = np.random.default_rng(0).normal(0, 2, (3, 60, 80)).astype(np.float32)
ARRAYS = {
    "noise": NOISE,
    "zeros": np.zeros((3, 5, 7), np.float32),
    "ones": np.full((2, 9), 255, np.uint8),  # words 65535, the other form of zero
    "odd": np.arange(3, dtype=np.uint8),
    "one": np.float32([[1]]),
    "doubles": np.linspace(0, 1, 1001),
    "boxes": np.float32([[1, 2, 3, 4, 20, 0.05]]),
    "label map": np.repeat(np.arange(20, dtype=np.uint8), 500).reshape(100, 100),
    "larger than 2^16 words": np.random.default_rng(1).integers(0, 256, 300001, np.uint8),
}


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", ARRAYS)
def test_hdf5_reads_the_chunk_and_finds_its_checksum_right(tmp_path, name, compress):
    """HDF5's own filters undo ours; a wrong checksum would be an error."""
    array = ARRAYS[name]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        encoding.store(file, "x", encoding.encode(array, compress), {}, compress)
    with h5py.File(tmp_path / "a.h5") as file:
        read = file["x"][()]
    assert read.dtype == array.dtype and read.shape == array.shape and read.tobytes() == array.tobytes()


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", ARRAYS)
def test_the_checksum_is_the_one_that_hdf5_computes(tmp_path, name, compress):
    array = ARRAYS[name]
    chunk = encoding.encode(array, compress).chunk
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=np.frombuffer(chunk[:-4], np.uint8), chunks=(len(chunk) - 4,),
                                      fletcher32=True)  # fmt: skip
        _, theirs = dataset.id.read_direct_chunk((0,))
    assert theirs == chunk


def test_noise_takes_less_room_than_with_the_filters_of_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
        theirs = file.create_dataset("x", data=NOISE, chunks=NOISE.shape, **options).id.get_storage_size()
    assert len(encoding.encode(NOISE, True).chunk) < theirs


def test_what_is_not_compressed_is_read_alike_and_continued(tmp_path):
    for compress in (True, False):
        for stop in (True, False):
            try:
                with store.writing(
                    tmp_path / f"{compress}.h5", "predictions", ["a", "b"], {}, compress=compress
                ) as shard:
                    for image_id in "ab":
                        if image_id not in shard.done:
                            shard.put(image_id, NOISE, {"status": "x"})
                            if stop:
                                raise KeyboardInterrupt
            except KeyboardInterrupt:
                assert stop
    for image_id in "ab":
        read = [store.read(tmp_path / f"{compress}.h5", image_id) for compress in (True, False)]
        assert read[0][1] == read[1][1] and all(array.tobytes() == NOISE.tobytes() for array, _ in read)
    assert (tmp_path / "True.h5").stat().st_size < (tmp_path / "False.h5").stat().st_size
