/**
 * One script per broken rule: a schedule on which that rule loses data, and on which the right rules do not. Some of them
 * random search finds in a few seeds, others only in many thousands.
 *
 * Three nodes, two in sync at least, where nothing else is said; n0 leads first.
 */
import { assert } from '../base/assert.ts';
import type { Broken } from './group-broken.ts';
import type { Death, RollbackStep } from './group-rollback.ts';
import type { SimNode } from './group-node.ts';
import type { CasRequest, Envelope } from './group-world.ts';
import { QUIET_BOUND_MS, SIM_LIMITS, World } from './group-world.ts';

const LONG_MS = 10 * SIM_LIMITS.leaseMs;

export class Script {
  readonly world: World;
  /** Cut links, as `from>to`. */
  readonly cuts = new Set<string>();
  /** Who cannot reach the coordinator. */
  readonly away = new Set<number>();
  hold: (envelope: Envelope) => boolean = () => false;
  readonly held: Envelope[] = [];
  holdCas: (cas: CasRequest) => boolean = () => false;
  readonly heldCas: CasRequest[] = [];

  private constructor(minInSync: number, broken: Broken | undefined, traced: boolean) {
    this.world = new World({ seed: 1, nodes: 3, minInSync, traced, ...(broken === undefined ? {} : { broken }) });
    this.world.fate = (envelope) => {
      if (this.cuts.has(`${envelope.from}>${envelope.to}`)) return 'lost';
      if (!this.hold(envelope)) return { delayMs: 1, ordered: true, copies: 1 };
      this.held.push(envelope);
      return 'lost';
    };
    this.world.requestFate = (node, cas) => {
      const delayMs = 1;
      if (this.away.has(node)) return { kind: 'lost', delayMs };
      if (cas === undefined || !this.holdCas(cas)) return { kind: 'normal', delayMs };
      this.heldCas.push(cas);
      return { kind: 'lost', delayMs };
    };
  }

  static async begin(minInSync: number, broken: Broken | undefined, traced = false): Promise<Script> {
    const script = new Script(minInSync, broken, traced);
    await script.leads(0);
    await script.waits('n0 serves all', () => script.node(0).machine.acceptsWrites && script.inSync.length === 3);
    await script.world.run(50);
    return script;
  }

  node(index: number): SimNode {
    return this.world.nodes[index]!;
  }

  get inSync(): number[] {
    const { inSync } = this.world.current.record;
    return this.world.nodes.filter((node) => inSync.includes(node.store.store)).map(({ index }) => index);
  }

  async waits(what: string, holds: () => boolean): Promise<void> {
    assert(await this.world.until(holds, LONG_MS), `the script waits in vain until ${what}`);
  }

  /** This node, and no other one, may take over; it does. */
  async leads(index: number): Promise<void> {
    const { term } = this.world.current.record;
    const others = this.world.nodes.filter((node) => node.index !== index && !this.away.has(node.index));
    for (const other of others) this.away.add(other.index);
    await this.waits(`n${index} leads`, () => this.node(index).reigns && this.world.current.record.term > term);
    for (const other of others) this.away.delete(other.index);
  }

  /** What may not come to pass: with the right rules it does not. */
  async wouldLead(index: number): Promise<void> {
    const { term } = this.world.current.record;
    for (const other of this.world.nodes) this.away.add(other.index);
    this.away.delete(index);
    await this.world.until(() => this.node(index).reigns && this.world.current.record.term > term, LONG_MS);
    await this.world.run(50);
  }

  cut(...links: string[]): void {
    for (const link of links) this.cuts.add(link);
  }

  isolate(index: number): void {
    for (const { index: other } of this.world.nodes) this.cut(`${index}>${other}`, `${other}>${index}`);
  }

  write(index: number, count: number): void {
    for (let i = 0; i < count; i++) assert(this.node(index).write() !== undefined, `n${index} takes a write`);
  }

  /** A node is cut off until it has been dropped from the in-sync set. */
  async drops(index: number): Promise<void> {
    this.isolate(index);
    this.write(0, 1);
    await this.waits(`n${index} is dropped`, () => !this.inSync.includes(index));
  }

  async committed(lsn: number): Promise<void> {
    await this.waits(`LSN ${lsn} is committed`, () => this.world.oracle.committed.length >= lsn);
  }

  /** Nothing keeps it from the primary any more. */
  async follows(index: number): Promise<void> {
    this.cuts.clear();
    this.away.clear();
    const { oracle } = this.world;
    await this.waits(`n${index} follows`, () => this.node(index).store.watermark === oracle.committed.length);
  }

