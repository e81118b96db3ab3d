"""Faults put into the scripts on purpose, each of which the model check must find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from queue_model.bounds import SMALL
from queue_model.explore import Broken, Graph, explore
from queue_model.replay import cover
from queue_model.scripts import RealQueue


@dataclass(frozen=True)
class Mutation:
    """A fault, as a text in a script and what replaces it."""

    title: str
    old: str
    new: str

    def change(self, text: str) -> str:
        """Returns a script with the fault, if the script has the text."""
        return text.replace(self.old, self.new)


MUTATIONS = (
    Mutation(
        "a write does not compare the token",
        "run.state == 'running' and run.token == token end",
        "run.state == 'running' end",
    ),
    Mutation("a token is given twice", "tonumber(run.token) + 1)", "0)"),
    Mutation(
        "a repeated lease returns the lease of another worker",
        "if id and holds(read_run(id), its_token)",
        "if id and read_run(id).state == 'running'",
    ),
    Mutation(
        "a lease leaves the execution in the lane",
        "elseif call('ZREM', ready, id) == 0 then",
        "elseif not call('ZSCORE', ready, id) then",
    ),
    Mutation(
        "a lease counts two attempts", "'attempt', run.attempt + 1, 'state'", "'attempt', run.attempt + 2, 'state'"
    ),
    Mutation("a lease has no expiry", "call('ZADD', root .. 'leases', exact(now + seconds), id)\n  count", "count"),
    Mutation("a lease takes an execution that must end", "if reason then return {'end'", "if false then return {'end'"),
    Mutation("a release counts the attempt", "'attempt', run.attempt - 1", "'attempt', run.attempt"),
    Mutation(
        "a release that is sent again forgets the ending",
        "if run.cancel == '' then return {'ok'} end",
        "if run.cancel == '' or repeated then return {'ok'} end",
    ),
    Mutation(
        "nobody ends a cancelled execution that was released", "if job and due(run, job.deadline) then", "if false then"
    ),
    Mutation(
        "an append that is sent again counts twice", "if tonumber(run.batch) >= given.number then return 'ok' end", ""
    ),
    Mutation(
        "settling that is sent again fails", "if run.state == state and run.token == token then return 'ok' end", ""
    ),
    Mutation(
        "a settled execution keeps its lease",
        "if run.state == 'running' then unlease(id, run) else",
        "if run.state ~= 'running' then",
    ),
    Mutation(
        "only the first of several equal jobs ends",
        "for _, sub in ipairs(split(run.subs)) do end_job(",
        "for _, sub in ipairs({id}) do end_job(",
    ),
    Mutation("a failure is given as an answer", "if state == 'completed' and run.content", "if run.content"),
    Mutation(
        "an execution that is being cancelled is joined",
        "if not live(run) or run.cancel ~= '' or",
        "if not live(run) or",
    ),
    Mutation(
        "a cancellation ends the execution of others", "if #split(run.subs) > 1 then\n  leave", "if false then\n  leave"
    ),
    Mutation("a job that leaves takes its deadline along", ", 'deadline', deadline or run.deadline)", ")"),
    Mutation("a job that leaves reads on", "'upto', call('LLEN', log_key(run_id))", "'upto', ''"),
    Mutation("a lost worker's execution is no suspect", "run.suspect = '1'", "run.suspect = ''"),
    Mutation(
        "a job is tried once too often", "tonumber(run.attempt) >= max_attempts", "tonumber(run.attempt) > max_attempts"
    ),
    Mutation(
        "a late heartbeat does not save a lease from its end",
        "call('ZSCORE', root .. 'leases', run_id) or 0) > now",
        "call('ZSCORE', root .. 'leases', run_id) or 0) > now + 1e9",
    ),
    Mutation(
        "an end that was right a moment ago still happens",
        "if run.state == 'queued' and not due(",
        "if false and not due(",
    ),
    Mutation(
        "heartbeats keep an overdue execution for ever", "if not overdue and since <= seconds then", "if true then"
    ),
    Mutation(
        "the sweep forgets deadlines of jobs that share",
        "elseif run.state == 'queued' or #split(run.subs) > 1 and",
        "elseif run.state == 'queued' or false and",
    ),
)


def find(
    mutation: Mutation, make: Callable[[Callable[[str], str]], RealQueue], graphs: Sequence[Graph]
) -> Broken | None:
    """Returns the failure by which a fault is found; None if it is not. `make` makes a queue with changed scripts."""
    for graph in graphs:
        try:
            cover(graph, make(mutation.change), recover_every=3)
        except Broken as broken:
            return broken
    return None


def small_graphs() -> Sequence[Graph]:
    """Returns the graphs in which faults are looked for, the smallest first."""
    return sorted((explore(bounds) for bounds in SMALL.values()), key=lambda graph: graph.transitions)
