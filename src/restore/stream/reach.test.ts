import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { NostosError, type ErrorCode } from '../../base/errors.ts';
import { itemPath, parseItemName } from '../item-name.ts';
import type { RestoreSource, SourceFile } from '../source.ts';
import { failureOf, startWorld } from './stream.fixture.ts';

type Attributes = SourceFile['attributes'];

interface Said {
  readonly kind?: 'files';
  /** Of the plan. */
  readonly watermark: number;
  readonly tenants?: readonly Attributes[];
  readonly segments?: readonly Attributes[];
}

function sourceThatSays({ kind, watermark, tenants = [], segments = [] }: Said): RestoreSource {
  const of = (names: readonly string[], said: readonly Attributes[]) =>
    said.map((attributes, index) => ({ name: parseItemName(names[index]), bytes: 0, attributes }));
  const items = of(['tenant/1', 'tenant/2'], tenants);
  const tail = of(['log/00000001.ndb', 'log/00000002.ndb'], segments);
  const attributes = new Map([...items, ...tail].map((item) => [item.name, item.attributes]));
  const identity = { cluster: null, generation: null, store: null, node: null, term: 0 };
  return {
    begin: async () => ({
      plan: { kind: kind ?? 'node', ...identity, watermark, items: items.map(({ name, bytes }) => ({ name, bytes })) },
      open: async (name) => ({ bytes: 0, attributes: attributes.get(name)!, read: () => {}, close: async () => {} }),
      tail: async () => tail,
      progress: () => {},
      close: async () => {},
    }),
  };
}

const W = (watermark: number): Attributes => ({ watermark });
const at = (lsn: number): Attributes => ({ term: 1, lsn, hash: 'ab' });

const CASES: Readonly<Record<string, readonly [Said, number | ErrorCode]>> = {
  'the log went on': [{ watermark: 10, tenants: [at(9), at(12)], segments: [W(12), W(12)] }, 12],
  'an empty node': [{ watermark: 0 }, 0],
  'plain files have none': [{ kind: 'files', watermark: 7 }, 0],
  'segments that say nothing are believed': [{ watermark: 10, segments: [{}] }, 10],
  'a tenant that was dropped': [{ watermark: 3, tenants: [{ dropped: 1 }], segments: [W(3)] }, 3],
  'a tail that ends before the plan': [{ watermark: 10, segments: [W(9)] }, 'TRANSFER_DAMAGED'],
  'a tail of which one segment is older': [{ watermark: 10, segments: [W(12), W(11)] }, 'TRANSFER_DAMAGED'],
  'a tail that ends before a tenant': [{ watermark: 10, tenants: [at(13)], segments: [W(12)] }, 'TRANSFER_DAMAGED'],
  'no tail at all': [{ watermark: 10 }, 'TRANSFER_DAMAGED'],
  'a position that is none': [{ watermark: 1, tenants: [at(-1)], segments: [W(1)] }, 'PROTOCOL_ERROR'],
  'a watermark that is a text': [{ watermark: 1, segments: [{ watermark: '1' }] }, 'PROTOCOL_ERROR'],
};

for (const [what, [said, outcome]] of Object.entries(CASES))
  test(`how far a copy must reach: ${what}: ${outcome}`, async () => {
    await using world = await startWorld({ source: sourceThatSays(said) });
    for (const name of ['tenant/1', 'tenant/2', 'log/00000001.ndb'])
      mkdirSync(dirname(join(world.targetDir, ...itemPath(parseItemName(name)))), { recursive: true });
    const fetching = world.fetch();
    if (typeof outcome === 'number') return assert.equal((await fetching).watermark, outcome);
    const failure = await failureOf(fetching);
    assert.ok(failure instanceof NostosError, failure.stack ?? '');
    assert.equal(failure.code, outcome, failure.message);
  });
