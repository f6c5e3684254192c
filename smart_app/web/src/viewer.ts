/** The viewer: two panes at most, the bar of tools above them, and what the result says laid over the images. */

import type { RenderingEngine } from "@cornerstonejs/core";

import { Failure, fetchJson, fetchPicture, type OtherStudy, type Overlay, type Series, type SeriesLine, type Study } from "./api";
import { automatic, start } from "./cornerstone";
import { keyDialog } from "./dialog";
import { el } from "./dom";
import { clamp, partner, place } from "./geometry";
import { handleKey } from "./keyboard";
import { Pane, type PaneTitle } from "./pane";
import { presetsOf, type Preset } from "./presets";
import { ask, startingIndex, type Asked } from "./starting";
import { Strip } from "./strip";
import { readTexts, type Texts } from "./texts";
import { Toolbar } from "./toolbar";
import type { Mode, Tools } from "./tools";

export async function begin(host: HTMLElement, asked: Asked): Promise<void> {
  performance.mark("rayhook-viewer-code");
  const texts = readTexts(host.dataset["texts"]);
  const viewer = new Viewer(host, texts);
  await viewer.open(asked);
}

export class Viewer {
  readonly main: Pane;
  other: Pane | null = null;
  active: Pane;
  mode: Mode = "scroll";
  tools: Tools | null = null;
  readonly dialog: HTMLDialogElement;

  private readonly engine: RenderingEngine;
  private readonly toolbar: Toolbar;
  private readonly panes: HTMLElement;
  private readonly strip: Strip;
  private readonly presetSelect: HTMLSelectElement;
  private readonly seriesSelect: HTMLSelectElement;
  private readonly priorSelect: HTMLSelectElement;
  private readonly opacity: HTMLInputElement;
  private readonly root: HTMLElement;
  private presets: Preset[] = [];
  private study: Study | null = null;
  private overlay: Overlay | null = null;
  private priors: OtherStudy[] | null = null;
  private linked = true;
  private link = { mine: 0, other: 0 };
  private firstShown = false;

  constructor(
    readonly host: HTMLElement,
    readonly texts: Texts,
  ) {
    this.engine = start(host.hasAttribute("data-cpu"));
    this.main = new Pane("rayhook-main", this.engine, texts, (probability) => this.percent(probability));
    this.active = this.main;
    this.toolbar = new Toolbar(texts);
    this.strip = new Strip(texts("strip_caption"), (index) => void this.main.show(index));
    this.presetSelect = el("select", { "aria-label": texts("preset"), class: "rv-select" });
    this.seriesSelect = el("select", { "aria-label": texts("series"), class: "rv-select" });
    this.priorSelect = el("select", { "aria-label": texts("prior"), class: "rv-select", hidden: true });
    this.opacity = el("input", { type: "range", min: "0", max: "100", step: "5", value: "70", "aria-label": texts("opacity") });
    this.dialog = keyDialog(texts);
    this.panes = el("div", { class: "rv-panes" }, [this.main.element]);
    this.root = el("div", { class: "rv-root", lang: document.documentElement.lang || "en" }, [
      this.toolbar.element,
      this.panes,
      this.strip.element,
      this.dialog,
    ]);
    this.fillToolbar();
    this.wire(this.main);
    host.replaceChildren(this.root);
    this.main.enable();
    this.main.say(texts("opening"), { busy: true });
    this.root.addEventListener("keydown", (event) => handleKey(this, event));
    new ResizeObserver(() => this.resized()).observe(this.panes);
  }

  /** Open the study at the image that carried the finding, or in the middle of its largest series. */
  async open(asked: Asked): Promise<void> {
    try {
      const [study, overlay] = await Promise.all([asked.study, asked.overlay]);
      this.study = study;
      this.overlay = overlay;
      const start = await asked.start;
      performance.mark("rayhook-series-told");
      if (start === null) {
        this.main.say(this.texts("no_images"));
        return;
      }
      this.listSeries(study, start.line);
      if (overlay?.key_image) void this.fetchHeat(overlay);
      await this.showSeries(start.series);
    } catch (error) {
      this.main.fail(error, () => void this.openAgain());
    }
  }

  private async openAgain(): Promise<void> {
    const { study = "", result } = this.host.dataset;
    await this.open(ask(study, result));
  }

  private async openSeries(handle: string): Promise<void> {
    try {
      await this.showSeries(await fetchJson<Series>(`${this.host.dataset["study"]}/series/${handle}`));
    } catch (error) {
      this.main.fail(error, () => void this.openSeries(handle));
    }
  }

