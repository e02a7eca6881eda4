/**
 * What was forgotten, kept beside the backups: `forget/<time in ms, 16 digits>-<object id>`, entries as the ledger of a log
 * encodes them (`log/ledger.ts`), stored like an object of a file and sealed with the key of the repository. The time is
 * that of the newest entry. Nothing removes them: who restores an old snapshot needs all of them.
 *
 * The name follows from the content, so the same entries may come again; that each object is there and reads back is seen
 * before anybody is told.
 */
import { hashBlake3 } from '../../base/blake3.ts';
import { NostosError } from '../../base/errors.ts';
import { decodeLedgerEntries, encodeLedgerEntry, type LedgerEntry } from '../../log/ledger.ts';
import { absent, type CallOptions } from '../backend/backend.ts';
import { NO_TENANT_UUID } from './keys.ts';
import { decodeObject, encodeObject, objectId, type ObjectId } from './object-format.ts';
import type { Repository } from './repository.ts';

const PREFIX = 'forget/';
const NAME = /^forget\/(\d{16})-([0-9a-f]{64})$/;

/** Durable, and seen to be readable, when it resolves. */
export async function writeForgets(
  repository: Repository,
  entries: readonly LedgerEntry[],
  { signal }: CallOptions = {},
): Promise<void> {
  if (entries.length === 0) return;
  const { backend, keys, id: repositoryId, random } = repository.deps;
  const plain = Buffer.concat(entries.map(encodeLedgerEntry));
  const key = await keys.keyFor(NO_TENANT_UUID);
  const id = objectId(hashBlake3(plain), key);
  const atMs = entries.reduce((most, entry) => Math.max(most, entry.atMs), 0);
  const name = `${PREFIX}${atMs.toString().padStart(16, '0')}-${id}`;
  const bytes = await encodeObject(plain, key, { repository: repositoryId, id, random });
  await backend.put(name, bytes, { ifAbsent: true, signal });
  await readOne(repository, name, id, signal);
}

/** All of them, an object at a time. One that is damaged throws: without it a forgotten row could come back. */
export async function* readForgets(
  repository: Repository,
  { signal }: CallOptions = {},
): AsyncGenerator<readonly LedgerEntry[], void, void> {
  for await (const { key } of repository.deps.backend.list(PREFIX, { signal })) {
    const id = NAME.exec(key)?.[2];
    if (id === undefined)
      throw new NostosError('BACKUP_DAMAGED', `${key} of ${repository.url} is not named like what was forgotten`, {
        details: { key, problem: 'its name' },
      });
    yield await readOne(repository, key, id as ObjectId, signal);
  }
}

async function readOne(
  { deps }: Repository,
  name: string,
  id: ObjectId,
  signal: AbortSignal | undefined,
): Promise<readonly LedgerEntry[]> {
  const { backend, keys, id: repository } = deps;
  const bytes = await backend.get(name, { signal });
  if (bytes === undefined) throw absent(backend, name);
  const plain = await decodeObject(bytes, (key) => keys.keyById(key), { repository, id });
  try {
    return decodeLedgerEntries(plain);
  } catch (cause) {
    throw new NostosError('BACKUP_DAMAGED', `${name} of ${backend.url} holds no entries of a ledger`, {
      details: { key: name, problem: 'its content' },
      cause,
    });
  }
}
