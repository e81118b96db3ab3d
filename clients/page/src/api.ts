/** Calls of the service's API, with the retries of this page. */

import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { BatchService } from "../gen/sagittal/v1/batch_service_pb";
import { ConceptService } from "../gen/sagittal/v1/concept_service_pb";
import { ExplanationService, type WatchJobsResponse } from "../gen/sagittal/v1/explanation_service_pb";
import { ModelService } from "../gen/sagittal/v1/model_service_pb";
import type { ExplanationEvent } from "../gen/sagittal/v1/explanation_pb";

const TOKEN = "sagittal-token";

/** First and longest pause before a broken stream is resumed, in milliseconds. */
const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 5000;

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value: string) => sessionStorage.setItem(TOKEN, value),
};

const authorize: Interceptor = (next) => (request) => {
  if (token.get()) request.header.set("Authorization", `Bearer ${token.get()}`);
  return next(request);
};

const transport = createConnectTransport({
  baseUrl: window.location.origin,
  useBinaryFormat: true,
  interceptors: [authorize],
});

export const explanations = createClient(ExplanationService, transport);
export const models = createClient(ModelService, transport);
export const batches = createClient(BatchService, transport);
export const concepts = createClient(ConceptService, transport);

/** Returns whether an error asks for another token. */
export function isUnauthenticated(error: unknown): boolean {
  return ConnectError.from(error).code === Code.Unauthenticated;
}

/** Returns whether an error states that there is no such job, model or concept set. */
export function isNotFound(error: unknown): boolean {
  return ConnectError.from(error).code === Code.NotFound;
}

/** Returns whether the same call may succeed later. A cancelled call counts: a stopping server ends its calls so. */
export function isAway(error: unknown): boolean {
  const codes = [Code.Unavailable, Code.DeadlineExceeded, Code.Unknown, Code.Canceled];
  return codes.includes(ConnectError.from(error).code);
}

/** Makes an idempotent call, and repeats it while the service is unavailable. */
export async function patiently<T>(call: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  for (let pause = FIRST_PAUSE; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    try {
      return await call();
    } catch (error) {
      if (signal?.aborted || !isAway(error)) throw error;
    }
    await wait(pause);
  }
}

/** Returns a unique identifier for a request. */
export function uniqueId(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function wait(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Returns the message of an error, without its code. */
export function messageOf(error: unknown): string {
  return ConnectError.from(error).rawMessage;
}

/** Saves the report of a job as a file: one HTML document that needs no network. */
export async function saveReport(jobId: string): Promise<void> {
  const answer = await request(`/reports/${encodeURIComponent(jobId)}`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `report-${jobId}.html`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Returns the metrics of service and workers as texts, or why one could not be read. */
export async function readMetrics(signal: AbortSignal): Promise<{ text?: string; error?: string }[]> {
  return (await (await request("/metrics.json", signal)).json()).sources;
}

/** Requests what this origin serves besides the API. Throws the service's error. */
async function request(path: string, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  const answer = await fetch(path, { headers, signal });
  if (answer.ok) return answer;
  const code = { 401: Code.Unauthenticated, 404: Code.NotFound }[answer.status] ?? Code.Unknown;
  throw new ConnectError(await answer.text(), code);
}

/** Yields the events of a job to its end. A broken stream is resumed after its last event. */
export async function* watch(
  jobId: string,
  signal: AbortSignal,
  onBreak: (broken: boolean) => void,
): AsyncGenerator<ExplanationEvent> {
  let after = 0n;
  let pause = FIRST_PAUSE;
  while (!signal.aborted) {
    try {
      for await (const { event } of explanations.watchExplanation({ jobId, afterSequence: after }, { signal })) {
        if (!event) continue;
        onBreak(false);
        pause = FIRST_PAUSE;
        after = event.sequence;
        yield event;
        if (isTerminal(event)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!isAway(error)) throw error;
    }
    onBreak(true);
    await wait(pause);
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}

/** Yields changes of the caller's jobs. `listening` comes first, and again after each break: list the jobs then. */
export async function* watchJobs(
  filter: { model: string; method: string },
  signal: AbortSignal,
  onBreak: (broken: boolean) => void,
): AsyncGenerator<WatchJobsResponse> {
  for (let pause = FIRST_PAUSE; !signal.aborted; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    try {
      for await (const change of explanations.watchJobs({ filter }, { signal })) {
        onBreak(false);
        pause = FIRST_PAUSE;
        yield change;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!isAway(error)) throw error;
    }
    onBreak(true);
    await wait(pause);
  }
}

function isTerminal(event: ExplanationEvent): boolean {
  return ["completed", "failed", "cancelled"].includes(event.event.case ?? "");
}
