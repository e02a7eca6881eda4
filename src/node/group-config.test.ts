import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import { DEFAULT_GROUP_LIMITS } from '../replication/options.ts';
import type { GroupConfigField, GroupConfigInput } from './group-config.ts';
import { GROUP_CONFIG_FIELDS, groupConfigTable, loadGroupConfig, shownGroupConfig } from './group-config.ts';

const COORDINATOR = 'embedded:/srv/coordinator';
const flags = { coordinator: COORDINATOR, listen: '127.0.0.1:4041' } as const;
const PATH = '/etc/nostos/group.json';

function file(settings: unknown): GroupConfigInput['file'] & object {
  return { path: PATH, text: JSON.stringify(settings) };
}

test('group config: what is needed, and what follows from nothing', () => {
  assert.deepEqual(loadGroupConfig({ flags }), {
    ...flags,
    group: 'main',
    durability: 'quorum',
    limits: DEFAULT_GROUP_LIMITS,
  });
  assert.equal(loadGroupConfig({}), undefined);
  assert.equal(loadGroupConfig({ flags: { listen: flags.listen }, env: { NOSTOS_GROUP: 'main' } }), undefined);
});

/** Another value each, as text and as it stands in a file. */
const VALUES: Readonly<
  Record<GroupConfigField, readonly [flag: string, env: string, inFile: unknown, read: unknown[]]>
> = {
  coordinator: ['etcd://a:1', 'etcd://b:1', 's3://bucket', ['etcd://a:1', 'etcd://b:1', 's3://bucket']],
  group: ['a', 'b', 'c', ['a', 'b', 'c']],
  listen: ['h:1', '[::1]:2', 'h:0', ['h:1', '[::1]:2', 'h:0']],
  advertise: ['h:1', 'h:2', 'h:3', ['h:1', 'h:2', 'h:3']],
  tlsDir: ['tls', '/x/tls', 'tls', ['/home/me/tls', '/x/tls', '/etc/nostos/tls']],
  minInSync: ['1', '2', 3, [1, 2, 3]],
  durability: ['local', 'quorum', 'local', ['local', 'quorum', 'local']],
  limits: [
    'leaseMs=8000',
    'leaseMs=9000,clockDriftMax=0.02',
    { leaseMs: 10_000, ackTimeoutMs: 900 },
    [
      { ...DEFAULT_GROUP_LIMITS, leaseMs: 8_000, clockDriftMax: 0.02, ackTimeoutMs: 900 },
      { ...DEFAULT_GROUP_LIMITS, leaseMs: 9_000, clockDriftMax: 0.02, ackTimeoutMs: 900 },
      { ...DEFAULT_GROUP_LIMITS, leaseMs: 10_000, ackTimeoutMs: 900 },
    ],
  ],
};

for (const [name, [flag, variable, inFile, read]] of Object.entries(VALUES))
  test(`group config: ${name} of a flag goes before that of the environment, and that before the file`, () => {
    const { env } = GROUP_CONFIG_FIELDS[name as GroupConfigField];
    const ways = [
      { flags: { ...flags, [name]: flag }, env: { [env]: variable }, file: file({ [name]: inFile }) },
      { flags: omit(name), env: { [env]: variable }, file: file({ [name]: inFile }) },
      { flags: omit(name), env: { [env]: '' }, file: file({ [name]: inFile }) },
    ];
    for (const [i, way] of ways.entries()) {
      const config = loadGroupConfig({ ...way, cwd: '/home/me' });
      assert.deepEqual(config?.[name as GroupConfigField], read[i]);
    }
  });

function omit(name: string): GroupConfigInput['flags'] & object {
  return Object.fromEntries(Object.entries(flags).filter(([key]) => key !== name));
}

