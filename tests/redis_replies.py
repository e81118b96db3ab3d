"""What Redis 7 and 8 and Valkey 8 and 9 answer, word by word, by the name of its meaning in the table."""

from collections.abc import Mapping, Sequence

SAMPLES: Mapping[str, Sequence[str]] = {
    "ARGUMENT": [
        'ARGUMENT weight is "inf"; give a number from 1e-06 to 1000000 script: 9f3c, on @user_script:17.',
        'ARGUMENT name is "OOM"; give digits script: on @user_script:17.',
    ],
    "LOADING": ["LOADING Redis is loading the dataset in memory", "LOADING Valkey is loading the dataset in memory"],
    "READONLY": [
        "READONLY You can't write against a read only replica.",
        "READONLY You can't write against a read only replica. script: 9f3c, on @user_script:12.",
    ],
    "MASTERDOWN": ["MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."],
    "UNBLOCKED": [
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "UNBLOCKED client unblocked via CLIENT UNBLOCK",
    ],
    "NOREPLICAS": ["NOREPLICAS Not enough good replicas to write."],
    "BUSY": [
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ],
    "TRYAGAIN": ["TRYAGAIN Multiple keys request during rehashing of slot"],
    "CLUSTERDOWN": ["CLUSTERDOWN The cluster is down", "CLUSTERDOWN Hash slot not served"],
    "NOSCRIPT": ["NOSCRIPT No matching script. Please use EVAL."],
    "EXECABORT": ["EXECABORT Transaction discarded because of previous errors."],
    "MAXCLIENTS": [
        "ERR max number of clients reached",
        "ERR max number of clients + cluster connections reached",
    ],
    "MISCONF": [
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands "
        "that may modify the data set are disabled, because this instance is configured to report errors during writes "
        "if RDB snapshotting fails (stop-writes-on-bgsave-error option).",
        "MISCONF Errors writing to the AOF file: No space left on device",
    ],
    "OOM": [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "OOM allow-oom flag is not set on the script, can not run it when used memory > 'maxmemory'",
        "ERR OOM command not allowed when used memory > 'maxmemory'. script: 9f3c, on @user_script:12.",
    ],
    "DENIED": [
        "DENIED Redis is running in protected mode because protected mode is enabled and no password is set for the "
        "default user."
    ],
    "NOPASSWORD": [
        "ERR AUTH <password> called without any password configured for the default user. Are you sure your "
        "configuration is correct?",
        "ERR Client sent AUTH, but no password is set",
    ],
    "NOAUTH": [
        "NOAUTH Authentication required.",
        "Protocol error: unauthenticated multibulk length",
        "Protocol error: unauthenticated bulk length",
    ],
    "WRONGPASS": ["WRONGPASS invalid username-password pair or user is disabled.", "ERR invalid password"],
    "NOPERM": [
        "NOPERM User ann has no permissions to run the 'eval' command",
        "NOPERM No permissions to access a key",
        "ERR ACL failure in script: User ann has no permissions to run the 'hset' command",
    ],
    "MOVED": [
        "MOVED 3999 127.0.0.1:6381",
        "ASK 3999 127.0.0.1:6381",
        "CROSSSLOT Keys in request don't hash to the same slot",
        "ERR Script attempted to access a non local key in a cluster node",
    ],
    "UNKNOWNCOMMAND": ["ERR unknown command 'BLPOP', with args beginning with: 'x' "],
    "DAMAGED": [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "ERR value is not an integer or out of range",
        "ERR hash value is not an integer",
        "ERR value is not a valid float",
        "ERR increment or decrement would overflow",
        "ERR user_script:33: attempt to perform arithmetic on a nil value script: 9f3c, on @user_script:33.",
    ],
    "UNKNOWN": ["ERR something that no Redis has said before", "NEWCODE of a Redis to come"],
}
