/** Whoever hands over hears that it did only once another one leads. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { toTerm } from '../base/brands.ts';
import { MemoryLog } from '../testing/memory-log.ts';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { OpenTenants } from '../store/open-tenants.ts';
import type { GroupReport } from './engine-protocol.ts';
import { GroupMember, type GroupMemberDeps } from './group-member.ts';

const [own, other] = [{ boot: '1'.repeat(32) }, { boot: '2'.repeat(32) }];

/** Reports in the order in which they are asked for; the last one stays. */
function memberThatReports(
  reports: readonly { readonly role: string; readonly primary: object | null }[],
): GroupMember {
  let at = 0;
  const report = (): unknown => {
    const { role, primary } = reports[Math.min(at++, reports.length - 1)]!;
    return { role, term: 3, boot: own.boot, record: { primary } } satisfies Partial<Record<keyof GroupReport, unknown>>;
  };
  const engine = Object.assign(new MemoryLog(), {
    opened: { watermark: 0, term: toTerm(1) },
    onNotice: () => {},
    inGroup: async (method: string) => (method === 'groupReport' ? report() : undefined),
  }) as unknown as GroupMemberDeps['engine'];
  const none = new OpenTenants(
    { open: () => Promise.reject(new Error('none')), pause: async () => {} },
    { openFilesMax: 1 },
  );
  return new GroupMember({
    ...{ engine, tenants: none, limits: DEFAULT_LIMITS },
    catalog: { byId: () => undefined },
    applyCatalog: async () => {},
    rollback: { run: async () => {}, finish: async () => {}, isUnderWay: false },
    rejoin: () => ({ start() {}, stop: async () => {}, found() {}, decided() {}, failed() {} }) as never,
  });
}

const leading = { role: 'leading', primary: own };

test('a handover ends when the record names another one', async () => {
  await memberThatReports([
    leading,
    { role: 'draining', primary: own },
    { role: 'stepping-down', primary: other },
  ]).handover();
});

test('a reign that ends in the midst of a handover was not handed over', async () => {
  for (const [role, primary] of [
    ['stepping-down', own],
    ['stopped', own],
    ['follower', null],
  ] as const)
    await assert.rejects(
      memberThatReports([leading, { role: 'draining', primary: own }, { role, primary }]).handover(),
      {
        code: 'HANDOVER_FAILED',
      },
    );
});
