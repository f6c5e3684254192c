import { describe, expect, it } from "vitest";

import { fetchOrder } from "../src/order";
import { automaticWindow, presetsOf, rangeWindow, windowRange } from "../src/presets";
import { failureText, readTexts } from "../src/texts";

describe("fetchOrder", () => {
  it("begins with the image looked at, then goes outwards", () => {
    expect(fetchOrder(6, 2)).toEqual([2, 3, 1, 4, 0, 5]);
  });
  it("names every image once", () => {
    expect([...fetchOrder(57, 56)].sort((a, b) => a - b)).toEqual(Array.from({ length: 57 }, (_, index) => index));
  });
});

describe("windows", () => {
  it("follows the standard's linear function: width 1600 at -600 ends at -1400 and 199", () => {
    expect(windowRange(-600, 1600)).toEqual({ lower: -1400, upper: 199 });
  });
  it.each([false, true])("comes back as it went (exact: %s)", (exact) => {
    const { lower, upper } = windowRange(40, 400, exact);
    const back = rangeWindow(lower, upper, exact);
    expect(back.center).toBeCloseTo(40);
    expect(back.width).toBeCloseTo(400);
  });
  it("is not led astray by one bright pixel", () => {
    const values = Float32Array.from({ length: 10_000 }, (_, index) => index % 100);
    values[5000] = 30_000;
    expect(automaticWindow(values, 1, 0).width).toBeLessThan(110);
  });
  it("offers a CT's usual windows after the file's own", () => {
    const frame = { windows: [[50, 350, "MEDIASTINUM"]] } as never;
    expect(presetsOf("CT", frame, (key) => key).map((one) => one.id).slice(0, 2)).toEqual(["file-0", "lung"]);
  });
  it("offers no Hounsfield windows for an MR", () => {
    expect(presetsOf("MR", undefined, (key) => key)).toEqual([]);
  });
});

describe("texts", () => {
  const texts = readTexts(JSON.stringify({ image_of: "Imagen %(number)s de %(count)s", failure_other: "No: %(reason)s" }));
  it("fills placeholders", () => {
    expect(texts("image_of", { number: 3, count: 40 })).toBe("Imagen 3 de 40");
  });
  it("tells the server's own words for a failure without words of ours", () => {
    expect(failureText(texts, { code: "unheard_of", detail: "the palette cannot be read" })).toBe("No: the palette cannot be read");
  });
});
