"""A caller in a process of its own, which is killed while its job runs."""

import os
import time

from chaos.questions import PICTURE, SPECS

from sagittal.client import Accepted, Client, SagittalError


def main() -> None:
    """Asks for an explanation, says which job it is, and reads until it is killed; takes its time over it."""
    spec = SPECS[int(os.environ["CHAOS_SPEC"])]
    try:
        with Client(os.environ["CHAOS_ADDRESS"]) as connected:
            for event in connected.stream(PICTURE, model="left", target=1, cache="bypass", **spec):
                if isinstance(event, Accepted):
                    os.write(1, f"accepted {event.job_id}\n".encode())
                time.sleep(0.05)
    except SagittalError as error:
        os.write(1, f"refused {type(error).__name__}\n".encode())
