/** Cornerstone3D, told where our images come from: the server decodes, here the values only find their place. */

import {
  cache,
  Enums,
  imageLoader,
  init,
  metaData,
  RenderingEngine,
  setUseCPURendering,
  utilities,
  type Types,
} from "@cornerstonejs/core";

import { type Frame, type Pixels, type Series } from "./api";
import { automaticWindow } from "./presets";
import { imageAddress, take } from "./starting";

const SCHEME = "rayhook";
const CACHE_BYTES = 768 * 2 ** 20;
const BYTE = 256;

interface Known {
  series: Series;
  frame: Frame;
  url: string;
  window: { center: number; width: number } | null;
}

/** What is left to be done to a kept value so that it has a meaning, and the image's unit. */
export interface Scale {
  slope: number;
  intercept: number;
  unit: string;
}

type Values = Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | Float32Array;

const ARRAYS = {
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
} as const;

const known = new Map<string, Known>();
const scales = new Map<string, Scale>();
const lossy = new Set<string>();
let engine: RenderingEngine | null = null;
let cpu = false;

/** Begin once. `forced` asks for rendering without WebGL, which is also what happens where there is none. */
export function start(forced: boolean): RenderingEngine {
  if (engine !== null) return engine;
  cpu = forced || !hasHardwareWebGL();
  init();
  setUseCPURendering(cpu);
  cache.setMaxCacheSize(CACHE_BYTES);
  imageLoader.registerImageLoader(SCHEME, load as unknown as Types.ImageLoaderFn);
  metaData.addProvider(provide, 1000);
  engine = new RenderingEngine("rayhook-viewer");
  return engine;
}

export function usesCPU(): boolean {
  return cpu;
}

/** WebGL in software draws more slowly than the CPU path, and on virtual desktops it is what there is. */
function hasHardwareWebGL(): boolean {
  const context = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (context === null) return false;
  const info = context.getExtension("WEBGL_debug_renderer_info");
  const name = info ? String(context.getParameter(info.UNMASKED_RENDERER_WEBGL)) : "";
  context.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|software|basic render/i.test(name);
}

/** Make the images of a series known, and return their ids in order. */
export function register(study: string, series: Series): string[] {
  return series.frames.map((frame) => {
    const path = imageAddress(study, series, frame);
    const id = `${SCHEME}:${path}`;
    if (!known.has(id)) {
      const [first] = frame.windows;
      known.set(id, { series, frame, url: path, window: first ? { center: first[0], width: first[1] } : null });
    }
    return id;
  });
}

export function scaleOf(imageId: string): Scale {
  return scales.get(imageId) ?? { slope: 1, intercept: 0, unit: "" };
}

export function frameOf(imageId: string): Frame | undefined {
  return known.get(imageId)?.frame;
}

export function isLossy(imageId: string): boolean {
  return lossy.has(imageId) || (known.get(imageId)?.frame.lossy ?? false);
}

/** Fetch an image unless it is there. Rejects with Failure. */
export async function fetchImage(imageId: string): Promise<void> {
  await imageLoader.loadAndCacheImage(imageId);
}

export function isFetched(imageId: string): boolean {
  return cache.isLoaded(imageId);
}

function load(imageId: string): { promise: Promise<Types.IImage> } {
  const image = known.get(imageId);
  if (image === undefined) throw new Error("an image that nobody registered");
  return { promise: take(image.url).then((pixels) => build(imageId, image, pixels)) };
}

