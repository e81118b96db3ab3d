/** Concept sets: what a model looks for over many images, with examples, and names that people give. */

import { useEffect, useMemo, useState } from "preact/hooks";
import type { Concept, ConceptExample, ConceptSet } from "../gen/sagittal/v1/concept_pb";
import { concepts as service, isNotFound, isUnauthenticated, messageOf } from "./api";
import { Notice, Picture, Status } from "./components";
import { heatmapOf } from "./explanation";
import { overlaidImage } from "./image";
import { texts } from "./texts";

/** Most examples of a concept that are drawn. */
const MOST_EXAMPLES = 12;

/** A change to a concept, as the API takes it. */
interface Change {
  index: number;
  change: { case: "rename"; value: string } | { case: "mergeInto"; value: number } | { case: "mixed"; value: boolean };
}

export function ConceptsView(props: { model: string; name: string; onToken: () => void }) {
  const [problem, setProblem] = useState("");
  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) props.onToken();
    setProblem(isNotFound(error) ? texts.concepts.gone : messageOf(error));
  };
  return (
    <>
      {problem && <Status tone="bad">{problem}</Status>}
      {props.name ? (
        <SetView key={`${props.model} ${props.name}`} model={props.model} name={props.name} onFailed={failed} />
      ) : (
        <SetList onFailed={failed} />
      )}
    </>
  );
}

function SetList(props: { onFailed: (error: unknown) => void }) {
  const [sets, setSets] = useState<ConceptSet[]>();
  useEffect(() => {
    const stop = new AbortController();
    const list = async () => {
      const found: ConceptSet[] = [];
      let pageToken = "";
      do {
        const page = await service.listConceptSets({ pageToken }, { signal: stop.signal });
        found.push(...page.conceptSets);
        pageToken = page.nextPageToken;
      } while (pageToken);
      setSets(found);
    };
    list().catch((error) => !stop.signal.aborted && props.onFailed(error));
    return () => stop.abort();
  }, []);
  if (sets?.length === 0)
    return (
      <Notice title={texts.concepts.none}>
        <p>{texts.concepts.noneRemedy}</p>
        <pre>{texts.concepts.noneCommand}</pre>
      </Notice>
    );
  return (
    <>
      <h1 class="unseen">{texts.pages.concepts}</h1>
      <ul class="cards wide">
        {sets?.map((set) => (
          <li key={`${set.model} ${set.name}`} class="card">
            <h2>
              <a href={`#/concepts/${encodeURIComponent(set.model)}/${encodeURIComponent(set.name)}`}>{set.name}</a>{" "}
              <span class="faint">{set.model}</span>
            </h2>
            <p>{targetsOf(set)}</p>
            <p class="faint">{texts.concepts.size(set.concepts.length, set.images)}</p>
          </li>
        ))}
      </ul>
    </>
  );
}

function SetView(props: { model: string; name: string; onFailed: (error: unknown) => void }) {
  const { model, name, onFailed } = props;
  const [set, setSet] = useState<ConceptSet>();
  const [undo, setUndo] = useState<Change[]>([]);
  useEffect(() => {
    const stop = new AbortController();
    service
      .getConceptSet({ model, name }, { signal: stop.signal })
      .then((answer) => setSet(answer.conceptSet))
      .catch((error) => !stop.signal.aborted && onFailed(error));
    return () => stop.abort();
  }, []);
  if (!set) return null;

  const update = async (change: Change, inverse?: Change) => {
    try {
      const answer = await service.updateConceptSet({ model, name, changes: [change] });
      setSet(answer.conceptSet);
      setUndo((known) => (inverse ? [...known, inverse] : known.slice(0, -1)));
    } catch (error) {
      onFailed(error);
    }
  };
  const ordered = inOrder(set.concepts);
  const most = Math.max(...ordered.map((each) => Math.abs(each.meanContribution)), 1e-9);
  const last = undo[undo.length - 1];
  return (
    <>
      <p>
        <a href="#/concepts">{texts.concepts.all}</a>
      </p>
      <h1>
        {set.name} <span class="faint">{`${set.model}@${set.modelVersion} · ${set.layer}`}</span>
      </h1>
      <p>{targetsOf(set)}</p>
      {set.warnings.map((warning) => (
        <Status key={warning.reason} tone="warn">
          {warning.message}
        </Status>
      ))}
      <Quality set={set} />
      <p class="undo" role="status">
        {last && (
          <>
            {texts.concepts.changed}{" "}
            <button type="button" onClick={() => update(last)}>
              {texts.jobs.undo}
            </button>
          </>
        )}
      </p>
      <ol class="concepts">
        {ordered.map((concept) => (
          <ConceptCard key={concept.index} concept={concept} all={set.concepts} most={most} onChange={update} />
        ))}
      </ol>
    </>
  );
}

