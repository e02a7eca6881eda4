/**
 * `npm run soak`: what takes too long for every test run. kill -9 of a real process under load, again and again, and
 * power cuts on the writes that a process really made; every acknowledged write is checked. kill -9 of either side of a
 * network restore, which must then go on where it was: of the transfer (`--restores`), and of `nostos restore` into a
 * directory (`--directories`). Faults of a group of real processes, with clients whose history is checked (`--groups`).
 *
 * `npm run soak -- --rounds 200 --cuts 300 --restores 50 --directories 50 --groups 100 --seed 1`; 0 leaves one out.
 */
import { parseArgs } from 'node:util';
import { runDirectoryKills } from '../src/cli/restore-kill-harness.ts';
import { runGroupSoak } from '../src/node/group-harness-faults.fixture.ts';
import { runKillRounds } from '../src/node/kill-harness.ts';
import { runPowerCuts, straceRefusal } from '../src/node/power-cut.ts';
import { runRestoreKills } from '../src/restore/stream/kill.fixture.ts';

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '200' },
    cuts: { type: 'string', default: '300' },
    restores: { type: 'string', default: '50' },
    directories: { type: 'string', default: '50' },
    groups: { type: 'string', default: '100' },
    seed: { type: 'string' },
    dir: { type: 'string' },
  },
});
const [rounds, cuts, restores] = [Number(values.rounds), Number(values.cuts), Number(values.restores)];
const [directories, groups] = [Number(values.directories), Number(values.groups)];
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 32) : Number(values.seed);

if (rounds > 0) {
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
}

const why = cuts > 0 ? straceRefusal() : undefined;
if (why !== undefined) process.stdout.write(`no power cuts: ${why}\n`);
else if (cuts > 0) {
  process.stdout.write(`${cuts} power cuts with seed ${seed}\n`);
  const report = await runPowerCuts({
    cuts,
    seed,
    onProgress: ({ cut, step, acknowledged }) =>
      process.stdout.write(`${cut}: cut at step ${step}, ${acknowledged} acknowledged\n`),
  });
  process.stdout.write(`${JSON.stringify(report)}\n`);
}

if (restores > 0) {
  process.stdout.write(`${restores} restores with seed ${seed}\n`);
  const report = await runRestoreKills({
    rounds: restores,
    seed,
    onProgress: ({ round, killed, share, resentShare }) =>
      process.stdout.write(`${round}: killed the ${killed} at ${share}, then ${resentShare.toFixed(2)} was sent\n`),
  });
  process.stdout.write(`${JSON.stringify(report)}\n`);
}

if (directories > 0) {
  process.stdout.write(`${directories} kills of nostos restore, or of its source, with seed ${seed}\n`);
  const report = await runDirectoryKills({
    kills: directories,
    seed,
    onProgress: ({ kill, victim, afterMs, left, ended }) =>
      process.stdout.write(`${kill}: ${victim} killed after ${afterMs} ms, left ${left}, ${ended}\n`),
  });
  process.stdout.write(`${JSON.stringify(report)}\n`);
}

// One group whose frames are disturbed, and one with TLS in networks of its own: some faults can be done to one of them only.
for (const network of groups > 0 ? (['links', 'sockets'] as const) : []) {
  process.stdout.write(`${groups} faults in a group of three processes over ${network} with seed ${seed}\n`);
  const report = await runGroupSoak({
    rounds: groups,
    seed,
    network,
    onProgress: ({ round, fault }) => process.stdout.write(`${round}: ${fault}\n`),
  });
  process.stdout.write(`${JSON.stringify(report)}\n`);
}
