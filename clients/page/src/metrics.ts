/** Metrics in Prometheus's text format, and the figures that the view of the system makes of them. */

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

/** Returns the samples of a text. Lines that are no samples are skipped. */
export function parseMetrics(text: string): Sample[] {
  const found: Sample[] = [];
  for (const line of text.split("\n")) {
    const parts = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (!parts) continue;
    const labels: Record<string, string> = {};
    for (const [, name, value] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
      labels[name!] = value!.replace(/\\(.)/g, (_, character) => (character === "n" ? "\n" : character));
    const value = Number(parts[3]!.replace("+Inf", "Infinity").replace("-Inf", "-Infinity"));
    found.push({ name: parts[1]!, labels, value });
  }
  return found;
}

/** Returns the sum of all samples of a name. */
export function total(samples: Sample[], name: string, labels: Record<string, string> = {}): number {
  return matching(samples, name, labels).reduce((sum, sample) => sum + sample.value, 0);
}

/** Returns the samples of what every source reports as a whole, such as the queue: of equal ones, the largest. */
export function distinct(samples: Sample[], name: string): Sample[] {
  const largest = new Map<string, Sample>();
  for (const sample of matching(samples, name)) {
    const key = JSON.stringify(sample.labels);
    if (sample.value >= (largest.get(key)?.value ?? -Infinity)) largest.set(key, sample);
  }
  return [...largest.values()];
}

/** Returns a quantile of a histogram by interpolation in its bucket, or nothing if it is empty. */
export function quantile(samples: Sample[], name: string, share: number): number | undefined {
  const counts = new Map<number, number>();
  for (const { labels, value } of matching(samples, `${name}_bucket`)) {
    const edge = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(edge, (counts.get(edge) ?? 0) + value);
  }
  const edges = [...counts].sort(([a], [b]) => a - b);
  const all = edges[edges.length - 1]?.[1] ?? 0;
  if (!all) return undefined;
  let [low, below] = [0, 0];
  for (const [edge, count] of edges) {
    if (count >= share * all) return edge === Infinity ? low : low + ((edge - low) * (share * all - below)) / (count - below || 1);
    [low, below] = [edge, count];
  }
  return low;
}

/** Returns the mean of a histogram, or nothing if it is empty. */
export function mean(samples: Sample[], name: string, labels: Record<string, string> = {}): number | undefined {
  const count = total(samples, `${name}_count`, labels);
  return count ? total(samples, `${name}_sum`, labels) / count : undefined;
}

function matching(samples: Sample[], name: string, labels: Record<string, string> = {}): Sample[] {
  const wanted = Object.entries(labels);
  return samples.filter((sample) => sample.name === name && wanted.every(([key, value]) => sample.labels[key] === value));
}
