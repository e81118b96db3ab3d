/** Models: where each is ready, what was done and checked when it was loaded, and its prediction for an image. */

import { useMemo, useState } from "preact/hooks";
import { type Capabilities, type Model, ModelState } from "../gen/sagittal/v1/model_pb";
import { isUnauthenticated, messageOf } from "./api";
import { Picture, Status } from "./components";
import { FileButton, TopClasses } from "./explain";
import { keyOf, readImage, type Shown, useTopClasses } from "./explaining";
import { modelView } from "./image";
import { texts } from "./texts";

export function ModelsView(props: { models: Model[]; onToken: () => void }) {
  return (
    <>
      <h1 class="unseen">{texts.pages.models}</h1>
      <ul class="cards wide">
        {props.models.map((model) => (
          <ModelCard key={keyOf(model)} model={model} onToken={props.onToken} />
        ))}
      </ul>
    </>
  );
}

function ModelCard({ model, onToken }: { model: Model; onToken: () => void }) {
  const ready = model.workers.filter((worker) => worker.state === ModelState.READY).length;
  const { capabilities } = model;
  return (
    <li class="card">
      <h2>
        {model.name} <span class="faint">{model.version}</span>
      </h2>
      <p>
        {ready ? texts.models.ready(ready) : texts.models.notReady} · {texts.models.classes(model.classes)} ·{" "}
        {texts.models.input(model.preprocessing?.inputSize ?? 0)}
      </p>
      {model.workers
        .filter((worker) => worker.message)
        .map((worker) => (
          <Status key={worker.worker} tone="warn">
            {worker.worker}: {worker.message}
          </Status>
        ))}
      <Prediction model={model} onToken={onToken} />
      <h3>{texts.models.methods}</h3>
      <ul class="chips">
        {model.methods.map((method) => (
          <li key={method.name} class={method.unavailable ? "off" : ""} title={method.unavailable || method.summary}>
            {method.name}
          </li>
        ))}
      </ul>
      <Facts
        title={texts.models.workers}
        facts={model.workers.map(({ worker, state, device }) => [
          worker,
          [texts.models.states[state], device].filter(Boolean).join(" · "),
        ])}
      />
      <Facts title={texts.models.capabilities} facts={capabilities ? capabilityFacts(capabilities) : []} />
      <Facts
        title={texts.models.optimisations}
        facts={(capabilities?.optimizations ?? []).map((each) => [`${each.applied ? "✓" : "–"} ${each.name}`, each.detail])}
      />
      <Facts
        title={texts.models.checks}
        facts={model.checks.map((check) => [`${check.passed ? "✓" : "✗"} ${check.name}`, check.detail])}
      />
    </li>
  );
}

/** The model's most probable classes for an image that is chosen here. */
function Prediction({ model, onToken }: { model: Model; onToken: () => void }) {
  const [shown, setShown] = useState<Shown>();
  const [problem, setProblem] = useState("");
  const failed = (error: unknown) => {
    if (isUnauthenticated(error)) onToken();
    setProblem(messageOf(error));
  };
  const top = useTopClasses(shown, keyOf(model), failed);
  const view = useMemo(() => shown && modelView(shown.bitmap, model.preprocessing), [shown]);
  const take = (file: File) => {
    setProblem("");
    setShown(undefined);
    readImage(file).then(setShown, failed);
  };
  return (
    <>
      {problem && <Status tone="bad">{problem}</Status>}
      {shown && view && !problem && (
        <div class="prediction" role="group" aria-label={texts.models.prediction(shown.name)}>
          <Picture canvas={view} label={texts.views.original} />
          <TopClasses top={top} />
        </div>
      )}
      <FileButton label={shown ? texts.drop.replace : texts.models.predict} onFiles={(files) => take(files[0]!)} />
    </>
  );
}

/** A list of names with their details, folded at first; nothing if it is empty. */
function Facts(props: { title: string; facts: string[][] }) {
  if (!props.facts.length) return null;
  return (
    <details>
      <summary>{props.title}</summary>
      <dl>
        {props.facts.map(([name, detail]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{detail}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

/** Returns what was found about a model when it was loaded; a number that is 0 was not measured. */
function capabilityFacts(found: Capabilities): string[][] {
  const { names, yes, no, perSecond, sizes } = texts.models;
  const facts: string[][] = [
    [names.gradients, found.supportsGradients ? yes : no],
    [names.layers, found.supportsLayers ? String(found.spatialLayers.length) : no],
    [names.deterministic, found.deterministic ? yes : no],
  ];
  if (found.batchSize) facts.push([names.batch, String(found.batchSize)]);
  if (found.evaluationsPerSecond) facts.push([names.speed, perSecond(found.evaluationsPerSecond)]);
  if (found.gradientEvaluationsPerSecond) facts.push([names.gradientSpeed, perSecond(found.gradientEvaluationsPerSecond)]);
  if (found.minInputSize) facts.push([names.sizes, sizes(found.minInputSize, found.maxInputSize)]);
  return facts;
}
