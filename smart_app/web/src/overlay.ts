/** What is drawn over an image: the heatmap, the points rated and the keyboard's cross, all in the image's own place. */

import type { Types } from "@cornerstonejs/core";

import type { Frame, KeyImage, Mark } from "./api";
import { toWorld } from "./cornerstone";

export interface Layer {
  key: KeyImage | null;
  picture: ImageBitmap | null;
  marks: readonly Mark[];
}

export interface Shown {
  heat: boolean;
  opacity: number;
  marks: boolean;
  cross: { column: number; row: number; from: { column: number; row: number } | null } | null;
}

const RADIUS_MM = 9;
const POSITIVE = "#ffb454";
const OTHER = "#7cc4ff";

export function drawOverlay(
  canvas: HTMLCanvasElement,
  viewport: Types.IStackViewport,
  frame: Frame,
  layer: Layer,
  shown: Shown,
  percent: (probability: number | null) => string,
): { heat: boolean } {
  const context = canvas.getContext("2d");
  if (context === null) return { heat: false };
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth, clientHeight } = canvas;
  canvas.width = Math.round(clientWidth * ratio);
  canvas.height = Math.round(clientHeight * ratio);
  const at = (column: number, row: number): Types.Point2 => viewport.worldToCanvas(toWorld(frame, column, row));
  const heat = shown.heat && layer.key?.image === frame.image && layer.picture !== null;
  if (heat && layer.key !== null && layer.picture !== null) {
    drawHeat(context, at, layer.key, layer.picture, shown.opacity, ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (shown.marks) {
    for (const mark of layer.marks) if (mark.image === frame.image) drawMark(context, at, frame, mark, percent);
  }
  if (shown.cross !== null) drawCross(context, at, shown.cross);
  return { heat };
}

function drawHeat(
  context: CanvasRenderingContext2D,
  at: (column: number, row: number) => Types.Point2,
  key: KeyImage,
  picture: ImageBitmap,
  opacity: number,
  ratio: number,
): void {
  const { step } = key.heat;
  const [origin, right, below] = [at(-0.5, -0.5), at(step - 0.5, -0.5), at(-0.5, step - 0.5)];
  context.save();
  context.beginPath();
  const corners = [origin, at(key.columns - 0.5, -0.5), at(key.columns - 0.5, key.rows - 0.5), at(-0.5, key.rows - 0.5)];
  corners.forEach(([x, y], index) =>
    index === 0 ? context.moveTo(x * ratio, y * ratio) : context.lineTo(x * ratio, y * ratio),
  );
  context.clip();
  context.setTransform(
    (right[0] - origin[0]) * ratio,
    (right[1] - origin[1]) * ratio,
    (below[0] - origin[0]) * ratio,
    (below[1] - origin[1]) * ratio,
    origin[0] * ratio,
    origin[1] * ratio,
  );
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0);
  context.restore();
}

function drawMark(
  context: CanvasRenderingContext2D,
  at: (column: number, row: number) => Types.Point2,
  frame: Frame,
  mark: Mark,
  percent: (probability: number | null) => string,
): void {
  const [x, y] = at(mark.column, mark.row);
  const spacing = frame.spacing?.[1] ?? 1;
  const [edgeX, edgeY] = at(mark.column + RADIUS_MM / spacing, mark.row);
  const radius = Math.max(10, Math.hypot(edgeX - x, edgeY - y));
  context.lineWidth = mark.positive ? 2.5 : 1.75;
  context.setLineDash(mark.positive ? [] : [5, 4]);
  stroke(context, mark.positive ? POSITIVE : OTHER, () => context.arc(x, y, radius, 0, 2 * Math.PI));
  context.setLineDash([]);
  label(context, percent(mark.probability), x + radius + 4, y - 6, mark.positive ? POSITIVE : OTHER);
}

function drawCross(
  context: CanvasRenderingContext2D,
  at: (column: number, row: number) => Types.Point2,
  cross: NonNullable<Shown["cross"]>,
): void {
  const [x, y] = at(cross.column, cross.row);
  context.lineWidth = 1.5;
  stroke(context, "#ffe14d", () => {
    context.moveTo(x - 14, y);
    context.lineTo(x - 3, y);
    context.moveTo(x + 3, y);
    context.lineTo(x + 14, y);
    context.moveTo(x, y - 14);
    context.lineTo(x, y - 3);
    context.moveTo(x, y + 3);
    context.lineTo(x, y + 14);
  });
  if (cross.from === null) return;
  const [fromX, fromY] = at(cross.from.column, cross.from.row);
  context.setLineDash([4, 4]);
  stroke(context, "#ffe14d", () => {
    context.moveTo(fromX, fromY);
    context.lineTo(x, y);
  });
  context.setLineDash([]);
}

/** A dark line below a light one is seen on any grey. */
function stroke(context: CanvasRenderingContext2D, colour: string, path: () => void): void {
  const width = context.lineWidth;
  for (const [style, extra] of [
    ["rgba(0, 0, 0, 0.75)", 2],
    [colour, 0],
  ] as const) {
    context.strokeStyle = style;
    context.lineWidth = width + extra;
    context.beginPath();
    path();
    context.stroke();
  }
  context.lineWidth = width;
}

function label(context: CanvasRenderingContext2D, text: string, x: number, y: number, colour: string): void {
  context.font = "600 12px system-ui, sans-serif";
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0, 0, 0, 0.85)";
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}
