// Explains one image: node explain.mjs IMAGE [ADDRESS [MODEL]]
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [image, address = "localhost:50051", model = "efficientnet-lite0"] = process.argv.slice(2);

const root = fileURLToPath(new URL("../../..", import.meta.url)); // the checkout of Sagittal
const protos = loader.loadSync(
  ["sagittal/v1/explanation_service.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"],
  { includeDirs: [`${root}/protos`, `${root}/third_party/googleapis`], enums: String, longs: Number, defaults: true, oneofs: true },
);
const { ExplanationService } = grpc.loadPackageDefinition(protos).sagittal.v1;

// Decodes the google.rpc.* details of an error: its reason, the field at fault, and the delay before a retry.
function details(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (bytes === undefined) return [];
  const status = protos["google.rpc.Status"].deserialize(bytes);
  return status.details.map((any) => protos[any.type_url.split("/").at(-1)].deserialize(any.value));
}

const client = new ExplanationService(address, grpc.credentials.createInsecure());
const call = client.Explain({ spec: { model, image: { encoded: readFileSync(image) } } });

call.on("data", ({ event }) => {
  if (event.event === "prediction") {
    const { label, index, score } = event.prediction.target;
    console.log(`class ${label || index}, probability ${score.toFixed(3)}`);
  } else if (event.event === "mask" && event.mask.final) {
    const { shape, data } = event.mask.saliency; // float16, little-endian, row by row
    console.log(`mask of shape ${shape.join(" x ")}, ${data.length} bytes`);
  } else if (event.event === "completed") {
    const { insertion, deletion, evaluations } = event.completed;
    console.log(`insertion ${insertion.toFixed(3)}, deletion ${deletion.toFixed(3)}, ${evaluations} evaluations`);
  } else if (event.event === "failed") {
    console.error(`failed: ${event.failed.message}`);
    process.exitCode = 1;
  }
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  for (const detail of details(error)) console.error(JSON.stringify(detail));
  process.exitCode = 1;
});
call.on("close", () => client.close());
