/** Components that several views share: a drawing with a caption, a probability, a status message. */

import { useEffect, useRef } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { texts } from "./texts";

/** Shows a canvas, with a caption under it. */
export function Picture(props: { canvas: HTMLCanvasElement; label: string; children?: ComponentChildren }) {
  const place = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const shown = place.current!;
    shown.width = props.canvas.width;
    shown.height = props.canvas.height;
    shown.getContext("2d")!.drawImage(props.canvas, 0, 0);
  }, [props.canvas]);
  return (
    <figure class="picture">
      <canvas ref={place} role="img" aria-label={props.label} />
      <figcaption>
        <span>{props.label}</span>
        {props.children}
      </figcaption>
    </figure>
  );
}

/** A probability as a number and a bar. */
export function Share(props: { value: number | undefined; tone?: "kept" | "removed" }) {
  if (props.value === undefined) return null;
  return (
    <strong class={`share ${props.tone ?? ""}`}>
      <meter min={0} max={1} value={props.value} aria-hidden="true" />
      {texts.percent(props.value)}
    </strong>
  );
}

/** A state in which a view has nothing else to show: what is the case, and what to do. */
export function Notice(props: { title: string; tone?: "bad"; children?: ComponentChildren }) {
  return (
    <div class={`notice ${props.tone ?? ""}`} role={props.tone === "bad" ? "alert" : "status"}>
      <h1>{props.title}</h1>
      {props.children}
    </div>
  );
}

/** A message that screen readers announce when it changes. */
export function Status(props: { tone?: "bad" | "warn"; children: ComponentChildren }) {
  return (
    <p class={`status ${props.tone ?? ""}`} role={props.tone === "bad" ? "alert" : "status"}>
      {props.children}
    </p>
  );
}