  /** All that went wrong is over; with the right rules the group goes on. */
  async settles(): Promise<void> {
    this.cuts.clear();
    this.away.clear();
    this.hold = this.holdCas = () => false;
    const { world } = this;
    for (const node of world.nodes) {
      node.releaseSync();
      if (!node.isUp) node.restart(1);
    }
    const enough = world.oracle.committed.length + 4;
    const endMs = world.nowMs + QUIET_BOUND_MS;
    while (world.oracle.committed.length < enough && world.nowMs < endMs) {
      world.admit();
      world.leader?.write();
      await world.run(20);
    }
    assert(world.oracle.committed.length >= enough, 'the group commits again');
    const { length } = world.oracle.committed;
    const isHome = (node: SimNode): boolean => node.store.end.lsn === length && node.tenantsHave(length);
    await this.waits('all have all of it', () => world.nodes.every(isHome));
    world.oracle.settle(
      world.nodes.map(({ store }) => store),
      world.told,
    );
  }
}

export interface Scenario {
  readonly minInSync?: number;
  readonly play: (script: Script) => Promise<void>;
}

/** n2 has caught up and is about to be added; the CAS is on its way for long, and n2 hears nothing more. */
const lateAddition: Scenario = {
  async play(script) {
    await script.drops(2);
    script.holdCas = ({ node, record }) => node === 0 && record.inSync.length === 3;
    script.cuts.clear();
    await script.waits('n2 is proposed', () => script.heldCas.length > 0);
    script.isolate(2);
    script.away.add(1).add(2);
    script.holdCas = ({ node }) => node === 0;
    // Unanswered, looked into at the same version, and not resolved by that.
    await script.world.run(600);
    script.write(0, 2);
    await script.world.run(600);
    assert(script.world.perform(script.heldCas[0]!).ok, 'the late CAS takes effect');
    script.node(0).crash();
    script.cuts.clear();
    await script.wouldLead(2);
  },
};