function Quality({ set }: { set: ConceptSet }) {
  const { metrics } = set;
  if (!metrics) return null;
  const figures: [string, string | undefined][] = [
    [texts.concepts.faithfulness, metrics.faithfulnessCorrelation.toFixed(3)],
    [texts.concepts.error, metrics.faithfulnessError.toFixed(3)],
    [texts.concepts.orthogonality, metrics.orthogonality.toFixed(3)],
    [texts.concepts.reconstructed, texts.percent(metrics.reconstructedShare)],
    [texts.concepts.stability, metrics.stability?.toFixed(2)],
    [texts.concepts.agreement, metrics.classAgreement === undefined ? undefined : texts.percent(metrics.classAgreement)],
    [texts.concepts.heldOut, String(metrics.heldOut)],
  ];
  return (
    <dl class="tiles">
      {figures.map(([name, value]) => value !== undefined && (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function ConceptCard(props: {
  concept: Concept;
  all: Concept[];
  most: number;
  onChange: (change: Change, inverse: Change) => void;
}) {
  const { concept, all, most, onChange } = props;
  const { index } = concept;
  const into = concept.mergedInto ?? index;
  const share = Math.abs(concept.meanContribution) / most;
  const groups = useMemo(() => groupsOf(concept), [concept.examples, concept.mixed]);
  return (
    <li class={isMerged(concept) ? "card merged" : "card"}>
      <div class="concept-head">
        <label>
          <span>{titleOf(concept, "")}</span>
          <input
            type="text"
            placeholder={texts.concepts.unnamed}
            defaultValue={concept.name}
            key={concept.name}
            onChange={(event) => {
              const value = event.currentTarget.value.trim();
              onChange({ index, change: { case: "rename", value } }, { index, change: { case: "rename", value: concept.name } });
            }}
          />
        </label>
        <label>
          <span>{texts.concepts.merge}</span>
          <select
            value={String(into)}
            onChange={(event) =>
              onChange(
                { index, change: { case: "mergeInto", value: Number(event.currentTarget.value) } },
                { index, change: { case: "mergeInto", value: into } },
              )
            }
          >
            <option value={String(index)}>{texts.concepts.alone}</option>
            {all.filter((each) => each.index !== index).map((each) => (
              <option key={each.index} value={String(each.index)}>
                {titleOf(each, each.name)}
              </option>
            ))}
          </select>
        </label>
        <label class="check">
          <input
            type="checkbox"
            checked={concept.mixed}
            onChange={(event) => {
              const value = event.currentTarget.checked;
              onChange({ index, change: { case: "mixed", value } }, { index, change: { case: "mixed", value: !value } });
            }}
          />
          <span>{texts.concepts.mixed}</span>
        </label>
      </div>
      <p class="contribution">
        <i class={concept.meanContribution < 0 ? "against" : "for"} style={{ "--share": `${(50 * share).toFixed(1)}%` }} />
        <span>
          {texts.concepts.contribution(concept.meanContribution, concept.contributionSpread)}
          <span class="faint"> · {texts.concepts.similar(concept.agreement)}</span>
        </span>
      </p>
      {concept.parts.length > 0 && (
        <p class="faint">{concept.parts.slice(0, 4).map((part) => `${part.name} ${texts.percent(part.share)}`).join(" · ")}</p>
      )}
      {groups.map((examples, group) => (
        <ul key={group} class="examples" aria-label={texts.concepts.examples(titleOf(concept, concept.name))}>
          {examples.map((example) => (
            <Example key={example.index} example={example} />
          ))}
        </ul>
      ))}
    </li>
  );
}

function Example({ example }: { example: ConceptExample }) {
  const [canvas, setCanvas] = useState<HTMLCanvasElement>();
  useEffect(() => {
    let stale = false;
    const source = example.image?.source;
    if (source?.case !== "encoded") return;
    const heatmap = example.heatmap && heatmapOf(example.heatmap);
    createImageBitmap(new Blob([source.value.slice()])).then(
      (bitmap) => !stale && setCanvas(overlaidImage(bitmap, heatmap)),
      () => undefined,
    );
    return () => {
      stale = true;
    };
  }, [example]);
  const label = `${example.name || texts.concepts.image(example.index)} · ${example.value.toFixed(2)}`;
  return <li>{canvas ? <Picture canvas={canvas} label={label} /> : <span class="faint">{label}</span>}</li>;
}

/** Returns concepts by their contribution, those that are merged into another one directly after it. */
function inOrder(all: Concept[]): Concept[] {
  const weight = (concept: Concept | undefined) => Math.abs(concept?.meanContribution ?? 0);
  const host = (concept: Concept) => all.find((each) => each.index === concept.mergedInto) ?? concept;
  return [...all].sort(
    (a, b) =>
      weight(host(b)) - weight(host(a)) ||
      host(a).index - host(b).index ||
      Number(isMerged(a)) - Number(isMerged(b)) ||
      weight(b) - weight(a),
  );
}

function isMerged({ index, mergedInto }: Concept): boolean {
  return mergedInto !== undefined && mergedInto !== index;
}

/** Returns the examples of a concept, those of a mixed one by group. */
function groupsOf(concept: Concept): ConceptExample[][] {
  const shown = concept.examples.slice(0, MOST_EXAMPLES);
  if (!concept.mixed) return shown.length ? [shown] : [];
  const groups = new Map<number, ConceptExample[]>();
  for (const example of shown) groups.set(example.group, [...(groups.get(example.group) ?? []), example]);
  return [...groups.values()];
}

function titleOf(concept: Concept, name: string): string {
  return [`x${concept.index + 1}`, name].filter(Boolean).join(" ");
}

function targetsOf(set: ConceptSet): string {
  const names = set.targets.map(
    ({ target }, index) => set.targetLabels[index] || (target.case ? texts.concepts.classOf(String(target.value)) : ""),
  );
  return texts.concepts.predicts(names.join(", "));
}
