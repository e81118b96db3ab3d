/**
 * An example for other pages, in TypeScript: explains an image, and shows what arrives.
 *
 * It needs `@connectrpc/connect`, `@connectrpc/connect-web`, and the modules that `npm run generate` makes of the protos.
 * Name the page's origin in SAGITTAL_PAGE_ORIGINS. docs/page.md describes the rest.
 */

import { ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { ExplanationService } from "./gen/sagittal/v1/explanation_service_pb";

const transport = createConnectTransport({ baseUrl: "http://127.0.0.1:8080", useBinaryFormat: true });
const explanations = createClient(ExplanationService, transport);

/** Explains an image; aborting the signal cancels the job. */
export async function explain(file: File, model: string, tell: (text: string) => void, signal?: AbortSignal) {
  const image = { source: { case: "encoded" as const, value: new Uint8Array(await file.arrayBuffer()) } };
  try {
    for await (const { event } of explanations.explain({ spec: { model, image } }, { signal })) {
      const fact = event?.event;
      if (fact?.case === "prediction") tell(`${fact.value.target?.label}: ${fact.value.target?.score}`);
      if (fact?.case === "completed") tell(`completed: insertion ${fact.value.insertion}`);
      if (fact?.case === "failed") tell(`failed: ${fact.value.message}`);
    }
  } catch (error) {
    tell(ConnectError.from(error).rawMessage);
  }
}
