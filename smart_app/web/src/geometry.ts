/** Directions and places in the patient. Spec: DICOM PS3.3 C.7.6.2.1.1 (coordinates increase to L, P, H). */

export type Vector = readonly [number, number, number];

const LETTERS: readonly (readonly [string, string])[] = [
  ["L", "R"],
  ["P", "A"],
  ["H", "F"],
];
const NEGLIGIBLE = 0.25;

/** Return the letters of a direction, the strongest first: `A`, or `AR` where it is oblique. */
export function directionLetters(direction: readonly number[]): string {
  return direction
    .map((value, axis) => ({ size: Math.abs(value), letter: LETTERS[axis]?.[value > 0 ? 0 : 1] ?? "" }))
    .filter((one) => one.size > NEGLIGIBLE)
    .sort((a, b) => b.size - a.size)
    .map((one) => one.letter)
    .join("");
}

export interface Edges {
  top: string;
  right: string;
  bottom: string;
  left: string;
}

/** Return the letters at the edges of an image that is turned clockwise by quarter turns after it was flipped. */
export function edgeLetters(
  orientation: readonly number[] | null,
  view: { flipHorizontal: boolean; flipVertical: boolean; rotation: number },
): Edges | null {
  if (orientation === null || orientation.length !== 6) return null;
  const row = orientation.slice(0, 3);
  const column = orientation.slice(3);
  const opposite = (vector: readonly number[]): number[] => vector.map((value) => -value);
  let right = view.flipHorizontal ? opposite(row) : row;
  let bottom = view.flipVertical ? opposite(column) : column;
  const turns = (((Math.round(view.rotation / 90) % 4) + 4) % 4) as 0 | 1 | 2 | 3;
  for (let turn = 0; turn < turns; turn += 1) [right, bottom] = [opposite(bottom), right];
  return {
    right: directionLetters(right),
    left: directionLetters(opposite(right)),
    bottom: directionLetters(bottom),
    top: directionLetters(opposite(bottom)),
  };
}

export function cross(a: readonly number[], b: readonly number[]): Vector {
  const [a0 = 0, a1 = 0, a2 = 0] = a;
  const [b0 = 0, b1 = 0, b2 = 0] = b;
  return [a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0];
}

export function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0);
}

interface Placed {
  orientation: number[] | null;
  position: number[] | null;
}

/** Return how far along its own normal an image lies, in millimetres; null where the file does not tell. */
export function place(frame: Placed): number | null {
  if (frame.orientation === null || frame.position === null) return null;
  return dot(cross(frame.orientation.slice(0, 3), frame.orientation.slice(3)), frame.position);
}

/**
 * Return which image of the other stack belongs to the one shown. The two were laid side by side at a pair of
 * images; from there the same way is gone in millimetres where both tell their places, else in the same share.
 */
export function partner(
  mine: readonly Placed[],
  others: readonly Placed[],
  link: { mine: number; other: number },
  index: number,
): number {
  const [from, to, start] = [mine[link.mine], mine[index], others[link.other]];
  const [a, b, c] = [from && place(from), to && place(to), start && place(start)];
  const places = others.map(place);
  if (a == null || b == null || c == null || places.some((one) => one === null)) {
    return clamp(link.other + index - link.mine, others.length);
  }
  const wanted = c + (b - a);
  return places.reduce<number>(
    (best, one, at) => (Math.abs((one ?? 0) - wanted) < Math.abs((places[best] ?? 0) - wanted) ? at : best),
    0,
  );
}

export function clamp(index: number, length: number): number {
  return Math.min(Math.max(0, index), Math.max(0, length - 1));
}
