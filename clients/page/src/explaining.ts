/** One image, what is asked about it, and its explanation as it forms: the state that views of explanations share. */

import type { JsonObject } from "@bufbuild/protobuf";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { ClassScore } from "../gen/sagittal/v1/explanation_pb";
import { JobImage } from "../gen/sagittal/v1/explanation_service_pb";
import type { Model } from "../gen/sagittal/v1/model_pb";
import { explanations, isNotFound, patiently, models as modelService, uniqueId, watch } from "./api";
import { nothing, withEvent, type Explanation } from "./explanation";
import { modelView, unseenView } from "./image";
import { texts } from "./texts";

/** Largest file, in bytes. */
const MOST_BYTES = 32 * 1024 * 1024;
const MIB = 1024 * 1024;
const DEFAULT_METHOD = "igos++";

/** Names of a performance mark and of the measure from it until the first event of the job is drawn. */
const SUBMITTED = "submitted";
const FIRST_EVENT = "first-event-drawn";

/** An image to explain. */
export interface Shown {
  bytes: Uint8Array;
  bitmap: ImageBitmap;
  name: string;
}

/** Number of further runs with other seeds, if intervals are asked for. */
export const MORE_SEEDS = 4;

/** What is asked: a model as "name@version", a method with parameters, and a class by index or label if not the top class. */
export interface Asked {
  model: string;
  method: string;
  target?: number | string;
  parameters: JsonObject;
  /** Whether to run with other seeds, too, for the intervals of the figures. */
  intervals?: boolean;
}

export interface Explaining {
  shown?: Shown;
  asked: Asked;
  /** The most probable classes: nothing while the model is asked, and none if it refused. */
  top?: ClassScore[];
  jobId: string;
  found?: Explanation;
  view: HTMLCanvasElement;
  /** Whether the stream of events is interrupted. */
  broken: boolean;
  /** Whether the job no longer exists. */
  gone: boolean;
  /** Whether the job's image is no longer kept. */
  imageGone: boolean;
  busy: boolean;
  setAsked: (asked: Asked) => void;
  take: (shown: Shown) => void;
  /** Submits a job, of the given question and image or of those that are shown; returns its id, or nothing if it was refused. */
  explain: (asked?: Asked, image?: Shown) => Promise<string>;
  cancel: () => void;
}

/** Returns the name of a model with its version, which identifies it in forms. */
export function keyOf(model: Model): string {
  return `${model.name}@${model.version}`;
}

/** Returns the fields of a request about a model. */
export function modelFields(key: string): { model: string; modelVersion: string } {
  const at = key.lastIndexOf("@");
  return at < 0 ? { model: key, modelVersion: "" } : { model: key.slice(0, at), modelVersion: key.slice(at + 1) };
}

/** Returns an image from a file. Throws an error that names the remedy. */
export async function readImage(file: File): Promise<Shown> {
  if (file.size > MOST_BYTES) throw new Error(texts.drop.tooLarge((file.size / MIB).toFixed(1)));
  try {
    return { bytes: new Uint8Array(await file.arrayBuffer()), bitmap: await createImageBitmap(file), name: file.name };
  } catch {
    const kind = /\.(heic|heif)$/i.test(file.name) ? "heic" : /svg/i.test(file.type) ? "svg" : "other";
    throw new Error(`${texts.drop.notRead(file.name)} ${texts.drop.remedies[kind]}`);
  }
}

/** Returns the state of one explanation: of a stored job if `given` names one, otherwise of an image to come. */
export function useExplaining(models: Model[], given: string, onFailed: (error: unknown) => void): Explaining {
  const [shown, setShown] = useState<Shown>();
  const [asked, setAsked] = useState<Asked>(() => firstQuestion(models));
  const [jobId, setJobId] = useState(given);
  const [imageGone, setImageGone] = useState(false);
  const [found, setFound] = useState<Explanation>();
  const [broken, setBroken] = useState(false);
  const [gone, setGone] = useState(false);
  // A job that is being submitted has no identifier yet: it is cancelled as soon as it has one.
  const submission = useRef({ open: false, unwanted: false });
  const top = useTopClasses(shown, asked.model, onFailed);
  const how = models.find((each) => keyOf(each) === asked.model)?.preprocessing;
  // The list of models is read again and again; an equal preprocessing must not draw everything anew.
  const view = useMemo(
    () => (shown ? modelView(shown.bitmap, how) : unseenView()),
    [shown, how?.fit, how?.inputSize, how?.resize],
  );

  useEffect(() => {
    if (!jobId) return;
    const stop = new AbortController();
    follow(jobId, stop.signal, setFound, setBroken).catch((error) => {
      if (isNotFound(error)) setGone(true);
      else onFailed(error);
    });
    return () => stop.abort();
  }, [jobId]);

  useEffect(() => {
    if (!given) return;
    setJobId(given);
    imageOf(given).then(
      (sent) => sent && setShown(sent),
      (error) => setImageGone(!isNotFound(error)),
    );
    questionOf(given, models).then((known) => known && setAsked(known), () => undefined);
  }, [given]);

  const cancelJob = (id: string) => void patiently(() => explanations.cancelExplanation({ jobId: id })).catch(onFailed);

  return {
    shown,
    asked,
    top,
    jobId,
    found,
    view,
    broken,
    gone,
    imageGone,
    busy: found !== undefined && ["queued", "running"].includes(found.state),
    setAsked,
    take: (taken) => {
      setShown(taken);
      setFound(undefined);
      setGone(false);
      setImageGone(false);
      setJobId("");
      setAsked((known) => ({ ...known, target: undefined }));
    },
    explain: async (changed, given) => {
      const [question, image] = [changed ?? asked, given ?? shown];
      if (!image) return "";
      setAsked(question);
      setFound(nothing());
      performance.mark(SUBMITTED);
      submission.current = { open: true, unwanted: false };
      try {
        const id = await submit(question, image);
        setJobId(id);
        if (submission.current.unwanted) cancelJob(id);
        return id;
      } catch (error) {
        setFound(undefined);
        onFailed(error);
        return "";
      } finally {
        submission.current.open = false;
      }
    },
    cancel: () => {
      if (submission.current.open) submission.current.unwanted = true;
      else cancelJob(jobId);
    },
  };
}

