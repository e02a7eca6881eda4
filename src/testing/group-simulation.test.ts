import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BROKEN_RULES } from '../replication/options.ts';
import { BROKEN_STEPS } from './group-broken.ts';
import { Violation } from './group-violation.ts';
import { playScenario } from './group-scenarios.ts';
import { simulateGroups } from './group-simulation.ts';

const SEEDS = Array.from({ length: 300 }, (_, index) => index + 1);

test('groups keep what they promise under random faults, each of which was seen to happen', async () => {
  const counts = await simulateGroups({ seeds: SEEDS });
  for (const fault of [
    'crashes',
    'crashesBetweenEffects',
    'crashes-journal',
    'crashes-file-begin',
    'crashes-file-sync',
    'crashes-file-link',
    'crashes-cut',
    'crashes-outbox-put',
    'crashes-outbox-remove',
    'crashes-told',
    'rollbacksWithoutRoom',
    'noticesNotTaken',
    'commitsFailed',
    'recoveriesWithLoss',
    'partitions',
    'pauses',
    'clockJumps',
    'coordinatorAway',
    'messagesLost',
    'messagesTwice',
    'messagesLate',
    'messagesAstray',
    'cas-lost',
    'cas-reply-lost',
    'cas-late',
    'disksFull',
    'appendsFailed',
    'disksLost',
    'oldDisks',
    'lost-records',
    'log-failed',
    'handovers',
    'regressions',
    'coordinator-regressed',
    // What a run must have come to, or it has not shown much.
    'reigns',
    'deposed',
    'handed-over',
    'stalled',
    'rollbacks',
    'rolledBackLocal',
    'network-restore',
    'generation',
    'tenantsUndone',
    'filesUsedAgain',
    'rollbacksOvertaken',
    'rollbacksResumed',
    'rollbacksTriedAgain',
    'membersChanged',
    'answersLocal',
    'answersQuorum',
    'leasedReads',
  ])
    assert.ok((counts[fault] ?? 0) > 0, `${fault} never happened`);
});

for (const rule of [...BROKEN_RULES, ...BROKEN_STEPS]) {
  test(`${rule}: where it is broken data is lost, and found to be`, async () => {
    await assert.rejects(playScenario(rule, true), Violation);
  });

  test(`${rule}: on the same schedule the right rules lose nothing, and the group goes on`, async () => {
    await playScenario(rule, false);
  });
}

for (const rule of [
  ...['anyTakes', 'resolveByLsn', 'resumeTerm', 'truncToW', 'wBeforeMatch', 'acknowledgedByW'],
  ...['commitFailureTold', 'fileNotSynced', 'noOutbox', 'planRecomputed'],
] as const)
  test(`${rule}: random faults find it, too, and the seed comes with what led to it`, async () => {
    await assert.rejects(simulateGroups({ seeds: SEEDS, broken: rule }), /^Error: seed \d+: G\d+: [^]+n\d /);
  });

test('a seed replays', async () => {
  assert.deepEqual(await simulateGroups({ seeds: [7] }), await simulateGroups({ seeds: [7] }));
});
