/**
 * The manifest of a snapshot, version 2: JSON in one canonical form, written last, whose last field is the BLAKE3 of all
 * bytes before that field. The reader is strict: it refuses by name what is missing, unknown, twice, out of range or
 * spelled otherwise, and then whatever is not byte for byte what the writer would have written.
 *
 * A snapshot is at one position. The file of a tenant is at its own applied position at or below it, and the archived
 * log, behind `archive.after` through `archive.through`, carries it from there to the position of the snapshot.
 */
import * as v from 'valibot';
import { hashBlake3 } from '../../base/blake3.ts';
import type { ClusterId, Generation, Hash, Hlc, Lsn, NodeId, StoreId, TenantId, Term } from '../../base/brands.ts';
import type { Brand, TenantUuid } from '../../base/brands.ts';
import { isNostosError, NostosError } from '../../base/errors.ts';
import { readInput } from '../../base/input-schema.ts';
import { parseStrictJson } from '../../base/strict-json.ts';
import type { ChainPoint } from '../../log/chain.ts';
import type { TermEntry } from '../../log/terms.ts';
import { HIDDEN_END } from '../../store/catalog.ts';
import { FILE_BYTES_MAX } from './content.ts';
import type { Content } from './content.ts';
import type { KeyId } from './keys.ts';
import type { ObjectId } from './object-format.ts';

export const MANIFEST_VERSION = 2;

/** A UUIDv7: its order is that of creation, as far as the clocks of the creators agree. */
export type SnapshotId = Brand<string, 'SnapshotId'>;
/** 128 random bits as 32 lowercase hex digits. */
export type RepositoryId = Brand<string, 'RepositoryId'>;

export interface CatalogItem extends Content {
  readonly kind: 'catalog';
  readonly applied: ChainPoint;
}

export interface TenantItem extends Content {
  readonly kind: 'tenant';
  readonly id: TenantId;
  readonly uuid: TenantUuid;
  readonly name: string;
  readonly schemaVersion: number;
  /** The record up to which the file has everything of this tenant. */
  readonly applied: ChainPoint;
}

export type SnapshotItem = CatalogItem | TenantItem;

export interface Snapshot {
  readonly id: SnapshotId;
  readonly repository: RepositoryId;
  readonly createdAtMs: number;
  readonly cluster: ClusterId;
  readonly store: StoreId;
  readonly node: NodeId;
  readonly position: ChainPoint;
  /** Of the record at the position. */
  readonly time: Hlc;
  readonly terms: readonly TermEntry[];
  readonly items: readonly SnapshotItem[];
  /** The records that a restore of this snapshot applies; undefined when the files are at its position. */
  readonly archive: { readonly after: ChainPoint; readonly through: ChainPoint } | undefined;
  readonly label: string | undefined;
}

const TEXT_CHARS_MAX = 1_024;
const TERMS_MAX = 1_000_000;
const ITEMS_MAX = 1_000_000;

const number = (max = Number.MAX_SAFE_INTEGER, min = 0) =>
  v.pipe(v.bigint(), v.minValue(BigInt(min)), v.maxValue(BigInt(max)), v.transform(Number));
const hex = (digits: number) =>
  v.pipe(v.string(), v.regex(new RegExp(`^[0-9a-f]{${digits}}$`), 'expected lowercase hex'));