  private async showSeries(series: Series): Promise<void> {
    this.main.layer = { ...this.main.layer, key: this.overlay?.key_image ?? null, marks: this.overlay?.marks ?? [] };
    this.toolbar.enable("key", this.overlay?.key_image != null);
    this.fillStrip(series);
    this.fillPresets(series);
    await this.main.open(this.host.dataset["study"] ?? "", series, startingIndex(series, this.overlay), this.title());
  }

  private title(): PaneTitle {
    return {
      role: this.other === null ? "" : this.texts("current_study"),
      study: this.study?.description ?? "",
      day: this.study?.started ?? "",
    };
  }

  private async fetchHeat(overlay: Overlay): Promise<void> {
    try {
      const picture = await fetchPicture(overlay.key_image?.heat.picture ?? "");
      this.main.layer = { ...this.main.layer, picture };
      this.main.redraw();
    } catch (error) {
      this.main.announce(this.texts("heat_failed"));
      if (!(error instanceof Failure)) throw error;
    }
  }

  // ---- The bar of tools.

  private fillToolbar(): void {
    const { toolbar, texts } = this;
    const mode = (id: Mode, key: string) => ({ id, icon: id, key, toggles: true, act: () => this.choose(id) }) as const;
    const slider = el("label", { class: "rv-opacity", title: texts("opacity") }, [
      el("span", { class: "rv-hidden" }, [texts("opacity")]),
      this.opacity,
    ]);
    toolbar.row("wide");
    toolbar.group("series", [this.seriesSelect]);
    toolbar.group("window", [this.presetSelect]);
    toolbar.group("overlay", [
      { id: "heat", icon: "heat", key: "O", toggles: true, act: () => this.toggleHeat() },
      slider,
      { id: "marks", icon: "marks", key: "M", toggles: true, act: () => this.toggleMarks() },
      { id: "key", icon: "key", key: "K", act: () => this.toKeyImage() },
    ]);
    toolbar.group("compared", [this.priorSelect, { id: "link", icon: "link", toggles: true, act: () => this.toggleLink() }]);
    toolbar.row("tall");
    toolbar.group("modes", [mode("scroll", "S"), mode("window", "W"), mode("zoom", "Z"), mode("pan", "P")]);
    toolbar.group("measures", [
      mode("length", "L"),
      mode("ellipse", "E"),
      mode("probe", "B"),
      { id: "erase", icon: "erase", key: "Delete", act: () => this.erase() },
    ]);
    toolbar.group("view", [
      { id: "invert", icon: "invert", key: "I", toggles: true, act: () => this.invert() },
      { id: "fit", icon: "fit", key: "F", act: () => this.fit() },
      { id: "flip", icon: "flip", key: "H", toggles: true, act: () => this.flip() },
      { id: "rotate", icon: "rotate", key: "R", act: () => this.rotate() },
      { id: "reset", icon: "reset", key: "0", act: () => this.reset() },
    ]);
    toolbar.group("compare", [
      { id: "compare", icon: "compare", key: "C", toggles: true, act: () => void this.compare() },
      { id: "keyboard", icon: "keyboard", key: "?", act: () => this.help() },
    ]);
    this.presetSelect.addEventListener("change", () => this.preset(this.presetSelect.selectedIndex - 1));
    this.seriesSelect.addEventListener("change", () => void this.openSeries(this.seriesSelect.value));
    this.priorSelect.addEventListener("change", () => void this.openPrior(this.priorSelect.value));
    this.opacity.addEventListener("input", () => this.fade());
    toolbar.press("scroll", true);
    toolbar.enable("key", false);
    toolbar.show("link", false);
    this.showLayers();
  }

  choose(mode: Mode): void {
    this.mode = mode;
    for (const id of ["scroll", "window", "zoom", "pan", "length", "ellipse", "probe"]) this.toolbar.press(id, id === mode);
    for (const pane of this.all) {
      pane.scrolls = mode === "scroll";
      pane.shown = { ...pane.shown, cross: null };
      pane.element.dataset["mode"] = mode;
      pane.redraw();
    }
    this.tools?.choose(mode);
  }

  private get all(): Pane[] {
    return this.other === null ? [this.main] : [this.main, this.other];
  }