function build(imageId: string, image: Known, pixels: Pixels): Types.IImage {
  const { header } = pixels;
  const { frame } = image;
  if (header.rows !== frame.rows || header.columns !== frame.columns) {
    throw new Error("an image of another size than its description");
  }
  if (header.lossy) lossy.add(imageId);
  const stored: Values = new ARRAYS[header.dtype](pixels.buffer);
  const { values, slope, intercept } = header.samples === 1 ? scaled(stored, header) : { values: stored, slope: 1, intercept: 0 };
  scales.set(imageId, { slope, intercept, unit: frame.unit });
  const { low, high } = header.samples === 1 ? extent(values) : { low: 0, high: BYTE - 1 };
  const window = header.samples === 1 ? windowOf(image, values, slope, intercept) : { center: BYTE / 2, width: BYTE };
  const [rowSpacing, columnSpacing] = frame.spacing ?? [1, 1];
  const color = header.samples === 3;
  let canvas: HTMLCanvasElement | undefined;
  return {
    imageId,
    minPixelValue: low,
    maxPixelValue: high,
    slope,
    intercept,
    isPreScaled: slope === 1 && intercept === 0,
    preScale: { enabled: true, scaled: true, scalingParameters: { rescaleSlope: 1, rescaleIntercept: 0, modality: image.series.modality } },
    windowCenter: window.center,
    windowWidth: window.width,
    voiLUTFunction: frame.voi_function as Enums.VOILUTFunctionType,
    getPixelData: () => values as Types.PixelDataTypedArray,
    getCanvas: () => (canvas ??= canvasOf(values, frame, color)),
    rows: frame.rows,
    columns: frame.columns,
    height: frame.rows,
    width: frame.columns,
    color,
    rgba: false,
    numberOfComponents: header.samples,
    columnPixelSpacing: columnSpacing,
    rowPixelSpacing: rowSpacing,
    invert: frame.photometric === "MONOCHROME1",
    photometricInterpretation: color ? "RGB" : frame.photometric,
    sizeInBytes: values.byteLength,
    dataType: values.constructor.name as Types.PixelDataTypedArrayString,
    voxelManager: utilities.VoxelManager.createImageVoxelManager({
      width: frame.columns,
      height: frame.rows,
      scalarData: values as Types.PixelDataTypedArray,
      numberOfComponents: header.samples,
    }),
  } as unknown as Types.IImage;
}

