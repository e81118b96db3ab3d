"""Weights come from an S3-compatible store: fetched with the operator's credentials, checked, and kept."""

import hashlib
import os

import pytest
import s3fs
import torch
from e2e_stack import free_port
from peers_support import program, running

from sagittal.core.models import ModelEntry
from sagittal.models.loading import load
from sagittal.models.sources import Access, ModelUnavailable
from sagittal.models.sources.access import Store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What reaches a moto server, as an operator would write it in SAGITTAL_SOURCES__STORES."""
    command, port = program("moto_server"), free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = tmp_path_factory.mktemp("s3") / "log"
    with running([command, "-H", "127.0.0.1", "-p", str(port)], log, port=port, env=environment):
        yield {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "key": "operator",
            "secret": "secret",
            "client_kwargs": {"region_name": "eu-west-1"},
        }


@pytest.fixture(scope="module")
def bucket(options):
    """A bucket `ours` that the operator allows, and one `theirs` beside it."""
    system = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    for name in ("ours", "theirs"):
        system.mkdir(name)
    return system


@pytest.fixture
def access(options, bucket, tmp_path):
    stores = {"models": Store(url="s3://ours/models", options=options)}
    return Access(stores=stores, cache=tmp_path / "cache", factories=("known_models:*",))


@pytest.fixture
def weights(tmp_path):
    """A state dict that fits `looks_at_left` with another weight in it, and its checksum."""
    torch.save({"detectors.0.weight": torch.full((56, 56), 0.25)}, tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    return content, hashlib.sha256(content).hexdigest()


def loaded(access, path, sha256, store="models"):
    reference = {"store": store, "path": path, "sha256": sha256}
    source = {"kind": "python", "factory": "known_models:looks_at_left", "weights": reference}
    preprocessing = {"input_size": 56, "fit": "squash"}
    return load(ModelEntry(name="left", source=source, preprocessing=preprocessing), CPU, batch_size=4, access=access)


def test_weights_of_a_bucket_are_loaded_and_kept_for_the_next_time(access, bucket, weights):
    content, digest = weights
    bucket.pipe("ours/models/left/v1.pt", content)
    module = loaded(access, "left/v1.pt", digest).evaluator.module
    assert bool((module.state_dict()["detectors.0.weight"] == 0.25).all())
    assert (access.cache_directory / f"{digest}.pt").read_bytes() == content
    bucket.rm("ours/models/left/v1.pt")
    assert loaded(access, "left/v1.pt", digest).digest


def test_an_object_with_the_wrong_checksum_is_refused_and_not_kept(access, bucket, weights):
    content, digest = weights
    bucket.pipe("ours/models/left/v2.pt", content[:-1] + b"!")
    with pytest.raises(
        ModelUnavailable, match=rf"left/v2.pt of store models has the wrong checksum: .*expected {digest}"
    ):
        loaded(access, "left/v2.pt", digest)
    assert not list(access.cache_directory.iterdir())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param(
            "left/absent.pt", "left/absent.pt of store models cannot be fetched: FileNotFound", id="no object"
        ),
        pytest.param("../../theirs/left.pt", "is invalid in a store: give names separated by /", id="up"),
        pytest.param("s3://theirs/left.pt", "is invalid in a store: give names separated by /", id="another bucket"),
    ],
)
def test_nothing_but_what_the_operator_named_is_reached(access, bucket, weights, path, said):
    content, digest = weights
    bucket.pipe("theirs/left.pt", content)
    with pytest.raises(ModelUnavailable, match=said):
        loaded(access, path, digest)


def test_a_bucket_that_no_store_names_is_refused(access, bucket, weights):
    with pytest.raises(ModelUnavailable, match="there is no store 'theirs'; SAGITTAL_SOURCES__STORES lists: models"):
        loaded(access, "left.pt", weights[1], store="theirs")


def test_a_bucket_that_is_not_there_is_named(access, options, weights):
    absent = access.model_copy(update={"stores": {"models": Store(url="s3://absent", options=options)}})
    with pytest.raises(ModelUnavailable, match="cannot be fetched: FileNotFoundError: The specified bucket does not"):
        loaded(absent, "left.pt", weights[1])
