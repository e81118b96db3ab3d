/** The first view: upload an image, watch the progress of its explanation, and test the result. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { ClassScore } from "../gen/sagittal/v1/explanation_pb";
import { JobImage } from "../gen/sagittal/v1/explanation_service_pb";
import type { Model } from "../gen/sagittal/v1/model_pb";
import { explanations, isUnauthenticated, messageOf, models as modelService, patiently, saveReport, uniqueId, watch } from "./api";
import { AskForm, type Asked } from "./form";
import { nameOf, nothing, withEvent, type Explanation } from "./explanation";
import { GraphView } from "./graph";
import { HeatmapView } from "./heatmap";
import { modelView, SIDE } from "./image";
import { Status } from "./components";
import { SetsView } from "./sets";
import { texts } from "./texts";
import { WhatIfView } from "./whatif";

const MOST_BYTES = 32 * 1024 * 1024;
const DEFAULT_METHOD = "igos++";

type Tab = "heatmap" | "sets" | "graph" | "whatIf";

interface Shown {
  bytes: Uint8Array;
  bitmap: ImageBitmap;
  name: string;
}

export function ExplainView(props: { models: Model[]; jobId: string; onToken: () => void }) {
  const { models } = props;
  const [shown, setShown] = useState<Shown>();
  const [asked, setAsked] = useState<Asked>({ model: models[0]?.name ?? "", method: DEFAULT_METHOD, parameters: {} });
  const [top, setTop] = useState<ClassScore[]>([]);
  const [jobId, setJobId] = useState(props.jobId);
  const [found, setFound] = useState<Explanation>();
  const [broken, setBroken] = useState(false);
  const [problem, setProblem] = useState("");
  const [tab, setTab] = useState<Tab>("heatmap");
  const [trial, setTrial] = useState<{ grid: number; patches: number[] }>({ grid: 7, patches: [] });
  const model = models.find((each) => each.name === asked.model);
  const view = useMemo(() => (shown ? modelView(shown.bitmap, model?.preprocessing) : unseen()), [shown, model]);
  const busy = found !== undefined && ["queued", "running"].includes(found.state);

  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) props.onToken();
    setProblem(messageOf(error));
  };

  useEffect(() => {
    if (!jobId) return;
    const stop = new AbortController();
    follow(jobId, stop.signal, setFound, setBroken).catch(failed);
    return () => stop.abort();
  }, [jobId]);

  useEffect(() => {
    if (!props.jobId) return;
    imageOf(props.jobId).then(
      (sent) => sent && setShown((known) => known ?? sent),
      () => setProblem(texts.views.imageGone),
    );
  }, []);

  useEffect(() => {
    if (!shown || !asked.model) return;
    const stop = new AbortController();
    const image = { source: { case: "encoded" as const, value: shown.bytes } };
    patiently(() => modelService.predict({ model: asked.model, image, top: 10 }, stop), stop.signal)
      .then((answer) => setTop(answer.top))
      .catch((error) => !stop.signal.aborted && failed(error));
    return () => stop.abort();
  }, [shown, asked.model]);

  useEffect(() => {
    const paste = (event: ClipboardEvent) => {
      const file = [...(event.clipboardData?.files ?? [])][0];
      if (file) void take(file);
    };
    window.addEventListener("paste", paste);
    return () => window.removeEventListener("paste", paste);
  });

  const take = async (file: File) => {
    setProblem("");
    if (file.size > MOST_BYTES) {
      setProblem(texts.drop.tooLarge((file.size / 1024 / 1024).toFixed(1)));
      return;
    }
    try {
      const bitmap = await createImageBitmap(file);
      setShown({ bytes: new Uint8Array(await file.arrayBuffer()), bitmap, name: file.name });
      setFound(undefined);
      setTop([]);
      setJobId("");
      setAsked((known) => ({ ...known, target: undefined }));
    } catch {
      setProblem(texts.drop.notRead(file.name));
    }
  };

  const explain = async () => {
    if (!shown) return;
    setProblem("");
    setFound(nothing());
    setTrial({ grid: 7, patches: [] });
    setTab(tabFor(asked.method, tab));
    try {
      const request = {
        spec: {
          // Equal request ids give the same job, so the request can be repeated after a lost answer.
          requestId: uniqueId(),
          model: asked.model,
          image: { source: { case: "encoded" as const, value: shown.bytes } },
          target: asked.target === undefined ? undefined : { target: { case: "index" as const, value: asked.target } },
          method: { method: { case: "custom" as const, value: { name: asked.method, parameters: asked.parameters } } },
          partialMasks: true,
        },
      };
      const { explanation: job } = await patiently(() => explanations.submitExplanation(request));
      setJobId(job?.jobId ?? "");
      history.replaceState(null, "", `#/job/${job?.jobId}`);
    } catch (error) {
      setFound(undefined);
      failed(error);
    }
  };

  const cancel = () => explanations.cancelExplanation({ jobId }).catch(failed);
  const tryIt = (grid: number, patches: number[]) => {
    setTrial({ grid, patches });
    setTab("whatIf");
  };

  if (!shown && !jobId)
    return (
      <>
        {problem && <Status tone="bad">{problem}</Status>}
        <DropZone onFile={take} />
      </>
    );
  return (
    <div class="explain">
      <aside>
        {shown && (
          <>
            <AskForm
              models={models}
              top={top}
              asked={asked}
              busy={busy}
              onAsked={setAsked}
              onExplain={explain}
              onCancel={cancel}
            />
            <TopClasses top={top} />
          </>
        )}
        <FileButton label={shown ? texts.drop.replace : texts.drop.choose} onFile={take} />
      </aside>
      <section aria-busy={busy}>
        {problem && <Status tone="bad">{problem}</Status>}
        {found && <Progress found={found} broken={broken} />}
        {found && jobId && <ShareBar jobId={jobId} onFailed={failed} />}
        {found?.warnings.map((warning) => (
          <Status key={warning.reason} tone="warn">
            {warning.message}
          </Status>
        ))}
        {found && <Tabs tab={tab} found={found} onTab={setTab} />}
        {!found && shown && <Preview view={view} name={shown.name} />}
        {found && tab === "heatmap" && <HeatmapView found={found} view={view} />}
        {found && tab === "sets" && <SetsView found={found} view={view} onTry={tryIt} />}
        {found && tab === "graph" && <GraphView found={found} view={view} />}
        {found && tab === "whatIf" && jobId && (
          <WhatIfView jobId={jobId} view={view} grid={trial.grid} start={trial.patches} />
        )}
      </section>
    </div>
  );
}

async function follow(
  jobId: string,
  signal: AbortSignal,
  onFound: (update: (known: Explanation | undefined) => Explanation) => void,
  onBreak: (broken: boolean) => void,
) {
  for await (const event of watch(jobId, signal, onBreak)) onFound((known) => withEvent(known ?? nothing(), event));
}

/** Returns the original image of a job, which the service stores for a limited time. */
async function imageOf(jobId: string): Promise<Shown | undefined> {
  const { image } = await explanations.getExplanationImage({ jobId, image: JobImage.ORIGINAL });
  if (image?.source.case !== "encoded") return undefined;
  const bytes = image.source.value;
  return { bytes, bitmap: await createImageBitmap(new Blob([bytes.slice()])), name: jobId };
}

