/** The form for class, model, method and parameters, built from the catalogue that the model's workers publish. */

import type { JsonObject } from "@bufbuild/protobuf";
import { useId, useState } from "preact/hooks";
import type { ClassScore } from "../gen/sagittal/v1/explanation_pb";
import type { MethodDescription, Model, ParameterDescription } from "../gen/sagittal/v1/model_pb";
import { type Asked, keyOf, MORE_SEEDS } from "./explaining";
import { nameOf } from "./explanation";
import { texts } from "./texts";

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
  const model = models.find((each) => keyOf(each) === asked.model);
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
            <option key={keyOf(each)} value={keyOf(each)}>
              {models.some((other) => other !== each && other.name === each.name) ? keyOf(each) : each.name}
            </option>
          ))}
        </select>
      </label>
      <ClassField
        labels={model?.labels ?? []}
        top={top}
        target={asked.target}
        onTarget={(target) => props.onAsked({ ...asked, target })}
      />
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
      <label class="check">
        <input
          type="checkbox"
          checked={asked.intervals ?? false}
          onChange={(event) => props.onAsked({ ...asked, intervals: event.currentTarget.checked })}
        />
        <span>{texts.ask.intervals(MORE_SEEDS)}</span>
      </label>
      <button
        type={busy ? "button" : "submit"}
        class={busy ? "" : "primary"}
        disabled={!busy && (!method || !!method.unavailable)}
        onClick={busy ? props.onCancel : undefined}
      >
        {busy ? texts.ask.cancel : texts.ask.explain}
      </button>
    </form>
  );
}

const OTHER = "other";

/** Selects the class to explain: the top class, another probable one, or any class by its name or index. */
function ClassField(props: {
  labels: string[];
  top: ClassScore[];
  target: number | string | undefined;
  onTarget: (target: number | string | undefined) => void;
}) {
  const { top, target } = props;
  const isListed = target === undefined || top.some((each) => each.index === target);
  const [other, setOther] = useState(false);
  return (
    <>
      <label>
        <span>{texts.ask.target}</span>
        <select
          value={other || !isListed ? OTHER : target === undefined ? "" : String(target)}
          onChange={(event) => {
            const value = event.currentTarget.value;
            setOther(value === OTHER);
            if (value !== OTHER) props.onTarget(value === "" ? undefined : Number(value));
          }}
        >
          <option value="">{texts.ask.targetTop}</option>
          {top.map((each) => (
            <option key={each.index} value={String(each.index)}>
              {nameOf(each)} · {texts.percent(each.score)}
            </option>
          ))}
          <option value={OTHER}>{texts.ask.targetOther}</option>
        </select>
      </label>
      {(other || !isListed) && (
        <ClassInput
          label={texts.ask.otherClass}
          labels={props.labels}
          value={isListed ? "" : String(target)}
          onValue={props.onTarget}
        />
      )}
    </>
  );
}

/** A field for any class of the model, by name or index. */
export function ClassInput(props: {
  label: string;
  labels: string[];
  value: string;
  onValue: (target: number | string | undefined) => void;
}) {
  const list = useId();
  const [text, setText] = useState(props.value);
  return (
    <label>
      <span>{props.label}</span>
      <input
        type="text"
        list={list}
        value={text}
        onInput={(event) => {
          const typed = event.currentTarget.value;
          setText(typed);
          const name = typed.trim();
          props.onValue(name === "" ? undefined : /^\d+$/.test(name) ? Number(name) : name);
        }}
      />
      <datalist id={list}>
        {props.labels.map((label, index) => (
          <option key={index} value={label} />
        ))}
      </datalist>
    </label>
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
