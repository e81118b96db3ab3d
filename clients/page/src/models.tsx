/** Models: their workers, inputs and methods, and the results of their self-checks. */

import { type Model, ModelState } from "../gen/sagittal/v1/model_pb";
import { Status } from "./components";
import { keyOf } from "./explaining";
import { texts } from "./texts";

export function ModelsView(props: { models: Model[] }) {
  return (
    <>
      <h1 class="unseen">{texts.pages.models}</h1>
      <ul class="cards wide">
        {props.models.map((model) => (
          <ModelCard key={keyOf(model)} model={model} />
        ))}
      </ul>
    </>
  );
}

function ModelCard({ model }: { model: Model }) {
  const ready = model.workers.filter((worker) => worker.state === ModelState.READY).length;
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
      <h3>{texts.models.methods}</h3>
      <ul class="chips">
        {model.methods.map((method) => (
          <li key={method.name} class={method.unavailable ? "off" : ""} title={method.unavailable || method.summary}>
            {method.name}
          </li>
        ))}
      </ul>
      {(model.capabilities?.optimizations.length ?? 0) > 0 && (
        <details>
          <summary>{texts.models.optimisations}</summary>
          <dl>
            {model.capabilities!.optimizations.map((each) => (
              <div key={each.name}>
                <dt>
                  {each.applied ? "✓" : "–"} {each.name}
                </dt>
                <dd>{each.detail}</dd>
              </div>
            ))}
          </dl>
        </details>
      )}
      {model.checks.length > 0 && (
        <details>
          <summary>{texts.models.checks}</summary>
          <dl>
            {model.checks.map((check) => (
              <div key={check.name}>
                <dt>
                  {check.passed ? "✓" : "✗"} {check.name}
                </dt>
                <dd>{check.detail}</dd>
              </div>
            ))}
          </dl>
        </details>
      )}
    </li>
  );
}
