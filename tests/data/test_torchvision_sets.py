"""CIFAR-10, CIFAR-100 and SVHN read from files, and refused files."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from robust_export.data import torchvision_sets
from robust_export.data.datasets import load_dataset, open_source
from robust_export.errors import DataError
from tests.data.sample_data import FILES, INVALID, PAYLOADS, PICKLES, SETS, pairs, python2, write


@pytest.mark.parametrize("name", SETS)
def test_pixels_and_labels(tmp_path: Path, name: str) -> None:
    train, test = write(name, tmp_path)
    parts = {split: load_dataset(name, split, data_dir=tmp_path) for split in ("train", "val", "test")}
    contents = {}
    for split, part in parts.items():
        pixels, labels = part.batch(range(len(part)))
        images = pixels.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        contents[split] = pairs(images, labels.tolist())
    np.testing.assert_array_equal(images, test[0])  # in file order
    assert labels.tolist() == test[1]
    assert contents["train"] + contents["val"] == pairs(*train)
    names = tuple(str(i) if name == "svhn" else f"class {i}" for i in range(SETS[name].classes))
    assert {part.classes for part in parts.values()} == {names}
    assert len({part.digest for part in parts.values()}) == 1


@pytest.mark.parametrize("name", SETS)
def test_digest_depends_on_pixels_and_labels(tmp_path: Path, name: str) -> None:
    train, test = write(name, tmp_path)
    digests = {open_source(name, tmp_path).digest}
    relabelled = (train[0], [*train[1][1:], train[1][0]])
    mirrored = (test[0][:, ::-1], test[1])
    for i, parts in enumerate([(train, test), (relabelled, test), (train, mirrored)]):
        (tmp_path / str(i)).mkdir()
        SETS[name].write(tmp_path / str(i), *parts)
        digests.add(open_source(name, tmp_path / str(i)).digest)
        assert len(digests) == i + 1


@pytest.mark.parametrize(("name", "file"), FILES)
def test_missing_file(tmp_path: Path, name: str, file: str) -> None:
    write(name, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_dir=tmp_path)
    for part in (name, file, SETS[name].archive, SETS[name].url, str(tmp_path), "--data-dir"):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
@pytest.mark.parametrize(("name", "file"), FILES)
def test_damaged_file(tmp_path: Path, name: str, file: str, damage: str) -> None:
    write(name, tmp_path)
    content = (tmp_path / file).read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>404 Not Found</html>"}
    (tmp_path / file).write_bytes(damaged[damage])
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_dir=tmp_path)
    for part in (name, SETS[name].url, str(tmp_path)):
        assert part in str(caught.value)


@pytest.mark.parametrize("fault", INVALID)
@pytest.mark.parametrize("name", ["cifar10", "svhn"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_mismatched_images_and_labels(tmp_path: Path, name: str, split: str, fault: str) -> None:
    """Accepting them would shift the labels of all later images."""
    (tmp_path / "valid").mkdir()
    train, test = write(name, tmp_path / "valid")
    train, test = (INVALID[fault](train), test) if split == "train" else (train, INVALID[fault](test))
    SETS[name].write(tmp_path, train, test)
    with pytest.raises(DataError, match=name):
        load_dataset(name, "train", data_dir=tmp_path)


@pytest.mark.parametrize("names", [["only one"], 5, None])
def test_invalid_class_names(tmp_path: Path, names: object) -> None:
    write("cifar10", tmp_path)
    (tmp_path / SETS["cifar10"].files[0]).write_bytes(python2({"label_names": names}))
    with pytest.raises(DataError, match="cifar10"):
        load_dataset("cifar10", data_dir=tmp_path)


# --- pickles that run code ---


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize(("name", "file"), PICKLES)
def test_pickle_that_runs_code_is_refused(tmp_path: Path, name: str, file: str, kind: str) -> None:
    """Also inside an otherwise valid file."""
    write(name, tmp_path)
    flag, path = tmp_path / "flag.npy", tmp_path / file
    pickle.loads(pickle.dumps(PAYLOADS[kind](flag)))
    flag.rename(tmp_path / "proof")  # the payload works
    valid = pickle.loads(path.read_bytes(), encoding="latin1")
    for protocol in (0, 2, 5):
        for content in (PAYLOADS[kind](flag), {**valid, "more": [PAYLOADS[kind](flag)]}):
            path.write_bytes(pickle.dumps(content, protocol=protocol))
            with pytest.raises(DataError, match="it would call"):
                load_dataset(name, data_dir=tmp_path)
            assert not flag.exists()


@pytest.mark.parametrize(
    "name", ["copy._reconstruct", "os.encode", "numpyx.dtype", "numpy.load", "_codecs.decode"]
)
def test_allowed_names_of_other_modules_are_refused(tmp_path: Path, name: str) -> None:
    write("cifar10", tmp_path)
    (tmp_path / SETS["cifar10"].files[0]).write_bytes(f"c{name.replace('.', chr(10))}\n.".encode())
    with pytest.raises(DataError, match=f"it would call {name}"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_class_names_of_official_data_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision checks the MD5 of the data files, but not of the file with the class names."""
    write("cifar10", tmp_path)
    meta, *data = (tmp_path / file for file in SETS["cifar10"].files)
    official = [[path.name, hashlib.md5(path.read_bytes()).hexdigest()] for path in data]
    monkeypatch.setattr(torchvision_sets.CIFAR10, "train_list", official[:5])
    monkeypatch.setattr(torchvision_sets.CIFAR10, "test_list", official[5:])
    assert load_dataset("cifar10", data_dir=tmp_path).classes[3] == "class 3"
    meta.write_bytes(pickle.dumps({"label_names": PAYLOADS["mkdir"](tmp_path / "flag")}))
    with pytest.raises(DataError, match="it would call"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "flag").exists()
