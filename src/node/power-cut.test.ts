/** A sample of the power cuts that `npm run soak` makes by the hundred. */
import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { runPowerCuts, straceRefusal } from './power-cut.ts';
import { TracedDisk } from './power-cut-disk.ts';
import { TraceParser } from './power-cut-trace.ts';
import { seededRandom } from '../base/random.ts';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

test('after a power cut at any write the node opens with all that it acknowledged', async (t) => {
  const why = straceRefusal();
  if (why !== undefined) return t.skip(why);
  const report = await runPowerCuts({ cuts: 10, seed: 20, writes: 40 });
  equal(report.cuts, 10);
  ok(report.places > 500 && report.writes > 300 && report.syncs > 50, JSON.stringify(report));
  ok(report.checked > 50, 'acknowledged writes were looked for');
});

test('the recorded disk keeps what was synced and loses what was not', () => {
  const hex = (text: string): string =>
    [...Buffer.from(text)].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
  const file = `3<${hex('/d/f')}>`;
  const lines = [
    `1 openat(AT_FDCWD<${hex('/')}>, "${hex('/d/f')}", O_RDWR|O_CREAT, 0644) = 3<${hex('/d/f')}>`,
    `1 pwrite64(${file}, "${hex('old')}", 3, 0) = 3`,
    `1 fsync(${file} <unfinished ...>`,
    `2 pwrite64(${file}, "${hex('NEW')}", 3, 0) = 3`,
    `1 <... fsync resumed>) = 0`,
    `1 fsync(4<${hex('/d')}>) = 0`,
    `1 rename("${hex('/d/f')}", "${hex('/d/g')}") = 0`,
  ];
  const left = (count: number, style: 'nothing' | 'everything'): Record<string, string> => {
    const disk = new TracedDisk('/d');
    const parser = new TraceParser();
    for (const line of lines.slice(0, count)) for (const step of parser.take(line)) disk.take(step);
    const dir = mkdtempSync(join(tmpdir(), 'nostos-disk-'));
    try {
      disk.writeImage(dir, seededRandom(1), style, () => false);
      return Object.fromEntries(readdirSync(dir).map((name) => [name, readFileSync(join(dir, name), 'utf8')]));
    } finally {
      rmSync(dir, { recursive: true });
    }
  };
  const states = [2, 5, 6, 7].map((count) => [left(count, 'nothing'), left(count, 'everything')]);
  equal(
    JSON.stringify(states),
    JSON.stringify([
      [{}, { f: 'old' }],
      [{}, { f: 'NEW' }],
      [{ f: 'old' }, { f: 'NEW' }],
      [{ f: 'old' }, { g: 'NEW' }],
    ]),
  );
});
