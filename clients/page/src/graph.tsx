/** The attention graph: roots are sufficient sets, and each edge removes a patch. A node highlights its patches. */

import { useMemo, useState } from "preact/hooks";
import type { GraphEdge, GraphNode } from "../gen/sagittal/v1/explanation_pb";
import { nameOf, type Explanation } from "./explanation";
import { covered, SIDE } from "./image";
import { Status } from "./components";
import { texts } from "./texts";

const NODE = 116;
const GAP = { across: 28, down: 64 };
const CAPTION = 34;

interface Place {
  node: GraphNode;
  x: number;
  y: number;
}

export function GraphView(props: { found: Explanation; view: HTMLCanvasElement }) {
  const { nodes, edges } = props.found;
  const [marked, setMarked] = useState<GraphNode>();
  const [scale, setScale] = useState(1);
  const [collapsed, setCollapsed] = useState<ReadonlySet<string>>(new Set());
  const shown = useMemo(() => visible(nodes, edges, collapsed), [nodes, edges, collapsed]);
  const places = useMemo(() => arrange(shown, edges), [shown, edges]);
  const toggle = (id: string) =>
    setCollapsed((known) => new Set(known.has(id) ? [...known].filter((each) => each !== id) : [...known, id]));
  const pictures = useMemo(() => {
    const drawn = new Map<string, string>();
    for (const node of nodes) {
      const kept = new Set(node.patches?.patches);
      const grid = node.patches?.grid ?? 7;
      const small = document.createElement("canvas");
      small.width = small.height = 2 * NODE;
      const whole = covered(props.view, (row, column) => kept.has(row * grid + column), grid);
      small.getContext("2d")!.drawImage(whole, 0, 0, SIDE, SIDE, 0, 0, 2 * NODE, 2 * NODE);
      drawn.set(node.id, small.toDataURL("image/png"));
    }
    return drawn;
  }, [nodes, props.view]);
  if (!nodes.length) return <Status>{texts.graph.none}</Status>;
  const width = Math.max(...places.map((place) => place.x)) + NODE + 8;
  const height = Math.max(...places.map((place) => place.y)) + NODE + CAPTION + 8;
  const at = new Map(places.map((place) => [place.node.id, place]));
  const markedPatches = new Set(marked?.patches?.patches);
  return (
    <>
      <p class="faint">
        {texts.graph.roots} {texts.graph.hover}
      </p>
      <div class="zoom">
        <button type="button" aria-label="zoom out" onClick={() => setScale(Math.max(0.4, scale / 1.25))}>−</button>
        <button type="button" aria-label="zoom in" onClick={() => setScale(Math.min(2.5, scale * 1.25))}>+</button>
      </div>
      <div class="graph" tabIndex={0} role="group" aria-label={texts.views.graph}>
        <svg viewBox={`0 0 ${width} ${height}`} width={width * scale} height={height * scale}>
          {edges.map((edge) => {
            const [parent, child] = [at.get(edge.parent), at.get(edge.child)];
            if (!parent || !child) return null;
            const live = marked && (edge.parent === marked.id || edge.child === marked.id);
            return (
              <line
                key={`${edge.parent} ${edge.child}`}
                class={live ? "edge live" : "edge"}
                x1={parent.x + NODE / 2}
                y1={parent.y + NODE + CAPTION}
                x2={child.x + NODE / 2}
                y2={child.y}
              />
            );
          })}
          {places.map(({ node, x, y }) => {
            const grid = node.patches?.grid ?? 7;
            const side = NODE / grid;
            const below = edges.some((edge) => edge.parent === node.id);
            const folded = collapsed.has(node.id);
            const label = `${texts.percent(node.score)} ${nameOf(node.top)}, ${texts.graph.keeps(texts.percent(node.relativeScore))}`;
            return (
              <g
                key={node.id}
                transform={`translate(${x} ${y})`}
                class={node.root ? "node root" : "node"}
                tabIndex={0}
                role={below ? "button" : "img"}
                aria-expanded={below ? !folded : undefined}
                aria-label={label}
                onClick={() => below && toggle(node.id)}
                onKeyDown={(event) => {
                  if (!below || ![" ", "Enter"].includes(event.key)) return;
                  event.preventDefault();
                  toggle(node.id);
                }}
                onPointerEnter={() => setMarked(node)}
                onPointerLeave={() => setMarked(undefined)}
                onFocus={() => setMarked(node)}
                onBlur={() => setMarked(undefined)}
              >
                <title>{label}</title>
                <image href={pictures.get(node.id)} width={NODE} height={NODE} />
                {(marked ? (node.patches?.patches ?? []) : [])
                  .map((patch) => (
                    <rect
                      key={patch}
                      class={markedPatches.has(patch) ? "mark" : "differs"}
                      x={(patch % grid) * side}
                      y={Math.floor(patch / grid) * side}
                      width={side}
                      height={side}
                    />
                  ))}
                <rect class="frame" width={NODE} height={NODE} />
                <rect class="confidence" y={NODE + 4} width={NODE * Math.min(1, node.relativeScore)} height={4} />
                <text y={NODE + 24}>
                  {texts.percent(node.score)}
                </text>
                {folded && <text x={NODE} y={NODE + 24} text-anchor="end">{texts.graph.folded}</text>}
              </g>
            );
          })}
        </svg>
      </div>
    </>
  );
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
        places.set(node.id, { node, x, y: 4 + down * (NODE + CAPTION + GAP.down) });
      });
  });
  return [...places.values()];
}
