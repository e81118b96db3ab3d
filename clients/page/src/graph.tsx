/** The attention graph: roots are sufficient sets, and each edge shows the patch that it removes. */

import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { GraphEdge, GraphNode } from "../gen/sagittal/v1/explanation_pb";
import { nameOf, type Explanation } from "./explanation";
import { covered, inferno, SIDE } from "./image";
import { Status } from "./components";
import { texts } from "./texts";

/** Sides of a node, of the band with its confidence, and of the patch that an edge removes; in units of the drawing. */
const NODE = 116;
const BAND = 22;
const PATCH = 28;
const GAP = { across: 28, down: 76 };
/** Distance from a removed patch's middle to the node below it, so that no node covers it. */
const ABOVE_CHILD = 30;
const DEFAULT_GRID = 7;

interface Place {
  node: GraphNode;
  x: number;
  y: number;
}

/** What the pointer or the focus is on. */
interface Marked {
  node?: GraphNode;
  edge?: GraphEdge;
}

type Mark = (marked: Marked | undefined) => void;

export function GraphView(props: { found: Explanation; view: HTMLCanvasElement }) {
  const { nodes, edges } = props.found;
  const [marked, setMarked] = useState<Marked>();
  const [scale, setScale] = useState(1);
  const [collapsed, setCollapsed] = useState<ReadonlySet<string>>(new Set());
  const shown = useMemo(() => visible(nodes, edges, collapsed), [nodes, edges, collapsed]);
  const places = useMemo(() => arrange(shown, edges), [shown, edges]);
  const toggle = (id: string) =>
    setCollapsed((known) => new Set(known.has(id) ? [...known].filter((each) => each !== id) : [...known, id]));
  const pictures = useMemo(() => new Map(nodes.map((node) => [node.id, keptPart(props.view, node)])), [nodes, props.view]);
  const grid = nodes[0]?.patches?.grid ?? DEFAULT_GRID;
  const patches = useMemo(
    () => new Map(edges.map(({ removedPatch }) => [removedPatch, onePatch(props.view, removedPatch, grid)])),
    [edges, props.view, grid],
  );
  const width = Math.max(...places.map((place) => place.x)) + NODE + 8;
  const frame = useCentred(width * scale);
  if (!nodes.length) return <Status>{texts.graph.none}</Status>;
  const height = Math.max(...places.map((place) => place.y)) + NODE + BAND + 8;
  const at = new Map(places.map((place) => [place.node.id, place]));
  const drawn = edges.filter((edge) => at.has(edge.parent) && at.has(edge.child));
  return (
    <>
      <p class="faint">
        {texts.graph.roots} {texts.graph.hover}
      </p>
      <div class="zoom">
        <button type="button" aria-label="zoom out" onClick={() => setScale(Math.max(0.4, scale / 1.25))}>−</button>
        <button type="button" aria-label="zoom in" onClick={() => setScale(Math.min(2.5, scale * 1.25))}>+</button>
        <Legend />
      </div>
      <div class="graph" {...frame} tabIndex={0} role="group" aria-label={texts.views.graph}>
        <svg viewBox={`0 0 ${width} ${height}`} width={width * scale} height={height * scale}>
          {drawn.map((edge) => (
            <Edge
              key={`${edge.parent} ${edge.child}`}
              edge={edge}
              parent={at.get(edge.parent)!}
              child={at.get(edge.child)!}
              grid={grid}
              picture={patches.get(edge.removedPatch)}
              live={isLive(edge, marked)}
              onMark={setMarked}
            />
          ))}
          {places.map((place) => (
            <Node
              key={place.node.id}
              place={place}
              picture={pictures.get(place.node.id)}
              marked={marked}
              removals={drawn.filter((edge) => edge.child === place.node.id)}
              below={edges.some((edge) => edge.parent === place.node.id)}
              folded={collapsed.has(place.node.id)}
              onMark={setMarked}
              onToggle={() => toggle(place.node.id)}
            />
          ))}
        </svg>
      </div>
    </>
  );
}

/** Keeps the middle of what a frame shows if the width of its content changes: of the roots at first, which are in the middle. */
function useCentred(width: number) {
  const ref = useRef<HTMLDivElement>(null);
  const middle = useRef(0.5);
  useLayoutEffect(() => {
    const frame = ref.current;
    if (frame) frame.scrollLeft = middle.current * frame.scrollWidth - frame.clientWidth / 2;
  }, [width]);
  const onScroll = () => {
    const frame = ref.current;
    if (frame) middle.current = (frame.scrollLeft + frame.clientWidth / 2) / frame.scrollWidth;
  };
  return { ref, onScroll };
}

