/** A process of the coordinator compliance suite: adds one to `renewal` so many times by compare-and-set, and tells. */
import type { CoordinatorFactory } from './coordinator-compliance.ts';
import { groupRecord } from './coordinator-compliance.ts';

const [, , module = '', args = 'null', times = '0'] = process.argv;
const { openCoordinator } = (await import(module)) as { openCoordinator: CoordinatorFactory };
const coordinator = await openCoordinator(JSON.parse(args));
process.stdout.write('ready\n');
for (let done = 0; done < Number(times);) {
  const current = await coordinator.read();
  const next = groupRecord({ renewal: (current?.record.renewal ?? 0) + 1 });
  const result = await coordinator.compareAndSet(current?.version ?? 0, next);
  if (result.ok) done += 1;
}
process.stdout.write('done\n');
