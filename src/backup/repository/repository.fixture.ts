/** Repositories in temporary directories, and files to put in. */
import { createCipheriv } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { ClusterId, Hlc, NodeId, StoreId, TenantId, TenantUuid } from '../../base/brands.ts';
import { pointOf } from '../../log/chain.ts';
import type { ChainPoint } from '../../log/chain.ts';
import { makeChain } from './chain.fixture.ts';
import type { ContentSink, ContentSource } from './content.ts';
import type { OpenRepositoryOptions, Repository, SnapshotSeal } from './repository.ts';
import { createRepository } from './repository.ts';

export async function temporaryDirectory(t: TestContext): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'nostos-backup-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

export async function newRepository(
  t: TestContext,
  options?: OpenRepositoryOptions,
): Promise<{ readonly repository: Repository; readonly dir: string }> {
  const dir = join(await temporaryDirectory(t), 'repository');
  const repository = await createRepository(dir, options);
  t.after(() => repository.close());
  return { repository, dir };
}

export const ORIGIN = {
  cluster: 'c1'.repeat(16) as ClusterId,
  store: '51'.repeat(16) as StoreId,
  node: '0e'.repeat(16) as NodeId,
};

export const uuidOf = (tenant: number): TenantUuid => tenant.toString(16).padStart(32, '0') as TenantUuid;

export const POINT: ChainPoint = pointOf(makeChain({ count: 1 })[0]!.record, makeChain({ count: 1 })[0]!.hash);
export const SEAL: SnapshotSeal = { position: POINT, time: 65_536_000_000n as Hlc, terms: [] };

export function tenantFile(id: number, applied: ChainPoint = POINT) {
  const uuid = uuidOf(id);
  return { kind: 'tenant', id: id as TenantId, uuid, name: `t${id}`, schemaVersion: 3, applied } as const;
}

/** Half of it compresses. */
export function fileBytes(length: number, seed = 1): Uint8Array {
  const key = Buffer.alloc(16);
  key.writeUInt32LE(seed);
  const bytes = createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(new Uint8Array(length));
  for (let at = 0; at < length; at += 4096) bytes.fill(7, at, Math.min(at + 2048, length));
  return bytes;
}

export function sourceOf(bytes: Uint8Array): ContentSource {
  return {
    bytes: bytes.length,
    read(target, offset) {
      target.set(bytes.subarray(offset, offset + target.length));
      return Promise.resolve();
    },
  };
}

export function sinkInto(target: Uint8Array): ContentSink {
  return {
    write(bytes, offset) {
      target.set(bytes, offset);
      return Promise.resolve();
    },
  };
}
