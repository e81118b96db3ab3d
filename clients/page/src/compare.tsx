/** Two explanations side by side: of two methods, classes, models or images; their figures, and where they part. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { AreaInterval } from "../gen/sagittal/v1/explanation_pb";
import type { Model } from "../gen/sagittal/v1/model_pb";
import { isUnauthenticated, messageOf } from "./api";
import { Picture, Share, Status } from "./components";
import { DropZone, FileButton, Progress, TopClasses } from "./explain";
import { type Explaining, keyOf, readImage, type Shown, useExplaining } from "./explaining";
import { type Explanation, nameOf, scoreAt } from "./explanation";
import { AskForm, ClassInput } from "./form";
import { Slider, sufficientArea } from "./heatmap";
import { covered, mostSalient, overlaid, parted, tinted } from "./image";
import { texts } from "./texts";

/** Most sets of one side that are drawn. */
const MOST_SETS = 3;

export function CompareView(props: { models: Model[]; first: string; second: string; onToken: () => void }) {
  const { models } = props;
  const [problem, setProblem] = useState("");
  const [chosen, setArea] = useState<number>();
  const [correct, setCorrect] = useState<number | string>();
  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) props.onToken();
    setProblem(messageOf(error));
  };
  const left = useExplaining(models, props.first, failed);
  const right = useExplaining(models, props.second, failed);

  // At first, the area at which the parts of both sides suffice.
  const area = chosen ?? Math.max(...[left, right].map(({ found }) => (found ? sufficientArea(found) : 0)));

  // The second side starts with the image and the question of the first, so that one of them can be changed.
  const touched = useRef(props.second !== "");
  useEffect(() => {
    if (touched.current || !left.shown) return;
    if (right.shown !== left.shown) right.take(left.shown);
    right.setAsked(left.asked);
  }, [left.shown, left.asked]);

  useEffect(() => {
    const ids = [left.jobId, right.jobId].filter(Boolean).join("/");
    if (left.jobId) history.replaceState(null, "", `#/compare/${ids}`);
  }, [left.jobId, right.jobId]);

  const take = async (side: Explaining, file: File) => {
    setProblem("");
    if (side === right) touched.current = true;
    try {
      side.take(await readImage(file));
    } catch (error) {
      setProblem(messageOf(error));
    }
  };
  const explainCorrect = () => {
    if (correct === undefined || !left.shown) return;
    touched.current = true;
    setProblem("");
    if (right.shown !== left.shown) right.take(left.shown);
    void right.explain({ ...left.asked, target: correct }, left.shown);
  };
  const labels = models.find((each) => keyOf(each) === left.asked.model)?.labels ?? [];
  const target = left.found?.prediction?.target;
  return (
    <>
      <h1>{texts.compare.title}</h1>
      <p class="faint">{texts.compare.help}</p>
      {problem && <Status tone="bad">{problem}</Status>}
      {left.shown && target && (
        <form
          class="correction"
          onSubmit={(event) => {
            event.preventDefault();
            explainCorrect();
          }}
        >
          <ClassInput
            label={texts.compare.wrong(nameOf(target))}
            labels={labels}
            value={correct === undefined ? "" : String(correct)}
            onValue={setCorrect}
          />
          <button type="submit">{texts.compare.explainCorrect}</button>
        </form>
      )}
      <div class="sides">
        <Side name={texts.compare.first} models={models} here={left} area={area} onFile={(file) => take(left, file)} />
        <Side
          name={texts.compare.second}
          models={models}
          here={right}
          area={area}
          onFile={(file) => take(right, file)}
          onAsked={() => (touched.current = true)}
        />
      </div>
      {left.found?.heatmap && right.found?.heatmap && (
        <div class="sliders">
          <Slider label={texts.views.area} value={area} minimum={0.02} maximum={0.6} onValue={setArea} />
        </div>
      )}
      {left.found && right.found && (
        <>
          <h2>{texts.compare.figures}</h2>
          <Paired left={left.found} right={right.found} area={area} />
          <h2>{texts.compare.part}</h2>
          <Parting left={left} right={right} area={area} />
        </>
      )}
    </>
  );
}