const SECRET = 'hunter2';
const REFUSED: readonly (readonly [string, GroupConfigInput, RegExp])[] = [
  ['no coordinator', { flags: { minInSync: '2' } }, /^--min-in-sync is of a group/],
  ['no listen', { flags: { coordinator: COORDINATOR } }, /^--group-listen is missing/],
  [
    'a scheme that is none',
    { flags: { ...flags, coordinator: `redis://u:${SECRET}@h` } },
    /^--coordinator: expected a URL/,
  ],
  ['a group name', { flags, env: { NOSTOS_GROUP: `A${SECRET}` } }, /^NOSTOS_GROUP: expected 1 to 63/],
  ['an address', { flags: { ...flags, listen: SECRET } }, /^--group-listen: expected host:port/],
  ['an advertised port 0', { flags, env: { NOSTOS_ADVERTISE: 'h:0' } }, /^NOSTOS_ADVERTISE: expected host:port with/],
  ['every address, not advertised', { flags: { ...flags, listen: '0.0.0.0:1' } }, /^--group-listen is every address/],
  ['a count that is none', { flags: { ...flags, minInSync: SECRET } }, /^--min-in-sync: expected number, got text/],
  ['a count of none', { flags, env: { NOSTOS_MIN_IN_SYNC: '0' } }, /^NOSTOS_MIN_IN_SYNC: expected >=1/],
  ['a kind', { flags, file: file({ durability: SECRET }) }, /^durability in \/etc\/nostos\/group.json: expected/],
  ['text for a number in the file', { flags, file: file({ minInSync: '2' }) }, /^minInSync in .*: expected number/],
  [
    'a setting that is none',
    { flags, file: file({ token: SECRET }) },
    /group.json has no setting "token"; there are coord/,
  ],
  ['a prototype', { flags, file: { path: PATH, text: '{"__proto__":{"group":"a"},"x":1}' } }, /has no setting "x"/],
  ['no object', { flags, file: { path: PATH, text: '[1]' } }, /group.json: expected a map/],
  ['no JSON', { flags, file: { path: PATH, text: `{"a": ${SECRET}` } }, /group.json is not JSON$/],
  ['a huge file', { flags, file: { path: PATH, text: ' '.repeat(70_000) } }, /group.json has more than/],
  ['a limit that is none', { flags: { ...flags, limits: ['leaseMS=1'] } }, /^--group-limit: there is no limit leaseMS/],
  ['half a limit', { flags: { ...flags, limits: ['leaseMs=1.5'] } }, /^--group-limit: leaseMs is a whole number/],
  ['no assignment', { flags: { ...flags, limits: [SECRET] } }, /^--group-limit: expected a map/],
  [
    'a limit of text',
    { flags: { ...flags, limits: [`leaseMs=${SECRET}`] } },
    /^--group-limit: leaseMs: expected number/,
  ],
  [
    'limits that do not fit',
    { flags: { ...flags, limits: ['leaseMs=2000'] }, env: { NOSTOS_GROUP_LIMITS: 'probeWaitMs=1' } },
    /^NOSTOS_GROUP_LIMITS, --group-limit: renewIntervalMs is at most half of leaseMs/,
  ],
];

for (const [title, input, message] of REFUSED)
  test(`group config refuses, by its source and without repeating it: ${title}`, () => {
    assert.throws(
      () => loadGroupConfig(input),
      (error: unknown) => {
        assert.ok(isNostosError(error, 'INVALID_ARGUMENT'));
        assert.match(error.message, message);
        assert.ok(!JSON.stringify(error).includes(SECRET), error.message);
        return true;
      },
    );
  });

test('group config: what is shown has no secret of a URL, and the page has every setting', () => {
  const config = loadGroupConfig({ flags: { ...flags, coordinator: `etcd://u:${SECRET}@h:1/p?user=x` } });
  assert.ok(config !== undefined);
  assert.ok(!JSON.stringify(shownGroupConfig(config)).includes(SECRET));
  const page = groupConfigTable();
  for (const { env } of Object.values(GROUP_CONFIG_FIELDS)) assert.ok(page.includes(`\`${env}\``));
});
