/** The caller's jobs as they change: image, model, method, state, and reason of a failure. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Explanation as Job, JobState } from "../gen/sagittal/v1/explanation_pb";
import { JobImage } from "../gen/sagittal/v1/explanation_service_pb";
import { explanations, isUnauthenticated, messageOf, watchJobs } from "./api";
import { Status } from "./components";
import { texts } from "./texts";

/** Jobs that are read at once. */
const PAGE = 50;

/** Time in which a deletion can be undone, in milliseconds. */
const UNDO = 6000;

/** Side of a thumbnail, in pixels of the screen. */
const THUMBNAIL = 96;

const UNFINISHED = [JobState.QUEUED, JobState.RUNNING];

interface Filter {
  state: number;
  model: string;
  method: string;
}

export function JobsView(props: { onToken: () => void }) {
  const [filter, setFilter] = useState<Filter>({ state: 0, model: "", method: "" });
  const [problem, setProblem] = useState("");
  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) props.onToken();
    setProblem(messageOf(error));
  };
  const { jobs, broken, more } = useJobs(filter, failed, () => setProblem(""));
  const { deleted, remove, undo } = useDeletions(failed);
  const act = (call: Promise<unknown>) => void call.catch(failed);
  return (
    <>
      <h1 class="unseen">{texts.pages.jobs}</h1>
      <Filters filter={filter} onFilter={setFilter} />
      {problem && <Status tone="bad">{problem}</Status>}
      {broken && <Status>{texts.jobs.reconnecting}</Status>}
      {jobs?.length === 0 && <Status>{texts.jobs.none}</Status>}
      <ul class="rows">
        {jobs?.map((job) =>
          deleted.has(job.jobId) ? (
            <li key={job.jobId} class="gone">
              <span class="faint">{texts.jobs.deleted}</span>
              <button type="button" onClick={() => undo(job.jobId)}>
                {texts.jobs.undo}
              </button>
            </li>
          ) : (
            <JobRow
              key={job.jobId}
              job={job}
              onCancel={() => act(explanations.cancelExplanation({ jobId: job.jobId }))}
              onRetry={() => act(explanations.retryExplanation({ jobId: job.jobId }))}
              onDelete={() => remove(job.jobId)}
            />
          ),
        )}
      </ul>
      {more && (
        <button type="button" onClick={more}>
          {texts.jobs.more}
        </button>
      )}
    </>
  );
}

/** Returns the jobs of a filter, newest first, as they change. */
function useJobs(filter: Filter, onFailed: (error: unknown) => void, onAnswer: () => void) {
  const [jobs, setJobs] = useState<ReadonlyMap<string, Job>>();
  const [next, setNext] = useState("");
  const [broken, setBroken] = useState(false);
  const [count, setCount] = useState(PAGE);
  const { state, model, method } = filter;

  useEffect(() => {
    const stop = new AbortController();
    // Reads the list anew, as long as it was; changes that come meanwhile are newer, so they are applied afterwards.
    const list = async () => {
      const states = state ? [state] : [];
      const request = { pageSize: PAGE, states, filter: { model, method } };
      const found: Job[] = [];
      let pageToken = "";
      do {
        const page = await explanations.listExplanations({ ...request, pageToken }, { signal: stop.signal });
        found.push(...page.explanations);
        pageToken = page.nextPageToken;
      } while (pageToken && found.length < count);
      setJobs(new Map(found.map((job) => [job.jobId, job])));
      setNext(pageToken);
      onAnswer();
    };
    const run = async () => {
      for await (const { change } of watchJobs({ model, method }, stop.signal, setBroken)) {
        if (change.case === "listening") await list();
        else if (change.case === "changed") setJobs((known) => withJob(known, change.value, state));
        else if (change.case === "gone") setJobs((known) => without(known, change.value));
      }
    };
    run().catch((error) => !stop.signal.aborted && onFailed(error));
    return () => stop.abort();
  }, [state, model, method, count]);

  const sorted = useMemo(() => jobs && [...jobs.values()].sort((a, b) => Number(createdAt(b) - createdAt(a))), [jobs]);
  return { jobs: sorted, broken, more: next ? () => setCount(count + PAGE) : undefined };
}

function withJob(known: ReadonlyMap<string, Job> | undefined, job: Job, state: number): ReadonlyMap<string, Job> {
  if (state && job.state !== state) return without(known, job.jobId);
  return new Map(known).set(job.jobId, job);
}

function without(known: ReadonlyMap<string, Job> | undefined, jobId: string): ReadonlyMap<string, Job> {
  const rest = new Map(known);
  rest.delete(jobId);
  return rest;
}

/** Returns the time of creation, in nanoseconds. */
function createdAt({ createTime }: Job): bigint {
  return createTime ? createTime.seconds * 1_000_000_000n + BigInt(createTime.nanos) : 0n;
}