function Side(props: {
  name: string;
  models: Model[];
  here: Explaining;
  area: number;
  onFile: (file: File) => void;
  onAsked?: () => void;
}) {
  const { here } = props;
  const target = here.found?.prediction?.target;
  return (
    <section class="side" aria-label={props.name} aria-busy={here.busy}>
      <h2>
        {props.name} <span class="faint">{[here.found && nameOf(target), here.found && here.asked.method].filter(Boolean).join(" · ")}</span>
      </h2>
      {here.gone && (
        <Status tone="bad">
          {texts.state.goneTitle}. {texts.state.gone}
        </Status>
      )}
      {here.imageGone && <Status tone="warn">{texts.views.imageGone}</Status>}
      {here.shown && props.models.length > 0 && (
        <details open={!here.found}>
          <summary>{here.found ? texts.compare.change : texts.compare.ask}</summary>
          <AskForm
            models={props.models}
            top={here.top ?? []}
            asked={here.asked}
            busy={here.busy}
            onAsked={(asked) => {
              props.onAsked?.();
              here.setAsked(asked);
            }}
            onExplain={() => {
              props.onAsked?.();
              void here.explain();
            }}
            onCancel={here.cancel}
          />
          <FileButton label={texts.drop.replace} onFiles={([file]) => file && props.onFile(file)} />
          {!here.found && <TopClasses top={here.top} />}
        </details>
      )}
      {!here.shown && !here.jobId && <DropZone onFiles={([file]) => file && props.onFile(file)} />}
      {here.found && <Progress found={here.found} broken={here.broken} />}
      {here.found && <SidePictures found={here.found} view={here.view} area={props.area} />}
    </section>
  );
}

function SidePictures(props: { found: Explanation; view: HTMLCanvasElement; area: number }) {
  const { found, view, area } = props;
  const { heatmap, sets, curves } = found;
  const drawn = useMemo(() => {
    if (!heatmap) return undefined;
    const salient = mostSalient(heatmap, area);
    const isSalient = (row: number, column: number) => salient.has(row * heatmap.columns + column);
    return {
      overlay: overlaid(view, heatmap, 0.75),
      kept: covered(view, isSalient, heatmap.rows),
      removed: covered(view, (row, column) => !isSalient(row, column), heatmap.rows),
    };
  }, [heatmap, view, area]);
  const pictures = useMemo(
    () =>
      sets.slice(0, MOST_SETS).map((set) => {
        const { grid = 7, patches = [] } = set.patches ?? {};
        const kept = new Set(patches);
        return { set, canvas: covered(view, (row, column) => kept.has(row * grid + column), grid) };
      }),
    [sets, view],
  );
  return (
    <div class="pictures">
      {drawn && <Picture canvas={drawn.overlay} label={texts.views.overlay} />}
      {drawn && (
        <Picture canvas={drawn.kept} label={texts.views.kept}>
          <Share value={scoreAt(curves.insertion, area)} tone="kept" />
        </Picture>
      )}
      {drawn && (
        <Picture canvas={drawn.removed} label={texts.views.removed}>
          <Share value={scoreAt(curves.deletion, area)} tone="removed" />
        </Picture>
      )}
      {pictures.map(({ set, canvas }) => (
        <Picture key={`${set.patches?.patches}`} canvas={canvas} label={texts.sets.only}>
          <Share value={set.score} tone="kept" />
        </Picture>
      ))}
    </div>
  );
}

interface Row {
  name: string;
  values: (number | undefined)[];
  text: (value: number) => string;
  /** What one more run with another seed gives, if it was measured. */
  intervals?: (AreaInterval | undefined)[];
}

