import { afterEach, beforeAll, expect, it } from "vitest";

import { Failure, fetchJson } from "../src/api";

/** What is used of node:http here: its types are not among what the viewer is built with. */
interface Http {
  createServer(answer: (request: unknown, response: Outgoing) => void): Server;
}
interface Outgoing {
  writeHead(status: number, headers: Record<string, string>): void;
  end(body: string): void;
}
interface Server {
  listen(port: number, host: string, listening: () => void): void;
  address(): { port: number };
  close(): void;
}

const MODULE = "node:http";

let server: Server | undefined;

beforeAll(() => {
  Object.assign(globalThis, { document: { querySelector: () => null } });
});

afterEach(() => server?.close());

/** A server that refuses so many times before it answers; returns its URL, and how often it was asked. */
async function busy(times: number, headers: Record<string, string>): Promise<{ url: string; asked: () => number }> {
  let asked = 0;
  const { createServer } = (await import(/* @vite-ignore */ MODULE)) as Http;
  const made = createServer((_, response) => {
    asked += 1;
    const refuses = asked <= times;
    response.writeHead(refuses ? 503 : 200, { "Content-Type": "application/json", ...(refuses ? headers : {}) });
    response.end(JSON.stringify(refuses ? { code: "overloaded", message: "busy", retryable: true } : { well: true }));
  });
  server = made;
  await new Promise<void>((resolve) => made.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${made.address().port}/`, asked: () => asked };
}

it("comes again when the server says when", async () => {
  const { url, asked } = await busy(1, { "Retry-After": "1" });
  expect(await fetchJson(url)).toEqual({ well: true });
  expect(asked()).toBe(2);
});

it("does not come again where it was not asked to", async () => {
  const { url, asked } = await busy(9, {});
  await expect(fetchJson(url)).rejects.toBeInstanceOf(Failure);
  expect(asked()).toBe(1);
});

it("gives up after a few times, with the server's own code", async () => {
  const { url, asked } = await busy(9, { "Retry-After": "1" });
  await expect(fetchJson(url)).rejects.toMatchObject({ code: "overloaded", retryable: true });
  expect(asked()).toBe(4);
});

it("stops coming again when nobody wants the answer any more", async () => {
  const { url, asked } = await busy(9, { "Retry-After": "5" });
  const leaving = new AbortController();
  setTimeout(() => leaving.abort(), 100);
  await expect(fetchJson(url, leaving.signal)).rejects.toBeDefined();
  expect(asked()).toBe(1);
});
