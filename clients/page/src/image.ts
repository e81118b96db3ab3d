/** Fits images to the model's input, and paints masks and patches over them. */

import type { Preprocessing } from "../gen/sagittal/v1/model_pb";
import type { Heatmap } from "./explanation";

/** Side of a drawing, in pixels. */
export const SIDE = 448;

/** Standard deviation of the blur that stands for the baseline, as a share of the side: 50 of 224 pixels. */
const BLUR = 50 / 224;

/** Returns an image fitted to the model's square input: resized, then cropped, squashed or padded. */
export function modelView(image: ImageBitmap, preprocessing: Preprocessing | undefined): HTMLCanvasElement {
  const [canvas, paint] = square();
  const input = preprocessing?.inputSize || 224;
  if (preprocessing?.fit === "squash") {
    paint.drawImage(image, 0, 0, SIDE, SIDE);
    return canvas;
  }
  if (preprocessing?.fit === "pad") {
    const scale = SIDE / Math.max(image.width, image.height);
    const [width, height] = [image.width * scale, image.height * scale];
    paint.fillStyle = "black";
    paint.fillRect(0, 0, SIDE, SIDE);
    paint.drawImage(image, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
    return canvas;
  }
  // The shorter side becomes `resize` pixels, of which the middle `input` are kept.
  const kept = (Math.min(image.width, image.height) * input) / Math.max(preprocessing?.resize || input, input);
  paint.drawImage(image, (image.width - kept) / 2, (image.height - kept) / 2, kept, kept, 0, 0, SIDE, SIDE);
  return canvas;
}

/** Returns a view with saliency painted over it; where saliency is 0, the view is unchanged. */
export function overlaid(view: HTMLCanvasElement, heatmap: Heatmap, opacity: number): HTMLCanvasElement {
  const [canvas, paint] = square();
  paint.drawImage(view, 0, 0);
  paint.globalAlpha = opacity;
  paint.drawImage(coloured(heatmap), 0, 0, SIDE, SIDE);
  return canvas;
}

/** Returns an image of any shape as a square drawing, with saliency painted over it if there is any. */
export function overlaidImage(image: ImageBitmap, heatmap: Heatmap | undefined): HTMLCanvasElement {
  const view = modelView(image, undefined);
  return heatmap ? overlaid(view, heatmap, 0.7) : view;
}

/** Returns a view in which the cells are blurred for which `keep` is false; the blur stands for the baseline. */
export function covered(view: HTMLCanvasElement, keep: (row: number, column: number) => boolean, rows: number) {
  const [canvas, paint] = square();
  paint.drawImage(blurred(view), 0, 0);
  paint.beginPath();
  const side = SIDE / rows;
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < rows; column++)
      if (keep(row, column)) paint.rect(column * side, row * side, side, side);
  paint.clip();
  paint.drawImage(view, 0, 0);
  return canvas;
}

const blurs = new WeakMap<HTMLCanvasElement, HTMLCanvasElement>();

function blurred(view: HTMLCanvasElement): HTMLCanvasElement {
  const known = blurs.get(view);
  if (known) return known;
  const [canvas, paint] = square();
  const edge = 2 * BLUR * SIDE;
  paint.filter = `blur(${BLUR * SIDE}px)`;
  // The edge is repeated, so that the blur does not fade to transparent there.
  paint.drawImage(view, -edge, -edge, SIDE + 2 * edge, SIDE + 2 * edge);
  paint.drawImage(view, 0, 0);
  blurs.set(view, canvas);
  return canvas;
}

/** Returns the cells of a heatmap that make up its most salient share. */
export function mostSalient(heatmap: Heatmap, share: number): Set<number> {
  const order = [...heatmap.values.keys()].sort((a, b) => heatmap.values[b]! - heatmap.values[a]!);
  return new Set(order.slice(0, Math.round(share * order.length)));
}

