"""A model file's table becomes the message that registers it."""

import pytest

from sagittal.client import InvalidRequest
from sagittal.client.registration import model_message, update_request
from sagittal.core.models import ModelEntry, declaration_of, entry_of
from sagittal.v1 import model_pb2

TABLE = {
    "name": "lite",
    "version": "2",
    "source": {"kind": "efficientnet-lite", "variant": 0, "options": {"deep": [1, 2.5, True]}},
    "preprocessing": {"input_size": 96, "fit": "squash", "mean": [0.1, 0.2, 0.3], "layout": "NHWC"},
    "labels": ["cat", "dog"],
    "output": "multi-label-logits",
    "layers": {"spatial": "features", "features": "head"},
    "device": {"kind": "cuda", "batch_size": 8, "full_precision": True},
    "weights_digest": "a" * 64,
    "tags": {"team": "vision"},
    "load": "on-demand",
    "latest": True,
}


@pytest.mark.parametrize("labels", [["cat", "dog"], "imagenet-1k", []])
def test_a_table_means_the_same_in_a_file_and_over_the_api(labels) -> None:
    table = TABLE | {"labels": labels}
    in_file, over_api = ModelEntry.model_validate(table), entry_of(model_message(table))
    assert over_api == in_file
    assert entry_of(declaration_of(in_file)) == in_file.model_copy(update={"latest": False})


def test_what_is_left_out_is_the_same_default() -> None:
    table = {"name": "lite", "source": {"kind": "torchvision"}}
    assert entry_of(model_message(table)) == ModelEntry.model_validate(table)


def test_a_preset_is_all_that_a_registration_keeps_of_preprocessing() -> None:
    table = TABLE | {"preprocessing": {"preset": "ResNet50_Weights.IMAGENET1K_V2", "channel_order": "BGR"}}
    entry = entry_of(model_message(table))
    assert entry == ModelEntry.model_validate(table)
    message = declaration_of(entry)
    message.preprocessing.input_size = 232  # as GetModel shows what the preset means
    assert entry_of(message).preprocessing == entry.preprocessing


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": "blue"}, "colour"),
        ({"output": "guess"}, "output is 'guess'; give one of logits"),
        ({"load": "never"}, "preload, on-demand"),
        ({"source": "resnet"}, "source is 'resnet'; give a table"),
        ({"preprocessing": {"input_size": "large"}}, "input_size"),
    ],
)
def test_a_wrong_table_is_named_before_it_is_sent(change, named) -> None:
    with pytest.raises(InvalidRequest, match=named):
        model_message(TABLE | change)


def test_an_update_names_fields_as_files_do() -> None:
    request = update_request(TABLE | {"labels": "imagenet-1k"}, ["latest", "labels", "load"])
    assert list(request.update_mask.paths) == ["latest", "labels_from", "load_policy"]
    assert request.model.load_policy == model_pb2.LOAD_POLICY_ON_DEMAND
    assert not update_request(TABLE, []).HasField("update_mask")
