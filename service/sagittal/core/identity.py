"""What a job is called, and when two jobs are the same question."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

#: Raised when the same request would be answered otherwise, so that stored answers are not given for it.
ANSWER_VERSION = 1


def new_job_id() -> str:
    """Returns 32 hexadecimal digits that nobody can guess."""
    return secrets.token_hex(16)


def content_key(question: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Returns the SHA-256, in hexadecimal, over everything that an answer depends on.

    Args:
        question: Model, digest, method with its parameters, target, ...: whatever JSON can carry, and bytes.
        images: The pictures by name.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in images.items()}
    whole = {"answer_version": ANSWER_VERSION, "images": digests, **question}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), default=_digest)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(value: object) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    raise TypeError(f"{type(value).__name__} cannot be part of a content key")
