"""Named data sets: shipped, cached, downloaded and verified."""

import gzip
import hashlib
import http.client
import io
import pickle
import socket
import sys
import tarfile
import traceback
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from image_files import idx_bytes, random_images, refused, save_folder

from ddpmbench.data import datasets
from ddpmbench.data.load import load_images
from ddpmbench.errors import InputError

ASSETS = Path(datasets.__file__).parents[1] / "assets"
T10K = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CIFAR10 = "cifar-10-python.tar.gz"
TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """An empty cache, no Debian package, and a network that is down."""
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets, "_DEBIAN", Path("/nonexistent"))

    def down(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", down)
    monkeypatch.setattr(socket, "create_connection", down)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("cifar10", "name a split of cifar10: cifar10:train, cifar10:test"),
        ("cifar10:", "name a split of cifar10"),
        ("fashion-mnist:val", "name a split of fashion-mnist: fashion-mnist:train, "),
        ("svhn:test", "no such file or folder, nor a data set's name; the names are fashion-mnis"),
        ("mnist:val", "name a split of mnist: mnist:train, mnist:test"),
        ("no/such/folder", "no such file or folder"),
        ("", "no such file or folder"),
        (Path("cifar10:test"), "no such file or folder"),
    ],
)
def test_an_unknown_spec_is_told_what_there_is(monkeypatch, tmp_path, spec, reason):
    monkeypatch.chdir(tmp_path)
    message = refused(spec)
    assert message.startswith(f"{spec or 'an empty path'}: ")
    assert reason in message or (isinstance(spec, Path) and "name a split" not in message)
    for name in ("fashion-mnist:train", "fashion-mnist:test", "cifar10:train", "cifar10:test"):
        assert name in message or "name a split" in message


def test_a_folder_may_have_a_data_set_s_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "cifar10", random_images(2, 5, 5))
    assert len(load_images("cifar10")) == 2


def test_a_path_too_long_for_the_system_is_refused():
    assert refused("x" * 5000).startswith("xxx")


def test_the_shipped_set_is_the_published_one():
    from torchvision.datasets import FashionMNIST

    published = dict(FashionMNIST.resources)
    for name in T10K:
        content = (ASSETS / "fashion-mnist" / name).read_bytes()
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == published[name]
    loaded = load_images("fashion-mnist:test")
    assert loaded.pixels.shape == (10000, 1, 28, 28)
    assert np.bincount(loaded.labels).tolist() == [1000] * 10
    assert (loaded.source, loaded.split) == ("fashion-mnist", "test")
    assert list(loaded.ids[:2]) == ["0", "1"]
    assert loaded.ids[-1] == "9999"
    assert load_images("fashion-mnist:test", num_images=5).sha256 == loaded.subset(5).sha256
    assert load_images(ASSETS / "fashion-mnist" / T10K[0]).sha256 == loaded.sha256
    assert "Copyright (c) 2017 Zalando SE" in (ASSETS / "FASHION_MNIST_LICENSE").read_text()
    message = refused("fashion-mnist:test", num_images=10001)
    assert message.startswith("`num_images=10001`: fashion-mnist:test holds 10000 images")


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("fashion-mnist:train", TRAIN),
        ("mnist:train", TRAIN),
        ("mnist:test", T10K),
        ("kmnist:test", T10K),
        ("cifar10:train", [CIFAR10]),
        ("cifar10:test", [CIFAR10]),
    ],
)
def test_a_failed_download_says_which_files_to_put_where(monkeypatch, spec, names):
    folder = datasets.cache_folder() / spec.split(":")[0]
    for error in (
        TimeoutError("timed out"),
        http.client.RemoteDisconnected("closed"),
        http.client.IncompleteRead(b"", 5),
        RuntimeError("File not found or corrupted."),
    ):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(urllib.request, "urlopen", fail)
        message = refused(spec)
        assert message.startswith(f"{spec}: ")
        assert all(name in message for name in names)
        assert f"into {folder} " in message
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "file"))
    for spec in ("fashion-mnist:train", "cifar10:test"):
        assert refused(spec).startswith(f"{spec}: ")


def test_without_the_variable_the_cache_is_the_user_s(monkeypatch):
    monkeypatch.delenv("DDPMBENCH_CACHE")
    assert datasets.cache_folder().name == "ddpmbench"
    assert datasets.cache_folder().is_absolute()


@pytest.mark.parametrize("module", ["torchvision.datasets", "platformdirs", "PIL"])
def test_a_missing_library_is_named(monkeypatch, tmp_path, module):
    save_folder(tmp_path / "f", random_images(1, 5, 5))
    monkeypatch.setitem(sys.modules, module, None)
    if module == "PIL":
        assert "pip install pillow" in refused(tmp_path / "f")
    elif module == "platformdirs":
        monkeypatch.delenv("DDPMBENCH_CACHE")
        assert "pip install platformdirs" in refused("cifar10:test")
        assert len(load_images("fashion-mnist:test", num_images=3)) == 3
    else:
        for spec in ("cifar10:test", "fashion-mnist:train"):
            assert "pip install torchvision" in refused(spec)


class Response(io.BytesIO):
    """A server's answer, from memory."""

    def __init__(self, url, content):
        super().__init__(content)
        self.url, self.length = url, len(content)


def serve(monkeypatch, contents):
    """The network answers with these files, by name; returns the names asked for."""
    asked = []

    def urlopen(request, *args, **kwargs):
        name = request.full_url.rsplit("/", 1)[1]
        asked.append(name)
        sys.stdout.write("downloading, as older torchvisions say on stdout\n")
        return Response(request.full_url, contents[name])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


