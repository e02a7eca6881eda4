/**
 * Bearer tokens of the HTTP API. A token file holds hashes only, so that reading it gives nobody access:
 * `[{ "name": "ci", "hash": "<sha256 of the token, hex>", "tenants": ["*"], "access": "read" }]`.
 * A token is 256 random bits, which is why a plain SHA-256 is enough.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import * as v from 'valibot';
import { NostosError, isNostosError } from '../../base/errors.ts';
import { readInput } from '../../base/input-schema.ts';
import { replaceFile } from '../private-file.ts';
import type { Access } from '../operations.ts';

const grantSchema = v.strictObject({
  name: v.optional(v.string()),
  hash: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, 'must be a SHA-256 in lowercase hex')),
  /** Names, or `*` for all tenants and the node itself. */
  tenants: v.pipe(v.array(v.pipe(v.string(), v.minLength(1))), v.minLength(1)),
  access: v.picklist(['read', 'write', 'admin']),
});

export type Grant = v.InferOutput<typeof grantSchema>;

const RANK: Readonly<Record<Access, number>> = { read: 0, write: 1, admin: 2 };
const TOKEN_BYTES = 32;

export function createToken(): string {
  return `nostos_${randomBytes(TOKEN_BYTES).toString('base64url')}`;
}

export function hashToken(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}

export async function readTokenFile(file: string): Promise<Grant[]> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    throw new NostosError('IO_FAILED', `cannot read the token file ${file}: ${(error as NodeJS.ErrnoException).code}`, {
      cause: error,
    });
  }
  const grants = readInput(v.array(grantSchema), parse(file, text));
  if (grants.ok) return grants.value;
  throw new NostosError('INVALID_ARGUMENT', `the token file ${file} is wrong: ${grants.problem}`);
}

function parse(file: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new NostosError('INVALID_ARGUMENT', `the token file ${file} is not JSON`, { cause: error });
  }
}

/** Adds a grant and returns its token, which is nowhere kept. Makes the file, for its owner only, where there is none. */
export async function addToken(file: string, grant: Omit<Grant, 'hash'>): Promise<string> {
  const token = createToken();
  const grants = await readTokenFile(file).catch((error: unknown) => {
    if (isNostosError(error) && (error.cause as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  });
  const next = [...grants, { ...grant, hash: hashToken(token) }];
  await replaceFile(file, `${JSON.stringify(next, null, 2)}\n`);
  return token;
}

/** The token that only the owner of this data directory can read; made at its first use. */
export async function ownerToken(file: string): Promise<string> {
  const known = await readFile(file, 'utf8').catch(() => '');
  if (known.trim() !== '') return known.trim();
  const token = createToken();
  await replaceFile(file, `${token}\n`);
  return token;
}

/** What the bearer may do, or undefined. Takes as long for a wrong token as for a right one. */
export function findGrant(grants: readonly Grant[], authorization: string | undefined): Grant | undefined {
  const token = /^Bearer +([\w.~+/=-]+)$/i.exec(authorization ?? '')?.[1];
  if (token === undefined) return undefined;
  const hash = Buffer.from(hashToken(token), 'hex');
  let found: Grant | undefined;
  for (const grant of grants) if (timingSafeEqual(hash, Buffer.from(grant.hash, 'hex'))) found = grant;
  return found;
}

/** Whether a grant covers a call; without a tenant the call is about the node, and needs all of them. */
export function allows(grant: Grant, call: { readonly access: Access; readonly tenant: string | undefined }): boolean {
  const covered = grant.tenants.includes('*') || (call.tenant !== undefined && grant.tenants.includes(call.tenant));
  return covered && RANK[grant.access] >= RANK[call.access];
}
