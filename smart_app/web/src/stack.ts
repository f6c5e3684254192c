/** Fetching the images of one stack in the order in which they will be wanted, and telling how far it has come. */

import { Failure, type Series } from "./api";
import { fetchImage, isFetched, register } from "./cornerstone";
import { fetchOrder } from "./order";

const AT_ONCE = 4;
const FETCHED_AHEAD_BYTES = 512 * 2 ** 20;

export class Stack {
  readonly ids: string[];
  private at = 0;
  private busy = 0;
  private stopped = false;
  private readonly failed = new Set<number>();

  constructor(
    readonly study: string,
    readonly series: Series,
    private readonly progressed: () => void,
  ) {
    this.ids = register(study, series);
  }

  get fetched(): number {
    return this.ids.filter(isFetched).length;
  }

  /** How many images are fetched without being asked for: what the browser's memory bears. */
  get wanted(): number {
    const [first] = this.series.frames;
    const size = first ? first.rows * first.columns * 2 : 1;
    return Math.min(this.ids.length, Math.max(1, Math.floor(FETCHED_AHEAD_BYTES / size)));
  }

  get failures(): number {
    return this.failed.size;
  }

  /** Fetch one image now. Rejects with Failure. */
  async image(index: number): Promise<void> {
    const id = this.ids[index];
    if (id === undefined) throw new Failure("image_not_found", "", false);
    try {
      await fetchImage(id);
      this.failed.delete(index);
    } catch (error) {
      this.failed.add(index);
      throw error instanceof Failure ? error : asFailure(error);
    } finally {
      this.progressed();
    }
  }

  /** Fetch the others, those nearest to `index` first. */
  fetchAround(index: number): void {
    this.at = index;
    while (this.busy < AT_ONCE && this.next() !== undefined) void this.work();
  }

  retry(): void {
    this.failed.clear();
    this.fetchAround(this.at);
  }

  stop(): void {
    this.stopped = true;
  }

  private readonly underWay = new Set<number>();

  private next(): number | undefined {
    if (this.stopped) return undefined;
    return fetchOrder(this.ids.length, this.at)
      .slice(0, this.wanted)
      .find((index) => !this.underWay.has(index) && !this.failed.has(index) && !isFetched(this.ids[index] ?? ""));
  }

  private async work(): Promise<void> {
    this.busy += 1;
    for (let index = this.next(); index !== undefined; index = this.next()) {
      this.underWay.add(index);
      try {
        await this.image(index);
      } catch {
        // It is counted as failed, and told where it is looked at.
      } finally {
        this.underWay.delete(index);
      }
    }
    this.busy -= 1;
  }
}

function asFailure(error: unknown): Failure {
  const inner = (error as { error?: unknown } | null)?.error;
  if (inner instanceof Failure) return inner;
  return new Failure("unreadable", "", false);
}
