/**
 * A disk that really fills up. Writes are refused with DISK_FULL, nothing that was acknowledged is lost, nothing ends the
 * process, and service resumes when there is room, in the same process and in the next.
 */
import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import { mountRefusal, mountSmall, type SmallDisk } from '../testing/small-disk.fixture.ts';
import { openNode } from './open-node.ts';
import type { Node } from './types.ts';

const LIMITS = {
  segmentBytesMax: 256 * 1024,
  recordBytesMax: 192 * 1024,
  logRetainBytes: 0,
  checkpointBytes: 64 * 1024,
  checkpointHoldBytes: 256 * 1024,
} as const;
const DISK_BYTES = 6 * 1024 * 1024;
const MIGRATION = 'create table t (id integer primary key, a blob not null)';

interface Place {
  readonly dir: string;
  readonly disk: SmallDisk;
}

/** Mounts a small disk at a part of a new data directory, for as long as `run` takes. */
async function withDisk(part: '' | 'tenants' | 'log', run: (place: Place) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-full-'));
  try {
    mkdirSync(join(dir, part), { recursive: true });
    using disk = mountSmall(DISK_BYTES, join(dir, part));
    await run({ dir, disk });
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

class Load {
  readonly acknowledged = new Set<number>();
  readonly codes = new Map<string, number>();
  #next = 1;

  /** Writes from four callers until each has been refused some times, or `count` writes are through. */
  async run(node: Node, count: number, refusalsMax: number): Promise<void> {
    const tenant = node.tenant('x');
    const end = this.#next + count;
    let refusals = 0;
    const writer = async (): Promise<void> => {
      while (this.#next < end && refusals < refusalsMax) {
        const id = this.#next++;
        try {
          await tenant.write((tx) => {
            tx.run('insert into t values (?, randomblob(3000))', [id]);
            return id;
          });
          this.acknowledged.add(id);
        } catch (error) {
          ok(isNostosError(error), String(error));
          this.codes.set(error.code, (this.codes.get(error.code) ?? 0) + 1);
          refusals += 1;
        }
      }
    };
    await Promise.all([writer(), writer(), writer(), writer()]);
  }

  async check(node: Node): Promise<void> {
    const rows = await node.tenant('x').query<{ id: number }>('select id from t');
    const there = new Set(rows.map(({ id }) => id));
    const lost = [...this.acknowledged].filter((id) => !there.has(id));
    deepStrictEqual(lost, [], 'acknowledged writes are lost');
    deepStrictEqual((await node.verify()).problems, []);
  }
}

for (const part of ['', 'tenants', 'log'] as const)
  test(`${part === '' ? 'the data directory' : `only ${part}`} is full`, async (t) => {
    const why = mountRefusal();
    if (why !== undefined) return t.skip(why);
    await withDisk(part, async ({ dir, disk }) => {
      const load = new Load();
      const open = (): Promise<Node> => openNode({ dir, scrubIntervalMs: false, limits: LIMITS });
      const node = await open();
      try {
        await node.tenants.create('x');
        await node.tenant('x').migrate([MIGRATION]);
        await load.run(node, 50, 1);
        equal(load.acknowledged.size, 50);
        equal(load.codes.size, 0);
        const filler = disk.fill();
        await load.run(node, 2_000, 40);
        deepStrictEqual([...load.codes.keys()], ['DISK_FULL'], 'the fault has fired, typed');
        rmSync(filler);
        const before = load.acknowledged.size;
        await load.run(node, 50, 1);
        equal(load.acknowledged.size, before + 50, 'service resumes when there is room');
        await load.check(node);
        // Without a filler the load itself fills it.
        load.codes.clear();
        await load.run(node, 5_000, 40);
        deepStrictEqual([...load.codes.keys()], ['DISK_FULL']);
      } finally {
        await node.close();
      }
      const filler = disk.fill('filler-2');
      let opened = false;
      try {
        const full = await open();
        opened = true;
        try {
          await load.run(full, 20, 5);
        } finally {
          await full.close();
        }
      } catch (error) {
        // Refusing to open is an answer too, when it says why.
        ok(isNostosError(error, 'DISK_FULL'), String(error));
      }
      t.diagnostic(opened ? 'a full disk is opened' : 'a full disk is refused');
      rmSync(filler);
      for (const name of ['filler']) rmSync(join(disk.dir, name), { force: true });
      disk.grow(4 * DISK_BYTES);
      const again = await open();
      try {
        await load.check(again);
        const before = load.acknowledged.size;
        await load.run(again, 20, 1);
        equal(load.acknowledged.size, before + 20);
        await load.check(again);
      } finally {
        await again.close();
      }
    });
  });