  preset(index: number): void {
    const preset = this.presets[index];
    if (index === -1) {
      const window = this.active.imageId === null ? null : automatic(this.active.imageId);
      if (window) this.active.setWindow(window.center, window.width);
    } else if (preset) this.active.setWindow(preset.center, preset.width);
    else return;
    this.presetSelect.selectedIndex = index + 1;
  }

  private fillPresets(series: Series): void {
    const middle = series.frames[Math.floor(series.frames.length / 2)];
    this.presets = presetsOf(series.modality, middle, (key) => this.texts(key));
    const options = [{ label: this.texts("preset_automatic") }, ...this.presets].map((preset, index) =>
      el("option", { value: String(index) }, [index > 0 ? `${index} ${preset.label}` : preset.label]),
    );
    this.presetSelect.replaceChildren(...options);
    this.presetSelect.selectedIndex = this.presets.length > 0 ? 1 : 0;
    this.presetSelect.disabled = middle !== undefined && !middle.photometric.startsWith("MONOCHROME");
  }

  private listSeries(study: Study, chosen: SeriesLine): void {
    this.seriesSelect.replaceChildren(
      ...study.series.map((line) => el("option", { value: line.handle }, [seriesLabel(line, this.texts)])),
    );
    this.seriesSelect.value = chosen.handle;
  }

  invert(): void {
    const { viewport } = this.active;
    viewport.setProperties({ invert: !viewport.getProperties().invert });
    this.active.render();
    this.showView();
  }

  fit(): void {
    this.active.viewport.resetCamera({ resetPan: true, resetZoom: true, resetToCenter: true });
    this.active.render();
  }

  flip(vertical = false): void {
    const { viewport } = this.active;
    const { flipHorizontal = false, flipVertical = false } = viewport.getCamera();
    viewport.setCamera(vertical ? { flipVertical: !flipVertical } : { flipHorizontal: !flipHorizontal });
    this.active.render();
    this.showView();
  }

  rotate(): void {
    const { viewport } = this.active;
    viewport.setViewPresentation({ ...viewport.getViewPresentation(), rotation: ((this.rotation += 90) % 360) });
    this.active.render();
    this.showView();
  }

  private rotation = 0;

  reset(): void {
    const { viewport } = this.active;
    this.rotation = 0;
    viewport.resetProperties();
    viewport.resetCamera();
    viewport.setViewPresentation({ ...viewport.getViewPresentation(), rotation: 0 });
    viewport.setCamera({ flipHorizontal: false, flipVertical: false });
    this.active.render();
    this.presetSelect.selectedIndex = this.presets.length > 0 ? 1 : 0;
    this.showView();
  }

  private showView(): void {
    const { viewport } = this.active;
    const camera = viewport.getCamera();
    this.toolbar.press("invert", viewport.getProperties().invert ?? false);
    this.toolbar.press("flip", camera.flipHorizontal ?? false);
    this.active.write();
  }

  zoom(by: number): void {
    const { viewport } = this.active;
    viewport.setZoom(Math.min(40, Math.max(0.1, viewport.getZoom() * by)));
    this.active.render();
    this.active.write();
  }

  pan(x: number, y: number): void {
    const { viewport } = this.active;
    const [atX, atY] = viewport.getPan();
    viewport.setPan([atX + x, atY + y]);
    this.active.render();
  }

  window(center: number, width: number): void {
    const window = this.active.window;
    if (window === null) return;
    const step = Math.max(1, window.width * 0.05);
    this.active.setWindow(window.center + center * step, Math.max(1, window.width + width * step));
  }

  erase(): void {
    const count = this.tools?.erase(this.active.imageId ?? undefined) ?? 0;
    this.active.announce(this.texts("erased", { count }));
  }

  // ---- What the result says.

  toggleHeat(): void {
    this.main.shown = { ...this.main.shown, heat: !this.main.shown.heat };
    this.showLayers();
  }

  toggleMarks(): void {
    this.main.shown = { ...this.main.shown, marks: !this.main.shown.marks };
    this.showLayers();
  }

  private fade(): void {
    this.main.shown = { ...this.main.shown, opacity: Number(this.opacity.value) / 100 };
    this.showLayers();
  }

  private showLayers(): void {
    this.toolbar.press("heat", this.main.shown.heat);
    this.toolbar.press("marks", this.main.shown.marks);
    this.opacity.disabled = !this.main.shown.heat;
    this.opacity.setAttribute("aria-valuetext", `${this.opacity.value} %`);
    const has = this.overlay;
    this.toolbar.show("marks", (has?.marks.length ?? 0) > 0);
    const hasHeat = has?.key_image != null;
    for (const id of ["heat", "key"]) this.toolbar.show(id, hasHeat);
    if (this.opacity.parentElement) this.opacity.parentElement.hidden = !hasHeat;
    this.main.redraw();
  }

