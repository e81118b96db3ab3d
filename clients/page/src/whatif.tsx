/** The view "What if": hides patches and shows the model's scores immediately. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { ClassScore, GraphNode } from "../gen/sagittal/v1/explanation_pb";
import type { RegionScore } from "../gen/sagittal/v1/explanation_service_pb";
import { explanations, messageOf } from "./api";
import { nameOf } from "./explanation";
import { covered } from "./image";
import { Picture, Share, Status } from "./components";
import { texts } from "./texts";

/** Most patches that "smallest change" hides before it gives up. */
const MOST = 16;

/** Nodes of the graph that are listed. */
const MOST_NEAR = 3;

/** Changes that can be undone. */
const MOST_PAST = 100;

interface Try {
  hidden: number[];
  score: number;
  top?: ClassScore;
}

export function WhatIfView(props: {
  jobId: string;
  view: HTMLCanvasElement;
  grid: number;
  start: number[];
  /** Nodes of the attention graph, of which those nearest to what is shown are listed. */
  nodes: GraphNode[];
}) {
  const { jobId, view, grid } = props;
  const [hidden, setHidden] = useState<ReadonlySet<number>>(new Set(props.start));
  const [now, setNow] = useState<Try>();
  const [full, setFull] = useState<ClassScore>();
  const [history, setHistory] = useState<Try[]>([]);
  const [note, setNote] = useState("");
  const [focus, setFocus] = useState(0);
  const [past, setPast] = useState<ReadonlySet<number>[]>([]);
  const painting = useRef<boolean>();
  const board = useRef<HTMLDivElement>(null);
  const all = grid * grid;

  useEffect(() => setHidden(new Set(props.start)), [props.start]);
  useEffect(() => {
    const stop = new AbortController();
    const patches = [...hidden].sort((a, b) => a - b);
    score(jobId, grid, [patches], stop.signal)
      .then(({ scores: [found], full }) => {
        if (!found) return;
        const tried = { hidden: patches, score: found.score, top: found.top };
        setFull(full);
        setNow(tried);
        setHistory((known) => [tried, ...known.filter((each) => `${each.hidden}` !== `${patches}`)].slice(0, 12));
      })
      .catch((error) => !stop.signal.aborted && setNote(messageOf(error)));
    return () => stop.abort();
  }, [hidden, jobId, grid]);

  const canvas = useMemo(() => covered(view, (row, column) => !hidden.has(row * grid + column), grid), [view, hidden]);
  const set = (patch: number, hide: boolean) =>
    setHidden((known) => {
      const next = new Set(known);
      if (hide) next.add(patch);
      else next.delete(patch);
      return next;
    });
  const remember = () => setPast((known) => [...known, hidden].slice(-MOST_PAST));
  const undo = () => {
    const before = past[past.length - 1];
    if (!before) return;
    setPast(past.slice(0, -1));
    setHidden(before);
  };
  const change = (patches: Iterable<number>) => {
    setNote("");
    setHidden(new Set(patches));
  };
  const choose = (patches: Iterable<number>) => {
    remember();
    change(patches);
  };
  const patchAt = (event: PointerEvent) => {
    const box = board.current!.getBoundingClientRect();
    const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const inside = across >= 0 && across < 1 && down >= 0 && down < 1;
    return inside ? Math.floor(down * grid) * grid + Math.floor(across * grid) : undefined;
  };
  const flip = async () => {
    remember();
    setNote(texts.whatIf.flipping);
    try {
      const { found, label } = await smallestFlip(jobId, grid, change);
      setNote(label ? texts.whatIf.flipped(found.length, label) : texts.whatIf.notFlipped(found.length));
    } catch (error) {
      setNote(messageOf(error));
    }
  };
  const move = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid, ArrowDown: grid }[event.key];
    if (step !== undefined) setFocus((focus + step + all) % all);
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else if (event.key === " " || event.key === "Enter") {
      remember();
      set(focus, !hidden.has(focus));
    } else return;
    event.preventDefault();
  };
  const patches = Array.from({ length: all }, (_, patch) => patch);
  const near = useMemo(() => nearest(props.nodes, grid, hidden), [props.nodes, grid, hidden]);
  const difference = now && full ? now.score - full.score : 0;
  return (
    <div class="what-if">
      <div>
        <p class="faint">{texts.whatIf.help}</p>
        <div
          ref={board}
          class="board"
          role="application"
          tabIndex={0}
          aria-label={texts.whatIf.help}
          onKeyDown={move}
          onPointerDown={(event) => {
            const patch = patchAt(event);
            if (patch === undefined) return;
            board.current!.setPointerCapture(event.pointerId);
            remember();
            painting.current = !hidden.has(patch);
            set(patch, painting.current);
          }}
          onPointerMove={(event) => {
            const patch = patchAt(event);
            if (painting.current !== undefined && patch !== undefined) set(patch, painting.current);
          }}
          onPointerUp={() => (painting.current = undefined)}
          onPointerCancel={() => (painting.current = undefined)}
        >
          <Picture canvas={canvas} label={texts.whatIf.patches(hidden.size)} />
          <svg viewBox={`0 0 ${grid} ${grid}`} aria-hidden="true">
            {patches.map((patch) => (
              <rect
                key={patch}
                class={patch === focus ? "patch focus" : "patch"}
                x={patch % grid}
                y={Math.floor(patch / grid)}
                width={1}
                height={1}
              />
            ))}
          </svg>
        </div>
        <div class="buttons">
          <button type="button" disabled={!past.length} onClick={undo}>{texts.jobs.undo}</button>
          <button type="button" onClick={() => choose([])}>{texts.whatIf.clear}</button>
          <button type="button" onClick={() => choose(patches.filter((patch) => !hidden.has(patch)))}>
            {texts.whatIf.invert}
          </button>
          <button type="button" onClick={flip}>{texts.whatIf.flip}</button>
        </div>
      </div>
      <div aria-live="polite">
        {now && full && (
          <p class="now">
            <Share value={now.score} tone={difference < 0 ? "removed" : "kept"} />
            <span>
              {nameOf(full)} ({texts.difference(difference)})
            </span>
            {now.top && now.top.index !== full.index && (
              <span>
                → {nameOf(now.top)} {texts.percent(now.top.score)}
              </span>
            )}
          </p>
        )}
        {note && <Status>{note}</Status>}
        {near.length > 0 && (
          <>
            <h3>{texts.whatIf.nearest}</h3>
            <ul class="tries near">
              {near.map(({ node, different }) => (
                <li key={node.id} class={different ? "" : "same"}>
                  <button type="button" onClick={() => choose(patches.filter((patch) => !node.patches!.patches.includes(patch)))}>
                    {texts.whatIf.different(different)}
                  </button>
                  <Share value={node.score} />
                  <span>{nameOf(node.top)}</span>
                </li>
              ))}
            </ul>
          </>
        )}
        <h3>{texts.whatIf.history}</h3>
        <ol class="tries">
          {history.map((each) => (
            <li key={`${each.hidden}`}>
              <button type="button" title={texts.whatIf.undo} onClick={() => choose(each.hidden)}>
                {each.hidden.length ? texts.whatIf.patches(each.hidden.length) : texts.whatIf.whole}
              </button>
              <Share value={each.score} />
              <span>{nameOf(each.top)}</span>
            </li>
          ))}
        </ol>
      </div>
    </div>
  );
}