/** The scale of the nodes' confidence, and the marks of patches. */
function Legend() {
  const steps = [...Array(20).keys()];
  return (
    <ul class="legend marks">
      <li>
        {texts.graph.confidence} 0 %{" "}
        <svg class="ramp" viewBox={`0 0 ${steps.length} 1`} preserveAspectRatio="none" aria-hidden="true">
          {steps.map((step) => (
            <rect key={step} x={step} width={1.05} height={1} fill={colourOf(step / (steps.length - 1))} />
          ))}
        </svg>{" "}
        100 %
      </li>
      <li><i class="same" />{texts.graph.same}</li>
      <li><i class="other" />{texts.graph.other}</li>
      <li><i class="gone" />{texts.graph.gone}</li>
    </ul>
  );
}

/** A line to the node below, with the patch that it removes. */
function Edge(props: {
  edge: GraphEdge;
  parent: Place;
  child: Place;
  grid: number;
  picture: string | undefined;
  live: boolean;
  onMark: Mark;
}) {
  const { edge, parent, child, grid } = props;
  const [x1, y1, x2, y2] = [parent.x + NODE / 2, parent.y + NODE + BAND, child.x + NODE / 2, child.y];
  const share = 1 - ABOVE_CHILD / (y2 - y1);
  const [x, y] = [x1 + share * (x2 - x1) - PATCH / 2, y1 + share * (y2 - y1) - PATCH / 2];
  const [row, column] = [Math.floor(edge.removedPatch / grid), edge.removedPatch % grid];
  const label = texts.graph.removes(row, column, texts.percent(parent.node.score), texts.percent(child.node.score));
  return (
    <g
      class={props.live ? "edge live" : "edge"}
      role="img"
      aria-label={label}
      onPointerEnter={() => props.onMark({ edge })}
      onPointerLeave={() => props.onMark(undefined)}
    >
      <title>{label}</title>
      <line x1={x1} y1={y1} x2={x2} y2={y2} />
      <image href={props.picture} x={x} y={y} width={PATCH} height={PATCH} />
      <rect x={x} y={y} width={PATCH} height={PATCH} />
    </g>
  );
}

/** The patches that a node keeps, and under them its confidence as text and colour. */
function Node(props: {
  place: Place;
  picture: string | undefined;
  marked: Marked | undefined;
  /** The edges to this node. */
  removals: GraphEdge[];
  below: boolean;
  folded: boolean;
  onMark: Mark;
  onToggle: () => void;
}) {
  const { marked, below, folded } = props;
  const { node, x, y } = props.place;
  const grid = node.patches?.grid ?? DEFAULT_GRID;
  const side = NODE / grid;
  const label = `${texts.percent(node.score)} ${nameOf(node.top)}, ${texts.graph.keeps(texts.percent(node.relativeScore))}`;
  const outline = (patch: number, kind: string) => (
    <rect key={`${kind} ${patch}`} class={kind} x={(patch % grid) * side} y={Math.floor(patch / grid) * side} width={side} height={side} />
  );
  const ink = inkOn(node.score);
  return (
    <g
      transform={`translate(${x} ${y})`}
      class={node.root ? "node root" : "node"}
      tabIndex={0}
      role={below ? "button" : "img"}
      aria-expanded={below ? !folded : undefined}
      aria-label={label}
      onClick={() => below && props.onToggle()}
      onKeyDown={(event) => {
        if (!below || ![" ", "Enter"].includes(event.key)) return;
        event.preventDefault();
        props.onToggle();
      }}
      onPointerEnter={() => props.onMark({ node })}
      onPointerLeave={() => props.onMark(undefined)}
      onFocus={() => props.onMark({ node })}
      onBlur={() => props.onMark(undefined)}
    >
      <title>{label}</title>
      <image href={props.picture} width={NODE} height={NODE} />
      {marksOn(node, marked).map(([patch, kind]) => outline(patch, kind))}
      {props.removals.map((edge) => outline(edge.removedPatch, isLive(edge, marked) ? "gone live" : "gone"))}
      <rect class="confidence" y={NODE} width={NODE} height={BAND} fill={colourOf(node.score)} />
      <text x={8} y={NODE + 16} fill={ink}>{texts.percent(node.score)}</text>
      {folded && <text x={NODE - 8} y={NODE + 16} fill={ink} text-anchor="end">{texts.graph.folded}</text>}
      <rect class="frame" width={NODE} height={NODE + BAND} />
    </g>
  );
}