  toKeyImage(): void {
    const key = this.overlay?.key_image;
    const index = this.main.series?.frames.findIndex((frame) => frame.image === key?.image) ?? -1;
    if (index >= 0) void this.main.show(index);
    else if (key) {
      this.seriesSelect.value = key.series;
      void this.openSeries(key.series);
    }
  }

  /** Show the image with this handle, which another part of the page names. */
  showImage(handle: string): void {
    const index = this.main.series?.frames.findIndex((frame) => frame.image === handle) ?? -1;
    if (index >= 0) void this.main.show(index);
  }

  private fillStrip(series: Series): void {
    const known = new Map(this.overlay?.slices ?? []);
    const probabilities = series.frames.map((frame) => known.get(frame.image) ?? null);
    this.strip.fill(probabilities, this.overlay?.threshold ?? null);
    this.main.valueText = (where) => {
      const probability = probabilities[this.main.index];
      return probability == null ? where : `${where}, ${this.texts("probability", { value: this.percent(probability) })}`;
    };
    this.showLayers();
  }

  percent(probability: number | null): string {
    if (probability === null) return this.texts("no_answer");
    return new Intl.NumberFormat(document.documentElement.lang || "en", {
      style: "percent",
      maximumFractionDigits: 1,
      minimumFractionDigits: 1,
    }).format(Math.min(0.999, Math.max(0.001, probability)));
  }

  // ---- Side by side.

  async compare(): Promise<void> {
    if (this.other !== null) {
      this.closeOther();
      return;
    }
    this.toolbar.press("compare", true);
    try {
      this.priors ??= (await fetchJson<{ studies: OtherStudy[] }>(`${this.host.dataset["study"]}/others`)).studies;
    } catch (error) {
      this.toolbar.press("compare", false);
      this.main.announce(this.texts("priors_failed"));
      if (!(error instanceof Failure)) throw error;
      return;
    }
    const first = this.priors.find((one) => one.study === this.host.dataset["prior"]) ?? this.priors[0];
    if (first === undefined) {
      this.toolbar.press("compare", false);
      this.main.say(this.texts("no_priors"));
      setTimeout(() => this.main.say(""), 4000);
      return;
    }
    this.priorSelect.replaceChildren(
      ...this.priors.map((one) => el("option", { value: one.study }, [[one.started, one.description].filter(Boolean).join(" · ")])),
    );
    this.priorSelect.hidden = false;
    this.priorSelect.value = first.study;
    this.beside();
    await this.openPrior(first.study);
  }

  private beside(): void {
    const other = new Pane("rayhook-other", this.engine, this.texts, (probability) => this.percent(probability));
    other.shown = { ...other.shown, heat: false, marks: false };
    this.other = other;
    this.panes.append(other.element);
    this.panes.dataset["panes"] = "2";
    other.enable();
    this.wire(other);
    this.tools?.add(other.id);
    this.toolbar.show("link", true);
    this.toolbar.press("link", this.linked);
    this.choose(this.mode);
    this.engine.resize(true, false);
  }

  private async openPrior(study: string): Promise<void> {
    const other = this.other;
    if (other === null) return;
    other.say(this.texts("opening"), { busy: true });
    try {
      const found = await fetchJson<Study>(study);
      const line = likestSeries(found, this.main.series);
      if (line === undefined) {
        other.say(this.texts("no_images"));
        return;
      }
      const series = await fetchJson<Series>(`${study}/series/${line.handle}`);
      const index = alike(this.main, series);
      await other.open(study, series, index, { role: this.texts("prior_study"), study: found.description, day: found.started });
      this.link = { mine: this.main.index, other: other.index };
      this.main.write();
    } catch (error) {
      other.fail(error, () => void this.openPrior(study));
    }
  }

  private closeOther(): void {
    if (this.other === null) return;
    this.tools?.remove(this.other.id);
    this.engine.disableElement(this.other.id);
    this.other.stack?.stop();
    this.other.element.remove();
    this.other = null;
    this.activate(this.main);
    this.priorSelect.hidden = true;
    delete this.panes.dataset["panes"];
    this.toolbar.press("compare", false);
    this.toolbar.show("link", false);
    this.engine.resize(true, false);
  }

