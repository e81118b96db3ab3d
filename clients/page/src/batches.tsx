/** The caller's batches as they change: state, items by state, cost, and the reasons of failures. */

import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import type { Duration } from "@bufbuild/protobuf/wkt";
import { useEffect, useRef, useState } from "preact/hooks";
import { type Batch, type BatchCost, type BatchItem, BatchItemState, BatchState } from "../gen/sagittal/v1/batch_service_pb";
import { batches as service, isAway, isUnauthenticated, messageOf, patiently, watchJobs } from "./api";
import { Notice, Status } from "./components";
import { texts } from "./texts";

/** Shortest time between two readings of the list, and the longest while it is visible, in milliseconds. */
const SOON = 1000;
const AT_LATEST = 30_000;

/** Time in which a cancellation can be undone, in milliseconds. */
const UNDO = 6000;

/** Failed items that are read at once. */
const ITEMS = 100;

export function BatchesView(props: { onToken: () => void }) {
  const [problem, setProblem] = useState("");
  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) props.onToken();
    setProblem(messageOf(error));
  };
  const { batches, broken, look } = useBatches(failed, () => setProblem(""));
  const act = (call: Promise<unknown>) => void call.then(look, failed);
  if (batches?.length === 0)
    return (
      <Notice title={texts.batches.none}>
        <p>{texts.batches.noneRemedy}</p>
        <pre>{texts.batches.noneCommand}</pre>
      </Notice>
    );
  return (
    <>
      <h1 class="unseen">{texts.pages.batches}</h1>
      {problem && <Status tone="bad">{problem}</Status>}
      {broken && <Status>{texts.jobs.reconnecting}</Status>}
      {!batches && !problem && <Status>{texts.state.loading}</Status>}
      <ul class="cards batches">
        {batches?.map((batch) => (
          <BatchCard key={batch.name} batch={batch} onAct={act} onFailed={failed} />
        ))}
      </ul>
    </>
  );
}

/** Returns all batches by name. They are read again when jobs change, for each item is one. */
function useBatches(onFailed: (error: unknown) => void, onAnswer: () => void) {
  const [batches, setBatches] = useState<Batch[]>();
  const [broken, setBroken] = useState(false);
  const look = useRef(() => {});
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    let soon = false;
    const later = (pause: number) => {
      clearTimeout(timer);
      timer = window.setTimeout(read, pause);
    };
    const read = async () => {
      soon = false;
      try {
        if (document.visibilityState === "visible") {
          setBatches(await patiently(() => allBatches(stop.signal), stop.signal));
          onAnswer();
        }
      } catch (error) {
        if (!stop.signal.aborted) onFailed(error);
      }
      if (!stop.signal.aborted) later(soon ? SOON : AT_LATEST);
    };
    look.current = () => later(0);
    const seen = () => document.visibilityState === "visible" && later(0);
    document.addEventListener("visibilitychange", seen);
    const run = async () => {
      for await (const _ of watchJobs({ model: "", method: "" }, stop.signal, setBroken)) {
        if (!soon) later(SOON); // several changes within a second are one reading
        soon = true;
      }
    };
    void read();
    run().catch((error) => !stop.signal.aborted && !isAway(error) && onFailed(error));
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, []);
  return { batches, broken, look: () => look.current() };
}

async function allBatches(signal: AbortSignal): Promise<Batch[]> {
  const found: Batch[] = [];
  let pageToken = "";
  do {
    const page = await service.listBatches({ pageToken }, { signal });
    found.push(...page.batches);
    pageToken = page.nextPageToken;
  } while (pageToken);
  return found;
}

function BatchCard(props: { batch: Batch; onAct: (call: Promise<unknown>) => void; onFailed: (error: unknown) => void }) {
  const { batch } = props;
  const { name } = batch;
  const [said, setSaid] = useState("");
  const cancelling = useDelayed(() => props.onAct(service.cancelBatch({ name })));
  const counts = { completed: 0n, failed: 0n, cancelled: 0n, inFlight: 0n, ...batch.counts };
  const known = counts.completed + counts.failed + counts.cancelled + counts.inFlight;
  const whole = batch.expectedItems > known ? batch.expectedItems : known;
  const retry = async () => {
    const { items } = await service.retryBatchItems({ name });
    setSaid(texts.batches.forgotten(Number(items)));
  };
  const live = batch.state === BatchState.OPEN || batch.state === BatchState.PAUSED;
  return (
    <li class="card batch">
      <div class="batch-head">
        <h2>{name}</h2>
        <span class={`state ${texts.batches.states[batch.state]}`}>{texts.batches.states[batch.state]}</span>
        <span class="faint">{batch.spec?.model}</span>
      </div>
      <Share counts={counts} whole={whole} />
      <p class="counts">
        {texts.batches.done(number(counts.completed), batch.expectedItems ? number(batch.expectedItems) : "")}
        {counts.inFlight > 0n && ` · ${texts.batches.inFlight(number(counts.inFlight))}`}
        {counts.failed > 0n && (
          <>
            {" · "}
            <span class="removed">{texts.batches.failed(number(counts.failed))}</span>
          </>
        )}
        {counts.cancelled > 0n && ` · ${texts.batches.cancelled(number(counts.cancelled))}`}
      </p>
      <dl class="figures">
        <dt>{texts.batches.spent}</dt>
        <dd>{cost(batch.spent)}</dd>
        {batch.remaining && live && (
          <>
            <dt>{texts.batches.remaining}</dt>
            <dd>{cost(batch.remaining)}</dd>
          </>
        )}
      </dl>
      <div class="buttons">
        {batch.state === BatchState.OPEN && (
          <button type="button" onClick={() => props.onAct(service.pauseBatch({ name }))}>{texts.batches.pause}</button>
        )}
        {batch.state === BatchState.PAUSED && (
          <button type="button" onClick={() => props.onAct(service.resumeBatch({ name }))}>{texts.batches.resume}</button>
        )}
        {live && !cancelling.waiting && (
          <button type="button" onClick={cancelling.start}>{texts.jobs.cancel}</button>
        )}
        {batch.state !== BatchState.CANCELLED && counts.failed + counts.cancelled > 0n && (
          <button type="button" onClick={() => props.onAct(retry())}>{texts.batches.retry}</button>
        )}
        {cancelling.waiting && (
          <>
            <button type="button" onClick={cancelling.undo}>{texts.jobs.undo}</button>
            <span class="faint" role="status">{texts.batches.cancelling}</span>
          </>
        )}
      </div>
      {said && <Status>{said}</Status>}
      {counts.failed > 0n && <Failures name={name} count={counts.failed} onFailed={props.onFailed} />}
    </li>
  );
}

