/**
 * The rollback of a node in its group: the journalled run of `rollback/` over this node's tenants and the log in its
 * engine. The engine asks for it when the search for the common point has ended; a run that a crash has cut off goes on
 * with the next such wish, or at the start, where all that was left to do is to tell of it.
 */
import type { Lsn } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import type { Disk } from '../base/disk.ts';
import { systemRandom } from '../base/random.ts';
import { releaseBuffer } from '../base/release.ts';
import type { ReadRecord } from '../log/reader.ts';
import { checkRun } from '../log/replicated-run.ts';
import { openRollbackDirectory } from '../rollback/run/directory.ts';
import { RollbackRunner, isUnderWay } from '../rollback/run/runner.ts';
import { ROLLBACK_LIMITS, type RollbackNotice } from '../rollback/types.ts';
import type { Catalog } from '../store/catalog.ts';
import type { Maintenance } from '../store/maintenance.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import type { EngineClient } from './engine-client.ts';
import type { RollbackNotice as RollbackWish } from './group-member.ts';
import type { NodeIdentity } from './node-file.ts';
import { NodeRollbackHost, type RollbackLog } from './rollback-host.ts';

export interface GroupRollbackDeps {
  readonly engine: EngineClient;
  readonly catalog: Catalog;
  readonly tenants: OpenTenants;
  readonly maintenance: Maintenance;
  readonly clock: Clock;
  readonly disk: Disk;
  /** Told of each rollback, refusal and failure, at least once. */
  readonly onNotice: (notice: RollbackNotice) => void;
}

const RUN_BYTES = 1024 * 1024;

export class GroupRollback {
  readonly #runner: RollbackRunner;

  constructor(deps: GroupRollbackDeps, { dir, identity }: { readonly dir: string; readonly identity: NodeIdentity }) {
    const { catalog, maintenance, engine } = deps;
    const { journal, outbox } = openRollbackDirectory(deps.disk, dir);
    const host = new NodeRollbackHost(
      {
        ...deps,
        log: engineLog(engine),
        // The engine asks only once it follows and every tenant is a replica's; it goes on by itself.
        role: { freeze: async () => {}, follow: async () => {} },
        checkpointCatalog: () => catalog.checkpoint(maintenance),
      },
      {
        dir,
        owner: { node: identity.node, cluster: identity.cluster },
        store: identity.store,
        limits: ROLLBACK_LIMITS,
      },
    );
    const sink = async (notice: RollbackNotice): Promise<void> => deps.onNotice(notice);
    this.#runner = new RollbackRunner({
      host,
      journal,
      outbox,
      sink,
      clock: deps.clock,
      random: systemRandom,
      limits: ROLLBACK_LIMITS,
    });
  }

  /** It has begun to drop, and not ended: until it has, the node neither stands nor follows. */
  get isUnderWay(): boolean {
    return isUnderWay(this.#runner.journal().intent);
  }

  /** Ends a run that has begun to drop, and tells what was not told. */
  async finish(): Promise<void> {
    await this.#runner.settle();
  }

  async run({ to, address, term }: RollbackWish): Promise<void> {
    const common = { term: to.term, lsn: to.lsn, hash: Buffer.from(to.hash).toString('hex') };
    await this.#runner.run({ common, primary: { address, term } });
  }
}

function engineLog(engine: EngineClient): RollbackLog {
  return {
    end: async () => (await engine.inGroup('logEnd', undefined)).end,
    durableWatermark: async () => (await engine.inGroup('logEnd', undefined)).watermark,
    cutTo: (lsn) => engine.inGroup('cutTo', { lsn }),
    readTail: (from) => readTail(engine, from),
    readThrough: (through) => (engine.pagesThrough = through),
  };
}

async function* readTail(engine: EngineClient, from: Lsn): AsyncGenerator<readonly ReadRecord[]> {
  for (let next = from; ;) {
    const { previous, run } = await engine.inGroup('readRun', { from: next, bytesMax: RUN_BYTES });
    const records = checkRun(run, previous, Infinity);
    const last = records.at(-1);
    if (last === undefined) return;
    yield records.map(({ record, point: { hash } }) => ({ record, hash }));
    releaseBuffer(run);
    next = (last.point.lsn + 1) as Lsn;
  }
}