const hash = v.pipe(
  hex(64),
  v.transform((text) => new Uint8Array(Buffer.from(text, 'hex'))),
);
const text = v.pipe(v.string(), v.maxLength(TEXT_CHARS_MAX));
const point = v.strictObject({ generation: hex(32), term: number(), lsn: number(), hash });
const content = {
  bytes: number(FILE_BYTES_MAX),
  blake3: hash,
  content: hex(64),
  key: v.nullable(hex(32)),
  applied: point,
};
const item = v.variant('kind', [
  v.strictObject({ kind: v.literal('catalog'), ...content }),
  v.strictObject({
    kind: v.literal('tenant'),
    id: number(undefined, 1),
    uuid: hex(32),
    name: text,
    schema_version: number(),
    ...content,
  }),
]);
const schema = v.strictObject({
  manifest_version: v.literal(BigInt(MANIFEST_VERSION)),
  snapshot_id: v.pipe(v.string(), v.regex(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)),
  repository: hex(32),
  created_at_ms: number(),
  cluster: hex(32),
  store: hex(32),
  node: hex(32),
  position: point,
  time_hlc: hex(16),
  terms: v.pipe(
    v.array(v.strictObject({ generation: hex(32), term: number(), first_lsn: number(), previous: point })),
    v.maxLength(TERMS_MAX),
  ),
  items: v.pipe(v.array(item), v.maxLength(ITEMS_MAX)),
  archive: v.nullable(v.strictObject({ after: point, through: point })),
  total_bytes: number(),
  label: v.nullable(text),
  self_hash: hex(64),
});

export function manifestKey(id: SnapshotId): string {
  return `manifests/${id}.json`;
}

export function totalBytes({ items }: Pick<Snapshot, 'items'>): number {
  return items.reduce((sum, { bytes }) => sum + bytes, 0);
}

export function encodeManifest(snapshot: Snapshot): Uint8Array {
  const { archive } = snapshot;
  const body = JSON.stringify(
    {
      manifest_version: MANIFEST_VERSION,
      snapshot_id: snapshot.id,
      repository: snapshot.repository,
      created_at_ms: snapshot.createdAtMs,
      cluster: snapshot.cluster,
      store: snapshot.store,
      node: snapshot.node,
      position: pointJson(snapshot.position),
      time_hlc: snapshot.time.toString(16).padStart(16, '0'),
      terms: snapshot.terms.map(({ generation, term, firstLsn, previous }) => ({
        generation,
        term,
        first_lsn: firstLsn,
        previous: pointJson(previous),
      })),
      items: snapshot.items.map(itemJson),
      archive: archive === undefined ? null : { after: pointJson(archive.after), through: pointJson(archive.through) },
      total_bytes: totalBytes(snapshot),
      label: snapshot.label ?? null,
    },
    undefined,
    1,
  );
  const covered = Buffer.from(`${body.slice(0, -2)},\n`);
  return Buffer.concat([covered, Buffer.from(` "self_hash": "${toHex(hashBlake3(covered))}"\n}\n`)]);
}

/** `id`: the name under which the manifest was found. */
export function decodeManifest(bytes: Uint8Array, id: SnapshotId, bytesMax: number): Snapshot {
  let json: unknown;
  try {
    json = parseStrictJson(bytes, { jsonBytesMax: bytesMax });
  } catch (error) {
    if (isNostosError(error, 'INVALID_ARGUMENT')) throw damaged(id, error.message, error);
    throw error;
  }
  const version = (json as { manifest_version?: unknown } | null)?.manifest_version;
  if (typeof version === 'bigint' && version !== BigInt(MANIFEST_VERSION))
    throw new NostosError(
      'UNSUPPORTED_FORMAT',
      `The manifest of the snapshot ${id} has version ${version}; this Nostos reads version ${MANIFEST_VERSION} of its own backups (version 1 is read by nostos/backup)`,
      { details: { snapshot: id, version: version.toString() } },
    );
  const read = readInput(schema, json);
  if (!read.ok) throw damaged(id, read.problem);
  const snapshot = fromJson(read.value);
  if (snapshot.id !== id) throw damaged(id, `snapshot_id: it is the manifest of ${snapshot.id}`);
  const problem = contradiction(snapshot);
  if (problem !== undefined) throw damaged(id, problem);
  const canonical = encodeManifest(snapshot);
  if (Buffer.compare(canonical, bytes) === 0) return snapshot;
  const ownHash = JSON.parse(Buffer.from(canonical).toString()) as { self_hash: string };
  throw damaged(
    id,
    ownHash.self_hash === read.value.self_hash
      ? `it is not in canonical form from byte ${firstDifference(canonical, bytes)} on`
      : 'self_hash: its content is not what was written',
  );
}

