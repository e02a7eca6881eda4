/** What is kept of a log that is given up: real segments of a deposed primary, damaged. */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { toClusterId, toGeneration, toLsn, toNodeId, toStoreId, type Lsn } from '../base/brands.ts';
import { systemDisk } from '../base/disk.ts';
import { RECORD_HEADER_BYTES } from '../log/record.ts';
import { readFileItems, verifyFile } from '../rollback/file/reader.ts';
import { LOCAL_RECORDS, OTHER_RECORDS, makeDivergent, type Divergent } from './divergent.fixture.ts';
import { NodeParts } from './node-parts.fixture.ts';
import { preserveTail, type PreserveTailOptions } from './preserve-tail.ts';

const TAIL = LOCAL_RECORDS + OTHER_RECORDS;
const IDENTITY = {
  node: toNodeId('01'.repeat(16)),
  store: toStoreId('02'.repeat(16)),
  cluster: toClusterId('03'.repeat(16)),
  generation: toGeneration('0f'.repeat(16)),
};

let root = '';
let divergent: Divergent;
/** Where each record of the tail lies. */
let places: readonly Place[] = [];

interface Place {
  readonly lsn: Lsn;
  readonly segment: string;
  readonly offset: number;
  readonly bytes: number;
}

before(async () => {
  root = mkdtempSync(join(tmpdir(), 'nostos-preserve-'));
  divergent = await makeDivergent(root);
  const looked = copyOf('places');
  const parts = new NodeParts(looked, { role: 'replica' });
  places = Array.from({ length: TAIL }, (_, i) => {
    const lsn = toLsn(divergent.request.common.lsn + 1 + i);
    const [batch] = parts.log.read({ from: lsn, to: lsn });
    return { lsn, ...parts.log.locate(lsn), bytes: batch!.records[0]!.record.bytes.length };
  });
  await parts.close();
});

after(() => rmSync(root, { recursive: true, force: true }));

function copyOf(name: string): string {
  const dir = join(root, name.replaceAll(/\W+/g, '-'));
  cpSync(divergent.base, dir, { recursive: true });
  return dir;
}

function preserve(dir: string, options: Partial<PreserveTailOptions> = {}): ReturnType<typeof preserveTail> {
  return preserveTail({ dir, above: toLsn(divergent.request.common.lsn), term: 2, identity: IDENTITY, ...options });
}

function overwrite(dir: string, { segment, offset }: Pick<Place, 'segment' | 'offset'>, bytes: Uint8Array): void {
  const path = join(dir, 'log', segment);
  const all = readFileSync(path);
  all.set(bytes, offset);
  writeFileSync(path, all);
}

const flip = (dir: string, place: Place): void =>
  overwrite(dir, { ...place, offset: place.offset + RECORD_HEADER_BYTES + 3 }, Buffer.from('damage'));

interface Case {
  readonly name: string;
  readonly damage: (dir: string) => void;
  /** Of the records of the tail, from 0. */
  readonly missing: () => readonly number[];
  readonly more?: boolean;
  readonly reason?: RegExp;
}

const range = (from: number, to: number): number[] =>
  Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);
const segments = (): string[] => [...new Set(places.map(({ segment }) => segment))];
/** The records of one segment of the tail. */
const within = (segment: string | undefined): number[] => range(0, TAIL).filter((i) => places[i]!.segment === segment);

