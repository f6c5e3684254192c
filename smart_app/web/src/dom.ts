/** Making elements without a framework, and without a string that is read as HTML. */

type Children = readonly (Node | string)[];

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string | boolean | null> = {},
  children: Children = [],
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A drawing of 24 by 24 units, lines only. It says nothing by itself: the button beside it has a name. */
export function icon(path: string): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

export const ICONS = {
  scroll: "M4 6h16M4 12h16M4 18h16M12 2v3M12 19v3",
  window: "M12 3a9 9 0 1 0 0 18a9 9 0 0 0 0-18zM12 3v18M12 8h8M12 12h9M12 16h8",
  zoom: "M10.5 4a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13zM15.5 15.5L21 21M10.5 7.5v6M7.5 10.5h6",
  pan: "M12 3v18M3 12h18M12 3l-2.5 2.5M12 3l2.5 2.5M12 21l-2.5-2.5M12 21l2.5-2.5M3 12l2.5-2.5M3 12l2.5 2.5M21 12l-2.5-2.5M21 12l-2.5 2.5",
  length: "M4 20L20 4M3 17l4 4M17 3l4 4M9.5 11.5l2 2M12.5 8.5l2 2",
  ellipse: "M12 6c5 0 9 2.7 9 6s-4 6-9 6s-9-2.7-9-6s4-6 9-6z",
  probe: "M12 3v6M12 15v6M3 12h6M15 12h6M12 11.5v1",
  invert: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  flip: "M12 3v18M9 7L3 17h6zM15 7l6 10h-6z",
  flipVertical: "M3 12h18M7 9L17 3v6zM7 15l10 6v-6z",
  rotate: "M20 12a8 8 0 1 1-2.5-5.8M20 3v5h-5",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  reset: "M4 12a8 8 0 1 0 2.5-5.8M4 3v5h5",
  heat: "M12 3c1 4 5 5.500 5 10a5 5 0 0 1-10 0c0-2 1-3 2-4c.3 1.500 1 2 2 2.500c.5-3-.5-5.500 1-8.500z",
  marks: "M12 4a8 8 0 1 0 0 16a8 8 0 0 0 0-16zM12 10.500v3M10.500 12h3",
  key: "M12 3l2.700 5.600l6.100.800l-4.500 4.300l1.100 6.100L12 16.900l-5.400 2.900l1.100-6.100L3.200 9.400l6.100-.800z",
  compare: "M3 5h8v14H3zM13 5h8v14h-8z",
  link: "M9 15l6-6M8 11l-2 2a3.500 3.500 0 0 0 5 5l2-2M16 13l2-2a3.500 3.500 0 0 0-5-5l-2 2",
  erase: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v6M14 11v6",
  keyboard: "M3 6h18v12H3zM7 10h.01M11 10h.01M15 10h.01M8 14h8",
  close: "M6 6l12 12M18 6L6 18",
} as const;

export type IconName = keyof typeof ICONS;
