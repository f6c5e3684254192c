/** The element `<rayhook-viewer>`: what is asked of the server is asked at once, while the rest of the code comes. */

import "./viewer.css";

import { fetchJson, type Overlay, type Study } from "./api";

class RayhookViewer extends HTMLElement {
  connectedCallback(): void {
    performance.mark("rayhook-viewer-begun");
    const { study = "", result } = this.dataset;
    const asked = {
      study: fetchJson<Study>(study),
      overlay: result ? fetchJson<Overlay>(result) : Promise.resolve(null),
    };
    // Told by the viewer, once it is there.
    asked.study.catch(() => {});
    asked.overlay.catch(() => {});
    import("./viewer").then(
      ({ begin }) => begin(this, asked),
      () => this.dispatchEvent(new CustomEvent("rayhook-viewer-absent", { bubbles: true })),
    );
  }
}

customElements.define("rayhook-viewer", RayhookViewer);
