import { describe, expect, it } from "vitest";

import { directionLetters, edgeLetters, partner, place } from "../src/geometry";

const AXIAL = [1, 0, 0, 0, 1, 0];
const UNTURNED = { flipHorizontal: false, flipVertical: false, rotation: 0 };

describe("edges", () => {
  it("names an axial image's edges as radiology does: the patient's right is on the left", () => {
    expect(edgeLetters(AXIAL, UNTURNED)).toEqual({ left: "R", right: "L", top: "A", bottom: "P" });
  });
  it("names a sagittal image's edges", () => {
    expect(edgeLetters([0, 1, 0, 0, 0, -1], UNTURNED)).toEqual({ left: "A", right: "P", top: "H", bottom: "F" });
  });
  it("swaps left and right with a flip", () => {
    expect(edgeLetters(AXIAL, { ...UNTURNED, flipHorizontal: true })).toEqual({ left: "L", right: "R", top: "A", bottom: "P" });
  });
  it("turns clockwise with a rotation", () => {
    expect(edgeLetters(AXIAL, { ...UNTURNED, rotation: 90 })).toEqual({ left: "P", right: "A", top: "R", bottom: "L" });
  });
  it("says nothing where the file does not tell", () => {
    expect(edgeLetters(null, UNTURNED)).toBeNull();
  });
  it("puts the stronger of two directions first", () => {
    expect(directionLetters([0.9, 0.4, 0])).toBe("LP");
  });
});

describe("partner", () => {
  const stack = (from: number, step: number, count: number) =>
    Array.from({ length: count }, (_, index) => ({ orientation: AXIAL, position: [0, 0, from + index * step] }));

  it("goes the same way in millimetres, whatever the slices' distance", () => {
    expect(partner(stack(0, 5, 10), stack(100, 2.5, 40), { mine: 2, other: 10 }, 4)).toBe(14);
  });
  it("goes image by image where a file has no place", () => {
    const without = Array.from({ length: 8 }, () => ({ orientation: null, position: null }));
    expect(partner(without, without, { mine: 1, other: 3 }, 3)).toBe(5);
  });
  it("stays within the other stack", () => {
    const without = Array.from({ length: 3 }, () => ({ orientation: null, position: null }));
    expect(partner(without, without, { mine: 0, other: 1 }, 9)).toBe(2);
  });
  it("measures a place along the normal", () => {
    expect(place({ orientation: AXIAL, position: [5, 6, 7] })).toBe(7);
  });
});
