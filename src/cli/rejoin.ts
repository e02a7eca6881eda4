import { resolve } from 'node:path';
import type { Command } from 'commander';
import { isServed } from '../node/admin-socket.ts';
import { planRejoin, type RejoinPlan } from '../node/rejoin-plan.ts';
import { ExitError } from './exit-codes.ts';
import { withGroupOptions, withGroupRecord } from './group-options.ts';
import type { Io } from './io.ts';
import { count, fields } from './render.ts';
import { answer, verb, type VerbOptions } from './verb.ts';

function describe(io: Io, { decision, directory, group }: RejoinPlan): string {
  const { action, row, reason, keeps, drops, next, advice } = decision;
  const { end, watermark, store, generation, damage, seen } = directory;
  const held =
    group === 'away'
      ? 'it does not answer'
      : group === null
        ? 'it has no record of this group'
        : `version ${group.version}, term ${group.record.term}, ` +
          (group.record.primary === null ? 'no primary' : `primary ${group.record.primary.store}`);
  return fields(io, [
    ['store', `${store}, generation ${generation}`],
    [
      'log',
      damage ?? `ends at record ${count(end.lsn)} of term ${end.term}; known to be committed up to ${count(watermark)}`,
    ],
    ['coordinator', held],
    ['seen before', seen === null ? 'no record' : `version ${seen.version}, term ${seen.record.term}`],
    ['does', `${action} (${row})`],
    ['because', reason],
    ['keeps', keeps],
    ['drops', drops],
    ['if it fails', next.join(', then ') || 'a person decides'],
    ...(advice === undefined ? [] : ([['you may', advice]] as const)),
  ]);
}

export function rejoinVerb(io: Io): Command {
  const command = verb('rejoin', {
    summary: 'Show how a stopped node would come back to its group, and why.',
    description:
      'Reads the directory and the group record, and changes neither. A node that is started does by itself what is shown ' +
      'here; where the primary has to be asked first, the plan says what follows from its answer.',
    examples: [
      ['nostos rejoin --plan --dir ./data --coordinator embedded:/srv/coordinator', 'before it is started'],
      ['nostos rejoin --plan --json > store.json', 'also a report of the store, for nostos group recover --report'],
    ],
  }).option('--plan', 'say that nothing is to be done but to show it');
  return withGroupOptions(command, ['coordinator', 'group']).action(
    async (options: VerbOptions & { readonly plan?: true }) => {
      if (options.plan !== true)
        throw new ExitError('usage', 'a node rejoins when it is started', 'nostos rejoin --plan shows how it would.');
      const dir = resolve(io.cwd, options.dir);
      if (await isServed(dir))
        throw new ExitError('retry', `a process has ${dir} open`, 'nostos status shows what it does, and why.');
      const plan = await withGroupRecord(io, command, ({ coordination, name }) =>
        planRejoin(coordination.group(name), dir),
      );
      await answer(io, options, plan, () => describe(io, plan));
    },
  );
}
