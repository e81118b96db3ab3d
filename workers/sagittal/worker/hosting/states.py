"""A model's life on a worker, as states and the transitions between them.

                     registered, or known and not loaded
                                  |
         +-------------------> WAITING <-----------------------------+
         |                     |     |                               |
         | survived, or        |     | it was loaded before,         | unloaded: idle, and room is
         | died and is         |     | or survived its rehearsal     | needed or UnloadModel asked
         | tried again         v     v                               |
         +------------- REHEARSING  LOADING ----------------------> READY
                               |     |
             died too often    |     |  could not be loaded
                               v     v
        WAITING <-- QUARANTINED     FAILED --> WAITING                 LoadModel leads out of both
           |             ^
           +-------------+  loading it killed the worker's process too often

From each of them a changed or removed registration leads to DRAINING: no more jobs, and gone when the last has ended. A
changed registration begins anew, WAITING beside the old one.
"""

from collections.abc import Mapping
from enum import StrEnum

from sagittal.v1 import model_pb2


class ModelState(StrEnum):
    """Where a model stands on this worker."""

    WAITING = "waiting"
    """Not loaded; until it is wanted, where others know it."""
    REHEARSING = "rehearsing"
    """Loaded in a process of its own, to see whether that survives."""
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """Its registration changed or went; its jobs go on."""
    FAILED = "failed"
    """It could not be loaded."""
    QUARANTINED = "quarantined"
    """Loading it killed its process too often."""


WAITING, REHEARSING, LOADING, READY, DRAINING, FAILED, QUARANTINED = ModelState

TRANSITIONS: Mapping[ModelState, frozenset[ModelState]] = {
    WAITING: frozenset({REHEARSING, LOADING, QUARANTINED, DRAINING}),
    REHEARSING: frozenset({WAITING, QUARANTINED, DRAINING}),
    LOADING: frozenset({READY, FAILED, DRAINING}),
    READY: frozenset({WAITING, DRAINING}),
    FAILED: frozenset({WAITING, DRAINING}),
    QUARANTINED: frozenset({WAITING, DRAINING}),
    DRAINING: frozenset(),
}
"""What may follow each state."""

SHOWN: Mapping[ModelState, "model_pb2.ModelState.ValueType"] = {
    WAITING: model_pb2.MODEL_STATE_UNLOADED,
    REHEARSING: model_pb2.MODEL_STATE_LOADING,
    LOADING: model_pb2.MODEL_STATE_LOADING,
    READY: model_pb2.MODEL_STATE_READY,
    DRAINING: model_pb2.MODEL_STATE_UNLOADED,
    FAILED: model_pb2.MODEL_STATE_FAILED,
    QUARANTINED: model_pb2.MODEL_STATE_FAILED,
}
"""How each state is announced."""


class ImpossibleTransition(Exception):
    """A model cannot come from one state to another: a mistake of this program."""
