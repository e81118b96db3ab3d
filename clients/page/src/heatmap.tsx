/** The heatmap: the overlay, the most salient part alone, the image without that part, and both curves. */

import { useMemo, useState } from "preact/hooks";
import { CurveKind, type Curve, type Stability } from "../gen/sagittal/v1/explanation_pb";
import { nameOf, scoreAt, type Explanation } from "./explanation";
import { covered, mostSalient, overlaid } from "./image";
import { Picture, Share, Status } from "./components";
import { texts } from "./texts";

/** Peaks below which a heatmap counts as empty, and as weak. */
const EMPTY = 0.05;
const FAINT = 0.3;

/** Share of the unmasked score at which a part counts as sufficient, and the area shown until the curves arrive. */
const SUFFICIENT = 0.9;
const FIRST_AREA = 0.15;
const AREAS = { minimum: 0.02, maximum: 0.6 };

/** Returns the smallest area that is sufficient alone. */
export function sufficientArea(found: Explanation): number {
  const { insertion } = found.curves;
  const enough = SUFFICIENT * (found.prediction?.target?.score ?? 1);
  const place = insertion?.scores.findIndex((score) => score >= enough) ?? -1;
  const area = insertion?.fractions[place] ?? FIRST_AREA;
  return Math.min(AREAS.maximum, Math.max(AREAS.minimum, area));
}

export function HeatmapView(props: { found: Explanation; view: HTMLCanvasElement }) {
  const { found, view } = props;
  const [opacity, setOpacity] = useState(0.75);
  const [chosen, setArea] = useState<number>();
  const area = chosen ?? sufficientArea(found);
  const [cell, setCell] = useState("");
  const heatmap = found.heatmap;
  const salient = useMemo(() => (heatmap ? mostSalient(heatmap, area) : new Set<number>()), [heatmap, area]);
  const pictures = useMemo(() => {
    if (!heatmap) return undefined;
    const isSalient = (row: number, column: number) => salient.has(row * heatmap.columns + column);
    return {
      overlay: overlaid(view, heatmap, opacity),
      kept: covered(view, isSalient, heatmap.rows),
      removed: covered(view, (row, column) => !isSalient(row, column), heatmap.rows),
    };
  }, [heatmap, view, opacity, salient]);
  if (!heatmap || !pictures)
    return found.state === "completed" ? <Status>{texts.views.noHeatmap}</Status> : <Skeleton view={view} />;
  const peak = heatmap.values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const { insertion, deletion } = found.curves;
  const label = nameOf(found.prediction?.target);
  return (
    <>
      {heatmap.final && peak < EMPTY && <Status tone="warn">{texts.views.empty}</Status>}
      {heatmap.final && peak >= EMPTY && peak < FAINT && (
        <Status tone="warn">{texts.views.faint(peak.toFixed(2))}</Status>
      )}
      <div class="pictures">
        <Picture canvas={view} label={texts.views.original}>
          <Share value={found.prediction?.target?.score} />
        </Picture>
        <div
          onPointerMove={(event) => setCell(cellUnder(event, heatmap))}
          onPointerLeave={() => setCell("")}
        >
          <Picture canvas={pictures.overlay} label={texts.views.overlay}>
            <output class="cell">{cell}</output>
          </Picture>
        </div>
        <Picture canvas={pictures.kept} label={texts.views.kept}>
          <Share value={scoreAt(insertion, area)} tone="kept" />
        </Picture>
        <Picture canvas={pictures.removed} label={texts.views.removed}>
          <Share value={scoreAt(deletion, area)} tone="removed" />
        </Picture>
      </div>
      <div class="sliders">
        <Slider label={texts.views.area} value={area} minimum={AREAS.minimum} maximum={AREAS.maximum} onValue={setArea} />
        <Slider label={texts.views.opacity} value={opacity} minimum={0} maximum={1} onValue={setOpacity} />
      </div>
      {insertion && deletion && found.prediction && (
        <div class="curves">
          <CurvePlot curves={[insertion, deletion]} area={area} unmasked={found.prediction.target?.score ?? 0} label={label} />
          <dl class="figures">
            <Figure curve={insertion} help={texts.figures.insertionHelp} />
            <Figure curve={deletion} help={texts.figures.deletionHelp} />
            <dt>{texts.figures.unmasked}</dt>
            <dd>{texts.percent(found.prediction.target?.score ?? 0)}</dd>
            <dt>{texts.figures.baseline}</dt>
            <dd>{texts.percent(found.prediction.baselineScore)}</dd>
            {found.stability && <StabilityFigure stability={found.stability} />}
          </dl>
        </div>
      )}
    </>
  );
}