export const SCENARIOS: Readonly<Record<Broken, Scenario>> = {
  confirmedOnly: lateAddition,
  rereadResolves: lateAddition,

  // n2 acknowledged records of term 1 that it had to drop; its acks arrive when n0 leads again.
  ackNoTerm: {
    async play(script) {
      const { world } = script;
      script.cut('0>1', '1>0');
      script.away.add(0);
      script.hold = ({ from, message }) => from === 2 && message.kind === 'ack';
      const committed = world.oracle.committed.length;
      for (let i = 0; i < 6; i++) {
        script.write(0, 1);
        await world.run(10);
      }
      assert(script.held.length >= 6, 'acks of term 1 are held');
      script.hold = () => false;
      const acks = script.held.filter(({ message }) => message.kind === 'ack');
      script.node(0).pause(2 * SIM_LIMITS.leaseMs);
      await script.leads(1);
      await script.waits('n1 commits its term-start', () => world.oracle.committed.length > committed);
      script.cuts.clear();
      script.away.clear();
      await script.waits('n0 follows', () => script.inSync.length === 3);
      await world.run(100);
      script.isolate(2);
      script.away.add(2);
      script.node(1).step({ kind: 'handover', to: script.node(0).store.store });
      await script.waits('n0 leads again', () => script.node(0).reigns);
      const start = script.node(0).store.end.lsn;
      for (const ack of acks)
        if (ack.message.kind === 'ack' && ack.message.lsn === start) world.deliver({ ...ack, to: 0 }, 0);
      await world.run(20);
      script.node(0).crash();
      script.node(1).pause(60);
      script.cuts.clear();
      script.away.clear();
      await script.wouldLead(2);
    },
  },

  // n2 lacks what n0 and n1 committed without it.
  anyTakes: {
    async play(script) {
      await script.drops(2);
      script.write(0, 3);
      await script.world.run(50);
      script.node(0).crash();
      script.cuts.clear();
      await script.wouldLead(2);
    },
  },

  // n0 has proposed to drop n2; the CAS never takes effect.
  assumeProposed: {
    async play(script) {
      script.isolate(2);
      script.holdCas = ({ node, record }) => node === 0 && record.inSync.length === 2;
      script.write(0, 3);
      await script.waits('n0 proposes to drop n2', () => script.heldCas.length > 0);
      await script.world.run(100);
      script.node(0).crash();
      script.cuts.clear();
      await script.wouldLead(2);
    },
  },

  // n1 is in sync, and comes back with a disk from before the last commits.
  diskOld: {
    async play(script) {
      const { world } = script;
      const image = script.node(1).store.image();
      await script.drops(2);
      script.write(0, 5);
      const end = script.node(0).store.end.lsn;
      assert(end > image.end.lsn + 4, 'the image lacks records');
      await script.waits('a renewal says that they are committed', () => world.current.record.committed?.lsn === end);
      script.node(1).crash();
      script.node(0).crash();
      script.node(1).store = image;
      script.node(1).open();
      script.cuts.clear();
      await script.wouldLead(1);
      // n0 has all of it.
      script.node(0).open();
    },
  },

  // n0 is alone in sync, and loses power before its fsync.
  noSelfFsync: {
    minInSync: 1,
    async play(script) {
      script.isolate(1);
      await script.drops(2);
      await script.waits('n0 is alone', () => script.inSync.length === 1);
      await script.world.run(50);
      script.node(0).syncHeld = true;
      script.write(0, 2);
      await script.world.run(50);
      script.node(0).crash(script.node(0).store.durable);
      script.node(0).syncHeld = false;
      script.node(0).open();
      await script.wouldLead(0);
    },
  },

  // n1 loses its disk, and no renewal has yet said that anything was committed.
  noStoreId: {
    async play(script) {
      const { world } = script;
      script.away.add(0);
      const image = world.current;
      script.write(0, 5);
      await script.committed(5);
      script.node(1).crash();
      script.node(0).crash();
      assert((image.record.committed?.lsn ?? 0) === 0, 'nothing is known to be committed');
      script.node(1).renew();
      script.node(1).open();
      script.away.delete(1);
      await script.wouldLead(1);
    },
  },

  // n1 leads with a W that is behind what was committed; n2 has just that W, and hears no more.
  noTermStart: {
    async play(script) {
      const { world } = script;
      const newcomer = script.node(2).store.store;
      script.node(0).step({ kind: 'change-members', change: { remove: newcomer } });
      await script.waits('n2 is no member', () => script.inSync.length === 2);
      script.write(0, 1);
      await script.waits(
        'n2 has learnt all of it',
        () => script.node(2).store.watermark === script.node(0).store.end.lsn,
      );
      script.isolate(2);
      script.away.add(0);
      script.hold = ({ from, to, message }) => from === 0 && to === 1 && message.kind === 'watermark';
      const heard = script.node(1).store.watermark;
      script.write(0, 5);
      await script.committed(script.node(0).store.end.lsn);
      assert(script.node(1).store.watermark < world.oracle.committed.length - 3, `n1 has heard of ${heard} only`);
      script.node(0).crash();
      await script.leads(1);
      script.hold = ({ from, to, message }) => from === 1 && to === 2 && message.kind === 'records';
      script.cuts.clear();
      script.node(1).step({ kind: 'change-members', change: { add: newcomer } });
      await world.run(400);
      script.node(1).crash();
      script.node(0).open();
      await script.wouldLead(2);
    },
  },

  // A write of n0 waits at an LSN at which the next primary puts another record.
  resolveByLsn: {
    async play(script) {
      const { world } = script;
      script.isolate(0);
      script.away.add(0);
      script.write(0, 3);
      await script.leads(1);
      await script.waits('n1 leads', () => script.node(1).machine.acceptsWrites);
      script.write(1, 5);
      await script.committed(script.node(1).store.end.lsn);
      script.cuts.clear();
      script.away.clear();
      await script.waits('n0 follows', () => script.node(0).store.watermark === world.oracle.committed.length);
    },
  },

  // n1 has a record of n0 that n0 itself lost, since it was not fsynced there.
  resumeTerm: {
    async play(script) {
      const { world } = script;
      script.node(0).syncHeld = true;
      script.write(0, 1);
      await world.run(20);
      const lost = script.node(0).store.end.lsn;
      assert(script.node(1).store.end.lsn === lost, 'n1 has it');
      script.node(0).crash(lost - 1);
      script.node(0).syncHeld = false;
      script.away.add(1).add(2);
      script.node(0).open();
      await world.run(400);
      script.node(0).write();
      await world.run(50);
    },
  },

  // The writers of n0 were answered, and its W covered nothing of what they wrote.
  acknowledgedByW: {
    async play(script) {
      await deposeWithTail(script);
      await script.follows(0);
    },
  },

  commitAtSync: {
    async play(script) {
      script.isolate(0);
      script.write(0, 1);
      await script.world.run(50);
    },
  },

  commitFailureTold: {
    async play(script) {
      script.world.commitFails = () => true;
      script.write(0, 1);
      await script.committed(script.node(0).store.end.lsn);
      script.world.commitFails = () => false;
    },
  },

  // Power fails between the log and the tenants.
  cutBeforeTenants: { play: (script) => dieInRollback(script, 'cut', 'after') },
  undoNotDurable: { play: (script) => dieInRollback(script, 'cut', 'after') },
  fileNotSynced: { play: (script) => dieInRollback(script, 'cut', 'after') },
  planRecomputed: { play: (script) => dieInRollback(script, 'cut', 'after') },

  // Nobody takes notices for a while.
  noOutbox: {
    async play(script) {
      script.world.sinkFails = () => true;
      await deposeWithTail(script);
      await script.follows(0);
      script.world.sinkFails = () => false;
      script.node(0).crashAndRestart();
      await script.world.run(SIM_LIMITS.leaseMs);
    },
  },

  // n2 was dropped, and has not what was committed without it; an operator goes on with it, and n0 and n1 come back.
  recoverKeepsGeneration: {
    async play(script) {
      await script.drops(2);
      script.write(0, 5);
      await script.committed(script.node(0).store.end.lsn);
      script.node(0).crash();
      script.node(1).crash();
      assert(script.world.recoverWith([script.node(2)]), 'it is too little to have everything');
      script.cuts.clear();
      await script.waits('n2 leads', () => script.node(2).machine.acceptsWrites);
    },
  },

  // What n0 has not committed comes back with it.
  replayToEnd: {
    async play(script) {
      script.isolate(0);
      script.write(0, 3);
      await script.world.run(50);
      script.node(0).crashAndRestart();
      await script.world.run(100);
    },
  },

  // n0 is in sync when it has to drop its tail for n1, dies in the midst of that, and is the one to lead again.
  standsHalfway: {
    async play(script) {
      await deposeWithTail(script, { reachable: true });
      script.world.rollbackDies = ({ index }, step) => (index === 0 && step === 'cut' ? 'after' : undefined);
      const { end } = script.node(0).store;
      script.away.clear();
      await script.waits('n0 dies', () => !script.node(0).isUp);
      assert(script.node(0).store.end.lsn < end.lsn, 'it has dropped something');
      script.world.rollbackDies = () => undefined;
      script.node(1).crash();
      await script.wouldLead(0);
    },
  },

  takerTruncates: { play: (script) => commitUnheard(script, 1) },
  truncToW: { play: (script) => commitUnheard(script, 1) },

  // n0 has a tail that nobody else has, where n1 has committed something else.
  wBeforeMatch: {
    async play(script) {
      script.isolate(0);
      script.away.add(0);
      script.write(0, 3);
      await script.leads(1);
      await script.waits('n1 leads', () => script.node(1).machine.acceptsWrites);
      script.write(1, 5);
      await script.committed(script.node(1).store.end.lsn);
      script.cuts.clear();
      script.away.clear();
      await script.world.run(SIM_LIMITS.leaseMs);
    },
  },
};

