/** The first view: upload an image, watch the progress of its explanation, and test the result. */

import { useEffect, useRef, useState } from "preact/hooks";
import type { ClassScore } from "../gen/sagittal/v1/explanation_pb";
import type { Model } from "../gen/sagittal/v1/model_pb";
import { isUnauthenticated, messageOf, saveReport } from "./api";
import { readImage, useExplaining } from "./explaining";
import { AskForm } from "./form";
import { nameOf, type Explanation } from "./explanation";
import { GraphView } from "./graph";
import { HeatmapView } from "./heatmap";
import { Notice, Status } from "./components";
import { SetsView } from "./sets";
import { texts } from "./texts";
import { WhatIfView } from "./whatif";

type Tab = "heatmap" | "sets" | "graph" | "whatIf";

export function ExplainView(props: { models: Model[]; jobId: string; onToken: () => void }) {
  const { models } = props;
  const [problem, setProblem] = useState("");
  const [tab, setTab] = useState<Tab>("heatmap");
  const [chosen, setChosen] = useState<File[]>([]);
  const [trial, setTrial] = useState<{ grid: number; patches: number[] }>({ grid: 7, patches: [] });
  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) props.onToken();
    setProblem(messageOf(error));
  };
  const here = useExplaining(models, props.jobId, failed);
  const { shown, found, view, jobId, busy } = here;

  useEffect(() => {
    const paste = (event: ClipboardEvent) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) void takeAll(files);
    };
    window.addEventListener("paste", paste);
    return () => window.removeEventListener("paste", paste);
  });

  // A job that opens by its link shows what its method found.
  const method = found?.completed?.method ?? "";
  useEffect(() => {
    if (method && props.jobId) setTab((known) => tabFor(method, known));
  }, [method]);

  const take = async (file: File) => {
    setProblem("");
    try {
      here.take(await readImage(file));
      // The browser's "back" returns to the explanation that was shown.
      if (jobId) history.pushState(null, "", "#/explain");
    } catch (error) {
      setProblem(messageOf(error));
    }
  };

  const takeAll = (files: File[]) => {
    setChosen(files.length > 1 ? files : []);
    return take(files[0]!);
  };

  const explain = async () => {
    setProblem("");
    setTrial({ grid: 7, patches: [] });
    setTab(tabFor(here.asked.method, tab));
    const id = await here.explain();
    if (id) history.replaceState(null, "", `#/job/${id}`);
  };

  const tryIt = (grid: number, patches: number[]) => {
    setTrial({ grid, patches });
    setTab("whatIf");
  };

  if (here.gone)
    return (
      <Notice title={texts.state.goneTitle} tone="bad">
        <p>{texts.state.gone}</p>
        <a class="button" href="#/explain">{texts.state.startAgain}</a>
      </Notice>
    );
  if (!shown && !jobId)
    return (
      <>
        {problem && <Status tone="bad">{problem}</Status>}
        <DropZone onFiles={takeAll} several />
      </>
    );
  return (
    <div class={found && !busy ? "explain done" : "explain"}>
      <h1 class="unseen">{texts.pages.explain}</h1>
      <aside>
        {shown && models.length > 0 && (
          <>
            <AskForm
              models={models}
              top={here.top ?? []}
              asked={here.asked}
              busy={busy}
              onAsked={here.setAsked}
              onExplain={explain}
              onCancel={here.cancel}
            />
            <TopClasses top={here.top} />
          </>
        )}
        <FileButton label={shown ? texts.drop.replace : texts.drop.choose} onFiles={takeAll} several />
        {chosen.length > 0 && (
          <>
            <h3 id="chosen">{texts.drop.chosen}</h3>
            <ul class="chosen" aria-labelledby="chosen">
              {chosen.map((file, index) => (
                <li key={index}>
                  <button type="button" aria-pressed={shown?.name === file.name} onClick={() => void take(file)}>{file.name}</button>
                </li>
              ))}
            </ul>
          </>
        )}
      </aside>
      <section aria-busy={busy}>
        {problem && <Status tone="bad">{problem}</Status>}
        {here.imageGone && <Status tone="warn">{texts.views.imageGone}</Status>}
        {found && <Progress found={found} broken={here.broken} />}
        {found && jobId && <ShareBar jobId={jobId} onFailed={failed} />}
        {found?.warnings.map((warning) => (
          <Status key={warning.reason} tone="warn">
            {warning.message}
          </Status>
        ))}
        {found && <Tabs tab={tab} found={found} onTab={setTab} />}
        {!found && shown && <Preview view={view} name={shown.name} />}
        {found && (
          <div id="panel" role="tabpanel" aria-labelledby={`tab-${tab}`}>
            {tab === "heatmap" && <HeatmapView found={found} view={view} />}
            {tab === "sets" && <SetsView found={found} view={view} onTry={tryIt} />}
            {tab === "graph" && <GraphView found={found} view={view} />}
            {tab === "whatIf" && jobId && (
              <WhatIfView jobId={jobId} view={view} grid={trial.grid} start={trial.patches} nodes={found.nodes} />
            )}
          </div>
        )}
      </section>
    </div>
  );
}

/** Returns the tab that shows the results of a method. */
function tabFor(method: string, tab: Tab): Tab {
  if (["mse", "minimal-sufficient-explanations"].includes(method)) return "sets";
  if (["sag", "structured-attention-graph"].includes(method)) return "graph";
  return tab === "whatIf" ? tab : "heatmap";
}

/** How files are chosen: one, or several at once. */
interface Choosing {
  onFiles: (files: File[]) => void;
  several?: boolean;
}

export function DropZone(props: Choosing) {
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
        const files = [...(event.dataTransfer?.files ?? [])];
        if (files.length) props.onFiles(props.several ? files : files.slice(0, 1));
      }}
    >
      <h1>{texts.drop.title}</h1>
      <p>
        {props.several ? texts.drop.hintSeveral : texts.drop.hint}{" "}
        <FileButton label={props.several ? texts.drop.chooseSeveral : texts.drop.choose} {...props} />
      </p>
      <p class="faint">{texts.drop.kinds}</p>
    </div>
  );
}

export function FileButton(props: Choosing & { label: string }) {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <input
        ref={input}
        type="file"
        accept="image/*"
        multiple={props.several}
        hidden
        onChange={(event) => {
          const files = [...(event.currentTarget.files ?? [])];
          if (files.length) props.onFiles(files);
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

export function TopClasses(props: { top: ClassScore[] | undefined }) {
  if (!props.top) return <p class="faint">{texts.state.predicting}</p>;
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

export function Progress(props: { found: Explanation; broken: boolean }) {
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
      <a class="button" href={`#/compare/${props.jobId}`}>{texts.share.compare}</a>
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
  const all = Object.keys(counts) as Tab[];
  const move = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = all[(all.indexOf(props.tab) + step + all.length) % all.length]!;
    props.onTab(next);
    document.getElementById(`tab-${next}`)?.focus();
  };
  return (
    <div class="tabs" role="tablist" onKeyDown={move}>
      {all.map((each) => (
        <button
          key={each}
          id={`tab-${each}`}
          type="button"
          role="tab"
          aria-selected={each === props.tab}
          aria-controls="panel"
          tabIndex={each === props.tab ? 0 : -1}
          onClick={() => props.onTab(each)}
        >
          {texts.views[each]}
          <span class="faint">{counts[each]}</span>
        </button>
      ))}
    </div>
  );
}
