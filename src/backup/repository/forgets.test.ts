import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Lsn, Term } from '../../base/brands.ts';
import { isNostosError } from '../../base/errors.ts';
import type { LedgerEntry } from '../../log/ledger.ts';
import { GENERATION } from './chain.fixture.ts';
import { readForgets, writeForgets } from './forgets.ts';
import { KeyringFile } from './keyring-file.ts';
import { newRepository, temporaryDirectory, uuidOf } from './repository.fixture.ts';
import { openRepository } from './repository.ts';

const entry = (lsn: number): LedgerEntry => ({
  uuid: uuidOf(lsn),
  position: { generation: GENERATION, term: 2 as Term, lsn: lsn as Lsn },
  atMs: 1_000 + lsn,
  hashKey: new Uint8Array(32).fill(lsn),
  keys: [{ table: 'users', hash: new Uint8Array(16).fill(lsn) }],
});

test('what was forgotten comes back as it was, however often it is brought', async (t) => {
  const { repository, dir } = await newRepository(t);
  await writeForgets(repository, [entry(1), entry(2)]);
  await writeForgets(repository, [entry(1), entry(2)]);
  await writeForgets(repository, [entry(3)]);
  await using other = await openRepository(dir);
  assert.deepEqual((await Array.fromAsync(readForgets(other))).flat(), [entry(1), entry(2), entry(3)]);
});

test('sealed with the key of the repository: without it they are refused, and damage is named', async (t) => {
  const keys = KeyringFile.open(join(await temporaryDirectory(t), 'keys.json'));
  const { repository, dir } = await newRepository(t, { keys });
  await writeForgets(repository, [entry(1)]);
  await using keyless = await openRepository(dir);
  await assert.rejects(Array.fromAsync(readForgets(keyless)), (e) => isNostosError(e, 'BACKUP_KEY_MISSING'));
  const [object] = await Array.fromAsync(repository.deps.backend.list('forget/'));
  const path = join(dir, object!.key);
  const bytes = await readFile(path);
  bytes[bytes.length - 1]! ^= 1;
  await writeFile(path, bytes);
  await assert.rejects(Array.fromAsync(readForgets(repository)), (e) => isNostosError(e, 'BACKUP_DAMAGED'));
});
