/** Windows to look through: those of the file, those every reader knows for CT, and the image's own range. */

import type { Frame } from "./api";

export interface Preset {
  id: string;
  label: string;
  center: number;
  width: number;
}

/** Hounsfield units. Source: usual values of radiology departments, as in OHIF and Weasis. */
const CT: readonly Omit<Preset, "label">[] = [
  { id: "lung", center: -600, width: 1500 },
  { id: "mediastinum", center: 40, width: 400 },
  { id: "bone", center: 480, width: 2500 },
  { id: "brain", center: 40, width: 80 },
  { id: "abdomen", center: 60, width: 400 },
];

export function presetsOf(modality: string, frame: Frame | undefined, text: (key: string) => string): Preset[] {
  const own = (frame?.windows ?? []).map(([center, width, label], index) => ({
    id: `file-${index}`,
    label: label || (index === 0 ? text("preset_file") : `${text("preset_file")} ${index + 1}`),
    center,
    width,
  }));
  const known = modality === "CT" ? CT.map((one) => ({ ...one, label: text(`preset_${one.id}`) })) : [];
  return [...own, ...known];
}

/** Return the window between two percentiles: what is far off in a few pixels does not darken the rest. */
export function automaticWindow(values: ArrayLike<number>, slope: number, intercept: number): { center: number; width: number } {
  const step = Math.max(1, Math.floor(values.length / 20_000));
  const some: number[] = [];
  for (let index = 0; index < values.length; index += step) some.push((values[index] ?? 0) * slope + intercept);
  some.sort((a, b) => a - b);
  const low = some[Math.floor(some.length * 0.01)] ?? 0;
  const high = some[Math.floor(some.length * 0.995)] ?? 1;
  return { center: (low + high) / 2, width: Math.max(1, high - low) };
}

/** Return the values at the window's ends. Spec: DICOM PS3.3 C.11.2.1.2 (LINEAR), C.11.2.1.3.2 (LINEAR_EXACT) */
export function windowRange(center: number, width: number, exact = false): { lower: number; upper: number } {
  if (exact) return { lower: center - width / 2, upper: center + width / 2 };
  const lower = center - 0.5 - (width - 1) / 2;
  return { lower, upper: lower + Math.max(width - 1, 1e-6) };
}

export function rangeWindow(lower: number, upper: number, exact = false): { center: number; width: number } {
  if (exact) return { center: (lower + upper) / 2, width: upper - lower };
  return { center: (lower + upper) / 2 + 0.5, width: upper - lower + 1 };
}
