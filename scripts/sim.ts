/**
 * `npm run sim -- [log] [schemas] [restore] [groups] [--seeds 100] [--seed 1] [--rounds n]`: simulations with a seed each. `log`:
 * the log on a disk that loses power and fails; `restore`: the directory that a node is restored into, on such a disk;
 * `schemas`: random schemas and histories, forward and inverse; `groups`: replication and failover under faults.
 */
import type { runSchemaHistories } from '../src/testing/schema-histories.ts';
import type { simulateGroups } from '../src/testing/group-simulation.ts';
import type { simulateRestore } from '../src/testing/restore-simulation.ts';
import type { simulateLog } from '../src/testing/log-simulation.ts';
import { load, readFlags, runAll, runSeeds } from './long-run.ts';

await runAll(
  [
    {
      name: 'log',
      run: async (flags) => {
        const simulate = await load<typeof simulateLog>('src/testing/log-simulation.ts', 'simulateLog');
        const { rounds } = flags;
        return runSeeds('log', flags, (seed) =>
          simulate({ seeds: [seed], ...(rounds === undefined ? {} : { rounds }) }),
        );
      },
    },
    {
      name: 'schemas',
      run: async (flags) => {
        const run = await load<typeof runSchemaHistories>('src/testing/schema-histories.ts', 'runSchemaHistories');
        return runSeeds('schemas', flags, (seed) => run({ seeds: [seed] }));
      },
    },
    {
      name: 'restore',
      run: async (flags) => {
        const simulate = await load<typeof simulateRestore>('src/testing/restore-simulation.ts', 'simulateRestore');
        const { rounds } = flags;
        return runSeeds('restore', flags, (seed) =>
          simulate({ seeds: [seed], ...(rounds === undefined ? {} : { rounds }) }),
        );
      },
    },
    {
      name: 'groups',
      run: async (flags) => {
        const simulate = await load<typeof simulateGroups>('src/testing/group-simulation.ts', 'simulateGroups');
        return runSeeds('groups', flags, (seed) => simulate({ seeds: [seed] }));
      },
    },
  ],
  readFlags({ seeds: 100 }),
);