function Skeleton(props: { view: HTMLCanvasElement }) {
  return (
    <div class="pictures">
      <Picture canvas={props.view} label={texts.views.original} />
      {[texts.views.overlay, texts.views.kept, texts.views.removed].map((label) => (
        <figure class="picture empty" key={label}>
          <div />
          <figcaption>{label}</figcaption>
        </figure>
      ))}
    </div>
  );
}

export function Slider(props: {
  label: string;
  value: number;
  minimum: number;
  maximum: number;
  onValue: (value: number) => void;
}) {
  return (
    <label>
      <span>
        {props.label} <output>{texts.percent(props.value)}</output>
      </span>
      <input
        type="range"
        min={props.minimum}
        max={props.maximum}
        step={0.01}
        value={props.value}
        onInput={(event) => props.onValue(Number(event.currentTarget.value))}
      />
    </label>
  );
}

function Figure(props: { curve: Curve; help: string }) {
  const name = props.curve.kind === CurveKind.INSERTION ? texts.figures.insertion : texts.figures.deletion;
  return (
    <>
      <dt title={props.help}>{name}</dt>
      <dd>
        {props.curve.auc.toFixed(3)}
        <small>
          {texts.percent(props.curve.aucNormalized)} {texts.figures.relative}
        </small>
      </dd>
    </>
  );
}

function StabilityFigure({ stability }: { stability: Stability }) {
  const { insertion } = stability;
  return (
    <>
      <dt title={texts.figures.stabilityHelp}>{texts.figures.stability}</dt>
      <dd>
        {stability.rankCorrelation.toFixed(2)}
        <small>{texts.figures.seeds(stability.runs - 1)}</small>
        {insertion && <small>{texts.figures.interval(insertion.low.toFixed(3), insertion.high.toFixed(3))}</small>}
      </dd>
    </>
  );
}

const WIDTH = 420;
const HEIGHT = 220;
const EDGE = { left: 40, right: 8, top: 10, bottom: 32 };

function CurvePlot(props: { curves: Curve[]; area: number; unmasked: number; label: string }) {
  const across = (fraction: number) => EDGE.left + fraction * (WIDTH - EDGE.left - EDGE.right);
  const most = Math.max(props.unmasked, ...props.curves.flatMap((curve) => curve.scores), 0.01);
  const up = (score: number) => HEIGHT - EDGE.bottom - (score / most) * (HEIGHT - EDGE.top - EDGE.bottom);
  const path = (curve: Curve) =>
    curve.fractions.map((x, index) => `${index ? "L" : "M"}${across(x).toFixed(1)} ${up(curve.scores[index]!).toFixed(1)}`).join("");
  return (
    <svg class="plot" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${texts.figures.insertion}, ${texts.figures.deletion}: ${props.label}`}>
      {[0, 0.5, 1].map((share) => (
        <g key={share}>
          <line class="grid" x1={EDGE.left} x2={WIDTH - EDGE.right} y1={up(share * most)} y2={up(share * most)} />
          <text x={EDGE.left - 6} y={up(share * most) + 4} text-anchor="end">{texts.percent(share * most)}</text>
          <text x={across(share)} y={HEIGHT - 16} text-anchor={share === 1 ? "end" : share ? "middle" : "start"}>{texts.percent(share)}</text>
        </g>
      ))}
      <text x={across(0.5)} y={HEIGHT - 2} text-anchor="middle">{texts.figures.fraction}</text>
      <line class="unmasked" x1={EDGE.left} x2={WIDTH - EDGE.right} y1={up(props.unmasked)} y2={up(props.unmasked)} />
      <line class="area" x1={across(props.area)} x2={across(props.area)} y1={EDGE.top} y2={HEIGHT - EDGE.bottom} />
      {props.curves.map((curve) => {
        const inserted = curve.kind === CurveKind.INSERTION;
        return (
          <g key={curve.kind} class={inserted ? "insertion" : "deletion"}>
            <path d={path(curve)} />
            <text x={across(inserted ? 0.62 : 0.98)} y={up(scoreAt(curve, inserted ? 0.5 : 0.85) ?? 0) + (inserted ? 18 : -8)} text-anchor="end">
              {inserted ? texts.figures.insertion : texts.figures.deletion}
            </text>
          </g>
        );
      })}
    </svg>
  );
}

function cellUnder(event: PointerEvent, heatmap: { values: Float32Array; rows: number; columns: number }): string {
  const canvas = (event.currentTarget as HTMLElement).querySelector("canvas");
  if (!canvas) return "";
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * heatmap.columns);
  const row = Math.floor(((event.clientY - box.top) / box.height) * heatmap.rows);
  const value = heatmap.values[row * heatmap.columns + column];
  const inside = row >= 0 && row < heatmap.rows && column >= 0 && column < heatmap.columns;
  return inside && value !== undefined ? texts.views.cell(row, column, value.toFixed(2)) : "";
}
