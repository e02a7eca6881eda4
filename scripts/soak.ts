/**
 * `npm run soak`: kill -9 of a real process under load, again and again, with every acknowledged write checked.
 *
 * `npm run soak -- --rounds 200 --seed 1`
 */
import { parseArgs } from 'node:util';
import { runKillRounds } from '../src/node/kill-harness.ts';

const { values } = parseArgs({
  options: { rounds: { type: 'string', default: '200' }, seed: { type: 'string' }, dir: { type: 'string' } },
});
const rounds = Number(values.rounds);
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 32) : Number(values.seed);
process.stdout.write(`${rounds} rounds with seed ${seed}\n`);
const report = await runKillRounds({
  rounds,
  seed,
  ...(values.dir === undefined ? {} : { dir: values.dir }),
  onProgress: ({ round, killed, acknowledged, log }) =>
    process.stdout.write(
      `${round}: killed while ${killed}, ${acknowledged} acknowledged, log ${log.firstLsn} to ${log.lastLsn}\n`,
    ),
});
process.stdout.write(`${JSON.stringify(report)}\n`);