/** n0 has answered `local` writes that nobody else has, and n1 leads. With `reachable` n0 is in sync even so. */
async function deposeWithTail(script: Script, { reachable = false } = {}): Promise<void> {
  const { world } = script;
  if (reachable) script.hold = ({ from, message }) => from === 0 && message.kind === 'records';
  else script.isolate(0);
  script.away.add(0);
  const before = world.counts['answersLocal'] ?? 0;
  for (let i = 0; i < 8; i++) assert(script.node(0).write('local') !== undefined, 'n0 takes a write');
  await script.waits('they are answered', () => world.counts['answersLocal'] === before + 8);
  await script.leads(1);
  if (reachable) return assert(script.inSync.includes(0), 'n0 is in sync');
  await script.waits('n1 serves', () => script.node(1).machine.acceptsWrites);
  script.write(1, 3);
  await script.committed(script.node(1).store.end.lsn);
}

async function dieInRollback(script: Script, at: RollbackStep, when: Death): Promise<void> {
  await deposeWithTail(script);
  let died = false;
  script.world.rollbackDies = (_, step) => {
    if (died || step !== at) return undefined;
    died = true;
    return when;
  };
  await script.follows(0);
  assert(died, `it died at ${at}`);
}

/** n0 commits what n1 and n2 have fsynced without hearing that it is committed; then another one takes over. */
async function commitUnheard(script: Script, next: number): Promise<void> {
  script.away.add(0);
  script.hold = ({ from, message }) => from === 0 && message.kind === 'watermark';
  script.write(0, 3);
  await script.committed(script.node(0).store.end.lsn);
  assert(script.node(next).store.watermark < script.node(next).store.end.lsn, 'it has not heard of it');
  script.node(0).crash();
  await script.leads(next);
  await script.world.run(200);
}

/** Plays the scenario of a rule, with that rule broken or with all of them right; throws what it finds. */
export async function playScenario(rule: Broken, broken: boolean, traced = false): Promise<Script> {
  const { minInSync = 2, play } = SCENARIOS[rule];
  const script = await Script.begin(minInSync, broken ? rule : undefined, traced);
  try {
    await play(script);
    await script.settles();
  } catch (error) {
    if (traced && error instanceof Error) error.message += `\n${script.world.traceLines.join('\n')}`;
    throw error;
  }
  return script;
}
