/** Each slice's probability as a row of bars below the image: where the model sees something, and where we are. */

import { el } from "./dom";

const ABOVE = "#ffb454";
const BELOW = "#6f93d8";

export class Strip {
  readonly element: HTMLElement;
  private readonly canvas: HTMLCanvasElement;
  private probabilities: (number | null)[] = [];
  private threshold: number | null = null;
  private at = 0;

  constructor(caption: string, choose: (index: number) => void) {
    this.canvas = el("canvas", { class: "rv-strip-bars" });
    // The slider says the same, with each image's probability in words.
    this.element = el("div", { class: "rv-strip", "aria-hidden": "true", title: caption }, [this.canvas]);
    this.element.addEventListener("click", (event) => {
      const { left, width } = this.canvas.getBoundingClientRect();
      choose(Math.floor(((event.clientX - left) / width) * this.probabilities.length));
    });
  }

  fill(probabilities: (number | null)[], threshold: number | null): void {
    this.probabilities = probabilities;
    this.threshold = threshold;
    this.element.hidden = !probabilities.some((one) => one !== null) || probabilities.length < 2;
    this.draw();
  }

  move(index: number): void {
    this.at = index;
    this.draw();
  }

  draw(): void {
    const context = this.canvas.getContext("2d");
    if (context === null || this.element.hidden) return;
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    context.scale(ratio, ratio);
    const step = width / this.probabilities.length;
    const gap = step > 4 ? 1 : 0;
    context.fillStyle = "rgba(255, 255, 255, 0.16)";
    context.fillRect(this.at * step, 0, Math.max(2, step), height);
    this.probabilities.forEach((probability, index) => {
      if (probability === null) return;
      const size = Math.max(1.5, probability * (height - 2));
      context.fillStyle = this.threshold !== null && probability >= this.threshold ? ABOVE : BELOW;
      context.fillRect(index * step, height - size, Math.max(1, step - gap), size);
    });
    if (this.threshold !== null) {
      const y = height - this.threshold * (height - 2);
      context.strokeStyle = "#ffe9c2";
      context.setLineDash([4, 3]);
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
    }
    context.setLineDash([]);
    context.strokeStyle = "#ffffff";
    context.lineWidth = 1.5;
    context.strokeRect(this.at * step + 0.75, 0.75, Math.max(2, step - 1.5), height - 1.5);
  }
}
