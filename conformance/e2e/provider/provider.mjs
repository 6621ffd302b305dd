// An OpenID provider for stories: oidc-provider, with its interactions for
// development, in which everybody is who they say they are. Beside it, below
// /test/, it signs the tokens of CI jobs with its keys:
//
//   POST /test/sign     {"claims": {...}, "header": {...}, "how": "..."} answers with
//                       a JWT; iss, iat and exp are added unless claims have them
//   POST /test/rotate   replaces the provider's key
//
// how is empty for its key; "none" for no signature, "hmac" for HS256 with the
// public key as the secret, "stranger" for a key of somebody else.
//
// It is started with the folder node_modules, and perhaps the port, as arguments.
import crypto from 'node:crypto';
import http from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, port = '0'] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(path.join(modules, 'oidc-provider/lib/index.js')));

let issuer, key, answer, made = 0;

function newKey() {
  made += 1;
  return { ...crypto.generateKeyPairSync('rsa', { modulusLength: 2048 }), kid: `key-${made}` };
}

function start() {
  key = newKey();
  const provider = new Provider(issuer, {
    clients: [{
      client_id: 'berth', application_type: 'native', token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/callback'], response_types: ['code'],
      grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
    }],
    jwks: { keys: [{ ...key.privateKey.export({ format: 'jwk' }), kid: key.kid, alg: 'RS256', use: 'sig' }] },
    cookies: { keys: ['a', 'b'] },
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups'] },
    conformIdTokenClaims: false,
    features: { deviceFlow: { enabled: true } },
    pkce: { required: () => true },
    // ann.dev.ops is ann, in the groups dev and ops.
    findAccount: (_, id) => {
      const [name, ...groups] = id.split('.');
      return { accountId: id, claims: () => ({ sub: `sub-${name}`, preferred_username: name, groups }) };
    },
  });
  answer = provider.callback();
}

const encode = (v) => Buffer.from(v).toString('base64url');

function sign({ claims = {}, header = {}, how = '' }) {
  const now = Math.floor(Date.now() / 1000);
  const alg = { none: 'none', hmac: 'HS256' }[how] ?? 'RS256';
  const text = [
    encode(JSON.stringify({ alg, typ: 'JWT', kid: key.kid, ...header })),
    encode(JSON.stringify({ iss: issuer, iat: now, exp: now + 300, ...claims })),
  ].join('.');
  switch (how) {
    case 'none':
      return `${text}.`;
    case 'hmac':
      return `${text}.${crypto.createHmac('sha256', key.publicKey.export({ type: 'spki', format: 'pem' })).update(text).digest('base64url')}`;
    case 'stranger':
      return `${text}.${crypto.sign('sha256', Buffer.from(text), newKey().privateKey).toString('base64url')}`;
  }
  return `${text}.${crypto.sign('sha256', Buffer.from(text), key.privateKey).toString('base64url')}`;
}

const server = http.createServer(async (req, res) => {
  if (!req.url.startsWith('/test/')) {
    answer(req, res);
    return;
  }
  let body = '';
  for await (const part of req) body += part;
  if (req.url === '/test/rotate') start();
  res.end(req.url === '/test/sign' ? sign(JSON.parse(body)) : key.kid);
});
server.listen(Number(port), '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  start();
  console.log(`the provider is ready at ${issuer}`);
});
