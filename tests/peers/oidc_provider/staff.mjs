// oidc-provider as a hospital's sign-in for its staff. Whoever reaches it is one person, with the groups given.
// Its one argument is a JSON object: port, clientId, redirectUri, authentication ("none" or "private_key_jwt"),
// jwksUri, groups, acr (what the sign-in is said to have proved), ago_s (how long ago the person signed in).
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import Provider from "oidc-provider";

const options = JSON.parse(process.argv[2]);
const origin = `http://127.0.0.1:${options.port}`;
const isPublic = options.authentication === "none";

const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
const provider = new Provider(origin, {
  clients: [{
    client_id: options.clientId,
    redirect_uris: [options.redirectUri],
    response_types: ["code"],
    grant_types: ["authorization_code"],
    application_type: "web",
    token_endpoint_auth_method: options.authentication,
    id_token_signed_response_alg: "ES256",
    ...(isPublic ? {} : { token_endpoint_auth_signing_alg: "ES384", jwks_uri: options.jwksUri }),
  }],
  jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), use: "sig", alg: "ES256", kid: "staff" }] },
  fetch: (url, { dispatcher, ...rest }) => globalThis.fetch(url, rest),
  cookies: { keys: ["only for tests"] },
  scopes: ["openid", "profile"],
  acrValues: ["mfa", "password"],
  clientAuthMethods: ["none", "private_key_jwt"],
  enabledJWA: { clientAuthSigningAlgValues: ["ES384"], idTokenSigningAlgValues: ["ES256"] },
  claims: { openid: ["sub", "groups"], profile: ["preferred_username"], acr: null, auth_time: null },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  features: { devInteractions: { enabled: false } },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, preferred_username: "olga.price", groups: options.groups }),
  }),
  async loadExistingGrant(ctx) {
    const { params, account, client } = ctx.oidc;
    const grant = new provider.Grant({ accountId: account.accountId, clientId: client.clientId });
    grant.addOIDCScope(params.scope);
    await grant.save();
    return grant;
  },
});

async function interact(request, response) {
  const { prompt } = await provider.interactionDetails(request, response);
  const ts = Math.floor(Date.now() / 1000) - (options.ago_s ?? 0);
  const login = { accountId: "person-4711", acr: options.acr, amr: ["pwd"], ts };
  const result = options.refuses
    ? { error: "access_denied" }
    : prompt.name === "login" ? { login } : { consent: {} };
  await provider.interactionFinished(request, response, result);
}

const oidc = provider.callback();
createServer((request, response) => {
  const failed = (error) => { response.writeHead(500); response.end(String(error)); };
  if (new URL(request.url, origin).pathname.startsWith("/interaction/")) interact(request, response).catch(failed);
  else oidc(request, response);
}).listen(options.port, "127.0.0.1", () => console.log("ready"));