/** Returns the nodes of the graph that differ least from what is shown, and in how many patches. */
function nearest(nodes: GraphNode[], grid: number, hidden: ReadonlySet<number>) {
  return nodes
    .filter((node) => node.patches?.grid === grid)
    .map((node) => {
      const kept = new Set(node.patches!.patches);
      let different = 0;
      for (let patch = 0; patch < grid * grid; patch++) if (kept.has(patch) === hidden.has(patch)) different++;
      return { node, different };
    })
    .sort((a, b) => a.different - b.different)
    .slice(0, MOST_NEAR);
}

/** Hides, one by one, the patch that lowers the score most, until another class is on top. */
async function smallestFlip(jobId: string, grid: number, show: (hidden: number[]) => void) {
  const found: number[] = [];
  while (found.length < MOST) {
    const rest = Array.from({ length: grid * grid }, (_, patch) => patch).filter((patch) => !found.includes(patch));
    const { scores, full } = await score(jobId, grid, rest.map((patch) => [...found, patch].sort((a, b) => a - b)));
    let best = 0;
    scores.forEach((each, index) => (best = each.score < scores[best]!.score ? index : best));
    found.push(rest[best]!);
    show(found);
    const top = scores[best]!.top;
    if (top && full && top.index !== full.index) return { found, label: nameOf(top) };
  }
  return { found, label: "" };
}

/** Returns the model's scores when each of these sets of patches is hidden. */
async function score(
  jobId: string,
  grid: number,
  sets: number[][],
  signal?: AbortSignal,
): Promise<{ scores: RegionScore[]; full?: ClassScore }> {
  const request = {
    subject: { case: "jobId" as const, value: jobId },
    sets: sets.map((patches) => ({ grid, patches })),
    hide: true,
  };
  const { scores, full } = await explanations.scoreRegions(request, { signal });
  return { scores, full };
}
