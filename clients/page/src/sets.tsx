/** Minimal sufficient sets: each set alone, with the score without it and its certificate. */

import { useMemo } from "preact/hooks";
import type { Robustness, SufficientSet } from "../gen/sagittal/v1/explanation_pb";
import { nameOf, type Explanation } from "./explanation";
import { covered } from "./image";
import { Picture, Share, Status } from "./components";
import { texts } from "./texts";

export function SetsView(props: {
  found: Explanation;
  view: HTMLCanvasElement;
  onTry: (grid: number, patches: number[]) => void;
}) {
  const sets = [...props.found.sets].sort((a, b) => Number(b.diverse) - Number(a.diverse));
  if (!sets.length) return <Status>{texts.sets.none}</Status>;
  return (
    <ul class="cards">
      {sets.map((set) => (
        <SetCard key={`${set.patches?.patches}`} set={set} view={props.view} onTry={props.onTry} />
      ))}
    </ul>
  );
}

function RobustnessView({ robust }: { robust: Robustness }) {
  const names = (holds: boolean) =>
    robust.alterations
      .filter((each) => each.minimal === holds)
      .map((each) => texts.sets.alterations[each.alteration])
      .join(", ");
  const half = robust.alterations
    .filter((each) => each.sufficient && !each.minimal)
    .map((each) => texts.sets.alterations[each.alteration])
    .join(", ");
  const bound = robust.sufficient;
  return (
    <>
      {names(true) && <p>{texts.sets.holds(names(true))}</p>}
      {names(false) && <p>{texts.sets.fails(names(false))}</p>}
      {half && <p>{texts.sets.halfHolds(half)}</p>}
      {bound !== undefined && bound.draws > 0 && (
        <p>{texts.sets.backgrounds(`${Math.floor(100 * bound.atLeast)} %`, bound.held, bound.draws)}</p>
      )}
    </>
  );
}

function SetCard(props: {
  set: SufficientSet;
  view: HTMLCanvasElement;
  onTry: (grid: number, patches: number[]) => void;
}) {
  const { set, view } = props;
  const { grid = 7, patches = [] } = set.patches ?? {};
  const canvas = useMemo(() => {
    const kept = new Set(patches);
    return covered(view, (row, column) => kept.has(row * grid + column), grid);
  }, [set, view]);
  return (
    <li class="card">
      <Picture canvas={canvas} label={texts.sets.only}>
        <Share value={set.score} tone="kept" />
      </Picture>
      {set.causal && (
        <p>
          {texts.sets.without}: <Share value={set.causal.without} tone="removed" /> → {nameOf(set.causal.topWithout)}
        </p>
      )}
      {set.certificate && (
        <p title={texts.sets.checked(Number(set.certificate.checked))}>{texts.sets.levels[set.certificate.level]}</p>
      )}
      {set.certificate?.robust && <RobustnessView robust={set.certificate.robust} />}
      {!set.diverse && <p class="faint">{texts.sets.shares}</p>}
      <button type="button" onClick={() => props.onTry(grid, patches)}>
        {texts.sets.tryIt}
      </button>
    </li>
  );
}
