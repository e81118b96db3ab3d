"""What a store gives is checked, bounded and kept; what it may be asked for is the operator's choice."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from sagittal.models.sources.access import MIB, Access, Store
from sagittal.models.sources.files import FileReference, open_code, open_weights
from sagittal.models.sources.source import ModelUnavailable
from sagittal.worker.prefetch import prefetch
from sagittal.worker.settings import WorkerSettings


@dataclass
class Site:
    """Files over HTTP, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(self.path)
            content = site.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/models"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def access(site, tmp_path) -> Access:
    return Access(stores={"ours": Store(url=site.url)}, cache=tmp_path / "cache", max_mib=1)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def weights(path="a/weights.pt", store="ours", sha256=""):
    return FileReference(path=path, store=store, sha256=sha256)


def test_a_file_is_fetched_once_and_kept(site, access):
    site.files["/models/a/weights.pt"] = content = b"w" * 100_000
    reference = weights(sha256=sha256(content))
    path = open_weights(reference, access)
    assert path.read_bytes() == content
    assert path.parent == access.cache_directory
    assert path.stat().st_mode & 0o077 == 0 or access.cache_directory.stat().st_mode & 0o077 == 0
    asked = len(site.asked)
    assert open_weights(reference, access) == path
    assert len(site.asked) == asked


def test_a_kept_file_that_was_changed_is_fetched_anew(site, access):
    site.files["/models/a/weights.pt"] = content = b"weights"
    path = open_weights(weights(sha256=sha256(content)), access)
    path.write_bytes(b"damaged")
    assert open_weights(weights(sha256=sha256(content)), access).read_bytes() == content


def test_a_wrong_checksum_leaves_nothing_behind(site, access):
    site.files["/models/a/weights.pt"] = b"other weights"
    with pytest.raises(ModelUnavailable, match=f"wrong checksum: SHA-256 {sha256(b'other weights')}, expected 00"):
        open_weights(weights(sha256="0" * 64), access)
    assert not list(access.cache_directory.iterdir())


def test_a_file_that_is_too_large_is_given_up(site, access):
    site.files["/models/a/weights.pt"] = content = bytes(MIB + 1)
    with pytest.raises(ModelUnavailable, match="more than 1 MiB"):
        open_weights(weights(sha256=sha256(content)), access)
    assert not list(access.cache_directory.iterdir())


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        pytest.param(weights(store="theirs"), "no store 'theirs'; SAGITTAL_SOURCES__STORES lists: ours", id="store"),
        pytest.param(weights(), "requires sha256", id="no checksum"),
        pytest.param(weights("../a"), "is invalid in a store", id="up"),
        pytest.param(weights("a/../../b"), "is invalid in a store", id="up and down"),
        pytest.param(weights("/etc/passwd"), "is invalid in a store", id="absolute"),
        pytest.param(weights("file:///etc/passwd"), "is invalid in a store", id="URL"),
        pytest.param(weights("a::file:///etc/passwd"), "is invalid in a store", id="chain"),
        pytest.param(weights("a?b"), "is invalid in a store", id="query"),
        pytest.param(weights("a b"), "is invalid in a store", id="space"),
    ],
)
def test_what_may_not_be_asked_for_is_not_asked_for(site, access, reference, said):
    with pytest.raises(ModelUnavailable, match=said):
        open_weights(reference, access)
    assert not site.asked


def test_a_store_that_has_it_not_or_is_away_says_so(site, access):
    with pytest.raises(ModelUnavailable, match="cannot be fetched: FileNotFoundError"):
        open_weights(weights(sha256="0" * 64), access)
    away = access.model_copy(update={"stores": {"ours": Store(url="http://127.0.0.1:9/models")}})
    with pytest.raises(ModelUnavailable, match=r"weights.pt of store ours cannot be fetched"):
        open_weights(weights(sha256="0" * 64), away)


def test_a_cache_that_others_can_write_is_not_used(site, access):
    access.cache_directory.mkdir(mode=0o777)
    access.cache_directory.chmod(0o777)
    with pytest.raises(ModelUnavailable, match="is writable by other users; set SAGITTAL_SOURCES__CACHE"):
        open_weights(weights(sha256="0" * 64), access)


def test_code_comes_from_a_store_only_where_the_cache_is_a_directory_for_code(site, access):
    site.files["/models/a/weights.pt"] = b"script"
    reference = weights(sha256=sha256(b"script"))
    with pytest.raises(ModelUnavailable, match="SAGITTAL_SOURCES__CODE_DIRECTORIES"):
        open_code(reference, access)
    assert open_code(reference, access.model_copy(update={"code_directories": (access.cache_directory,)}))


@pytest.mark.parametrize("url", ["file:///etc", "memory://a", "simplecache::http://a", "/etc", "ftp://a"])
def test_a_store_is_s3_or_http(url):
    with pytest.raises(ValueError, match="the URL of a store must begin with one of s3://, http://, https://"):
        Store(url=url)


def test_the_weights_of_a_model_file_are_in_the_cache_before_a_worker_starts(site, access, tmp_path) -> None:
    site.files["/models/a.pt"] = content = b"w"
    reference = f'{{ store = "ours", path = "a.pt", sha256 = "{sha256(content)}" }}'
    file = tmp_path / "models.toml"
    file.write_text(
        f"""
        [[models]]
        name = "fetched"
        source = {{ kind = "torchvision", model = "resnet18", weights = {reference} }}
        [[models]]
        name = "local"
        source = {{ kind = "torchvision", model = "resnet18", weights = "b.pt" }}
        """
    )
    settings = WorkerSettings(models_file=file, sources=access)
    assert prefetch(settings) == 1
    assert [path.read_bytes() for path in access.cache_directory.iterdir()] == [content]
    site.files.clear()
    assert prefetch(settings) == 1, "nothing is fetched twice"
