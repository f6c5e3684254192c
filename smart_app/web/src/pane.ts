/** One stack on the screen: its viewport, what is written at its corners, and what it says while it waits. */

import { Enums, type RenderingEngine, type Types } from "@cornerstonejs/core";

import { Failure, type Frame, type Series } from "./api";
import { isFetched, isLossy, toWorld, usesCPU } from "./cornerstone";
import { el } from "./dom";
import { clamp, edgeLetters } from "./geometry";
import { drawOverlay, type Layer, type Shown } from "./overlay";
import { rangeWindow, windowRange } from "./presets";
import { Stack } from "./stack";
import { failureText, type Texts } from "./texts";

const PATIENT_MS = 150;
const SLOW_MS = 8_000;
const DRAG_PIXELS = 6;

export interface PaneTitle {
  role: string;
  study: string;
  day: string;
}

type Corner = "top-left" | "top-right" | "bottom-left" | "bottom-right" | "top" | "right" | "bottom" | "left";

export class Pane {
  readonly element: HTMLElement;
  readonly surface: HTMLDivElement;
  readonly slider: HTMLInputElement;
  layer: Layer = { key: null, picture: null, marks: [] };
  shown: Shown = { heat: true, opacity: 0.7, marks: true, cross: null };
  stack: Stack | null = null;
  index = 0;
  /** Whether a drag with the main button, or with one finger, goes through the stack. */
  scrolls = true;
  onIndex: (index: number) => void = () => {};
  onWindow: () => void = () => {};
  onRendered: () => void = () => {};
  onFocus: () => void = () => {};

  private readonly frameElement: HTMLDivElement;
  private readonly canvas: HTMLCanvasElement;
  private readonly corners: Record<Corner, HTMLElement>;
  private readonly status: HTMLElement;
  private readonly live: HTMLElement;
  private title: PaneTitle = { role: "", study: "", day: "" };
  private wanted = 0;
  private isShown = false;

  constructor(
    readonly id: string,
    private readonly engine: RenderingEngine,
    private readonly texts: Texts,
    private readonly percent: (probability: number | null) => string,
  ) {
    this.surface = el("div", { class: "rv-surface" });
    this.canvas = el("canvas", { class: "rv-overlay", "aria-hidden": "true" });
    this.corners = Object.fromEntries(
      ["top-left", "top-right", "bottom-left", "bottom-right", "top", "right", "bottom", "left"].map((name) => [
        name,
        el("div", { class: `rv-text rv-${name}`, "aria-hidden": "true" }),
      ]),
    ) as unknown as Record<Corner, HTMLElement>;
    this.status = el("div", { class: "rv-status", role: "status" });
    this.live = el("div", { class: "rv-hidden", role: "status", "aria-live": "polite" });
    this.frameElement = el(
      "div",
      {
        class: "rv-frame",
        tabindex: "0",
        role: "application",
        "aria-roledescription": texts("viewport_role"),
        "aria-label": texts("viewport_label"),
      },
      [
        this.surface,
        this.canvas,
        ...Object.values(this.corners),
        el("div", { class: "rv-text rv-investigational" }, [texts("investigational")]),
      ],
    );
    this.slider = el("input", { type: "range", class: "rv-slider", min: "1", max: "1", value: "1", "aria-label": texts("image") });
    this.element = el("section", { class: "rv-pane", "aria-label": texts("viewport_label") }, [
      el("div", { class: "rv-stage" }, [this.frameElement, this.status]),
      el("div", { class: "rv-scrub" }, [this.slider]),
      this.live,
    ]);
    this.listen();
  }

  get viewport(): Types.IStackViewport {
    return this.engine.getViewport(this.id) as Types.IStackViewport;
  }

  get series(): Series | null {
    return this.stack?.series ?? null;
  }

  get frame(): Frame | null {
    return this.series?.frames[this.index] ?? null;
  }

  get imageId(): string | null {
    return this.stack?.ids[this.index] ?? null;
  }

  get focusTarget(): HTMLElement {
    return this.frameElement;
  }

  /** Put the viewport onto the screen; the element has to be in the document by then. */
  enable(): void {
    this.engine.enableElement({
      viewportId: this.id,
      type: Enums.ViewportType.STACK,
      element: this.surface,
      defaultOptions: { background: [0, 0, 0] },
    });
    // Between the image and the measures, which come later.
    this.surface.querySelector(".viewport-element")?.append(this.canvas);
    this.surface.addEventListener(Enums.Events.IMAGE_RENDERED, () => this.rendered());
    this.surface.addEventListener(Enums.Events.VOI_MODIFIED, () => {
      this.write();
      this.onWindow();
    });
  }

  /** Show a series, beginning with the image at `index`, and fetch the rest. */
  async open(study: string, series: Series, index: number, title: PaneTitle): Promise<void> {
    this.stack?.stop();
    this.title = title;
    this.isShown = false;
    this.stack = new Stack(study, series, () => this.tellProgress());
    this.slider.max = String(series.frames.length);
    this.slider.disabled = series.frames.length < 2;
    this.element.setAttribute("aria-label", `${title.role}: ${title.study} ${title.day}`.trim());
    this.frameElement.setAttribute("aria-label", [title.role, title.study, series.description].filter(Boolean).join(", "));
    if (series.frames.length === 0) {
      this.say(this.texts("no_images"));
      return;
    }
    await this.show(index);
  }

