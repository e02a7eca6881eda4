/**
 * Memory must not grow with what is stored: the same work at one size and at eight times that, each in a process of its
 * own, and the difference of the most memory that each ever had resident. The smaller size is large enough to fill every
 * buffer and cache of fixed size; the slack is what a garbage collector and an allocator take more or less.
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { openNode } from '../src/index.ts';
import { inChild, peakResidentBytes } from './child.ts';
import { temporaryDirectory, type Bench, type Figure } from './harness.ts';
import { generateShop } from './shop.ts';

const MIB = 1024 * 1024;
const SLACK_MIB = 64;
const FACTOR = 8;

interface Size {
  readonly dir: string;
  readonly rows: number;
  /** How often what is quick is done, so that the collector has as much garbage to see at either size. */
  readonly passes: number;
}

interface Grown {
  readonly peakBytes: number;
  /** How much there was of what must not matter. */
  readonly sizeBytes: number;
}

/** Each in a process of its own, all in one directory: later ones work on what earlier ones left. */
const STEPS = [
  { step: 'writeRows', name: 'write', what: 'writing rows' },
  { step: 'openAndVerify', name: 'open', what: 'opening a database and a log, and verifying both' },
  { step: 'iterateChanges', name: 'changes', what: 'iterating changes() from the start' },
  { step: 'importFile', name: 'import', what: 'importing a file' },
] as const;

export const bench: Bench = {
  name: 'memory',
  what: `memory at one size and at ${FACTOR} times that`,
  async run({ dir, quick, progress }) {
    const measure = async (rows: number, passes: number): Promise<Grown[]> => {
      using place = temporaryDirectory(dir);
      const size: Size = { dir: place.path, rows, passes };
      await inChild(import.meta.url, 'makeFile', size);
      const grown: Grown[] = [];
      for (const { step, what } of STEPS) {
        progress(`${what}, ${rows} rows`);
        grown.push(await inChild<Grown>(import.meta.url, step, size));
      }
      return grown;
    };
    const rows = quick ? 10_000 : 300_000;
    const [small, large] = [await measure(rows, FACTOR), await measure(rows * FACTOR, 1)];
    return STEPS.map(({ name, what }, index): Figure => {
      const [less, more] = [small[index]!, large[index]!];
      const grownMib = (more.peakBytes - less.peakBytes) / MIB;
      return {
        name: `memory ${name}`,
        what: `MiB more at ${FACTOR} times the size, ${what}`,
        ours: { value: more.peakBytes / MIB, unit: `MiB at ${FACTOR}x` },
        peer: { value: less.peakBytes / MIB, unit: 'MiB at 1x' },
        value: grownMib,
        bound: { kind: 'atMost', gate: SLACK_MIB },
        notes: { smallSizeMib: less.sizeBytes / MIB, largeSizeMib: more.sizeBytes / MIB },
      };
    });
  },
};

const SCHEMA = 'create table item (id integer primary key not null, kind text not null, body text not null)';
const ROWS_PER_WRITE = 500;

/** Kept whole: what is iterated and verified later must be there. */
const open = (dir: string): ReturnType<typeof openNode> =>
  openNode({
    dir: join(dir, 'node'),
    limits: { logRetainBytes: 2 ** 40 },
    migrations: [SCHEMA],
    scrubIntervalMs: false,
  });

export async function writeRows({ dir, rows }: Size): Promise<Grown> {
  await using node = await open(dir);
  const tenant = await node.tenants.create('items');
  for (let row = 0; row < rows; row += ROWS_PER_WRITE)
    await tenant.write((tx) => {
      for (let id = row; id < row + ROWS_PER_WRITE; id += 1)
        tx.run('insert into item values (?, ?, ?)', [id, `kind ${id % 10}`, `body ${id} `.repeat(12)]);
    });
  return { peakBytes: peakResidentBytes(), sizeBytes: (await node.status()).log.bytes };
}

export async function openAndVerify({ dir, rows }: Size): Promise<Grown> {
  await using node = await open(dir);
  const counted = await node.tenant('items').read((reader) => reader.value<number>('select count(*) from item'));
  if (counted !== rows) throw new Error(`${counted} of ${rows} rows are there`);
  const { ok, problems } = await node.verify();
  if (!ok) throw new Error(JSON.stringify(problems));
  return { peakBytes: peakResidentBytes(), sizeBytes: (await node.tenant('items').status()).fileBytes };
}

export async function iterateChanges({ dir, rows, passes }: Size): Promise<Grown> {
  await using node = await open(dir);
  let seen = 0;
  for (let pass = 0; pass < passes; pass += 1)
    for await (const change of node.tenant('items').changes({ untilCaughtUp: true })) seen += change.rows.length;
  if (seen !== rows * passes) throw new Error(`${seen} of ${rows * passes} rows were in the feed`);
  return { peakBytes: peakResidentBytes(), sizeBytes: (await node.status()).log.bytes };
}

export function makeFile({ dir, rows }: Size): void {
  generateShop(join(dir, 'shop.sqlite'), rows);
}

export async function importFile({ dir }: Size): Promise<Grown> {
  const file = join(dir, 'shop.sqlite');
  await using node = await openNode({ dir: join(dir, 'import') });
  await node.tenant('shop').importFile(file);
  return { peakBytes: peakResidentBytes(), sizeBytes: statSync(file).size };
}