/** The shares of a batch's items by state, as a bar; the figures under it say the same in words. */
function Share(props: { counts: { completed: bigint; failed: bigint; cancelled: bigint; inFlight: bigint }; whole: bigint }) {
  let start = 0;
  const bars = (["completed", "failed", "cancelled", "inFlight"] as const).map((state) => {
    const width = props.whole ? (100 * Number(props.counts[state])) / Number(props.whole) : 0;
    start += width;
    return <rect key={state} class={state} x={start - width} width={width} height="1" />;
  });
  return (
    <svg class="shares" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">
      {bars}
    </svg>
  );
}

/** The failed items of a batch with their reasons, read when they are opened. */
function Failures(props: { name: string; count: bigint; onFailed: (error: unknown) => void }) {
  const [open, setOpen] = useState(false);
  const [items, setItems] = useState<BatchItem[]>([]);
  const [next, setNext] = useState("");
  const { name, count } = props;
  const read = (pageToken: string) =>
    service.listBatchItems({ name, states: [BatchItemState.FAILED], pageSize: ITEMS, pageToken }).then((page) => {
      setItems((known) => (pageToken ? [...known, ...page.items] : page.items));
      setNext(page.nextPageToken);
    }, props.onFailed);
  useEffect(() => {
    if (open) void read("");
  }, [open, count]);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{texts.batches.reasons}</summary>
      <ul class="failures">
        {items.map((item) => (
          <li key={item.key}>
            <strong>{item.key}</strong> <span class="removed">{reasonOf(item)}</span>
            <span>{item.failure?.message || texts.batches.notKept}</span>
            {item.jobId && <a href={`#/job/${item.jobId}`}>{texts.batches.job}</a>}
          </li>
        ))}
      </ul>
      {next && (
        <button type="button" onClick={() => void read(next)}>
          {texts.jobs.more}
        </button>
      )}
    </details>
  );
}

/** Carries out an action after a time in which it can be undone; at once if the view is left. */
function useDelayed(action: () => void) {
  const [waiting, setWaiting] = useState(false);
  const timer = useRef(0);
  const current = useRef(action);
  current.current = action;
  const carryOut = () => {
    timer.current = 0;
    setWaiting(false);
    current.current();
  };
  useEffect(
    () => () => {
      if (!timer.current) return;
      clearTimeout(timer.current);
      current.current();
    },
    [],
  );
  return {
    waiting,
    start: () => {
      setWaiting(true);
      timer.current = window.setTimeout(carryOut, UNDO);
    },
    undo: () => {
      clearTimeout(timer.current);
      timer.current = 0;
      setWaiting(false);
    },
  };
}

/** Returns the reason of a failure, such as INVALID_IMAGE: the first field of its google.rpc.ErrorInfo. */
function reasonOf({ failure }: BatchItem): string {
  const info = failure?.details.find((detail) => detail.typeUrl.endsWith("google.rpc.ErrorInfo"));
  if (!info) return "";
  const reader = new BinaryReader(info.value);
  while (reader.pos < reader.len) {
    const [field, wire] = reader.tag();
    if (field === 1 && wire === WireType.LengthDelimited) return reader.string();
    reader.skip(wire);
  }
  return "";
}

function number(count: bigint): string {
  return Number(count).toLocaleString("en");
}

function cost(given: BatchCost | undefined): string {
  return texts.batches.cost(number(given?.evaluations ?? 0n), duration(given?.workerTime));
}

/** Returns a time in its largest unit, with one decimal. */
function duration(time: Duration | undefined): string {
  const seconds = Number(time?.seconds ?? 0n) + (time?.nanos ?? 0) / 1e9;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
