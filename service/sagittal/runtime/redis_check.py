"""What is wrong with a Redis server for a queue that must lose nothing."""

from sagittal.runtime.redis_connection import SyncRunner, close_sync, connect_sync
from sagittal.runtime.redis_scripts import root_key
from sagittal.runtime.settings import QueueSettings

#: Oldest version of Redis, or of the Redis that Valkey says it is.
OLDEST = (7, 0)


def check_server(settings: QueueSettings) -> list[str]:
    """Returns what an operator should hear of the server, a sentence each; nothing where all is well.

    Raises:
        Unavailable: the server does not answer.
    """
    client = connect_sync(settings)
    try:
        info = SyncRunner(client, settings, root_key(settings)).run(client.info)
    finally:
        close_sync(client)
    return judge(info)


def judge(info: dict[str, object]) -> list[str]:
    """Returns what the server's INFO says against it."""
    warnings = []
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])
    if version < OLDEST:
        warnings.append(f"Redis {info.get('redis_version')} is too old: 7.0 or Valkey 8 is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        warnings.append(f"maxmemory-policy is {policy}: Redis may throw jobs away; set it to noeviction")
    if not info.get("aof_enabled"):
        warnings.append("appendonly is off: accepted jobs are lost when Redis stops; set appendonly yes")
    return warnings
