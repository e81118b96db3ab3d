"""Models whose loading kills, hangs or fills a process: they are quarantined, and the others are served."""

from deaths_support import PICTURE, QUICK, events_of, model, states
from e2e_stack import KNOWN_MODEL, Stack, wait_until

from sagittal.client import Client


def test_a_model_whose_loading_kills_or_hangs_is_quarantined_while_others_go_on(private_stack: Stack) -> None:
    stack = private_stack
    stack.start_service()
    expected = {
        "crashes": "it died of SIGSEGV",
        "hangs": "it did not end within 12 s",
        "ends_the_process": "it ended its process with status 0",
    }
    worker = stack.start_worker(
        models="".join(model(f"{name}_when_loaded", name.replace("_", "-")) for name in expected) + KNOWN_MODEL,
        SAGITTAL_LOAD_SECONDS="12",
        SAGITTAL_LOAD_ATTEMPTS="2",
    )
    stack.wait_for_model("left")
    with Client(stack.address) as client:
        assert client.explain(PICTURE, model="left", target=1, method=QUICK).completed is not None
        for name, cause in expected.items():
            wait_until(lambda name=name: states(client, name.replace("_", "-"))[0][0] == "failed", name)
            ((_, message),) = states(client, name.replace("_", "-"))
            assert message.startswith("quarantined: loading it failed 2 times, the last time because ")
            assert cause in message
        tries = len(events_of(worker, "rehearsal-died"))
        assert tries == 2 * len(expected)
        assert client.explain(PICTURE, model="left", target=1, method=QUICK, cache="bypass").completed is not None
        client.load_model("crashes")
        wait_until(lambda: len(events_of(worker, "rehearsal-died")) == tries + 2, "LoadModel asks for more tries")
    assert len(events_of(worker, "worker-started")) == 1, "its process never died"


def test_a_model_whose_loading_takes_all_memory_is_quarantined(private_stack: Stack) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(
        models=model("takes_all_memory_when_loaded"),
        SAGITTAL_LOAD_ATTEMPTS="1",
        SAGITTAL_MEMORY_CEILING_MIB="2000",
    )
    with Client(stack.address) as client:
        wait_until(lambda: "model-quarantined" in worker.text, "the model to be quarantined")
        ((state, message),) = states(client, "deadly")
        assert state == "failed"
        assert "with a ceiling of 2000 MiB (SAGITTAL_MEMORY_CEILING_MIB)" in message
    assert len(events_of(worker, "worker-started")) == 1, "its process never died"


def test_a_model_that_kills_the_worker_while_it_is_loaded_there_is_quarantined_too(private_stack: Stack) -> None:
    stack = private_stack
    stack.start_service()
    worker = stack.start_worker(
        models=model("crashes_every_other_time") + KNOWN_MODEL,
        SAGITTAL_LOAD_ATTEMPTS="2",
        LOADS=str(stack.directory / "loads"),
    )
    with Client(stack.address) as client:
        wait_until(lambda: "model-quarantined" in worker.text, "the model to be quarantined")
        stack.wait_for_model("left")
        assert states(client, "deadly")[0][0] == "failed"
        assert client.explain(PICTURE, model="left", target=1, method=QUICK).completed is not None
    assert len(events_of(worker, "worker-process-ended")) == 2