/** Colour at its own levels is drawn from a canvas; grey levels always go through a window. */
function canvasOf(values: Values, frame: Frame, color: boolean): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = frame.columns;
  canvas.height = frame.rows;
  const context = color ? canvas.getContext("2d") : null;
  if (context === null) return canvas;
  const image = context.createImageData(frame.columns, frame.rows);
  for (let from = 0, to = 0; from < values.length; from += 3, to += 4) {
    image.data.set([values[from] ?? 0, values[from + 1] ?? 0, values[from + 2] ?? 0, BYTE - 1], to);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/**
 * Apply the Modality LUT where the result is whole numbers of 16 bits; else leave a slope and an intercept to
 * be applied later, which the drawing without WebGL needs: it looks grey levels up by whole numbers.
 */
function scaled(stored: Values, header: Pixels["header"]): { values: Values; slope: number; intercept: number } {
  const { slope, intercept } = header;
  if (stored instanceof Float32Array) return cpu ? quantised(stored, slope, intercept) : times(stored, slope, intercept);
  if (Number.isInteger(slope) && Number.isInteger(intercept)) {
    const { low, high } = extent(stored);
    const ends = [low * slope + intercept, high * slope + intercept];
    if (Math.min(...ends) >= -32768 && Math.max(...ends) <= 32767) {
      return { values: Int16Array.from(stored, (value) => value * slope + intercept), slope: 1, intercept: 0 };
    }
  }
  return cpu ? { values: stored, slope, intercept } : times(stored, slope, intercept);
}

function times(stored: Values, slope: number, intercept: number): { values: Values; slope: number; intercept: number } {
  return { values: Float32Array.from(stored, (value) => value * slope + intercept), slope: 1, intercept: 0 };
}

function quantised(stored: Float32Array, slope: number, intercept: number): { values: Values; slope: number; intercept: number } {
  const { low, high } = extent(stored);
  const step = high > low ? (high - low) / 65535 : 1;
  const values = Uint16Array.from(stored, (value) => Math.round((value - low) / step));
  return { values, slope: step * slope, intercept: low * slope + intercept };
}

function extent(values: Values): { low: number; high: number } {
  let low = Infinity;
  let high = -Infinity;
  for (let index = 0; index < values.length; index += 1) {
    const value = values[index] as number;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return { low, high };
}

/** The file's own window, or one made of its values; a file without one has the same for all its images. */
function windowOf(image: Known, values: Values, slope: number, intercept: number): { center: number; width: number } {
  if (image.window === null) {
    image.window = automaticWindow(values, slope, intercept);
    for (const other of known.values()) {
      if (other.series === image.series && other.window === null) other.window = image.window;
    }
  }
  return image.window;
}

function provide(type: string, imageId: unknown): unknown {
  const image = typeof imageId === "string" ? known.get(imageId) : undefined;
  if (image === undefined) return undefined;
  const { frame, series } = image;
  switch (type) {
    case "imagePlaneModule":
      return imagePlane(frame, series);
    case "imagePixelModule":
      return {
        bitsAllocated: 16,
        bitsStored: 16,
        highBit: 15,
        pixelRepresentation: 1,
        samplesPerPixel: frame.photometric.startsWith("MONOCHROME") ? 1 : 3,
        photometricInterpretation: frame.photometric.startsWith("MONOCHROME") ? frame.photometric : "RGB",
        rows: frame.rows,
        columns: frame.columns,
      };
    case "generalSeriesModule":
      return { modality: series.modality, seriesInstanceUID: series.handle };
    case "modalityLutModule":
      return { rescaleSlope: 1, rescaleIntercept: 0, rescaleType: frame.unit };
    case "voiLutModule":
      return {};
    default:
      return undefined;
  }
}

function imagePlane(frame: Frame, series: Series): Record<string, unknown> {
  const orientation = frame.orientation ?? [1, 0, 0, 0, 1, 0];
  const [rowPixelSpacing, columnPixelSpacing] = frame.spacing ?? [1, 1];
  return {
    frameOfReferenceUID: series.handle,
    rows: frame.rows,
    columns: frame.columns,
    imageOrientationPatient: orientation,
    rowCosines: orientation.slice(0, 3),
    columnCosines: orientation.slice(3),
    imagePositionPatient: frame.position ?? [0, 0, 0],
    pixelSpacing: [rowPixelSpacing, columnPixelSpacing],
    rowPixelSpacing,
    columnPixelSpacing,
    sliceThickness: 1,
    sliceLocation: 0,
    usingDefaultValues: frame.spacing === null,
  };
}

/** Return where a point of the image (column, row; the first pixel's centre is 0, 0) lies in the viewport's world. */
export function toWorld(frame: Frame, column: number, row: number): Types.Point3 {
  const orientation = frame.orientation ?? [1, 0, 0, 0, 1, 0];
  const [rowSpacing, columnSpacing] = frame.spacing ?? [1, 1];
  const origin = frame.position ?? [0, 0, 0];
  return [0, 1, 2].map(
    (axis) =>
      (origin[axis] ?? 0) +
      (orientation[axis] ?? 0) * columnSpacing * column +
      (orientation[axis + 3] ?? 0) * rowSpacing * row,
  ) as Types.Point3;
}

/** Return the point of the image (column, row) at a place of the viewport's world. */
export function toImage(frame: Frame, world: readonly number[]): { column: number; row: number } {
  const orientation = frame.orientation ?? [1, 0, 0, 0, 1, 0];
  const [rowSpacing, columnSpacing] = frame.spacing ?? [1, 1];
  const origin = frame.position ?? [0, 0, 0];
  const along = (from: number): number =>
    [0, 1, 2].reduce(
      (sum, axis) => sum + ((world[axis] ?? 0) - (origin[axis] ?? 0)) * (orientation[axis + from] ?? 0),
      0,
    );
  return { column: along(0) / columnSpacing, row: along(3) / rowSpacing };
}

/** Return the value of a pixel, with its meaning; null beside the image, and in colour. */
export function valueAt(imageId: string, column: number, row: number): number | null {
  const image = cache.getImage(imageId);
  if (image === undefined || image.color) return null;
  const [x, y] = [Math.round(column), Math.round(row)];
  if (x < 0 || y < 0 || x >= image.columns || y >= image.rows) return null;
  const { slope, intercept } = scaleOf(imageId);
  const stored = image.getPixelData()[y * image.columns + x];
  return stored === undefined ? null : stored * slope + intercept;
}

/** Return a window made of an image's own values. */
export function automatic(imageId: string): { center: number; width: number } | null {
  const image = cache.getImage(imageId);
  if (image === undefined || image.color) return null;
  const { slope, intercept } = scaleOf(imageId);
  return automaticWindow(image.getPixelData(), slope, intercept);
}