function coloured(heatmap: Heatmap): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = heatmap.columns;
  canvas.height = heatmap.rows;
  const pixels = new ImageData(heatmap.columns, heatmap.rows);
  heatmap.values.forEach((value, cell) => {
    const strength = Math.min(1, Math.abs(value));
    const [red, green, blue] = value < 0 ? [0.13, 0.4, 0.67] : inferno(strength);
    pixels.data.set([255 * red!, 255 * green!, 255 * blue!, 255 * strength ** 0.7], 4 * cell);
  });
  canvas.getContext("2d")!.putImageData(pixels, 0, 0);
  return canvas;
}

const INFERNO = [
  [0.00021894, 0.001651, -0.0194809],
  [0.1065134, 0.5639564, 3.9327124],
  [11.6024931, -3.972854, -15.9423941],
  [-41.7039961, 17.4363989, 44.3541452],
  [77.1629357, -33.4023589, -81.8073093],
  [-71.3194282, 32.6260643, 73.2095199],
  [25.1311262, -12.242669, -23.070325],
];

/** Returns a colour of the map "inferno" (dark to bright, equal steps for all eyes), by the polynomial of M. Zucker. */
export function inferno(t: number): number[] {
  return [0, 1, 2].map((channel) => {
    const value = INFERNO.reduceRight((sum, term) => sum * t + term[channel]!, 0);
    return Math.min(1, Math.max(0, value));
  });
}

function square(): [HTMLCanvasElement, CanvasRenderingContext2D] {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const paint = canvas.getContext("2d")!;
  paint.imageSmoothingQuality = "high";
  return [canvas, paint];
}

/** Colours of what only the first and only the second of two explanations has; all eyes can tell them apart. */
const FIRST = [230, 97, 0] as const;
const SECOND = [93, 58, 155] as const;

/** Returns a view on which colours mark where two heatmaps differ: the more, the stronger. */
export function parted(view: HTMLCanvasElement, first: Heatmap, second: Heatmap): HTMLCanvasElement {
  const rows = Math.max(first.rows, second.rows);
  const valueAt = (heatmap: Heatmap, row: number, column: number) =>
    heatmap.values[Math.floor((row * heatmap.rows) / rows) * heatmap.columns + Math.floor((column * heatmap.columns) / rows)] ?? 0;
  const cells = document.createElement("canvas");
  cells.width = cells.height = rows;
  const pixels = new ImageData(rows, rows);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < rows; column++) {
      const difference = valueAt(first, row, column) - valueAt(second, row, column);
      const strength = Math.min(1, Math.abs(difference));
      pixels.data.set([...(difference > 0 ? FIRST : SECOND), 230 * strength], 4 * (row * rows + column));
    }
  cells.getContext("2d")!.putImageData(pixels, 0, 0);
  const [canvas, paint] = faded(view);
  paint.drawImage(cells, 0, 0, SIDE, SIDE);
  return canvas;
}

/** Returns a view on which colours mark patches of two sets. */
export function tinted(view: HTMLCanvasElement, first: ReadonlySet<number>, second: ReadonlySet<number>, grid: number) {
  const [canvas, paint] = faded(view);
  const side = SIDE / grid;
  for (const [patches, colour] of [[first, FIRST], [second, SECOND]] as const)
    for (const patch of patches) {
      paint.fillStyle = `rgb(${colour.join(" ")} / 0.55)`;
      paint.fillRect((patch % grid) * side, Math.floor(patch / grid) * side, side, side);
    }
  return canvas;
}

/** Returns a view in grey, on which colours are told apart easily. */
function faded(view: HTMLCanvasElement): [HTMLCanvasElement, CanvasRenderingContext2D] {
  const [canvas, paint] = square();
  paint.filter = "grayscale(1)";
  paint.drawImage(view, 0, 0);
  paint.filter = "none";
  return [canvas, paint];
}

/** Returns a placeholder for an image that this page does not have, because the job was opened by its link. */
export function unseenView(): HTMLCanvasElement {
  const [canvas, paint] = square();
  // A checkerboard, which a blur turns grey, so that hidden parts differ from shown ones.
  const check = SIDE / 28;
  for (let row = 0; row < 28; row++)
    for (let column = 0; column < 28; column++) {
      paint.fillStyle = (row + column) % 2 ? "#b9bec4" : "#e4e6e9";
      paint.fillRect(column * check, row * check, check, check);
    }
  return canvas;
}
