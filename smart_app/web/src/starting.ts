/** What a study is opened at, and fetching it while the rest of the code is still on its way. */

import { fetchJson, fetchPixels, type Overlay, type Pixels, type Series, type SeriesLine, type Study } from "./api";

export interface Start {
  line: SeriesLine;
  series: Series;
}

export interface Asked {
  study: Promise<Study>;
  overlay: Promise<Overlay | null>;
  start: Promise<Start | null>;
}

/** Ask for the study, what is laid over it, its first series and that one's first image, each as soon as it is known. */
export function ask(study: string, result: string | undefined): Asked {
  const asked = {
    study: fetchJson<Study>(study),
    overlay: result ? fetchJson<Overlay>(result).catch(() => null) : Promise.resolve(null),
  };
  const start = openStart(study, asked.study, asked.overlay);
  start.catch(() => {}); // told by the viewer, once it is there
  return { ...asked, start };
}

async function openStart(address: string, asked: Promise<Study>, over: Promise<Overlay | null>): Promise<Start | null> {
  const [study, overlay] = await Promise.all([asked, over]);
  const line = startingSeries(study, overlay);
  if (line === undefined) return null;
  const series = await fetchJson<Series>(`${address}/series/${line.handle}`);
  const frame = series.frames[startingIndex(series, overlay)];
  if (frame !== undefined) give(imageAddress(address, series, frame));
  return { line, series };
}

/** The series of the result, else the one with the most images. */
function startingSeries(study: Study, overlay: Overlay | null): SeriesLine | undefined {
  const told = overlay?.key_image?.series ?? overlay?.series;
  const named = study.series.find((line) => line.handle === told);
  return named ?? [...study.series].sort((a, b) => (b.images ?? 0) - (a.images ?? 0))[0];
}

/** The image that carried the finding, else the one in the middle. */
export function startingIndex(series: Series, overlay: Overlay | null): number {
  const at = keyIndex(series, overlay);
  return at >= 0 ? at : Math.floor(series.frames.length / 2);
}

export function keyIndex(series: Series, overlay: Overlay | null): number {
  const key = overlay?.key_image;
  return key?.series === series.handle ? series.frames.findIndex((frame) => frame.image === key.image) : -1;
}

export function imageAddress(study: string, series: Series, frame: { image: string; frame: number }): string {
  return `${study}/series/${series.handle}/images/${frame.image}/${frame.frame}`;
}

const given = new Map<string, Promise<Pixels>>();

function give(address: string): void {
  const pixels = fetchPixels(address);
  pixels.catch(() => {}); // told where it is looked at
  given.set(address, pixels);
}

/** Return an image's values: those that were asked for in advance once, after that a new fetch. */
export function take(address: string): Promise<Pixels> {
  const early = given.get(address);
  given.delete(address);
  return early ?? fetchPixels(address);
}