  /** Show the image at `index`; what takes long is said, and a failure can be tried again. */
  async show(index: number, { silent = false } = {}): Promise<void> {
    const stack = this.stack;
    if (stack === null) return;
    const target = clamp(index, stack.ids.length);
    this.wanted = target;
    const timers = this.announceWait(target);
    try {
      // A picture overtaken by a later one is never told as displayed: the timers end with the fetch.
      await stack.image(target).finally(() => timers.forEach(clearTimeout));
      if (this.wanted !== target || this.stack !== stack) return;
      await this.display(target);
      this.say("");
      if (!silent) this.onIndex(target);
      stack.fetchAround(target);
    } catch (error) {
      if (this.wanted !== target || this.stack !== stack) return;
      this.fail(error, () => void this.show(target));
    }
  }

  private async display(index: number): Promise<void> {
    const stack = this.stack as Stack;
    this.index = index;
    if (this.isShown) await this.viewport.setImageIdIndex(index);
    else {
      await this.viewport.setStack(stack.ids, index);
      this.isShown = true;
    }
    this.render();
    this.slider.value = String(index + 1);
    this.write();
  }

  private announceWait(target: number): ReturnType<typeof setTimeout>[] {
    if (isFetched(this.stack?.ids[target] ?? "")) return [];
    const count = this.stack?.ids.length ?? 0;
    return [
      setTimeout(() => this.say(this.texts("loading_image", { number: target + 1, count }), { busy: true }), PATIENT_MS),
      setTimeout(
        () => this.say(`${this.texts("loading_image", { number: target + 1, count })} ${this.texts("slow_pacs")}`, { busy: true }),
        SLOW_MS,
      ),
    ];
  }

  fail(error: unknown, again: () => void): void {
    const failure = error instanceof Failure ? error : new Failure("unreadable", "", false);
    const button = el("button", { type: "button", class: "rv-retry" }, [this.texts("retry")]);
    button.addEventListener("click", () => {
      this.say(this.texts("trying_again"), { busy: true });
      this.stack?.retry();
      again();
      this.frameElement.focus();
    });
    this.status.replaceChildren(
      el("p", { class: "rv-failure" }, [el("strong", {}, [this.texts("failure_title")]), " ", failureText(this.texts, failure)]),
      button,
    );
    this.status.dataset["state"] = "failed";
  }

  say(text: string, { busy = false } = {}): void {
    this.status.replaceChildren(...(text ? [el("p", {}, [text])] : []));
    this.status.dataset["state"] = text ? (busy ? "busy" : "told") : "none";
  }

  private tellProgress(): void {
    const stack = this.stack;
    if (stack === null) return;
    const { fetched, wanted, failures } = stack;
    const isWhole = fetched >= wanted || stack.ids.length < 2;
    this.corners["bottom"].dataset["loading"] = isWhole ? "no" : "yes";
    this.element.dataset["fetched"] = String(fetched);
    this.element.dataset["count"] = String(stack.ids.length);
    this.element.style.setProperty("--rv-fetched", String(wanted ? fetched / wanted : 1));
    if (!isWhole) this.progress = this.texts("images_fetched", { fetched, count: wanted });
    else this.progress = "";
    if (failures > 0) this.progress = `${this.progress} ${this.texts("images_failed", { failed: failures })}`.trim();
    this.write();
  }

  private progress = "";

  /** Have the viewport drawn with the next frame of the screen; until then `data-drawn` says no. */
  render(): void {
    this.element.dataset["drawn"] = "no";
    this.viewport.render();
  }

  /** Whether the viewport has the image that is wanted: it is also rendered empty, and with the image before. */
  private get hasImage(): boolean {
    const image = this.isShown ? (this.viewport.getCornerstoneImage() as { imageId: string } | undefined) : undefined;
    return image !== undefined && image.imageId === this.imageId;
  }

  private rendered(): void {
    if (!this.hasImage) return;
    this.redraw();
    this.write();
    this.element.dataset["index"] = String(this.index);
    this.element.dataset["drawn"] = "yes";
    this.onRendered();
  }

  redraw(): void {
    if (this.frame === null || !this.hasImage) return;
    const { heat } = drawOverlay(this.canvas, this.viewport, this.frame, this.layer, this.shown, this.percent);
    this.element.dataset["heat"] = heat ? "shown" : "none";
  }

  get window(): { center: number; width: number } | null {
    const range = this.isShown ? this.viewport.getProperties().voiRange : undefined;
    return range ? rangeWindow(range.lower, range.upper, this.frame?.voi_function === "LINEAR_EXACT") : null;
  }

  setWindow(center: number, width: number): void {
    if (!this.isShown) return;
    this.viewport.setProperties({ voiRange: windowRange(center, width, this.frame?.voi_function === "LINEAR_EXACT") });
    this.render();
  }

