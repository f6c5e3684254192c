/** The map of the keys, and of what mouse and fingers do. */

import { el, icon, ICONS } from "./dom";
import type { Texts } from "./texts";

export const KEYS: readonly (readonly [keys: string, text: string])[] = [
  ["↑ ↓", "key_step"],
  ["PageUp PageDown", "key_page"],
  ["Home End", "key_ends"],
  ["S W Z P", "key_modes"],
  ["L E B", "key_measures"],
  ["Enter ← ↑ → ↓", "key_cross"],
  ["1 … 9", "key_presets"],
  [", .", "key_center"],
  ["[ ]", "key_width"],
  ["+ −", "key_zoom"],
  ["Shift ← ↑ → ↓", "key_pan"],
  ["I H V R", "key_turns"],
  ["F", "key_fit"],
  ["0", "key_reset"],
  ["O M", "key_layers"],
  ["K", "key_key"],
  ["C", "key_compare"],
  ["Delete", "key_erase"],
  ["Esc", "key_escape"],
  ["?", "key_help"],
];

const POINTERS: readonly (readonly [string, string])[] = [
  ["pointer_wheel", "pointer_wheel_does"],
  ["pointer_main", "pointer_main_does"],
  ["pointer_right", "pointer_right_does"],
  ["pointer_middle", "pointer_middle_does"],
  ["pointer_two", "pointer_two_does"],
];

export function keyDialog(texts: Texts): HTMLDialogElement {
  const close = el("button", { type: "button", class: "rv-close", "aria-label": texts("close") }, [icon(ICONS.close)]);
  const dialog = el("dialog", { class: "rv-dialog", "aria-labelledby": "rv-keys-title" }, [
    el("div", { class: "rv-dialog-head" }, [el("h2", { id: "rv-keys-title" }, [texts("keys_title")]), close]),
    el("div", { class: "rv-dialog-body" }, [
      el("dl", {}, KEYS.map(([keys, text]) => pair(keyCaps(keys), texts(text)))),
      el("h3", {}, [texts("pointers_title")]),
      el("dl", {}, POINTERS.map(([name, does]) => pair([texts(name)], texts(does)))),
    ]),
  ]);
  close.addEventListener("click", () => dialog.close());
  return dialog;
}

function pair(keys: (Node | string)[], text: string): HTMLElement {
  return el("div", {}, [el("dt", {}, keys), el("dd", {}, [text])]);
}

function keyCaps(keys: string): (Node | string)[] {
  return keys.split(" ").map((key) => el("kbd", {}, [key]));
}
