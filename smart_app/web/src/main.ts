/** The element `<rayhook-viewer>`: what is asked of the server is asked at once, while the rest of the code comes. */

import "./viewer.css";

import { ask } from "./starting";

class RayhookViewer extends HTMLElement {
  connectedCallback(): void {
    performance.mark("rayhook-viewer-begun");
    const { study = "", result } = this.dataset;
    const asked = ask(study, result);
    import("./viewer").then(
      ({ begin }) => begin(this, asked),
      () => this.dispatchEvent(new CustomEvent("rayhook-viewer-absent", { bubbles: true })),
    );
  }
}

customElements.define("rayhook-viewer", RayhookViewer);