  get zoom(): number {
    return this.isShown ? this.viewport.getZoom() : 1;
  }

  /** Screen pixels for a pixel of the image. */
  private get magnification(): number {
    const frame = this.frame;
    if (frame === null || !this.isShown) return 1;
    const [fromX, fromY] = this.viewport.worldToCanvas(toWorld(frame, 0, 0));
    const [toX, toY] = this.viewport.worldToCanvas(toWorld(frame, 1, 0));
    return Math.hypot(toX - fromX, toY - fromY);
  }

  /** Write the corners anew. */
  write(): void {
    const { stack, frame } = this;
    if (stack === null || frame === null || !this.isShown) return;
    const { corners, texts } = this;
    const series = stack.series;
    lines(corners["top-left"], [this.title.role, this.title.study, this.title.day]);
    lines(corners["top-right"], [
      [series.modality, series.description].filter(Boolean).join(" · "),
      isLossy(this.imageId ?? "") ? texts("lossy") : "",
      series.left_out > 0 ? texts("left_out", { count: series.left_out }) : "",
      frame.spacing_at === "detector" ? texts("at_detector") : "",
    ]);
    const where = texts("image_of", { number: this.index + 1, count: stack.ids.length });
    lines(corners["bottom-left"], [this.progress, where, `${texts("zoom_short")} ${Math.round(this.magnification * 100)} %`]);
    const window = this.window;
    lines(corners["bottom-right"], [
      window === null || frame.photometric === "RGB"
        ? ""
        : `${texts("window_width_short")} ${Math.round(window.width)}  ${texts("window_center_short")} ${Math.round(window.center)}${frame.unit ? ` ${frame.unit}` : ""}`,
    ]);
    const presentation = this.viewport.getViewPresentation() as { rotation?: number; flipHorizontal?: boolean; flipVertical?: boolean };
    const edges = edgeLetters(frame.orientation, {
      flipHorizontal: presentation.flipHorizontal ?? false,
      flipVertical: presentation.flipVertical ?? false,
      rotation: presentation.rotation ?? 0,
    });
    for (const side of ["top", "right", "bottom", "left"] as const) {
      const letters = edges?.[side] ?? "";
      corners[side].textContent = letters.split("").map((letter) => texts(`direction_${letter}`)).join("");
    }
    this.slider.setAttribute("aria-valuetext", this.valueText(where));
    this.element.dataset["rendering"] = usesCPU() ? "cpu" : "gpu";
  }

  /** Replaced by the viewer where each image has a probability of its own. */
  valueText: (where: string) => string = (where) => where;

  /** Say something to those who do not see the image. */
  announce(text: string): void {
    this.live.textContent = text;
  }

  resize(): void {
    if (this.isShown) this.redraw();
  }

  private listen(): void {
    this.slider.addEventListener("input", () => void this.show(Number(this.slider.value) - 1));
    this.frameElement.addEventListener("focusin", () => this.onFocus());
    this.frameElement.addEventListener("pointerdown", () => this.onFocus());
    this.frameElement.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey) return;
        event.preventDefault();
        this.step(wheelSteps(event));
      },
      { passive: false },
    );
    this.dragThrough();
  }

  step(by: number): void {
    if (by !== 0) void this.show(clamp(this.wanted + by, this.stack?.ids.length ?? 1));
  }

  /** Drag through the stack: a few pixels for an image, fewer where there are many. */
  private dragThrough(): void {
    let from: { y: number; index: number } | null = null;
    this.surface.addEventListener("pointerdown", (event) => {
      if (!this.scrolls || event.button !== 0 || !event.isPrimary) return;
      from = { y: event.clientY, index: this.wanted };
      this.surface.setPointerCapture(event.pointerId);
    });
    this.surface.addEventListener("pointermove", (event) => {
      if (from === null || !event.isPrimary) return;
      const count = this.stack?.ids.length ?? 1;
      const pixels = Math.max(1.5, Math.min(DRAG_PIXELS * 2, this.surface.clientHeight / 1.5 / count));
      const target = clamp(from.index + Math.round((event.clientY - from.y) / pixels), count);
      if (target !== this.wanted) void this.show(target);
    });
    for (const end of ["pointerup", "pointercancel"]) this.surface.addEventListener(end, () => (from = null));
  }
}

let rest = 0;

/** A wheel's notch is an image; a touchpad's many small moves are gathered until they make one. */
function wheelSteps(event: WheelEvent): number {
  if (event.deltaMode !== WheelEvent.DOM_DELTA_PIXEL || Math.abs(event.deltaY) >= 50) return Math.sign(event.deltaY);
  rest += event.deltaY;
  const steps = Math.trunc(rest / 25);
  rest -= steps * 25;
  return steps;
}

function lines(element: HTMLElement, texts: readonly string[]): void {
  const wanted = texts.filter(Boolean);
  const current = [...element.children].map((child) => child.textContent);
  if (current.length === wanted.length && current.every((text, index) => text === wanted[index])) return;
  element.replaceChildren(...wanted.map((text) => el("div", {}, [text])));
}
