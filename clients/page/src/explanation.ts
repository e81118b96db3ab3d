/** An explanation, gathered from the events of its job. */

import type {
  ClassScore,
  Completed,
  ConceptContribution,
  Curve,
  ExplanationEvent,
  GraphEdge,
  GraphNode,
  Mask,
  Prediction,
  Stability,
  SufficientSet,
  Warning,
} from "../gen/sagittal/v1/explanation_pb";
import { CurveKind } from "../gen/sagittal/v1/explanation_pb";
import { DataType, type Tensor } from "../gen/sagittal/v1/tensor_pb";

/** A heatmap: values of `rows` times `columns` cells, 1 most salient. */
export interface Heatmap {
  values: Float32Array;
  rows: number;
  columns: number;
  final: boolean;
  signed: boolean;
}

export interface Explanation {
  state: "queued" | "running" | "completed" | "failed" | "cancelled";
  position: number;
  readyWorkers: number;
  phase: string;
  fraction: number;
  evaluations: number;
  prediction?: Prediction;
  heatmap?: Heatmap;
  curves: { insertion?: Curve; deletion?: Curve };
  stability?: Stability;
  sets: SufficientSet[];
  nodes: GraphNode[];
  edges: GraphEdge[];
  concepts: ConceptContribution[];
  warnings: Warning[];
  completed?: Completed;
  failure: string;
}

export function nothing(): Explanation {
  return {
    state: "queued",
    position: 0,
    readyWorkers: 1,
    phase: "",
    fraction: 0,
    evaluations: 0,
    curves: {},
    sets: [],
    nodes: [],
    edges: [],
    concepts: [],
    warnings: [],
    failure: "",
  };
}

/** Returns an explanation with one more event. A new attempt repeats all events. */
export function withEvent(known: Explanation, { event }: ExplanationEvent): Explanation {
  switch (event.case) {
    case "accepted":
      return { ...known, position: Number(event.value.queuePosition), readyWorkers: event.value.readyWorkers };
    case "started":
      return { ...nothing(), state: "running" };
    case "prediction":
      return { ...known, prediction: event.value };
    case "progress":
      return {
        ...known,
        phase: event.value.phase,
        fraction: event.value.fraction,
        evaluations: Number(event.value.evaluations),
      };
    case "mask": {
      if (event.value.index > 0 || !event.value.saliency) return known;
      return { ...known, heatmap: heatmapOf(event.value) };
    }
    case "curve": {
      if (event.value.maskIndex > 0) return known;
      const name = event.value.kind === CurveKind.INSERTION ? "insertion" : "deletion";
      return { ...known, curves: { ...known.curves, [name]: event.value } };
    }
    case "stability":
      return { ...known, stability: event.value };
    case "sufficientSet":
      return { ...known, sets: replaced(known.sets, event.value, (set) => `${set.patches?.patches}`) };
    case "graphNode":
      return { ...known, nodes: replaced(known.nodes, event.value, (node) => node.id) };
    case "graphEdge":
      return { ...known, edges: replaced(known.edges, event.value, (edge) => `${edge.parent} ${edge.child}`) };
    case "concept":
      return { ...known, concepts: replaced(known.concepts, event.value, (concept) => `${concept.index}`) };
    case "warning":
      return { ...known, warnings: [...known.warnings, event.value] };
    case "completed":
      return { ...known, state: "completed", fraction: 1, completed: event.value };
    case "failed":
      return { ...known, state: "failed", failure: event.value.message };
    case "cancelled":
      return { ...known, state: "cancelled" };
  }
  return known;
}

/** Returns the heatmap of a mask. */
export function heatmapOf(mask: Mask): Heatmap | undefined {
  if (!mask.saliency) return undefined;
  const { values, shape } = numbersOf(mask.saliency);
  const [rows = 0, columns = 0] = shape;
  return { values, rows, columns, final: mask.final, signed: mask.signed };
}

/** Returns the score of a curve at a share of the image, by linear interpolation. */
export function scoreAt(curve: Curve | undefined, fraction: number): number | undefined {
  if (!curve) return undefined;
  const after = curve.fractions.findIndex((each) => each >= fraction);
  if (after <= 0) return curve.scores[Math.max(after, 0)];
  const [left, right] = [curve.fractions[after - 1] ?? 0, curve.fractions[after] ?? 1];
  const share = (fraction - left) / (right - left || 1);
  return (1 - share) * (curve.scores[after - 1] ?? 0) + share * (curve.scores[after] ?? 0);
}

/** Returns the name of a class. */
export function nameOf(found: ClassScore | undefined): string {
  return found ? found.label || `class ${found.index}` : "";
}

function replaced<T>(all: T[], one: T, key: (each: T) => string): T[] {
  const place = all.findIndex((each) => key(each) === key(one));
  return place < 0 ? [...all, one] : all.map((each, index) => (index === place ? one : each));
}

/** Returns the numbers of a tensor of float16 or float32. */
function numbersOf(tensor: Tensor): { values: Float32Array; shape: number[] } {
  const bytes = tensor.data.slice();
  if (tensor.dtype === DataType.FLOAT32) return { values: new Float32Array(bytes.buffer), shape: tensor.shape };
  const halves = new Uint16Array(bytes.buffer);
  return { values: Float32Array.from(halves, fromHalf), shape: tensor.shape };
}

function fromHalf(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