  private toggleLink(): void {
    this.linked = !this.linked;
    if (this.other !== null) this.link = { mine: this.main.index, other: this.other.index };
    this.toolbar.press("link", this.linked);
  }

  private follow(from: Pane, index: number): void {
    const to = from === this.main ? this.other : this.main;
    if (!this.linked || to === null || to.series === null || from.series === null) return;
    const link = from === this.main ? this.link : { mine: this.link.other, other: this.link.mine };
    void to.show(partner(from.series.frames, to.series.frames, link, index), { silent: true });
  }

  // ---- Both panes.

  private wire(pane: Pane): void {
    pane.onFocus = () => this.activate(pane);
    pane.onIndex = (index) => {
      if (pane === this.main) {
        this.strip.move(index);
        this.host.dispatchEvent(new CustomEvent("rayhook-image", { bubbles: true, detail: pane.frame?.image }));
      }
      this.follow(pane, index);
    };
    pane.onWindow = () => this.followWindow(pane);
    pane.onRendered = () => this.rendered(pane);
  }

  private followWindow(from: Pane): void {
    const to = from === this.main ? this.other : this.main;
    const window = from.window;
    if (!this.linked || to === null || window === null || from !== this.active) return;
    const sameScale = from.frame?.unit === to.frame?.unit && from.frame?.unit !== "";
    if (sameScale) to.setWindow(window.center, window.width);
  }

  private activate(pane: Pane): void {
    this.active = pane;
    for (const one of this.all) one.element.dataset["active"] = String(one === pane && this.other !== null);
  }

  private rendered(pane: Pane): void {
    if (pane !== this.main || this.firstShown) return;
    this.firstShown = true;
    requestAnimationFrame(() => {
      performance.mark("rayhook-first-image");
      this.host.dataset["state"] = "shown";
      this.host.dispatchEvent(new CustomEvent("rayhook-shown", { bubbles: true }));
    });
    void this.bringTools();
  }

  /** The tools' code is fetched after the first image is there: nobody measures before. */
  private async bringTools(): Promise<void> {
    const { Tools } = await import("./tools");
    this.tools = new Tools(this.engine.id, this.texts, (value, digits) => this.number(value, digits));
    for (const pane of this.all) this.tools.adopt(pane.id);
    this.tools.choose(this.mode);
    this.host.dataset["tools"] = "ready";
  }

  number(value: number, digits: number): string {
    return new Intl.NumberFormat(document.documentElement.lang || "en", {
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    }).format(value);
  }

  private resized(): void {
    this.engine.resize(true, true);
    this.strip.draw();
    for (const pane of this.all) pane.resize();
  }

  help(): void {
    this.dialog.showModal();
  }
}

/** The series of another study that is most like this one: of its modality, described in the same words. */
function likestSeries(study: Study, current: Series | null): SeriesLine | undefined {
  const words = new Set((current?.description ?? "").toLowerCase().split(/\W+/).filter(Boolean));
  const score = (line: SeriesLine): number =>
    (line.modality === current?.modality ? 100 : 0) +
    line.description.toLowerCase().split(/\W+/).filter((word) => words.has(word)).length * 10 +
    Math.min(9, (line.images ?? 0) / 20);
  return [...study.series].sort((a, b) => score(b) - score(a))[0];
}

/** The image of another series at the same place of the patient, or in the same share of the stack. */
function alike(pane: Pane, series: Series): number {
  const [here, count] = [pane.frame ? place(pane.frame) : null, pane.series?.frames.length ?? 1];
  const places = series.frames.map(place);
  const share = clamp(Math.round((pane.index / Math.max(1, count - 1)) * (series.frames.length - 1)), series.frames.length);
  if (here === null || places.some((one) => one === null)) return share;
  const nearest = places.reduce<number>(
    (best, one, at) => (Math.abs((one ?? 0) - here) < Math.abs((places[best] ?? 0) - here) ? at : best),
    0,
  );
  const span = Math.abs((places[1] ?? 0) - (places[0] ?? 0)) || 1;
  return Math.abs((places[nearest] ?? 0) - here) <= span ? nearest : share;
}

function seriesLabel(line: SeriesLine, texts: Texts): string {
  const name = [line.modality, line.description || line.body_part].filter(Boolean).join(" ");
  return line.images === null ? name : `${name} (${texts("images_short", { count: line.images })})`;
}