@pytest.fixture
def not_shipped(monkeypatch, tmp_path):
    """The test split in the place of one that has to be downloaded; its bytes by name."""
    monkeypatch.setattr(datasets, "_SHIPPED", tmp_path / "nothing")
    return {name: (ASSETS / "fashion-mnist" / name).read_bytes() for name in T10K}


def test_the_files_of_a_distribution_are_found(monkeypatch, not_shipped, tmp_path):
    monkeypatch.setattr(datasets, "_DEBIAN", tmp_path / "debian")
    (tmp_path / "debian").mkdir()
    for name, content in not_shipped.items():  # packed once more
        (tmp_path / "debian" / name).write_bytes(gzip.compress(gzip.decompress(content), 1))
    assert load_images("fashion-mnist:test", num_images=7).labels.shape == (7,)


@pytest.mark.parametrize("spec", ["mnist:test", "cifar10:train"])
def test_offline_python_shows_one_error(spec):
    with pytest.raises(InputError) as caught:
        load_images(spec)
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1
    assert shown.count("Name or service not known") == 1


@pytest.fixture
def small_cifar10(monkeypatch):
    """Two images a batch instead of 10,000, archived as the authors did; the archive's bytes."""
    from torchvision.datasets import CIFAR10

    def md5(content):
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    files = {}
    for batch, name in enumerate(names):
        values = random_images(2, 3072, seed=batch)
        files[name] = pickle.dumps({"data": values, "labels": [batch, 9 - batch]})
    files["batches.meta"] = pickle.dumps({"label_names": ["a"]})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(files[name])] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, md5(files[name])] for name in names[5:]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(files["batches.meta"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    return buffer.getvalue()


def test_the_channels_of_cifar10_come_first(monkeypatch, small_cifar10):
    serve(monkeypatch, {CIFAR10: small_cifar10})
    test, train = load_images("cifar10:test"), load_images("cifar10:train", num_images=9)
    np.testing.assert_array_equal(test.pixels, random_images(2, 3072, seed=5).reshape(2, 3, 32, 32))
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4]
    assert train.pixels.shape == (9, 3, 32, 32)
    assert (train.source, train.split, list(train.ids[:2])) == ("cifar10", "train", ["0", "1"])
    assert "holds 10 images" in refused("cifar10:train", num_images=11)


@pytest.fixture(params=["fashion-mnist", "mnist", "kmnist", "cifar10"])
def published(request, monkeypatch, not_shipped, small_cifar10):
    """A set as if it were published, the first one as it is: its name, files and labels."""
    name = request.param
    if name == "fashion-mnist":
        labels = np.frombuffer(gzip.decompress(not_shipped[T10K[1]]), np.uint8, offset=8)
        return name, not_shipped, labels.tolist()
    if name == "cifar10":
        return name, {CIFAR10: small_cifar10}, [5, 4]
    arrays = random_images(4, 8, 8), np.arange(4, dtype=np.uint8)
    files = {n: gzip.compress(idx_bytes(v)) for n, v in zip(T10K, arrays, strict=True)}
    md5 = {n: hashlib.md5(c, usedforsecurity=False).hexdigest() for n, c in files.items()}
    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}.resources", list(md5.items()))
    return name, files, [0, 1, 2, 3]


def test_a_download_is_verified_kept_and_used_again(published, monkeypatch, capsys):
    name, files, labels = published
    assert "not downloaded" in refused(f"{name}:test")
    for altered in files:
        serve(monkeypatch, {**files, altered: gzip.compress(b"something else")})
        assert "not downloaded" in refused(f"{name}:test")
    asked = serve(monkeypatch, files)
    first = load_images(f"{name}:test")
    assert set(asked) <= set(files)
    assert asked
    assert (first.source, first.split, first.labels.tolist()) == (name, "test", labels)
    asked.clear()
    assert load_images(f"{name}:test").sha256 == first.sha256
    assert asked == []
    assert capsys.readouterr().out == ""
    assert {path.name for path in (datasets.cache_folder() / name).iterdir()} >= set(files)


def test_a_file_in_the_cache_that_is_not_the_published_one_is_not_used(published, monkeypatch):
    name, files, labels = published
    folder = datasets.cache_folder() / name
    folder.mkdir(parents=True)
    for damaged in files:
        for file, content in files.items():
            (folder / file).write_bytes(content)
        values = bytearray(gzip.decompress(files[damaged]))
        values[-1] ^= 1
        for content in (gzip.compress(values, 1), files[damaged][:-1], b"", b"text"):
            (folder / damaged).write_bytes(content)
            assert "not intact on this machine" in refused(f"{name}:test")
    serve(monkeypatch, files)
    assert load_images(f"{name}:test").labels.tolist() == labels


def test_files_put_into_the_cache_are_used(published):
    name, files, labels = published
    folder = datasets.cache_folder() / name
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    assert load_images(f"{name}:test").labels.tolist() == labels


def test_a_damaged_pickle_is_never_opened(monkeypatch, small_cifar10):
    serve(monkeypatch, {CIFAR10: small_cifar10})
    load_images("cifar10:test")
    folder = datasets.cache_folder() / "cifar10"
    (folder / CIFAR10).unlink()
    batch = folder / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(batch.read_bytes() + b"\0")

    def opened(*args, **kwargs):
        raise AssertionError("a pickle of another hash was opened")

    monkeypatch.setattr(pickle, "load", opened)
    serve(monkeypatch, {CIFAR10: b"another archive"})
    assert "cifar10:test: " in refused("cifar10:test")