/** Returns the tab that shows the results of a method. */
function tabFor(method: string, tab: Tab): Tab {
  if (["mse", "minimal-sufficient-explanations"].includes(method)) return "sets";
  if (["sag", "structured-attention-graph"].includes(method)) return "graph";
  return tab === "whatIf" ? tab : "heatmap";
}

/** Returns a placeholder for an image that this page does not have, because the job was opened by its link. */
function unseen(): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const paint = canvas.getContext("2d")!;
  // A checkerboard, which a blur turns grey, so that hidden parts differ from shown ones.
  const check = SIDE / 28;
  for (let row = 0; row < 28; row++)
    for (let column = 0; column < 28; column++) {
      paint.fillStyle = (row + column) % 2 ? "#b9bec4" : "#e4e6e9";
      paint.fillRect(column * check, row * check, check, check);
    }
  return canvas;
}

function DropZone(props: { onFile: (file: File) => void }) {
  const [over, setOver] = useState(false);
  return (
    <div
      class={over ? "drop over" : "drop"}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        const file = event.dataTransfer?.files[0];
        if (file) props.onFile(file);
      }}
    >
      <h1>{texts.drop.title}</h1>
      <p>
        {texts.drop.hint} <FileButton label={texts.drop.choose} onFile={props.onFile} />
      </p>
      <p class="faint">{texts.drop.kinds}</p>
    </div>
  );
}

