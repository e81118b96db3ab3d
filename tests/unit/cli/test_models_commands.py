"""Models are registered, changed, loaded and checked from the command line."""

import asyncio

from sagittal.client import AsyncClient, Client
from sagittal.v1 import model_pb2
from sagittal.v1 import model_service_pb2 as api

FILE = """
[[models]]
name = "candle"
version = "2"
source = { kind = "torchvision", model = "resnet18" }
labels = "imagenet-1k"
latest = true
"""


def test_a_models_file_is_registered_and_updated(run, script, tmp_path) -> None:
    path = tmp_path / "candle.toml"
    path.write_text(FILE)
    result = run("models", "register", path)
    assert result.exit_code == 0, result.output
    assert "registered candle version 2" in result.stdout
    assert run("models", "update", path, "--field", "latest").exit_code == 0
    registered, updated = script.changes
    assert registered.model.labels_from == "imagenet-1k"
    assert registered.model.source.settings["model"] == "resnet18"
    assert (list(updated.update_mask.paths), updated.model.latest) == (["latest"], True)


def test_a_file_that_is_no_models_file_is_named(run, script, tmp_path) -> None:
    path = tmp_path / "candle.toml"
    for content, said in (("models = [", "is not TOML"), ("", "has no [[models]] table")):
        path.write_text(content)
        result = run("models", "register", path)
        assert (result.exit_code, said in result.output) == (2, True)
    path.write_text(FILE.replace("labels =", "lables ="))
    assert "lables" in run("models", "register", path).output
    assert not script.changes


def test_models_are_unregistered_loaded_and_unloaded(run, script) -> None:
    assert run("models", "unregister", "candle", "2").exit_code == 0
    assert run("models", "load", "candle").exit_code == 0
    assert run("models", "unload", "candle", "--version", "2").exit_code == 0
    assert script.changes == [
        api.UnregisterModelRequest(name="candle", version="2"),
        api.LoadModelRequest(name="candle"),
        api.UnloadModelRequest(name="candle", version="2"),
    ]


def test_a_version_is_tried_with_a_share_and_its_trial_ended(run, script) -> None:
    result = run("models", "canary", "candle", "2", "--share", "0.25", "--min-jobs", "5")
    assert (result.exit_code, "25.0% of the explanations" in result.output) == (0, True)
    assert run("models", "canary", "candle", "2", "--end").exit_code == 0
    settings = model_pb2.Canary(share=0.25, max_failed=0.1, min_faithfulness=0.9, min_jobs=5)
    assert script.changes == [
        api.SetCanaryRequest(name="candle", version="2", canary=settings),
        api.SetCanaryRequest(name="candle", version="2"),
    ]
    assert run("models", "canary", "candle", "2", "--share", "0").exit_code == 2


def test_a_trial_that_was_rolled_back_is_shown_with_its_reason(run, script) -> None:
    canary = script.model.canary
    canary.rolled_back, canary.outcomes.failed = "3 of 20 jobs failed", 3
    shown = run("models", "show", "lamp").output
    assert "canary   rolled back: 3 of 20 jobs failed" in shown
    assert "it: 0 completed, 3 failed" in shown


def test_both_clients_register_alike(script, address) -> None:
    table = {"name": "candle", "source": {"kind": "torchvision"}}
    with Client(address) as client:
        assert client.register_model(table).name == "candle"
        client.update_model(table, fields=["tags"])
        client.unregister_model("candle", "1")
        client.load_model("candle")
        client.unload_model("candle")
        client.set_canary("candle", "2", share=0.1)
        client.end_canary("candle", "2")

    async def again() -> None:
        async with AsyncClient(address) as client:
            assert (await client.register_model(table)).name == "candle"
            await client.update_model(table, fields=["tags"])
            await client.unregister_model("candle", "1")
            await client.load_model("candle")
            await client.unload_model("candle")
            await client.set_canary("candle", "2", share=0.1)
            await client.end_canary("candle", "2")

    asyncio.run(again())
    assert script.changes[:7] == script.changes[7:]


def test_check_prints_the_self_check_and_what_the_model_sees(run, script, picture) -> None:
    script.model.checks.add(name="batch-agrees", passed=True, detail="a batch and single images agree", required=True)
    script.model.capabilities.patch_grid.rows = script.model.capabilities.patch_grid.columns = 14
    result = run("models", "check", "lamp", picture)
    assert result.exit_code == 0, result.output
    assert "ok       batch-agrees: a batch and single images agree" in result.stdout
    assert "patches 14x14" in result.stdout
    assert "%" in result.stdout


def test_check_fails_where_a_model_is_not_sound_or_not_loaded(run, script) -> None:
    result = run("models", "check", "lamp")
    assert (result.exit_code, "no worker has loaded it yet" in result.output) == (1, True)
    script.model.checks.add(name="deterministic", passed=False, detail="outputs differ")
    result = run("models", "check", "lamp")
    assert (result.exit_code, "NOT OK   deterministic: outputs differ" in result.output) == (1, True)
    script.model.workers.add(worker="w2", state=model_pb2.MODEL_STATE_FAILED, message="the weights do not exist")
    result = run("models", "check", "lamp")
    assert (result.exit_code, "w2: the weights do not exist" in result.output) == (1, True)


def test_a_list_says_how_workers_stand_to_each_model(run, script) -> None:
    assert "4 classes  1 worker ready" in run("models").stdout
    script.model.ClearField("classes")
    script.model.workers[0].state = model_pb2.MODEL_STATE_LOADING
    assert run("models").stdout.rstrip().endswith("version 1 (latest)  1 worker loading")
    script.model.workers.add(worker="w2", state=model_pb2.MODEL_STATE_FAILED, message="the weights do not exist")
    assert "1 worker loading, 1 worker failed: see sagittal models show lamp" in run("models").stdout
    assert "the weights do not exist" in run("models", "show", "lamp").stdout
    assert "the weights do not exist" in run("models", "show", "lamp", "--json").stdout
    assert "0.0 MiB" not in run("models", "check", "lamp").stdout
    script.model.ClearField("workers")
    assert "no worker has loaded it yet" in run("models").stdout


def test_what_was_done_to_a_model_when_it_was_loaded_is_shown(run, script) -> None:
    script.model.capabilities.optimizations.add(name="onnx2torch", applied=False, detail="it runs in onnxruntime")
    assert "skipped  onnx2torch: it runs in onnxruntime" in run("models", "show", "lamp").stdout
