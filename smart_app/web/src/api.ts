/** What the server tells of studies, series, images and results, and how its failures are told. */

export interface SeriesLine {
  handle: string;
  modality: string;
  number: number | null;
  description: string;
  body_part: string;
  images: number | null;
}

export interface Study {
  description: string;
  started: string;
  series: SeriesLine[];
}

export interface OtherStudy {
  study: string;
  description: string;
  started: string;
  modalities: string[];
  comparable: boolean;
}

export type WindowPreset = [center: number, width: number, label: string];

export interface Frame {
  image: string;
  frame: number;
  number: number | null;
  rows: number;
  columns: number;
  spacing: [number, number] | null;
  spacing_at: "patient" | "detector" | "";
  orientation: number[] | null;
  position: number[] | null;
  slope: number;
  intercept: number;
  unit: string;
  photometric: string;
  windows: WindowPreset[];
  voi_function: string;
  lossy: boolean;
}

export interface Series {
  handle: string;
  modality: string;
  description: string;
  body_part: string;
  order: "position" | "instance_number";
  left_out: number;
  frames: Frame[];
}

export interface Mark {
  image: string;
  row: number;
  column: number;
  probability: number | null;
  positive: boolean;
}

export interface KeyImage {
  series: string;
  image: string;
  rows: number;
  columns: number;
  heat: { picture: string; step: number; alone: boolean };
}

export interface Overlay {
  study: string;
  series: string | null;
  key_image: KeyImage | null;
  threshold: number | null;
  slices: [image: string, probability: number][];
  marks: Mark[];
}

export type Sample = "uint8" | "int8" | "uint16" | "int16" | "uint32" | "int32" | "float32";

export interface PixelHeader {
  dtype: Sample;
  samples: 1 | 3;
  rows: number;
  columns: number;
  slope: number;
  intercept: number;
  lossy: boolean;
}

export interface Pixels {
  header: PixelHeader;
  buffer: ArrayBuffer;
}

/** A failure that a person can be told of: `code` chooses the words, `detail` is the server's own. */
export class Failure extends Error {
  constructor(
    readonly code: string,
    readonly detail: string,
    readonly retryable: boolean,
  ) {
    super(code);
  }
}

const PATIENCE_MS = 40_000;
const TRIES = 4;

export async function fetchJson<T>(url: string, signal?: AbortSignal): Promise<T> {
  const response = await get(url, signal);
  return (await response.json()) as T;
}

export async function fetchPixels(url: string, signal?: AbortSignal): Promise<Pixels> {
  const response = await get(url, signal);
  const header = JSON.parse(response.headers.get("X-Rayhook-Frame") ?? "null") as PixelHeader | null;
  if (header === null) throw new Failure("wrong_answer", "", true);
  return { header, buffer: await body(response) };
}

export async function fetchPicture(url: string): Promise<ImageBitmap> {
  const response = await get(url);
  return createImageBitmap(await response.blob());
}

const ACCEPT = "application/json, application/octet-stream, image/png";

/** The page says in which session it was made: what belongs to another patient's session is refused. */
function windowMark(): string {
  return document.querySelector<HTMLMetaElement>('meta[name="rayhook-window"]')?.content ?? "";
}

async function get(url: string, signal?: AbortSignal): Promise<Response> {
  const patience = AbortSignal.timeout(PATIENCE_MS);
  const both = signal ? AbortSignal.any([signal, patience]) : patience;
  for (let tries = 1; ; tries += 1) {
    const response = await answer(url, both, signal, patience);
    if (response.ok) return response;
    const pauseMs = comeAgainMs(response);
    if (pauseMs === undefined || tries === TRIES || both.aborted) throw await refusal(response);
    await pause(pauseMs, both);
  }
}

async function answer(
  url: string,
  both: AbortSignal,
  signal: AbortSignal | undefined,
  patience: AbortSignal,
): Promise<Response> {
  try {
    return await fetch(url, { signal: both, headers: { Accept: ACCEPT, "X-Rayhook-Window": windowMark() } });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure(patience.aborted ? "upstream_timeout" : "network", "", true);
  }
}

/** How long the server asks to wait where it has more to do than it can; undefined for any other refusal. */
function comeAgainMs(response: Response): number | undefined {
  const seconds = Number(response.headers.get("Retry-After") ?? "0");
  return response.status === 503 && seconds > 0 && seconds <= 10 ? seconds * 1000 : undefined;
}

function pause(milliseconds: number, until: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    until.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

async function body(response: Response): Promise<ArrayBuffer> {
  try {
    return await response.arrayBuffer();
  } catch {
    throw new Failure("network", "", true);
  }
}

async function refusal(response: Response): Promise<Failure> {
  try {
    const told = (await response.json()) as { code?: string; message?: string; retryable?: boolean };
    return new Failure(told.code ?? "unknown", told.message ?? "", told.retryable ?? false);
  } catch {
    return new Failure(response.status === 401 ? "unauthenticated" : "unknown", "", response.status >= 500);
  }
}