const CASES: readonly Case[] = [
  { name: 'nothing is damaged', damage: () => {}, missing: () => [] },
  {
    name: 'bytes of a record in the middle',
    damage: (dir) => flip(dir, places[40]!),
    missing: () => [40],
    reason: /CRC/,
  },
  {
    name: 'two records apart, and one beside',
    damage: (dir) => [10, 11, 90].forEach((i) => flip(dir, places[i]!)),
    missing: () => [10, 11, 90],
  },
  {
    name: 'the length of a record',
    damage: (dir) =>
      overwrite(dir, { ...places[50]!, offset: places[50]!.offset + 52 }, Buffer.from('ffffff7f', 'hex')),
    missing: () => [50],
    reason: /not whole/,
  },
  {
    name: 'zeros over several records',
    damage: (dir) =>
      overwrite(dir, places[60]!, Buffer.alloc(places[62]!.offset + places[62]!.bytes - places[60]!.offset)),
    missing: () => [60, 61, 62],
    reason: /zeros/,
  },
  {
    name: 'the first record',
    damage: (dir) => flip(dir, places[0]!),
    missing: () => [0],
  },
  {
    name: 'the last record',
    damage: (dir) => flip(dir, places.at(-1)!),
    missing: () => [TAIL - 1],
    more: true,
  },
  {
    name: 'the last segment is cut short within a record',
    damage: (dir) => truncateSync(join(dir, 'log', places.at(-3)!.segment), places.at(-3)!.offset + 50),
    // That more followed the torn record is not known any more.
    missing: () => [TAIL - 3],
    more: true,
    reason: /not whole/,
  },
  {
    name: 'a segment in the middle is cut short',
    damage: (dir) => {
      const inside = within(segments()[1]);
      truncateSync(join(dir, 'log', segments()[1]!), places[inside[3]!]!.offset + 10);
    },
    missing: () => within(segments()[1]).slice(3),
  },
  {
    name: 'the header of a segment, whose records are whole',
    damage: (dir) => overwrite(dir, { segment: segments()[1]!, offset: 20 }, Buffer.from('damage')),
    missing: () => [],
  },
  {
    name: 'the header of a segment and its first record',
    damage: (dir) => {
      overwrite(dir, { segment: segments()[1]!, offset: 20 }, Buffer.from('damage'));
      flip(dir, places[within(segments()[1])[0]!]!);
    },
    missing: () => within(segments()[1]).slice(0, 1),
    reason: /header/,
  },
  {
    name: 'a segment that is gone',
    damage: (dir) => rmSync(join(dir, 'log', segments()[1]!)),
    missing: () => within(segments()[1]),
    reason: /the segment is missing/,
  },
  {
    name: 'the record before the tail',
    damage: (dir) => {
      const { segment } = places[0]!;
      overwrite(dir, { segment, offset: places[0]!.offset - 3 }, Buffer.from('xyz'));
    },
    missing: () => [],
  },
];

for (const { name, damage, missing, more = false, reason } of CASES)
  test(`${name}: every other record is kept, and the file says what is missing`, async () => {
    const dir = copyOf(name);
    assert.ok(segments().length >= 2, `the tail lies in ${segments().join()}`);
    damage(dir);
    const untouched = readdirSync(join(dir, 'log')).map((file) => readFileSync(join(dir, 'log', file)));
    const lost = new Set(missing());
    const kept = range(0, TAIL).filter((i) => !lost.has(i) && (!more || i < Math.max(...lost)));
    const { file, ...result } = await preserve(dir);
    assert.ok(file !== undefined);
    const items: unknown[] = [];
    for await (const item of readFileItems(systemDisk, file.path))
      if ('record' in item) items.push(Number(item.record.lsn));
      else items.push(`${item.from}-${item.to}${item.more ? '+' : ''}`);
    const lsns = items.filter((item) => typeof item === 'number');
    assert.deepEqual(
      lsns,
      kept.map((i) => Number(places[i]!.lsn)),
    );
    assert.equal(file.records, kept.length);
    assert.equal(result.missing, lost.size);
    assert.equal(result.complete, lost.size === 0);
    assert.equal(result.gaps.at(-1)?.more ?? false, more);
    if (reason !== undefined) assert.match(result.gaps[0]?.reason ?? '', reason);
    const { header, missing: told, gaps } = await verifyFile(systemDisk, file.path);
    assert.deepEqual([told, gaps], [lost.size, result.gaps]);
    assert.ok(header.complete === (lost.size === 0) || name === 'the record before the tail');
    assert.deepEqual(
      readdirSync(join(dir, 'log')).map((each) => readFileSync(join(dir, 'log', each))),
      untouched,
    );
    assert.deepEqual((await preserve(dir)).file, file, 'a second time it is found');
  });
