// oidc-provider as a strict SMART authorization server, and as little FHIR behind it as the app needs to open.
// Its one argument is a JSON object: port, clientId, redirectUri, jwksUri, algorithm, format ("opaque" or "jwt"),
// and where a test wants them, withheld (scopes that are not granted) and authorizePost.
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import Provider from "oidc-provider";

const options = JSON.parse(process.argv[2]);
const origin = `http://127.0.0.1:${options.port}`;
const fhir = `${origin}/fhir`;
const USER = "clinician";
const SCOPES = [
  "openid", "fhirUser", "launch", "launch/patient", "online_access", "offline_access",
  "patient/Patient.r", "patient/ImagingStudy.rs", "patient/DiagnosticReport.rs", "patient/Observation.rs",
  "system/Patient.r", "system/DiagnosticReport.crus",
];
const patients = new Map(); // by grant
const granted = (scope) => scope.split(" ").filter((one) => !options.withheld?.includes(one)).join(" ");

function privateKey(type, parameters, alg) {
  const { privateKey: key } = generateKeyPairSync(type, parameters);
  return { ...key.export({ format: "jwk" }), use: "sig", alg, kid: `peer-${alg}` };
}

// SMART: the launch names the patient; without one the user chooses, here always the same.
function patientOf(params) {
  if (params.launch) {
    return /^launch-[a-z-]+$/.test(params.launch) ? params.launch.slice("launch-".length) : null;
  }
  return params.scope.split(" ").includes("launch/patient") ? "phantom-a" : null;
}

const jwt = options.format === "jwt";
const provider = new Provider(origin, {
  clients: [{
    client_id: options.clientId,
    redirect_uris: [options.redirectUri],
    response_types: ["code"],
    grant_types: ["authorization_code", "refresh_token", "client_credentials"],
    token_endpoint_auth_method: "private_key_jwt",
    token_endpoint_auth_signing_alg: options.algorithm,
    id_token_signed_response_alg: options.algorithm === "RS384" ? "RS256" : "ES384",
    jwks_uri: options.jwksUri,
  }],
  jwks: { keys: [privateKey("ec", { namedCurve: "P-384" }, "ES384"), privateKey("rsa", { modulusLength: 2048 }, "RS256")] },
  // Its guard against fetching from private addresses would refuse the app's JWK Set, which is on loopback here.
  fetch: (url, { dispatcher, ...rest }) => globalThis.fetch(url, rest),
  cookies: { keys: ["only for tests"] },
  scopes: SCOPES,
  extraParams: ["launch", "aud"],
  clientAuthMethods: ["private_key_jwt"],
  enabledJWA: { clientAuthSigningAlgValues: ["ES384", "RS384"], idTokenSigningAlgValues: ["RS256", "ES384"] },
  claims: { openid: ["sub"], fhirUser: ["fhirUser"] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  rotateRefreshToken: true,
  issueRefreshToken: async (ctx, client, code) => code.scopes.has("online_access") || code.scopes.has("offline_access"),
  ttl: { AccessToken: 300, AuthorizationCode: 60, ClientCredentials: 300, IdToken: 300, Grant: 43200, RefreshToken: 43200, Interaction: 300, Session: 3600 },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: jwt,
      defaultResource: () => fhir,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({ scope: SCOPES.join(" "), audience: fhir, accessTokenFormat: "jwt", jwt: { sign: { alg: "ES384" } } }),
    },
  },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id, fhirUser: `${fhir}/Practitioner/${USER}` }) }),
  // Each authorization is a grant of its own: a launch for another patient must not share it.
  async loadExistingGrant(ctx) {
    const { params, account, client } = ctx.oidc;
    const grant = new provider.Grant({ accountId: account.accountId, clientId: client.clientId });
    grant.addOIDCScope(granted(params.scope));
    if (jwt) grant.addResourceScope(fhir, granted(params.scope));
    const refused = params.scope.split(" ").filter((one) => options.withheld?.includes(one)).join(" ");
    if (refused) grant.rejectOIDCScope(refused);
    const id = await grant.save();
    patients.set(id, patientOf(params));
    return grant;
  },
  extraTokenClaims: (ctx, token) => patients.has(token.grantId)
    ? { patient: patients.get(token.grantId), fhirUser: `${fhir}/Practitioner/${USER}` } : {},
});

