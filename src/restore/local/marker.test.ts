import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toClusterId, toGeneration, toNodeId, toStoreId } from '../../base/brands.ts';
import { isNostosError } from '../../base/errors.ts';
import { FaultyDisk } from '../../testing/faulty-disk.ts';
import { parseMarker, readMarker, writeMarker, type Marker } from './marker.ts';

const id = (digit: string): string => digit.repeat(32);
const history = { cluster: toClusterId(id('c')), generation: toGeneration(id('1')) };
const marker: Marker = {
  run: id('a'),
  startedAt: '2026-01-01T00:00:00.000Z',
  sources: ['peer:4050'],
  history,
  identity: { node: toNodeId(id('d')), store: toStoreId(id('e')), ...history },
  phase: 'swapping',
  swap: { setAside: 'set-aside.3', entries: [{ name: 'log', old: true, staged: true }] },
};

test('a marker reads back as it was written, in each phase', () => {
  const disk = new FaultyDisk();
  disk.makeDirectory('/d');
  assert.equal(readMarker(disk, '/d'), undefined);
  const { swap, ...rest } = marker as Marker & { phase: 'swapping' };
  for (const one of [marker, { ...marker, phase: 'disposing' }, { ...rest, phase: 'fetching' }] as Marker[]) {
    writeMarker(disk, '/d', one);
    assert.deepEqual(readMarker(disk, '/d'), one);
  }
  assert.equal(swap.setAside, 'set-aside.3');
});

const BAD: Readonly<Record<string, unknown>> = {
  'no object': 7,
  'a later format': { format: 2 },
  'no run': { run: undefined },
  'an unknown phase': { phase: 'resting' },
  'no swap': { swap: undefined },
  'a set-aside directory elsewhere': { swap: { ...marker.swap, setAside: '../elsewhere' } },
  'an entry elsewhere': { swap: { ...marker.swap, entries: [{ name: '../log', old: true, staged: true }] } },
  'an entry that is not of a node': { swap: { ...marker.swap, entries: [{ name: 'lock', old: true, staged: true }] } },
  'too many entries': { swap: { ...marker.swap, entries: Array.from({ length: 1001 }, () => marker.swap.entries[0]) } },
  'a store that is none': { identity: { ...marker.identity, store: 'x' } },
};

for (const [what, change] of Object.entries(BAD))
  test(`a marker with ${what} is refused, and says what to do`, () => {
    const content = typeof change === 'object' ? { format: 1, ...marker, ...change } : change;
    assert.throws(
      () => parseMarker('/d/restore.marker', Buffer.from(JSON.stringify(content))),
      (error: unknown) =>
        isNostosError(error, 'UNSUPPORTED_FORMAT') && /restore into an empty directory|newer one/.test(error.message),
    );
  });

test('bytes that are no JSON are refused as well', () => {
  for (const bytes of [Buffer.alloc(0), Buffer.from('{'), Buffer.from([0xff, 0x00])])
    assert.throws(
      () => parseMarker('/d/restore.marker', bytes),
      (error: unknown) => isNostosError(error, 'UNSUPPORTED_FORMAT'),
    );
});
