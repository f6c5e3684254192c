/** The viewer's texts, as the page gives them in the reader's language; English stands in the server's catalogue. */

export type Texts = (key: string, values?: Record<string, string | number>) => string;

export function readTexts(json: string | undefined): Texts {
  const known = JSON.parse(json ?? "{}") as Record<string, string>;
  return (key, values = {}) =>
    (known[key] ?? key).replace(/%\((\w+)\)s/g, (whole, name: string) =>
      name in values ? String(values[name]) : whole,
    );
}

/** Words for a failure: our own where the code is known, the server's otherwise. */
export function failureText(texts: Texts, failure: { code: string; detail: string }): string {
  const known = texts(`failure_${failure.code}`);
  if (known !== `failure_${failure.code}`) return known;
  return failure.detail ? texts("failure_other", { reason: failure.detail }) : texts("failure_unknown");
}
