/** Cornerstone's tools: window, zoom, pan and measuring, with texts of our own and honest units. */

import { Enums as CoreEnums, eventTarget, getRenderingEngine, Settings, triggerEvent } from "@cornerstonejs/core";
import {
  addTool,
  annotation,
  EllipticalROITool,
  Enums,
  init,
  LengthTool,
  PanTool,
  ProbeTool,
  ToolGroupManager,
  WindowLevelTool,
  ZoomTool,
  type Types,
} from "@cornerstonejs/tools";

import { frameOf, scaleOf, toWorld, valueAt } from "./cornerstone";
import type { Texts } from "./texts";

export type Mode = "scroll" | "window" | "zoom" | "pan" | "length" | "ellipse" | "probe";

const NAMES: Record<Exclude<Mode, "scroll">, string> = {
  window: WindowLevelTool.toolName,
  zoom: ZoomTool.toolName,
  pan: PanTool.toolName,
  length: LengthTool.toolName,
  ellipse: EllipticalROITool.toolName,
  probe: ProbeTool.toolName,
};
const MEASURING = [LengthTool.toolName, EllipticalROITool.toolName, ProbeTool.toolName];
const GROUP = "rayhook";

interface Stats {
  length?: number;
  area?: number;
  mean?: number;
  max?: number;
  stdDev?: number;
  index?: number[];
}

type Data = { cachedStats?: Record<string, Stats>; handles?: { points?: number[][] } };

export class Tools {
  private readonly group: Types.IToolGroup;

  constructor(
    private readonly engineId: string,
    private readonly texts: Texts,
    private readonly number: (value: number, digits: number) => string,
  ) {
    // Its cursors are pictures that the page's policy refuses; ours are in the style sheet.
    Settings.getRuntimeSettings().set("useCursors", false);
    init();
    for (const tool of [WindowLevelTool, ZoomTool, PanTool, LengthTool, EllipticalROITool, ProbeTool]) addTool(tool);
    const group = ToolGroupManager.createToolGroup(GROUP);
    if (group === undefined) throw new Error("the tools were begun twice");
    this.group = group;
    group.addTool(NAMES.window);
    group.addTool(NAMES.zoom);
    group.addTool(NAMES.pan);
    group.addTool(NAMES.length, { getTextLines: (data: Data, target: string) => this.lengthText(data, target) });
    group.addTool(NAMES.ellipse, { getTextLines: (data: Data, target: string) => this.ellipseText(data, target) });
    group.addTool(NAMES.probe, { getTextLines: (data: Data, target: string) => this.probeText(data, target) });
    const styles = annotation.config.style.getDefaultToolStyles();
    annotation.config.style.setDefaultToolStyles({
      ...styles,
      global: {
        ...styles["global"],
        color: "rgb(255, 225, 77)",
        colorHighlighted: "rgb(255, 255, 255)",
        colorSelected: "rgb(255, 255, 255)",
        lineWidth: "2",
        shadow: true,
        textBoxFontFamily: "system-ui, sans-serif",
        textBoxFontSize: "14px",
        textBoxColor: "rgb(255, 225, 77)",
        textBoxColorHighlighted: "rgb(255, 255, 255)",
        textBoxColorSelected: "rgb(255, 255, 255)",
        textBoxLinkLineColor: "rgb(255, 225, 77)",
        textBoxBackground: "rgba(0, 0, 0, 0.65)",
      },
    } as never);
    this.choose("scroll");
  }

  /** Tell the tools of a viewport that was there before them. */
  adopt(viewportId: string): void {
    const element = getRenderingEngine(this.engineId)?.getViewport(viewportId)?.element;
    triggerEvent(eventTarget, CoreEnums.Events.ELEMENT_ENABLED, { element, viewportId, renderingEngineId: this.engineId });
    this.add(viewportId);
  }

  add(viewportId: string): void {
    this.group.addViewport(viewportId, this.engineId);
  }

  remove(viewportId: string): void {
    this.group.removeViewports(this.engineId, viewportId);
  }

  /** Bind the main button, and one finger, to a mode; the other buttons and two fingers always do the same. */
  choose(mode: Mode): void {
    const { MouseBindings } = Enums;
    const main = [{ mouseButton: MouseBindings.Primary }, { numTouchPoints: 1 }];
    for (const name of Object.values(NAMES)) {
      if (MEASURING.includes(name)) this.group.setToolPassive(name, { removeAllBindings: true });
      else this.group.setToolDisabled(name);
    }
    const bindings: Record<string, object[]> = {
      [NAMES.window]: [{ mouseButton: MouseBindings.Secondary }],
      [NAMES.pan]: [{ mouseButton: MouseBindings.Auxiliary }, { numTouchPoints: 3 }],
      [NAMES.zoom]: [{ mouseButton: MouseBindings.Primary, modifierKey: Enums.KeyboardBindings.Ctrl }, { numTouchPoints: 2 }],
    };
    if (mode !== "scroll") (bindings[NAMES[mode]] ??= []).push(...main);
    for (const [name, bound] of Object.entries(bindings)) this.group.setToolActive(name, { bindings: bound as never });
  }

