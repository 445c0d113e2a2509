"""Where images come from: each data set is written here as it lies on disk, and read back."""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from robust_export.data import torchvision_sets
from robust_export.data.datasets import load_dataset
from robust_export.data.source import stratified
from robust_export.data.sources import open_source
from robust_export.errors import DataError, UnknownName
from tests.data import FILES, PAYLOADS, PICKLES, SETS, UNFIT, pairs, python2, write, write_folder

# --- digits ---


def test_digits_are_scikit_learns() -> None:
    """The two parts together are all 1,797 images, to 1/255, each once and with its label."""
    source, raw = open_source("digits"), load_digits()
    found = Counter(
        (np.rint(np.asarray(part.pictures[i]) * (16 / 255)).tobytes(), int(part.labels[i]))
        for part in (source.train, source.test)
        for i in range(len(part.pictures))
    )
    assert found == Counter(zip((image.tobytes() for image in raw.images), raw.target.tolist(), strict=True))
    assert found.total() == 1797
    assert source.classes == tuple("0123456789")
    assert source.size == 8


def test_the_digest_is_of_the_data() -> None:
    """It is written into bundles: if it changes, so has the data set."""
    assert open_source("digits").digest == "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_split_is_stratified_and_stable(fraction: float) -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])[np.random.default_rng(0).permutation(160)]
    rest, part = stratified(labels, fraction, "it")
    assert sorted([*rest, *part]) == list(range(160))
    assert np.bincount(labels[part]).tolist() == [100 * fraction, 50 * fraction, 10 * fraction]
    assert all(np.all(np.diff(indices) > 0) for indices in (rest, part))
    np.testing.assert_array_equal(part, stratified(labels, fraction, "it")[1])


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1, 2]])
def test_too_few_images_to_split(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"it: .*too few"):
        stratified(np.array(labels), 0.1, "it")


@pytest.mark.parametrize("spec", ["imagenet", "cifar", "", "digits:x", "cifar10:data", "Digits", "folders:x"])
def test_an_unknown_data_set(spec: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown data set {spec!r}"):
        open_source(spec)


# --- torchvision's ---


@pytest.mark.parametrize("name", SETS)
def test_pixels_and_labels_are_those_on_disk(tmp_path: Path, name: str) -> None:
    train, test = write(name, tmp_path)
    parts = {split: load_dataset(name, split, data_dir=tmp_path) for split in ("train", "val", "test")}
    found = {}
    for split, part in parts.items():
        pixels, labels = part.batch(range(len(part)))
        images = pixels.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        found[split] = pairs(images, labels.tolist())
    np.testing.assert_array_equal(images, test[0])  # in the order of the file
    assert labels.tolist() == test[1]
    assert found["train"] + found["val"] == pairs(*train)
    names = tuple(str(i) if name == "svhn" else f"class {i}" for i in range(SETS[name].classes))
    assert {part.classes for part in parts.values()} == {names}
    assert len({part.digest for part in parts.values()}) == 1


@pytest.mark.parametrize("name", SETS)
def test_a_digest_is_of_pixels_and_labels(tmp_path: Path, name: str) -> None:
    train, test = write(name, tmp_path)
    digests = {open_source(name, tmp_path).digest}
    moved = (train[0], [*train[1][1:], train[1][0]])
    turned = (test[0][:, ::-1], test[1])
    for i, parts in enumerate([(train, test), (moved, test), (train, turned)]):
        (tmp_path / str(i)).mkdir()
        SETS[name].write(tmp_path / str(i), *parts)
        digests.add(open_source(name, tmp_path / str(i)).digest)
        assert len(digests) == i + 1


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_missing_file_says_what_to_download(tmp_path: Path, name: str, file: str) -> None:
    write(name, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_dir=tmp_path)
    for part in (name, file, SETS[name].archive, SETS[name].url, str(tmp_path), "--data-dir"):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_damaged_file_says_so(tmp_path: Path, name: str, file: str, damage: str) -> None:
    write(name, tmp_path)
    content = (tmp_path / file).read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>404 Not Found</html>"}
    (tmp_path / file).write_bytes(damaged[damage])
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_dir=tmp_path)
    for part in (name, SETS[name].url, str(tmp_path)):
        assert part in str(caught.value)


