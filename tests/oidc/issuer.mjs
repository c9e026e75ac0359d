// A real OpenID Connect issuer: node issuer.mjs PORT NAME KEYS.json. KEYS.json is a list of JWK sets; the issuer signs with the
// first, and with the next after POST /rotate. GET /asked tells how often its keys were asked for. NAME is its `issuer`.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const [port, name, file] = process.argv.slice(2);
const keySets = JSON.parse(readFileSync(file));
const AUDIENCES = { 'urn:slides': 'wsisam', 'urn:elsewhere': 'another-service', 'urn:slides-es': 'wsisam' };
const CLAIMS = {
  viewer: { roles: ['viewer'] },
  annotator: { roles: ['offline_access', 'annotator'] },
  guest: { roles: [] },
  keycloak: { realm_access: { roles: ['pathologists', 'colon-guests'] } },
  auth0: { 'https://hospital.example/roles': 'viewer admin' },
};

function makeHandler(jwks) {
  const provider = new Provider(name, {
    jwks,
    clients: Object.keys(CLAIMS).map((id) => ({
      client_id: id, client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
    })),
    extraTokenClaims: (_context, token) => CLAIMS[token.clientId],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_context, resource) => ({
          scope: '', audience: AUDIENCES[resource], accessTokenFormat: 'jwt', accessTokenTTL: 600,
          jwt: { sign: { alg: resource.endsWith('-es') ? 'ES256' : 'RS256' } },
        }),
      },
    },
  });
  return provider.callback();
}

let handle = makeHandler(keySets.shift());
let asked = 0;
createServer((request, response) => {
  if (request.url === '/asked') return response.end(String(asked));
  if (request.url === '/rotate') {
    handle = makeHandler(keySets.shift());
    return response.end();
  }
  if (request.url === '/jwks') asked += 1;
  return handle(request, response);
}).listen(Number(port), '127.0.0.1', () => console.log('listening'));