  /** Put a measure where the keyboard's cross has been. */
  place(viewportId: string, imageId: string, mode: "length" | "ellipse" | "probe", from: Point, to: Point): void {
    const frame = frameOf(imageId);
    const engine = getRenderingEngine(this.engineId);
    const viewport = engine?.getViewport(viewportId);
    if (frame === undefined || viewport === undefined) return;
    const world = (point: Point): number[] => [...toWorld(frame, point.column, point.row)];
    const middle = { column: (from.column + to.column) / 2, row: (from.row + to.row) / 2 };
    const points = {
      probe: [world(to)],
      length: [world(from), world(to)],
      ellipse: [
        world({ column: middle.column, row: to.row }),
        world({ column: middle.column, row: from.row }),
        world({ column: from.column, row: middle.row }),
        world({ column: to.column, row: middle.row }),
      ],
    }[mode];
    const camera = viewport.getCamera();
    annotation.state.addAnnotation(
      {
        annotationUID: crypto.randomUUID(),
        highlighted: false,
        invalidated: true,
        isLocked: false,
        isVisible: true,
        metadata: {
          toolName: NAMES[mode],
          referencedImageId: imageId,
          FrameOfReferenceUID: viewport.getFrameOfReferenceUID(),
          viewPlaneNormal: camera.viewPlaneNormal,
          viewUp: camera.viewUp,
        },
        data: {
          cachedStats: {},
          label: "",
          handles: {
            points,
            activeHandleIndex: null,
            textBox: { hasMoved: false, worldPosition: [0, 0, 0], worldBoundingBox: {} },
          },
        },
      } as never,
      viewport.element,
    );
    viewport.render();
  }

  /** Erase the measures; those of one image where one is named. */
  erase(imageId?: string): number {
    const all = annotation.state.getAllAnnotations();
    const gone = all.filter((one) => imageId === undefined || one.metadata?.referencedImageId === imageId);
    for (const one of gone) if (one.annotationUID) annotation.state.removeAnnotation(one.annotationUID);
    getRenderingEngine(this.engineId)?.render();
    return gone.length;
  }

  /** What the measures on an image say, for those who do not see them. */
  measures(imageId: string): string[] {
    return annotation.state
      .getAllAnnotations()
      .filter((one) => one.metadata?.referencedImageId === imageId)
      .map((one) => {
        const data = one.data as Data;
        const target = Object.keys(data.cachedStats ?? {})[0] ?? "";
        const name = one.metadata?.toolName;
        if (name === NAMES.length) return this.lengthText(data, target).join(" ");
        if (name === NAMES.ellipse) return this.ellipseText(data, target).join(" ");
        return this.probeText(data, target).join(" ");
      });
  }

  /** Millimetres only where the file tells how large a pixel is, and where at. */
  private lengthText(data: Data, target: string): string[] {
    const stats = data.cachedStats?.[target];
    const frame = frameOf(imageOf(target));
    if (stats?.length === undefined || frame === undefined) return [];
    if (frame.spacing === null) return [`${this.number(stats.length, 0)} px`, this.texts("no_spacing")];
    const text = `${this.number(stats.length, 1)} mm`;
    return frame.spacing_at === "detector" ? [text, this.texts("at_detector")] : [text];
  }

  private ellipseText(data: Data, target: string): string[] {
    const stats = data.cachedStats?.[target];
    const imageId = imageOf(target);
    const frame = frameOf(imageId);
    if (stats?.mean === undefined || frame === undefined) return [];
    const { slope, intercept, unit } = scaleOf(imageId);
    const value = (stored: number): string => `${this.number(stored * slope + intercept, 1)}${unit ? ` ${unit}` : ""}`;
    const lines = [
      `${this.texts("mean")} ${value(stats.mean)}`,
      `${this.texts("deviation")} ${this.number((stats.stdDev ?? 0) * Math.abs(slope), 1)}`,
      `${this.texts("maximum")} ${value(stats.max ?? 0)}`,
    ];
    if (stats.area !== undefined) {
      lines.push(frame.spacing === null ? `${this.number(stats.area, 0)} px²` : `${this.number(stats.area, 0)} mm²`);
    }
    return lines;
  }

  private probeText(data: Data, target: string): string[] {
    const stats = data.cachedStats?.[target];
    const imageId = imageOf(target);
    const [column, row] = stats?.index ?? [];
    if (column === undefined || row === undefined) return [];
    const value = valueAt(imageId, column, row);
    const { unit } = scaleOf(imageId);
    const place = `${this.texts("column")} ${column}, ${this.texts("row")} ${row}`;
    return value === null ? [place] : [`${this.number(value, value % 1 === 0 ? 0 : 2)}${unit ? ` ${unit}` : ""}`, place];
  }
}

export interface Point {
  column: number;
  row: number;
}

function imageOf(target: string): string {
  return target.replace(/^imageId:/, "");
}
