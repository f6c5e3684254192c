/** The row of buttons: each has a drawing, a word, and says whether it is on. */

import { el, icon, ICONS, type IconName } from "./dom";
import type { Texts } from "./texts";

export interface ButtonSpec {
  id: string;
  icon: IconName;
  /** The key that does the same, as it is printed on the keyboard. */
  key?: string;
  toggles?: boolean;
  act: () => void;
}

export class Toolbar {
  readonly element: HTMLElement;
  private readonly buttons = new Map<string, HTMLButtonElement>();

  constructor(private readonly texts: Texts) {
    this.element = el("div", { class: "rv-toolbar", role: "toolbar", "aria-label": texts("toolbar") });
    this.element.addEventListener("keydown", (event) => this.move(event));
  }

  /** Begin a new row: `wide` buttons have their word beside the drawing. */
  row(kind: "wide" | "tall"): void {
    this.line = el("div", { class: `rv-row rv-${kind}`, role: "presentation" });
    this.element.append(this.line);
  }

  private line: HTMLElement = el("div");

  group(name: string, members: readonly (ButtonSpec | HTMLElement)[]): void {
    const group = el("div", { class: "rv-group", role: "group", "aria-label": this.texts(`group_${name}`) });
    for (const member of members) group.append(member instanceof HTMLElement ? member : this.button(member));
    this.line.append(group);
    this.rove();
  }

  press(id: string, pressed: boolean): void {
    this.buttons.get(id)?.setAttribute("aria-pressed", String(pressed));
  }

  enable(id: string, enabled: boolean): void {
    const button = this.buttons.get(id);
    if (button) button.disabled = !enabled;
    this.rove();
  }

  show(id: string, shown: boolean): void {
    const button = this.buttons.get(id);
    if (button) button.hidden = !shown;
    this.rove();
  }

  get(id: string): HTMLButtonElement | undefined {
    return this.buttons.get(id);
  }

  private button(spec: ButtonSpec): HTMLButtonElement {
    const text = this.texts(`tool_${spec.id}`);
    const hint = this.texts(`hint_${spec.id}`);
    const title = hint === `hint_${spec.id}` ? text : hint;
    const button = el(
      "button",
      {
        type: "button",
        class: "rv-button",
        "data-tool": spec.id,
        title: spec.key ? `${title} (${spec.key})` : title,
        "aria-pressed": spec.toggles ? "false" : null,
        "aria-keyshortcuts": spec.key ? ariaKey(spec.key) : null,
      },
      [icon(ICONS[spec.icon]), el("span", {}, [text])],
    );
    button.addEventListener("click", spec.act);
    this.buttons.set(spec.id, button);
    return button;
  }

  /** One stop of the Tab key for the whole bar, the arrows within. Spec: WAI-ARIA APG, Toolbar Pattern */
  private move(event: KeyboardEvent): void {
    const controls = this.controls();
    const at = controls.indexOf(document.activeElement as HTMLElement);
    if (at < 0 || (document.activeElement instanceof HTMLSelectElement && event.key.startsWith("Arrow") && /Up|Down/.test(event.key))) return;
    if (document.activeElement instanceof HTMLInputElement) return;
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: controls.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const target = controls[(next + controls.length) % controls.length];
    this.rove(target);
    target?.focus();
  }

  private rove(target?: HTMLElement): void {
    const controls = this.controls();
    const stop = target ?? controls.find((one) => one.tabIndex === 0) ?? controls[0];
    for (const one of this.element.querySelectorAll<HTMLElement>("button, select, input")) one.tabIndex = one === stop ? 0 : -1;
    for (const one of this.element.querySelectorAll<HTMLElement>("input")) one.tabIndex = 0;
  }

  private controls(): HTMLElement[] {
    return [...this.element.querySelectorAll<HTMLElement>("button, select, input")].filter(
      (one) => !one.hidden && !(one as HTMLButtonElement).disabled,
    );
  }
}

function ariaKey(key: string): string {
  return key === "?" ? "Shift+?" : key;
}