/** The figures of both sides, each with its difference. */
function Paired(props: { left: Explanation; right: Explanation; area: number }) {
  const sides = [props.left, props.right];
  const of = (read: (found: Explanation) => number | undefined) => sides.map(read);
  const seconds = (found: Explanation) =>
    found.completed ? Number(found.completed.runTime?.seconds ?? 0n) + (found.completed.runTime?.nanos ?? 0) / 1e9 : undefined;
  const smallest = (found: Explanation) =>
    found.sets.length ? Math.min(...found.sets.map((set) => set.patches?.patches.length ?? 0)) : undefined;
  const third = (value: number) => value.toFixed(3);
  const count = (value: number) => Math.round(value).toLocaleString("en");
  const rows: Row[] = [
    { name: texts.figures.unmasked, values: of((found) => found.prediction?.target?.score), text: texts.percent },
    { name: texts.figures.insertion, values: of((found) => found.curves.insertion?.auc), text: third, intervals: sides.map((found) => found.stability?.insertion) },
    { name: texts.figures.relativeInsertion, values: of((found) => found.curves.insertion?.aucNormalized), text: texts.percent },
    { name: texts.figures.deletion, values: of((found) => found.curves.deletion?.auc), text: third, intervals: sides.map((found) => found.stability?.deletion) },
    { name: texts.figures.relativeDeletion, values: of((found) => found.curves.deletion?.aucNormalized), text: texts.percent },
    { name: texts.views.kept, values: of((found) => scoreAt(found.curves.insertion, props.area)), text: texts.percent },
    { name: texts.views.removed, values: of((found) => scoreAt(found.curves.deletion, props.area)), text: texts.percent },
    { name: texts.views.sets, values: of((found) => found.sets.length || undefined), text: count },
    { name: texts.figures.smallestSet, values: of(smallest), text: count },
    { name: texts.figures.evaluations, values: of((found) => found.completed && Number(found.completed.evaluations)), text: count },
    { name: texts.figures.seconds, values: of(seconds), text: (value) => value.toFixed(1) },
  ];
  return (
    <div class="scroll">
      <table class="paired">
        <thead>
          <tr>
            <td />
            <th scope="col">{texts.compare.first}</th>
            <th scope="col">{texts.compare.second}</th>
            <th scope="col">{texts.compare.difference}</th>
          </tr>
        </thead>
        <tbody>
          {rows.filter((row) => row.values.some((value) => value !== undefined)).map((row) => (
            <PairedRow key={row.name} row={row} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

function PairedRow({ row }: { row: Row }) {
  const [first, second] = row.values;
  const difference = first === undefined || second === undefined ? undefined : second - first;
  const sign = difference === undefined ? "" : difference < 0 ? "−" : "+";
  return (
    <tr>
      <th scope="row">{row.name}</th>
      {row.values.map((value, index) => (
        <td key={index}>
          {value === undefined ? "–" : row.text(value)}
          <Interval interval={row.intervals?.[index]} />
        </td>
      ))}
      <td>{difference === undefined ? "" : `${sign}${row.text(Math.abs(difference))}`}</td>
    </tr>
  );
}

function Interval({ interval }: { interval: AreaInterval | undefined }) {
  if (!interval) return null;
  return <small>{texts.compare.interval(interval.low.toFixed(3), interval.high.toFixed(3))}</small>;
}

/** Where two explanations of the same image part: parts that speak for one of them alone. */
function Parting(props: { left: Explaining; right: Explaining; area: number }) {
  const { left, right, area } = props;
  const one = left.found?.heatmap;
  const other = right.found?.heatmap;
  const same = useMemo(() => isSameImage(left.shown, right.shown), [left.shown, right.shown]);
  const heat = useMemo(() => (one && other ? parted(left.view, one, other) : undefined), [one, other, left.view]);
  const sets = useMemo(() => setsOf(left.found, right.found), [left.found, right.found]);
  const patches = useMemo(
    () => (sets ? tinted(left.view, sets.first, sets.second, sets.grid) : undefined),
    [sets, left.view],
  );
  if (!same) return <Status>{texts.compare.otherImage}</Status>;
  if (!heat && !patches) return <Status>{texts.compare.nothingPaired}</Status>;
  return (
    <div class="parting">
      {heat && one && other && (
        <Picture canvas={heat} label={texts.compare.shared(texts.percent(overlap(one, other, area)), texts.percent(area))} />
      )}
      {patches && sets && (
        <Picture canvas={patches} label={texts.compare.sharedPatches(sets.both, sets.first.size, sets.second.size)} />
      )}
      <ul class="legend">
        <li><i class="first" />{texts.compare.firstOnly}</li>
        <li><i class="second" />{texts.compare.secondOnly}</li>
      </ul>
    </div>
  );
}

function isSameImage(one: Shown | undefined, other: Shown | undefined): boolean {
  if (!one || !other) return false;
  if (one === other) return true;
  return one.bytes.length === other.bytes.length && one.bytes.every((byte, index) => byte === other.bytes[index]);
}

/** Returns the share of the most salient cells of two heatmaps that both have, of those that either has. */
function overlap(one: NonNullable<Explanation["heatmap"]>, other: NonNullable<Explanation["heatmap"]>, area: number): number {
  const rows = Math.max(one.rows, other.rows);
  const [first, second] = [one, other].map((heatmap) => {
    const salient = mostSalient(heatmap, area);
    const cells = new Set<number>();
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < rows; column++) {
        const [y, x] = [row, column].map((place) => Math.floor((place * heatmap.rows) / rows));
        if (salient.has(y! * heatmap.columns + x!)) cells.add(row * rows + column);
      }
    return cells;
  });
  const both = [...first!].filter((cell) => second!.has(cell)).length;
  return both / (first!.size + second!.size - both || 1);
}

/** Returns the patches that any sufficient set of each side has, or nothing if a side has no sets on the same grid. */
function setsOf(left: Explanation | undefined, right: Explanation | undefined) {
  const grid = left?.sets[0]?.patches?.grid;
  if (!grid || right?.sets[0]?.patches?.grid !== grid) return undefined;
  const [one, other] = [left!, right!].map((found) => new Set(found.sets.flatMap((set) => set.patches?.patches ?? [])));
  const first = new Set([...one!].filter((patch) => !other!.has(patch)));
  const second = new Set([...other!].filter((patch) => !one!.has(patch)));
  return { grid, first, second, both: one!.size - first.size };
}
