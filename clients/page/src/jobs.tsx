/** The caller's jobs: model, method, state, and reason of a failure. */

import { useEffect, useState } from "preact/hooks";
import { type Explanation as Job, JobState } from "../gen/sagittal/v1/explanation_pb";
import { explanations, isUnauthenticated, messageOf } from "./api";
import { Status } from "./components";
import { texts } from "./texts";

/** Time between two updates of the list, in milliseconds. */
const LOOK = 3000;

export function JobsView(props: { onToken: () => void }) {
  const [jobs, setJobs] = useState<Job[]>();
  const [states, setStates] = useState<JobState[]>([]);
  const [problem, setProblem] = useState("");
  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) props.onToken();
    setProblem(messageOf(error));
  };
  useEffect(() => {
    const stop = new AbortController();
    const look = () =>
      explanations
        .listExplanations({ pageSize: 100, states }, { signal: stop.signal })
        .then((answer) => {
          setProblem("");
          setJobs(answer.explanations);
        })
        .catch((error) => !stop.signal.aborted && failed(error));
    void look();
    const timer = setInterval(() => document.visibilityState === "visible" && look(), LOOK);
    return () => {
      stop.abort();
      clearInterval(timer);
    };
  }, [states]);
  const act = (call: Promise<unknown>) => call.catch(failed);
  return (
    <>
      <label class="filter">
        {texts.jobs.state}
        <select
          onChange={(event) => setStates(event.currentTarget.value ? [Number(event.currentTarget.value)] : [])}
        >
          <option value="">{texts.jobs.all}</option>
          {Object.entries(texts.jobs.states).map(([value, name]) => (
            <option key={value} value={value}>
              {name}
            </option>
          ))}
        </select>
      </label>
      {problem && <Status tone="bad">{problem}</Status>}
      {jobs?.length === 0 && <Status>{texts.jobs.none}</Status>}
      <ul class="rows">
        {jobs?.map((job) => (
          <li key={job.jobId}>
            <span class={`state ${texts.jobs.states[job.state]}`}>{texts.jobs.states[job.state]}</span>
            <a href={`#/job/${job.jobId}`}>{job.method}</a>
            <span>{job.model}</span>
            <time class="faint">{when(job)}</time>
            <span class="faint">{job.failureReason}</span>
            {[JobState.QUEUED, JobState.RUNNING].includes(job.state) && (
              <button type="button" onClick={() => act(explanations.cancelExplanation({ jobId: job.jobId }))}>
                {texts.jobs.cancel}
              </button>
            )}
          </li>
        ))}
      </ul>
    </>
  );
}

function when(job: Job): string {
  return job.createTime ? new Date(Number(job.createTime.seconds) * 1000).toLocaleString("en") : "";
}