/** Returns the most probable classes of an image, which change with the model; see `Explaining.top`. */
export function useTopClasses(
  shown: Shown | undefined,
  model: string,
  onFailed: (error: unknown) => void,
): ClassScore[] | undefined {
  const [top, setTop] = useState<ClassScore[]>();
  useEffect(() => {
    setTop(undefined);
    if (!shown || !model) return;
    const stop = new AbortController();
    const image = { source: { case: "encoded" as const, value: shown.bytes } };
    patiently(() => modelService.predict({ ...modelFields(model), image, top: 10 }, stop), stop.signal)
      .then((answer) => setTop(answer.top))
      .catch((error) => {
        if (stop.signal.aborted) return;
        setTop([]);
        onFailed(error);
      });
    return () => stop.abort();
  }, [shown, model]);
  return top;
}

async function follow(
  jobId: string,
  signal: AbortSignal,
  onFound: (update: (known: Explanation | undefined) => Explanation) => void,
  onBreak: (broken: boolean) => void,
) {
  let first = true;
  for await (const event of watch(jobId, signal, onBreak)) {
    onFound((known) => withEvent(known ?? nothing(), event));
    if (first) measureDrawn();
    first = false;
  }
}

/** Measures the time since the job was submitted here, once the browser has painted. */
function measureDrawn() {
  if (!performance.getEntriesByName(SUBMITTED).length) return;
  requestAnimationFrame(() =>
    setTimeout(() => {
      performance.measure(FIRST_EVENT, SUBMITTED);
      performance.clearMarks(SUBMITTED);
    }),
  );
}

async function submit(asked: Asked, shown: Shown): Promise<string> {
  const { target } = asked;
  const request = {
    spec: {
      // Equal request ids give the same job, so the request can be repeated after a lost answer.
      requestId: uniqueId(),
      ...modelFields(asked.model),
      image: { source: { case: "encoded" as const, value: shown.bytes } },
      target:
        target === undefined
          ? undefined
          : typeof target === "number"
            ? { target: { case: "index" as const, value: target } }
            : { target: { case: "label" as const, value: target } },
      method: { method: { case: "custom" as const, value: { name: asked.method, parameters: asked.parameters } } },
      metrics: asked.intervals ? { stability: MORE_SEEDS } : undefined,
      partialMasks: true,
    },
  };
  const { explanation: job } = await patiently(() => explanations.submitExplanation(request));
  return job?.jobId ?? "";
}

/** Returns the original image of a job, which the service stores for a limited time. */
async function imageOf(jobId: string): Promise<Shown | undefined> {
  const { image } = await explanations.getExplanationImage({ jobId, image: JobImage.ORIGINAL });
  if (image?.source.case !== "encoded") return undefined;
  const bytes = image.source.value;
  return { bytes, bitmap: await createImageBitmap(new Blob([bytes.slice()])), name: jobId };
}

/** Returns what a job was asked, so that it can be asked again with a change. */
async function questionOf(jobId: string, models: Model[]): Promise<Asked | undefined> {
  const [{ explanation: job }, { spec }] = await Promise.all([
    explanations.getExplanation({ jobId, pageSize: 1 }),
    explanations.getExplanationSpec({ jobId }),
  ]);
  const model = models.find(
    (each) => each.name === job?.model && (job.modelVersion ? each.version === job.modelVersion : each.latest),
  );
  if (!job || !model) return undefined;
  const given = spec?.method?.method;
  const target = spec?.target?.target;
  return {
    model: keyOf(model),
    method: job.method || DEFAULT_METHOD,
    target: target?.case ? target.value : undefined,
    intervals: Boolean(spec?.metrics?.stability),
    parameters: given?.case === "custom" ? (given.value.parameters ?? {}) : {},
  };
}

function firstQuestion(models: Model[]): Asked {
  const model = models.find((each) => each.latest) ?? models[0];
  return { model: model ? keyOf(model) : "", method: DEFAULT_METHOD, parameters: {} };
}
