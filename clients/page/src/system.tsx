/** The system: its queue, waits, throughput, and the faithfulness of what it serves, from the metrics. */

import { useEffect, useState } from "preact/hooks";
import { Code, ConnectError } from "@connectrpc/connect";
import { isUnauthenticated, messageOf, readMetrics } from "./api";
import { Notice, Status } from "./components";
import { distinct, mean, parseMetrics, quantile, type Sample, total } from "./metrics";
import { texts } from "./texts";

/** Time between two readings, in milliseconds, and the number of readings that are kept. */
const LOOK = 5000;
const MOST = 120;

interface Reading {
  time: number;
  samples: Sample[];
}

export function SystemView(props: { onToken: () => void }) {
  const [readings, setReadings] = useState<Reading[]>([]);
  const [away, setAway] = useState<string[]>([]);
  const [problem, setProblem] = useState("");
  const [missing, setMissing] = useState(false);
  useEffect(() => {
    const stop = new AbortController();
    const look = async () => {
      try {
        const sources = await readMetrics(stop.signal);
        const samples = sources.flatMap((source) => parseMetrics(source.text ?? ""));
        setReadings((known) => [...known, { time: Date.now(), samples }].slice(-MOST));
        setAway(sources.flatMap((source) => source.error ?? []));
        setProblem("");
      } catch (error) {
        if (stop.signal.aborted) return;
        if (isUnauthenticated(error)) props.onToken();
        if (ConnectError.from(error).code === Code.NotFound) setMissing(true);
        else setProblem(messageOf(error));
      }
    };
    void look();
    const timer = setInterval(() => document.visibilityState === "visible" && look(), LOOK);
    return () => {
      stop.abort();
      clearInterval(timer);
    };
  }, []);
  const last = readings[readings.length - 1];
  if (missing)
    return (
      <Notice title={texts.system.none}>
        <p>{texts.system.noneRemedy}</p>
        <pre>{texts.system.noneSetting}</pre>
      </Notice>
    );
  return (
    <>
      <h1>{texts.pages.system}</h1>
      {problem && <Status tone="bad">{problem}</Status>}
      {away.map((reason) => (
        <Status key={reason} tone="warn">
          {texts.system.away} {reason}
        </Status>
      ))}
      {last && <Figures readings={readings} samples={last.samples} />}
      {last && <Depth readings={readings} />}
      {last && <Faithfulness samples={last.samples} />}
    </>
  );
}

function Figures(props: { readings: Reading[]; samples: Sample[] }) {
  const { samples, readings } = props;
  const sum = (name: string) => distinct(samples, name).reduce((all, sample) => all + sample.value, 0);
  const oldest = Math.max(0, ...distinct(samples, "sagittal_queue_oldest_seconds").map((sample) => sample.value));
  const limit = sum("sagittal_stored_bytes_limit");
  const seconds = (value: number | undefined) => (value === undefined ? "–" : texts.system.seconds(value));
  const tiles: [string, string][] = [
    [texts.system.queued, String(sum("sagittal_queue_depth"))],
    [texts.system.oldest, seconds(oldest)],
    [texts.system.running, String(sum("sagittal_queue_running"))],
    [texts.system.throughput, perMinute(readings)],
    [texts.system.wait, seconds(quantile(samples, "sagittal_queue_wait_seconds", 0.5))],
    [texts.system.waitMost, seconds(quantile(samples, "sagittal_queue_wait_seconds", 0.95))],
    [texts.system.run, seconds(quantile(samples, "sagittal_run_seconds", 0.5))],
    [texts.system.runMost, seconds(quantile(samples, "sagittal_run_seconds", 0.95))],
    [texts.system.streams, String(total(samples, "sagittal_streams_in_flight"))],
    [texts.system.refused, String(total(samples, "sagittal_jobs_rejected_total") + total(samples, "sagittal_calls_refused_total"))],
    [texts.system.restarts, String(total(samples, "sagittal_worker_restarts_total"))],
    [texts.system.stored, limit ? texts.percent(sum("sagittal_stored_bytes") / limit) : "–"],
  ];
  return (
    <dl class="tiles">
      {tiles.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** Returns the jobs that ended each minute since this view was opened. A restart of a worker counts from zero. */
function perMinute(readings: Reading[]): string {
  const [first, last] = [readings[0], readings[readings.length - 1]];
  if (!first || !last || last.time === first.time) return "…";
  const ended = readings.slice(1).reduce((sum, reading, index) => {
    const [now, before] = [reading, readings[index]!].map((each) => total(each.samples, "sagittal_jobs_total"));
    return sum + (now! >= before! ? now! - before! : now!);
  }, 0);
  return ((60_000 * ended) / (last.time - first.time)).toFixed(1);
}

const WIDTH = 600;
const HEIGHT = 90;

/** The depth of the queue since this view was opened. */
function Depth({ readings }: { readings: Reading[] }) {
  const depths = readings.map(({ samples }) => distinct(samples, "sagittal_queue_depth").reduce((sum, each) => sum + each.value, 0));
  const most = Math.max(0, ...depths);
  const x = (index: number) => (WIDTH * index) / Math.max(1, depths.length - 1);
  const y = (depth: number) => HEIGHT - 4 - ((HEIGHT - 8) * depth) / (most || 1);
  const points = depths.map((depth, index) => `${x(index).toFixed(1)},${y(depth).toFixed(1)}`).join(" ");
  return (
    <>
      <h2>
        {texts.system.depth} <span class="faint">{texts.system.mostDepth(most)}</span>
      </h2>
      <svg class="depth" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={texts.system.depthLabel(depths[depths.length - 1] ?? 0, most)}>
        <polyline points={points} />
      </svg>
    </>
  );
}

/** What the curves say about the explanations that were served, by model and method. */
function Faithfulness({ samples }: { samples: Sample[] }) {
  const rows = samples
    .filter((sample) => sample.name === "sagittal_insertion_auc_count" && sample.value > 0)
    .map(({ labels }) => {
      const of = { model: labels.model ?? "", method: labels.method ?? "" };
      return {
        ...of,
        count: total(samples, "sagittal_insertion_auc_count", of),
        insertion: mean(samples, "sagittal_insertion_auc", of),
        deletion: mean(samples, "sagittal_deletion_auc", of),
        area: mean(samples, "sagittal_sufficient_area_ratio", of),
        confident: total(samples, "sagittal_baseline_still_confident_total", of),
      };
    });
  const unique = [...new Map(rows.map((row) => [`${row.model} ${row.method}`, row])).values()];
  const third = (value: number | undefined) => value?.toFixed(3) ?? "–";
  return (
    <>
      <h2>{texts.system.faithfulness}</h2>
      <p class="faint">{texts.system.since}</p>
      {unique.length === 0 && <Status>{texts.system.nothingServed}</Status>}
      {unique.length > 0 && (
        <div class="scroll" tabIndex={0} role="group" aria-label={texts.system.faithfulness}>
          <table class="paired">
            <thead>
              <tr>
                {texts.system.columns.map((name) => (
                  <th key={name} scope="col">{name}</th>
                ))}
              </tr>
            </thead>
            <tbody>
              {unique.map((row) => (
                <tr key={`${row.model} ${row.method}`}>
                  <th scope="row">{row.model}</th>
                  <td>{row.method}</td>
                  <td>{row.count}</td>
                  <td>{third(row.insertion)}</td>
                  <td>{third(row.deletion)}</td>
                  <td>{row.area === undefined ? "–" : texts.percent(row.area)}</td>
                  <td>{row.confident}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  );
}