@pytest.mark.parametrize("fault", UNFIT)
@pytest.mark.parametrize("name", ["cifar10", "svhn"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_that_do_not_fit(tmp_path: Path, name: str, split: str, fault: str) -> None:
    """Otherwise every later image of the set would have another one's label."""
    (tmp_path / "whole").mkdir()
    train, test = write(name, tmp_path / "whole")
    train, test = (UNFIT[fault](train), test) if split == "train" else (train, UNFIT[fault](test))
    SETS[name].write(tmp_path, train, test)
    with pytest.raises(DataError, match=name):
        load_dataset(name, "train", data_dir=tmp_path)


@pytest.mark.parametrize("names", [["only one"], 5, None])
def test_class_names_that_do_not_fit(tmp_path: Path, names: object) -> None:
    write("cifar10", tmp_path)
    (tmp_path / SETS["cifar10"].files[0]).write_bytes(python2({"label_names": names}))
    with pytest.raises(DataError, match="cifar10"):
        load_dataset("cifar10", data_dir=tmp_path)


# --- pickles that would run code ---


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize(("name", "file"), PICKLES)
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, name: str, file: str, kind: str) -> None:
    """Also deep inside a file that is otherwise as it should be."""
    write(name, tmp_path)
    flag, path = tmp_path / "flag.npy", tmp_path / file
    pickle.loads(pickle.dumps(PAYLOADS[kind](flag)))
    flag.rename(tmp_path / "proof")  # that the payload works
    whole = pickle.loads(path.read_bytes(), encoding="latin1")
    for protocol in (0, 2, 5):
        for content in (PAYLOADS[kind](flag), {**whole, "more": [PAYLOADS[kind](flag)]}):
            path.write_bytes(pickle.dumps(content, protocol=protocol))
            with pytest.raises(DataError, match="it would call"):
                load_dataset(name, data_dir=tmp_path)
            assert not flag.exists()


@pytest.mark.parametrize(
    "name", ["copy._reconstruct", "os.encode", "numpyx.dtype", "numpy.load", "_codecs.decode"]
)
def test_a_name_is_allowed_in_its_module_alone(tmp_path: Path, name: str) -> None:
    write("cifar10", tmp_path)
    (tmp_path / SETS["cifar10"].files[0]).write_bytes(f"c{name.replace('.', chr(10))}\n.".encode())
    with pytest.raises(DataError, match=f"it would call {name}"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_class_names_are_checked_beside_official_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision compares the data files' MD5 alone before it reads them."""
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


# --- folders ---


def test_folder_with_train_and_val(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    val = write_folder(tmp_path / "val", {"dog": 1, "cat": 2})
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == ("cat", "dog")
    assert source.size is None
    for part, written in ((source.train, train), (source.test, val)):
        expected = [*written["cat"], *written["dog"]]
        assert part.labels.tolist() == [0] * len(written["cat"]) + [1] * len(written["dog"])
        for picture, array in zip(part.pictures, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(picture), array)


def test_folder_of_classes_is_split_by_itself(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 20, "dog": 10, "emu": 5})
    (tmp_path / "cat" / "notes.txt").write_text("no image, and passed over")
    source = open_source(f"folder:{tmp_path}")
    assert np.bincount(source.test.labels).tolist() == [4, 2, 1]
    every = [*source.train.pictures.items, *source.test.pictures.items]
    assert sorted(every) == sorted(tmp_path.rglob("*.png"))
    assert [path.parent.name for path in source.test.pictures.items] == ["cat"] * 4 + ["dog"] * 2 + ["emu"]
    assert source.test.pictures.items == open_source(f"folder:{tmp_path}").test.pictures.items


def flip_a_byte(root: Path) -> None:
    content = bytearray((root / "cat" / "000.png").read_bytes())
    content[-1] ^= 1
    (root / "cat" / "000.png").write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "one byte": flip_a_byte,
    "another class": lambda root: (root / "cat" / "000.png").rename(root / "dog" / "zzz.png"),
    "another name of a class": lambda root: (root / "cat").rename(root / "kitten"),
    "a file less": lambda root: (root / "dog" / "001.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("parted", [True, False])
def test_a_folders_digest_changes_with_it(tmp_path: Path, change: str, parted: bool) -> None:
    root = tmp_path / "data"
    write_folder(root / "train" if parted else root, {"cat": 5, "dog": 5})
    if parted:
        write_folder(root / "val", {"cat": 2, "dog": 2})
    before = open_source(f"folder:{root}").digest
    assert re.fullmatch("[0-9a-f]{64}", before)
    shutil.copytree(root, tmp_path / "copy")
    assert open_source(f"folder:{tmp_path / 'copy'}").digest == before
    for part in (root / "train", root / "val") if parted else (root,):
        CHANGES[change](part)
    assert open_source(f"folder:{root}").digest != before


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (None, "there is no such folder"),
        ({}, "no class sub-folders"),
        ({"cat": 5}, r"one class \(cat\)"),
        ({"cat": 0, "dog": 0}, "has no images"),
        ({"cat": 5, "dog": 0}, "has no images"),
        ({"cat": 5, "dog": 1}, "too few to split"),
    ],
)
def test_a_folder_that_is_no_data_set(tmp_path: Path, counts: dict[str, int] | None, message: str) -> None:
    if counts is not None:
        (tmp_path / "data").mkdir()
        write_folder(tmp_path / "data", counts)
    with pytest.raises(DataError, match=f"{tmp_path}/data.*{message}"):
        open_source(f"folder:{tmp_path}/data")


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ({"cat": 2, "dog": 2}, {"cat": 2, "dog": 2, "emu": 2}, "only in one of them: emu"),
        ({"cat": 2, "dog": 2, "emu": 2}, {"cat": 2, "dog": 2}, "only in one of them: emu"),
        ({"cat": 2, "dog": 2}, {"cat": 2, "fox": 2}, "dog, fox"),
        ({"cat": 2, "dog": 2}, {"cat": 2, "dog": 0}, "class 'dog' .*val has no images"),
        ({"cat": 2, "dog": 0}, {"cat": 2, "dog": 2}, "class 'dog' .*train has no images"),
        ({"cat": 2, "dog": 2}, {}, "val has no class sub-folders"),
    ],
)
def test_train_and_val_that_do_not_fit(
    tmp_path: Path, train: dict[str, int], val: dict[str, int], message: str
) -> None:
    (tmp_path / "val").mkdir()
    write_folder(tmp_path / "train", train)
    write_folder(tmp_path / "val", val)
    with pytest.raises(DataError, match=message):
        open_source(f"folder:{tmp_path}")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path, {"car": 3, "train": 3})
    assert open_source(f"folder:{tmp_path}").classes == ("car", "train")


@pytest.mark.parametrize("other", ["test", "valid", "validation"])
def test_a_split_by_another_name_is_no_class(tmp_path: Path, other: str) -> None:
    """Otherwise a network would learn to tell the training from the test images."""
    write_folder(tmp_path / "train", {"cat": 5, "dog": 5})
    write_folder(tmp_path / other, {"cat": 5, "dog": 5})
    with pytest.raises(DataError, match=other):
        open_source(f"folder:{tmp_path}")
