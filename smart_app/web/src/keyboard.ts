/** What each key does while the viewer has the focus. Nothing listens elsewhere. Spec: WCAG 2.2, 2.1.1, 2.1.4 */

import type { Point } from "./tools";
import type { Viewer } from "./viewer";

const PAGE = 10;
const PAN = 40;

export function handleKey(viewer: Viewer, event: KeyboardEvent): void {
  if (event.altKey || event.ctrlKey || event.metaKey || viewer.dialog.open) return;
  const target = event.target as HTMLElement;
  if (target instanceof HTMLInputElement || target instanceof HTMLSelectElement) return;
  const inFrame = target === viewer.active.focusTarget;
  const done = (inFrame && (crossKey(viewer, event) || frameKey(viewer, event))) || anyKey(viewer, event);
  if (done) event.preventDefault();
}

function frameKey(viewer: Viewer, event: KeyboardEvent): boolean {
  const pane = viewer.active;
  const last = (pane.stack?.ids.length ?? 1) - 1;
  if (event.shiftKey && event.key.startsWith("Arrow")) {
    const [x, y] = arrow(event.key);
    viewer.pan(x * PAN, y * PAN);
    return true;
  }
  const steps: Record<string, () => void> = {
    ArrowUp: () => pane.step(-1),
    ArrowLeft: () => pane.step(-1),
    ArrowDown: () => pane.step(1),
    ArrowRight: () => pane.step(1),
    PageUp: () => pane.step(-PAGE),
    PageDown: () => pane.step(PAGE),
    Home: () => void pane.show(0),
    End: () => void pane.show(last),
  };
  return run(steps, event.key);
}

function anyKey(viewer: Viewer, event: KeyboardEvent): boolean {
  if (/^[1-9]$/.test(event.key)) {
    viewer.preset(Number(event.key) - 1);
    return true;
  }
  const keys: Record<string, () => void> = {
    s: () => viewer.choose("scroll"),
    w: () => viewer.choose("window"),
    z: () => viewer.choose("zoom"),
    p: () => viewer.choose("pan"),
    l: () => viewer.choose("length"),
    e: () => viewer.choose("ellipse"),
    b: () => viewer.choose("probe"),
    i: () => viewer.invert(),
    h: () => viewer.flip(),
    v: () => viewer.flip(true),
    r: () => viewer.rotate(),
    f: () => viewer.fit(),
    "0": () => viewer.reset(),
    o: () => viewer.toggleHeat(),
    m: () => viewer.toggleMarks(),
    k: () => viewer.toKeyImage(),
    c: () => void viewer.compare(),
    "+": () => viewer.zoom(1.2),
    "=": () => viewer.zoom(1.2),
    "-": () => viewer.zoom(1 / 1.2),
    ",": () => viewer.window(-1, 0),
    ".": () => viewer.window(1, 0),
    "[": () => viewer.window(0, -1),
    "]": () => viewer.window(0, 1),
    delete: () => viewer.erase(),
    "?": () => viewer.help(),
  };
  return run(keys, event.key.toLowerCase());
}

/** Measuring without a mouse: Enter sets a cross, the arrows move it, Enter sets a point, Escape puts it away. */
function crossKey(viewer: Viewer, event: KeyboardEvent): boolean {
  const pane = viewer.active;
  const { mode } = viewer;
  if (mode !== "length" && mode !== "ellipse" && mode !== "probe") return false;
  const { cross } = pane.shown;
  const frame = pane.frame;
  if (frame === null) return false;
  const put = (next: typeof cross): true => {
    pane.shown = { ...pane.shown, cross: next };
    pane.redraw();
    return true;
  };
  if (cross === null) {
    if (event.key !== "Enter") return false;
    put({ column: Math.round(frame.columns / 2), row: Math.round(frame.rows / 2), from: null });
    pane.announce(viewer.texts("cross_set"));
    return true;
  }
  if (event.key === "Escape") return put(null);
  if (event.key.startsWith("Arrow")) {
    const [x, y] = arrow(event.key);
    const step = event.shiftKey ? PAGE : 1;
    const column = Math.min(frame.columns - 1, Math.max(0, cross.column + x * step));
    const row = Math.min(frame.rows - 1, Math.max(0, cross.row + y * step));
    put({ ...cross, column, row });
    pane.announce(`${viewer.texts("column")} ${column}, ${viewer.texts("row")} ${row}`);
    return true;
  }
  if (event.key !== "Enter") return false;
  const here: Point = { column: cross.column, row: cross.row };
  if (mode !== "probe" && cross.from === null) {
    pane.announce(viewer.texts("cross_first"));
    return put({ ...cross, from: here });
  }
  const { imageId } = pane;
  if (imageId === null || viewer.tools === null) return true;
  viewer.tools.place(pane.id, imageId, mode, cross.from ?? here, here);
  put(null);
  setTimeout(() => pane.announce(viewer.tools?.measures(imageId).at(-1) ?? ""), 100);
  return true;
}

function arrow(key: string): [number, number] {
  return (
    { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] } as Record<string, [number, number]>
  )[key] ?? [0, 0];
}

function run(keys: Record<string, () => void>, key: string): boolean {
  const act = keys[key];
  act?.();
  return act !== undefined;
}
