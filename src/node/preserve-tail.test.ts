/** What is kept of a log that is given up: real segments of a deposed primary, damaged. */
import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { toClusterId, toGeneration, toLsn, toNodeId, toStoreId, type Lsn } from '../base/brands.ts';
import { systemDisk, type Disk } from '../base/disk.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import { RECORD_HEADER_BYTES } from '../log/record.ts';
import { readFileItems, verifyFile } from '../rollback/file/reader.ts';
import { showFile } from '../rollback/show.ts';
import { ROLLBACK_LIMITS } from '../rollback/types.ts';
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
    assert.deepEqual((await preserve(dir, { term: 9 })).file, file, 'also for a later primary');
  });

test('a disk that does not read some of its blocks: what lies in the others is kept', async () => {
  const dir = copyOf('bad blocks');
  const { segment, offset } = places[30]!;
  const bad = Math.floor(offset / 4096) * 4096;
  let refused = 0;
  const disk: Disk = {
    ...systemDisk,
    open: (path, mode) => {
      const file = systemDisk.open(path, mode);
      if (!path.endsWith(segment)) return file;
      return {
        ...{ path, write: file.write, dataSync: file.dataSync, sync: file.sync, truncate: file.truncate },
        ...{ size: () => file.size(), close: () => file.close() },
        read: (target, at) => {
          if (at >= bad + 4096 || at + target.length <= bad) return file.read(target, at);
          refused += 1;
          throw new NostosError('IO_FAILED', `Cannot read ${path}: EIO`);
        },
      };
    },
  };
  const { file, missing, gaps } = await preserve(dir, { disk });
  assert.ok(refused > 0);
  const hit = places
    .filter((place) => place.segment === segment && place.offset < bad + 4096)
    .filter((place) => place.offset + place.bytes > bad);
  assert.ok(hit.length > 0);
  assert.equal(missing, hit.length);
  assert.equal(file?.records, TAIL - hit.length);
  assert.equal(gaps.length, 1);
});

test('whatever step fails, doing it again ends with the same file', async () => {
  const dir = copyOf('a failing disk');
  flip(dir, places[40]!);
  const expected = await preserve(dir, { into: join(dir, 'first', 'rollback') });
  const { digest: _, path: __, ...same } = expected.file!;
  let fired = 0;
  for (let failAt = 0; ; failAt += 1) {
    const into = join(dir, `into${failAt}`, 'rollback');
    let step = 0;
    const failing =
      <A extends unknown[], R>(call: (...args: A) => R) =>
      (...args: A): R => {
        if (step++ !== failAt) return call(...args);
        fired += 1;
        throw new NostosError('IO_FAILED', 'the disk failed');
      };
    const disk: Disk = {
      ...systemDisk,
      ...{ link: failing(systemDisk.link), remove: failing(systemDisk.remove) },
      syncDirectory: failing(systemDisk.syncDirectory),
      open: (path, mode) => {
        const file = systemDisk.open(path, mode);
        if (mode === 'read') return file;
        return {
          ...{ path, dataSync: () => file.dataSync(), truncate: (bytes) => file.truncate(bytes) },
          ...{ size: () => file.size(), read: (target, at) => file.read(target, at), close: () => file.close() },
          write: failing((bytes: Uint8Array, at: number) => file.write(bytes, at)),
          sync: failing(() => file.sync()),
        };
      },
    };
    const before = fired;
    await preserve(dir, { into, disk }).catch((error: unknown) => assert.ok(isNostosError(error), String(error)));
    if (fired === before) break;
    const again = await preserve(dir, { into });
    const { digest, path, ...file } = again.file!;
    assert.deepEqual([file, again.gaps], [same, expected.gaps]);
    assert.equal((await verifyFile(systemDisk, path)).footer.digest, digest);
    assert.deepEqual(readdirSync(into).filter((name) => name.includes('.nrb')).length, 1);
  }
  assert.ok(fired >= 6, `fired ${fired} times`);
});

test('rows are shown with their names, and what is missing between them', async () => {
  const dir = copyOf('shown');
  flip(dir, places[5]!);
  const { file } = await preserve(dir);
  const kinds: string[] = [];
  const names = new Set<string>();
  for await (const item of showFile(systemDisk, file!.path)) {
    kinds.push(item.kind);
    if (item.kind === 'row') names.add(`${item.tenant}.${item.table}.${Object.keys(item.key).join()}`);
  }
  assert.equal(kinds.filter((kind) => kind === 'missing').length, 1);
  assert.ok(names.has('acme.rows.id') && names.has('beta.parts.row,k'), [...names].join(' '));
});

test('above the end of the log there is nothing to keep, and no directory without an identity is read', async () => {
  const dir = copyOf('nothing');
  const end = places.at(-1)!.lsn;
  assert.deepEqual(await preserve(dir, { above: end }), { file: undefined, complete: true, missing: 0, gaps: [] });
  const { file, missing, complete } = await preserve(dir, { above: end, reaches: toLsn(end + 3) });
  assert.deepEqual([file, missing, complete], [undefined, 3, false]);
  await assert.rejects(preserveTail({ dir, above: end, term: 2 }), { code: 'INVALID_ARGUMENT' });
  await assert.rejects(preserve(dir, { limits: { ...ROLLBACK_LIMITS, tailRecordsMax: 10 } }), {
    code: 'ROLLBACK_TOO_LARGE',
  });
});