/** Deletes jobs after a time in which the deletion can be undone. */
function useDeletions(onFailed: (error: unknown) => void) {
  const [deleted, setDeleted] = useState<ReadonlySet<string>>(new Set());
  const timers = useRef(new Map<string, number>());
  const carryOut = (jobId: string) => {
    timers.current.delete(jobId);
    explanations.deleteExplanation({ jobId }).catch((error) => {
      forget(jobId);
      onFailed(error);
    });
  };
  const forget = (jobId: string) => setDeleted((known) => new Set([...known].filter((each) => each !== jobId)));
  // Whoever leaves this view does not undo any more.
  useEffect(
    () => () => {
      for (const [jobId, timer] of timers.current) {
        clearTimeout(timer);
        carryOut(jobId);
      }
    },
    [],
  );
  return {
    deleted,
    remove: (jobId: string) => {
      setDeleted((known) => new Set([...known, jobId]));
      timers.current.set(jobId, window.setTimeout(() => carryOut(jobId), UNDO));
    },
    undo: (jobId: string) => {
      clearTimeout(timers.current.get(jobId));
      timers.current.delete(jobId);
      forget(jobId);
    },
  };
}

function Filters(props: { filter: Filter; onFilter: (filter: Filter) => void }) {
  const { filter, onFilter } = props;
  return (
    <div class="filters">
      <label>
        {texts.jobs.state}
        <select
          value={filter.state ? String(filter.state) : ""}
          onChange={(event) => onFilter({ ...filter, state: Number(event.currentTarget.value) })}
        >
          <option value="">{texts.jobs.all}</option>
          {Object.entries(texts.jobs.states).map(([value, name]) => (
            <option key={value} value={value}>
              {name}
            </option>
          ))}
        </select>
      </label>
      {(["model", "method"] as const).map((name) => (
        <label key={name}>
          {texts.jobs[name]}
          <input
            type="text"
            placeholder={texts.jobs.all}
            onChange={(event) => onFilter({ ...filter, [name]: event.currentTarget.value.trim() })}
          />
        </label>
      ))}
    </div>
  );
}

function JobRow(props: { job: Job; onCancel: () => void; onRetry: () => void; onDelete: () => void }) {
  const { job } = props;
  return (
    <li>
      <Thumbnail jobId={job.jobId} />
      <span class={`state ${texts.jobs.states[job.state]}`}>{texts.jobs.states[job.state]}</span>
      <a href={`#/job/${job.jobId}`}>{job.method || texts.jobs.defaultMethod}</a>
      <span>{job.model}</span>
      <span class="faint">
        <time>{when(job)}</time>
        {took(job)}
        {job.attempt > 1 && ` · ${texts.jobs.attempts(job.attempt)}`}
      </span>
      <span class="removed">{job.failureReason}</span>
      <span class="buttons">
        {UNFINISHED.includes(job.state) ? (
          <button type="button" onClick={props.onCancel}>
            {texts.jobs.cancel}
          </button>
        ) : (
          <button type="button" onClick={props.onDelete}>
            {texts.jobs.remove}
          </button>
        )}
        {job.failureReason === "JOB_BURIED" && (
          <button type="button" onClick={props.onRetry}>
            {texts.jobs.retry}
          </button>
        )}
      </span>
    </li>
  );
}

/** The image of a job, small; read when it scrolls into view, and empty if it is no longer kept. */
function Thumbnail(props: { jobId: string }) {
  const [source, setSource] = useState("");
  const place = useRef<HTMLSpanElement>(null);
  useEffect(() => {
    const stop = new AbortController();
    let url = "";
    const observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      explanations
        .getExplanationImage({ jobId: props.jobId, image: JobImage.THUMBNAIL, longest: THUMBNAIL }, { signal: stop.signal })
        .then(({ image }) => {
          if (image?.source.case !== "encoded") return;
          url = URL.createObjectURL(new Blob([image.source.value.slice()], { type: "image/png" }));
          setSource(url);
        })
        .catch(() => undefined);
    });
    observer.observe(place.current!);
    return () => {
      stop.abort();
      observer.disconnect();
      if (url) URL.revokeObjectURL(url);
    };
  }, [props.jobId]);
  return (
    <span ref={place} class="thumbnail">
      {source && <img src={source} alt="" />}
    </span>
  );
}

function when(job: Job): string {
  return job.createTime ? new Date(Number(job.createTime.seconds) * 1000).toLocaleString("en") : "";
}

/** Returns the time from acceptance to the end. */
function took({ createTime, endTime }: Job): string {
  if (!createTime || !endTime) return "";
  const seconds = Number(endTime.seconds - createTime.seconds) + (endTime.nanos - createTime.nanos) / 1e9;
  return ` · ${texts.jobs.took(seconds)}`;
}
