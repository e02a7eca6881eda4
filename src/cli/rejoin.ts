import { resolve } from 'node:path';
import type { Command } from 'commander';
import { systemClock } from '../base/clock.ts';
import { isServed } from '../node/admin-socket.ts';
import { planRejoin, rejoinAnew, type RejoinPlan } from '../node/rejoin-plan.ts';
import { ExitError } from './exit-codes.ts';
import { withGroupOptions, withGroupRecord } from './group-options.ts';
import type { Io } from './io.ts';
import { count, fields } from './render.ts';
import { describeTried } from './status.ts';
import { answer, verb, type VerbOptions } from './verb.ts';

function describe(io: Io, { decision, directory, group, progress }: RejoinPlan): string {
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
    ...(progress === null ? [] : describeTried(progress)),
    ...(progress?.current === 'operator'
      ? ([['but', 'too much was tried: it waits for a person, who says nostos rejoin --again']] as const)
      : []),
  ]);
}

export function rejoinVerb(io: Io): Command {
  const command = verb('rejoin', {
    summary: 'Show how a stopped node would come back to its group, and why.',
    description:
      'Reads the directory and the group record, and changes neither. A node that is started does by itself what is shown ' +
      'here; where the primary has to be asked first, the plan says what follows from its answer. After too many attempts in ' +
      'vain it waits for a person: --again says that what made them fail was seen to.',
    examples: [
      ['nostos rejoin --plan --dir ./data --coordinator embedded:/srv/coordinator', 'before it is started'],
      ['nostos rejoin --again --dir ./data', 'attempts are counted from the start again'],
      ['nostos rejoin --plan --json > store.json', 'also a report of the store, for nostos group recover --report'],
    ],
  })
    .option('--plan', 'say that nothing is to be done but to show it')
    .option('--again', 'let a node try again that has given up; it tries when it is started');
  return withGroupOptions(command, ['coordinator', 'group']).action(
    async (options: VerbOptions & { readonly plan?: true; readonly again?: true }) => {
      if (options.again === true) {
        const progress = await rejoinAnew(resolve(io.cwd, options.dir), systemClock.nowMs());
        const text =
          progress === null ? 'nothing was tried here' : `it will try ${progress.current} when it is started`;
        return answer(io, options, { progress }, () => text);
      }
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
