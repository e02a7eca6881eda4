/**
 * `npm run soak -- [kill] [--rounds 200] [--seed 1] [--seeds 1]`: long runs on real processes and disks. `kill`: kill -9 of
 * a process under load, round after round, with every acknowledged write checked.
 */
import { load, readFlags, runAll, runSeeds } from './long-run.ts';

const ROUNDS = 200;

type RunKillRounds = (options: {
  readonly rounds: number;
  readonly seed: number;
  readonly onProgress?: (counts: object) => void;
}) => Promise<object>;

await runAll(
  [
    {
      name: 'kill',
      run: async (flags) => {
        const run = await load<RunKillRounds>('src/node/kill-harness.ts', 'runKillRounds');
        const rounds = flags.rounds ?? ROUNDS;
        return runSeeds('kill', flags, (seed) =>
          run({ rounds, seed, onProgress: (counts) => console.log('kill:', JSON.stringify(counts)) }),
        );
      },
    },
  ],
  readFlags({ seeds: 1 }),
);