/** What no writer writes, although each field for itself is right. */
function contradiction({ items, position, archive, terms }: Snapshot): string | undefined {
  const tenants = items.filter((item) => item.kind === 'tenant');
  if (items.length - tenants.length > 1) return 'items: there are two catalogs';
  for (const what of ['id', 'uuid', 'name'] as const) {
    // A hidden one that is to replace another has its uuid.
    const counted = what === 'uuid' ? tenants.filter(({ name }) => name >= HIDDEN_END) : tenants;
    if (new Set(counted.map((tenant) => tenant[what])).size < counted.length)
      return `items: two tenants have one ${what}`;
  }
  if (items.some(({ applied }) => applied.lsn > position.lsn)) return 'items: a file is above the position';
  if (archive !== undefined && !(archive.after.lsn < archive.through.lsn)) return 'archive: it is empty';
  if (archive !== undefined && archive.through.lsn !== position.lsn) return 'archive: it does not end at the position';
  const isRising = terms.every(({ term, firstLsn }, index) => {
    const before = terms[index - 1];
    return before === undefined || (term > before.term && firstLsn > before.firstLsn);
  });
  return isRising ? undefined : 'terms: they do not rise';
}

function itemJson(item: SnapshotItem): object {
  const content = {
    bytes: item.bytes,
    blake3: toHex(item.hash),
    content: item.root,
    key: item.key ?? null,
    applied: pointJson(item.applied),
  };
  if (item.kind === 'catalog') return { kind: item.kind, ...content };
  const { kind, id, uuid, name, schemaVersion } = item;
  return { kind, id, uuid, name, schema_version: schemaVersion, ...content };
}

function pointJson({ generation, term, lsn, hash }: ChainPoint): object {
  return { generation, term, lsn, hash: toHex(hash) };
}

function fromJson(json: v.InferOutput<typeof schema>): Snapshot {
  return {
    id: json.snapshot_id as SnapshotId,
    repository: json.repository as RepositoryId,
    createdAtMs: json.created_at_ms,
    cluster: json.cluster as ClusterId,
    store: json.store as StoreId,
    node: json.node as NodeId,
    position: toPoint(json.position),
    time: BigInt(`0x${json.time_hlc}`) as Hlc,
    terms: json.terms.map((row) => ({
      generation: row.generation as Generation,
      term: row.term as Term,
      firstLsn: row.first_lsn as Lsn,
      previous: toPoint(row.previous),
    })),
    items: json.items.map(toItem),
    archive:
      json.archive === null
        ? undefined
        : { after: toPoint(json.archive.after), through: toPoint(json.archive.through) },
    label: json.label ?? undefined,
  };
}

function toItem(json: v.InferOutput<typeof item>): SnapshotItem {
  const content = {
    bytes: json.bytes,
    hash: json.blake3 as Hash,
    root: json.content as ObjectId,
    key: (json.key ?? undefined) as KeyId | undefined,
    applied: toPoint(json.applied),
  };
  if (json.kind === 'catalog') return { kind: 'catalog', ...content };
  const { id, uuid, name, schema_version: schemaVersion } = json;
  return { kind: 'tenant', id: id as TenantId, uuid: uuid as TenantUuid, name, schemaVersion, ...content };
}

function toPoint(json: v.InferOutput<typeof point>): ChainPoint {
  return {
    generation: json.generation as Generation,
    term: json.term as Term,
    lsn: json.lsn as Lsn,
    hash: json.hash as Hash,
  };
}

function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  const at = a.findIndex((byte, index) => byte !== b[index]);
  return at === -1 ? a.length : at;
}

function damaged(id: SnapshotId, problem: string, cause?: unknown): NostosError {
  return new NostosError('BACKUP_DAMAGED', `The manifest of the snapshot ${id} is refused: ${problem}`, {
    details: { snapshot: id, key: manifestKey(id), problem },
    cause,
  });
}
