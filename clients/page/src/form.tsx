/** The form for class, model, method and parameters, built from the catalogue that the model's workers publish. */

import type { JsonObject } from "@bufbuild/protobuf";
import type { ClassScore } from "../gen/sagittal/v1/explanation_pb";
import type { MethodDescription, Model, ParameterDescription } from "../gen/sagittal/v1/model_pb";
import { nameOf } from "./explanation";
import { texts } from "./texts";

export interface Asked {
  model: string;
  method: string;
  target?: number;
  parameters: JsonObject;
}

export function AskForm(props: {
  models: Model[];
  top: ClassScore[];
  asked: Asked;
  busy: boolean;
  onAsked: (asked: Asked) => void;
  onExplain: () => void;
  onCancel: () => void;
}) {
  const { models, top, asked, busy } = props;
  const model = models.find((each) => each.name === asked.model);
  const methods = (model?.methods ?? []).filter(isAskable);
  const method = methods.find((each) => each.name === asked.method);
  return (
    <form
      class="ask"
      onSubmit={(event) => {
        event.preventDefault();
        props.onExplain();
      }}
    >
      <label>
        <span>{texts.ask.model}</span>
        <select
          value={asked.model}
          onChange={(event) => props.onAsked({ ...asked, model: event.currentTarget.value, parameters: {}, target: undefined })}
        >
          {models.map((each) => (
            <option key={each.name} value={each.name}>
              {each.name}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span>{texts.ask.target}</span>
        <select
          value={asked.target === undefined ? "" : String(asked.target)}
          onChange={(event) => {
            const value = event.currentTarget.value;
            props.onAsked({ ...asked, target: value === "" ? undefined : Number(value) });
          }}
        >
          <option value="">{texts.ask.targetTop}</option>
          {top.map((each) => (
            <option key={each.index} value={String(each.index)}>
              {nameOf(each)} · {texts.percent(each.score)}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span>{texts.ask.method}</span>
        <select
          value={asked.method}
          onChange={(event) => props.onAsked({ ...asked, method: event.currentTarget.value, parameters: {} })}
        >
          {methods.map((each) => (
            <option key={each.name} value={each.name} disabled={!!each.unavailable} title={each.unavailable || each.summary}>
              {each.name}
            </option>
          ))}
        </select>
      </label>
      {method && <p class="faint">{method.summary}</p>}
      {method?.unavailable && <p class="faint">{texts.ask.unavailable(method.unavailable)}</p>}
      {method && method.parameters.some(isSettable) && (
        <details>
          <summary>{texts.ask.parameters}</summary>
          {method.parameters.filter(isSettable).map((each) => (
            <ParameterField
              key={`${method.name} ${each.name}`}
              parameter={each}
              value={asked.parameters[each.name]}
              onValue={(value) => props.onAsked({ ...asked, parameters: changed(asked.parameters, each.name, value) })}
            />
          ))}
          <button type="button" onClick={() => props.onAsked({ ...asked, parameters: {} })}>
            {texts.ask.reset}
          </button>
        </details>
      )}
      {busy ? (
        <button type="button" onClick={props.onCancel}>
          {texts.ask.cancel}
        </button>
      ) : (
        <button type="submit" class="primary" disabled={!method || !!method.unavailable}>
          {texts.ask.explain}
        </button>
      )}
    </form>
  );
}

/** Returns whether this form supports a method: one that needs neither a caller's heatmap nor a concept set. */
function isAskable(method: MethodDescription): boolean {
  return !method.stateful && !method.parameters.some((each) => each.type === "tensor");
}

function isSettable(parameter: ParameterDescription): boolean {
  return ["int", "float", "bool", "str"].includes(parameter.type);
}

function changed(known: JsonObject, name: string, value: number | string | boolean | undefined): JsonObject {
  const { [name]: _, ...rest } = known;
  return value === undefined ? rest : { ...rest, [name]: value };
}

function ParameterField(props: {
  parameter: ParameterDescription;
  value: unknown;
  onValue: (value: number | string | boolean | undefined) => void;
}) {
  const { parameter, value } = props;
  const kind = parameter.default?.kind;
  const fallback = kind?.case === "nullValue" || !kind?.case ? "" : String(kind.value);
  const label = <span title={parameter.summary}>{parameter.name.replaceAll("_", " ")}</span>;
  if (parameter.type === "bool")
    return (
      <label class="check">
        <input
          type="checkbox"
          checked={value === undefined ? fallback === "true" : Boolean(value)}
          onChange={(event) => props.onValue(event.currentTarget.checked)}
        />
        {label}
      </label>
    );
  if (parameter.choices.length)
    return (
      <label>
        {label}
        <select value={String(value ?? fallback)} onChange={(event) => props.onValue(event.currentTarget.value)}>
          {parameter.choices.map((choice) => (
            <option key={choice}>{choice}</option>
          ))}
        </select>
      </label>
    );
  const isNumber = parameter.type !== "str";
  return (
    <label>
      {label}
      <input
        type={isNumber ? "number" : "text"}
        min={parameter.minimum}
        max={parameter.maximum}
        step={parameter.type === "int" ? 1 : "any"}
        placeholder={fallback}
        value={value === undefined ? "" : String(value)}
        onChange={(event) => {
          const text = event.currentTarget.value;
          props.onValue(text === "" ? undefined : isNumber ? Number(text) : text);
        }}
      />
    </label>
  );
}
