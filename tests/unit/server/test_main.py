import gc

from sagittal.server import main


def test_imported_objects_are_left_out_of_collections(monkeypatch) -> None:
    """A full collection stops every call: over 100 ms if it visits all imports, on a busy machine."""
    frozen = []

    async def serve(*_: object) -> None:
        frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(main, "serve", serve)
    monkeypatch.setattr(main, "configure_logging", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["sagittal-service"])
    try:
        assert main.main() == main.EXIT_OK
    finally:
        gc.unfreeze()
    assert frozen[0] > 0