function FileButton(props: { label: string; onFile: (file: File) => void }) {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <input
        ref={input}
        type="file"
        accept="image/jpeg,image/png,image/webp"
        hidden
        onChange={(event) => {
          const file = event.currentTarget.files?.[0];
          if (file) props.onFile(file);
          event.currentTarget.value = "";
        }}
      />
      <button type="button" onClick={() => input.current!.click()}>
        {props.label}
      </button>
    </>
  );
}

function Preview(props: { view: HTMLCanvasElement; name: string }) {
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => place.current!.replaceChildren(props.view), [props.view]);
  return (
    <figure class="preview">
      <div ref={place} role="img" aria-label={props.name} />
      <figcaption>{texts.views.original}</figcaption>
    </figure>
  );
}

function TopClasses(props: { top: ClassScore[] }) {
  if (!props.top.length) return <p class="faint">{texts.state.predicting}</p>;
  return (
    <ol class="top">
      {props.top.slice(0, 5).map((each) => (
        <li key={each.index}>
          <span>{nameOf(each)}</span>
          <meter min={0} max={1} value={each.score} aria-hidden="true" />
          <span>{texts.percent(each.score)}</span>
        </li>
      ))}
    </ol>
  );
}

function Progress(props: { found: Explanation; broken: boolean }) {
  const { found } = props;
  const count = (value: number) => value.toLocaleString("en");
  let said = "";
  if (props.broken) said = texts.state.reconnecting;
  else if (found.state === "queued") said = texts.state.queued(found.position, found.readyWorkers);
  else if (found.state === "running")
    said = texts.state.running(found.phase || "start", Math.round(100 * found.fraction), count(found.evaluations));
  else if (found.completed) {
    const seconds = Number(found.completed.runTime?.seconds ?? 0n) + (found.completed.runTime?.nanos ?? 0) / 1e9;
    said = texts.state.completed(count(Number(found.completed.evaluations)), seconds.toFixed(1));
    if (found.completed.truncated) said += ` ${texts.state.cut(found.completed.truncatedBy)}`;
  }
  const target = found.prediction?.target;
  return (
    <div class="progress">
      {target && (
        <h2>
          {nameOf(target)} <span class="faint">{texts.percent(target.score)}</span>
        </h2>
      )}
      {found.state === "failed" && (
        <Status tone="bad">
          {texts.state.failed} {found.failure}
        </Status>
      )}
      {found.state === "cancelled" && <Status tone="warn">{texts.state.cancelled}</Status>}
      {said && <Status>{said}</Status>}
      {["queued", "running"].includes(found.state) && <progress max={1} value={found.fraction} aria-label={said} />}
    </div>
  );
}

/** Passes an explanation on: its link for those who may see it, and a report as a file for everyone else. */
function ShareBar(props: { jobId: string; onFailed: (error: unknown) => void }) {
  const [said, setSaid] = useState("");
  const copy = () =>
    navigator.clipboard.writeText(location.href).then(
      () => setSaid(texts.share.copied),
      () => setSaid(location.href),
    );
  const save = () => {
    setSaid(texts.share.drawing);
    saveReport(props.jobId).then(
      () => setSaid(texts.share.saved),
      (error) => {
        setSaid("");
        props.onFailed(error);
      },
    );
  };
  return (
    <div class="buttons share-bar">
      <button type="button" onClick={copy}>{texts.share.link}</button>
      <button type="button" onClick={save}>{texts.share.report}</button>
      <output class="faint">{said}</output>
    </div>
  );
}

function Tabs(props: { tab: Tab; found: Explanation; onTab: (tab: Tab) => void }) {
  const counts: Record<Tab, string> = {
    heatmap: "",
    sets: props.found.sets.length ? ` ${props.found.sets.length}` : "",
    graph: props.found.nodes.length ? ` ${props.found.nodes.length}` : "",
    whatIf: "",
  };
  return (
    <div class="tabs" role="tablist">
      {(Object.keys(counts) as Tab[]).map((each) => (
        <button
          key={each}
          type="button"
          role="tab"
          aria-selected={each === props.tab}
          onClick={() => props.onTab(each)}
        >
          {texts.views[each]}
          <span class="faint">{counts[each]}</span>
        </button>
      ))}
    </div>
  );
}