function isLive(edge: GraphEdge, marked: Marked | undefined): boolean {
  return marked?.edge ? marked.edge === edge : [edge.parent, edge.child].includes(marked?.node?.id ?? "");
}

/** Returns the patches of a node to mark, and how: a node shares them with what is marked, or has them besides. */
function marksOn(node: GraphNode, marked: Marked | undefined): [patch: number, kind: string][] {
  const kept = node.patches?.patches ?? [];
  if (marked?.edge) return kept.filter((patch) => patch === marked.edge!.removedPatch).map((patch) => [patch, "mark"]);
  if (!marked?.node) return [];
  const same = new Set(marked.node.patches?.patches);
  return kept.map((patch) => [patch, same.has(patch) ? "mark" : "differs"]);
}

/** Returns the drawing of the patches that a node keeps, as a data URL. */
function keptPart(view: HTMLCanvasElement, node: GraphNode): string {
  const kept = new Set(node.patches?.patches);
  const grid = node.patches?.grid ?? DEFAULT_GRID;
  const whole = covered(view, (row, column) => kept.has(row * grid + column), grid);
  return cut(whole, 0, 0, SIDE, 2 * NODE);
}

/** Returns one patch of a view, as a data URL. */
function onePatch(view: HTMLCanvasElement, patch: number, grid: number): string {
  const side = SIDE / grid;
  return cut(view, (patch % grid) * side, Math.floor(patch / grid) * side, side, 2 * PATCH);
}

function cut(view: HTMLCanvasElement, x: number, y: number, side: number, size: number): string {
  const small = document.createElement("canvas");
  small.width = small.height = size;
  small.getContext("2d")!.drawImage(view, x, y, side, side, 0, 0, size, size);
  return small.toDataURL("image/png");
}

function colourOf(confidence: number): string {
  return `rgb(${inferno(Math.min(1, Math.max(0, confidence))).map((channel) => Math.round(255 * channel)).join(" ")})`;
}

/** Returns the colour of text on the colour of a confidence: the one with more contrast. */
function inkOn(confidence: number): string {
  const [red = 0, green = 0, blue = 0] = inferno(confidence).map((channel) => channel ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "black" : "white";
}

/** Returns the roots, and the nodes that a path without a collapsed node leads to. */
function visible(nodes: GraphNode[], edges: GraphEdge[], collapsed: ReadonlySet<string>): GraphNode[] {
  const below = new Set(edges.map((edge) => edge.child));
  const reached = new Set<string>();
  const visit = (id: string) => {
    if (reached.has(id)) return;
    reached.add(id);
    if (!collapsed.has(id)) edges.filter((edge) => edge.parent === id).forEach((edge) => visit(edge.child));
  };
  nodes.filter((node) => !below.has(node.id)).forEach((node) => visit(node.id));
  return nodes.filter((node) => reached.has(node.id));
}

/** Returns the positions of nodes: roots in the first row, every other node below the middle of its parents. */
function arrange(nodes: GraphNode[], edges: GraphEdge[]): Place[] {
  const parents = new Map<string, string[]>();
  for (const { parent, child } of edges) parents.set(child, [...(parents.get(child) ?? []), parent]);
  const depths = new Map<string, number>();
  const depth = (id: string): number => {
    const known = depths.get(id);
    if (known !== undefined) return known;
    depths.set(id, 0); // an edge that leads back, which no graph of removals has, ends here
    const found = Math.max(-1, ...(parents.get(id) ?? []).map(depth)) + 1;
    depths.set(id, found);
    return found;
  };
  const rows: GraphNode[][] = [];
  for (const node of nodes) (rows[depth(node.id)] ??= []).push(node);
  const most = Math.max(...rows.map((row) => row.length));
  const places = new Map<string, Place>();
  rows.forEach((row, down) => {
    const middle = ({ id }: GraphNode) => {
      const above = (parents.get(id) ?? []).map((parent) => places.get(parent)?.x ?? 0);
      return above.reduce((sum, x) => sum + x, 0) / (above.length || 1);
    };
    [...row]
      .sort((a, b) => middle(a) - middle(b))
      .forEach((node, across) => {
        const x = 4 + (across + (most - row.length) / 2) * (NODE + GAP.across);
        places.set(node.id, { node, x, y: 4 + down * (NODE + BAND + GAP.down) });
      });
  });
  return [...places.values()];
}