provider.use(async (ctx, next) => {
  // SMART: `aud` is required and must be the FHIR server; oidc-provider has no opinion on it.
  if (ctx.path === "/auth" && ctx.query.aud !== fhir) {
    ctx.status = 400;
    ctx.body = { error: "invalid_request", error_description: "aud must be the FHIR server" };
    return;
  }
  await next();
  const token = ctx.oidc?.entities?.AccessToken;
  if (ctx.oidc?.route === "token" && ctx.status === 200 && patients.has(token?.grantId)) {
    ctx.body.patient = patients.get(token.grantId);
    ctx.body.need_patient_banner = true;
  }
});

const configuration = {
  issuer: origin,
  jwks_uri: `${origin}/jwks`,
  authorization_endpoint: "../auth",
  token_endpoint: `${origin}/token`,
  introspection_endpoint: `${origin}/token/introspection`,
  revocation_endpoint: `${origin}/token/revocation`,
  token_endpoint_auth_methods_supported: ["private_key_jwt"],
  token_endpoint_auth_signing_alg_values_supported: [options.algorithm],
  grant_types_supported: ["authorization_code", "refresh_token", "client_credentials"],
  scopes_supported: SCOPES,
  response_types_supported: ["code"],
  code_challenge_methods_supported: ["S256"],
  authorization_response_iss_parameter_supported: true,
  capabilities: ["launch-ehr", "launch-standalone", "client-confidential-asymmetric", "sso-openid-connect",
    "context-ehr-patient", "context-standalone-patient", "permission-patient", "permission-v2", "permission-online",
    ...(options.authorizePost ? ["authorize-post"] : [])],
};

function answer(response, status, body) {
  response.writeHead(status, { "Content-Type": "application/json", "Cache-Control": "no-store" });
  response.end(JSON.stringify(body));
}

async function serveFHIR(request, response, path) {
  if (path === "/.well-known/smart-configuration") return answer(response, 200, configuration);
  const bearer = request.headers.authorization?.replace(/^Bearer /, "") ?? "";
  const token = jwt ? jwtClaims(bearer) : await provider.AccessToken.find(bearer);
  if (!token) return answer(response, 401, { resourceType: "OperationOutcome", issue: [{ severity: "error", code: "login" }] });
  const patient = jwt ? token.patient : token.extra.patient;
  if (path === `/Patient/${patient}`) {
    return answer(response, 200, { resourceType: "Patient", id: patient, name: [{ text: `PEER ${patient}` }] });
  }
  if (path.startsWith("/ImagingStudy")) {
    return answer(response, 200, { resourceType: "Bundle", type: "searchset", total: 0 });
  }
  return answer(response, 404, { resourceType: "OperationOutcome", issue: [{ severity: "error", code: "not-found" }] });
}

// The server made the token itself and nobody else can reach it here: what it says is taken as it is.
function jwtClaims(bearer) {
  try {
    return JSON.parse(Buffer.from(bearer.split(".")[1], "base64url"));
  } catch {
    return undefined;
  }
}

// Whoever reaches it is its one clinician, and every scope asked for is granted, but for those withheld.
async function interact(request, response) {
  const { prompt } = await provider.interactionDetails(request, response);
  const result = prompt.name === "login" ? { login: { accountId: USER } } : { consent: {} };
  await provider.interactionFinished(request, response, result);
}

for (const event of ["authorization.error", "grant.error", "introspection.error", "revocation.error", "server_error"]) {
  provider.on(event, (ctx, error) => console.log(event, error.message, error.error_description ?? "", error.error_detail ?? "", error.cause ?? ""));
}

// authorize-post: oidc-provider takes a POST only with cookies that need https; the form becomes an address here.
async function authorizeByPost(request, response) {
  let form = "";
  for await (const chunk of request) form += chunk;
  response.writeHead(303, { Location: `/auth?${form}` }).end();
}

const oidc = provider.callback();
createServer((request, response) => {
  const path = new URL(request.url, origin).pathname;
  const failed = (error) => answer(response, 500, { error: String(error) });
  if (path.startsWith("/fhir")) serveFHIR(request, response, path.slice("/fhir".length)).catch(failed);
  else if (path.startsWith("/interaction/")) interact(request, response).catch(failed);
  else if (path === "/auth" && request.method === "POST") authorizeByPost(request, response).catch(failed);
  else oidc(request, response);
}).listen(options.port, "127.0.0.1", () => console.log("ready"));
