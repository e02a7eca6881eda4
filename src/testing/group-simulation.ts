/**
 * Groups of two to five nodes under random faults, for as many seeds as one likes: a lossy network, partitions, crashes at
 * any effect and at any step of a rollback, lost and old disks, full disks, COMMITs that fail, stopped processes, clocks that
 * jump, a coordinator that loses requests and answers, performs them late, is away or set back, an operator who goes on with
 * too few. Then it is quiet, and the group must commit again, agree, and have told and kept what was dropped.
 */
import { seededRandom } from '../base/random.ts';
import { holdsDurably } from '../replication/store-view.ts';
import { isUnderWay } from '../rollback/run/runner.ts';
import type { Broken } from './group-broken.ts';
import { DEATHS } from './group-rollback.ts';
import { Violation } from './group-violation.ts';
import type { SimStore } from './group-store.ts';
import type { SimNode } from './group-node.ts';
import { COORDINATOR_TIMEOUT_MS, QUIET_BOUND_MS, SIM_LIMITS, World } from './group-world.ts';

export interface GroupSimulateOptions {
  readonly seeds: Iterable<number>;
  readonly broken?: Broken;
  /** How long things go wrong, in virtual time. */
  readonly faultsMs?: number;
}

const FAULTS_MS = 12_000;

/** Runs each seed; throws at the first that breaks a promise, with what led to it. Answers with what happened how often. */
export async function simulateGroups({
  seeds,
  broken,
  faultsMs = FAULTS_MS,
}: GroupSimulateOptions): Promise<Record<string, number>> {
  const totals: Record<string, number> = { seeds: 0 };
  for (const seed of seeds) {
    const options = { seed, faultsMs, ...(broken === undefined ? {} : { broken }) };
    try {
      add(totals, await new GroupSimulator(options).run());
    } catch (error) {
      throw await explain(error, options);
    }
    totals['seeds']! += 1;
  }
  return totals;
}

interface SeedOptions {
  readonly seed: number;
  readonly faultsMs: number;
  readonly broken?: Broken;
}

/** Runs the seed once more, and adds what happened last. */
async function explain(error: unknown, options: SeedOptions): Promise<Error> {
  const again = new GroupSimulator(options, true);
  try {
    await again.run();
  } catch {
    // The same, since a seed replays.
  }
  const message = error instanceof Error ? error.message : String(error);
  const trace = again.world.traceLines.join('\n');
  return new Error(`seed ${options.seed}: ${message}\n${trace}`, { cause: error });
}

function add(totals: Record<string, number>, counts: Readonly<Record<string, number>>): void {
  for (const [name, count] of Object.entries(counts)) totals[name] = (totals[name] ?? 0) + count;
}

class GroupSimulator {
  readonly world: World;
  readonly #faultsMs: number;
  readonly #broken: Broken | undefined;
  readonly #images = new Map<number, SimStore>();
  /** By sender and receiver. */
  readonly #cuts = new Set<string>();
  readonly #coordinatorCuts = new Set<number>();
  readonly #faultEveryMs: number;
  readonly #localShare: number;
  #quiet = false;
  #clientsDone = false;
  /** After the coordinator was set back: who had read more than it has. */
  #haveSeenMore: readonly SimNode[] | undefined;

  constructor({ seed, faultsMs, broken }: SeedOptions, traced = false) {
    this.#faultsMs = faultsMs;
    this.#broken = broken;
    const shape = seededRandom(2 ** 32 + seed);
    const nodes = [3, 3, 3, 3, 3, 2, 4, 5][shape.below(8)]!;
    const minInSync = shape.chance(0.7) ? Math.floor(nodes / 2) + 1 : 1 + shape.below(nodes);
    const rule = broken === undefined ? {} : { broken };
    const wildClocks = shape.chance(0.1);
    // Then anybody may take over at any moment: what is written must not rest on leases.
    const hasty = shape.chance(0.1);
    const limits = hasty ? { leaseMs: 100, clockDriftMax: -0.99, coordinatorPollMs: 20 } : {};
    this.world = new World({
      seed,
      nodes,
      minInSync,
      guests: shape.chance(0.2) ? 1 : 0,
      spares: shape.chance(0.2) ? 1 : 0,
      limits,
      traced,
      ...rule,
    });
    this.world.leasesHold = !wildClocks && !hasty;
    this.#faultEveryMs = [40, 100, 200, 400, 1_000][shape.below(5)]!;
    this.#localShare = [0.1, 0.3, 0.9][shape.below(3)]!;
    const { random } = this.world;
    const drift = wildClocks ? 0.3 : SIM_LIMITS.clockDriftMax * 0.99;
    for (const node of this.world.nodes) node.clockRate = 1 + (random.below(2001) / 1000 - 1) * drift;
    this.#disturb();
  }

  async run(): Promise<Readonly<Record<string, number>>> {
    const { world } = this;
    this.#every(15, () => this.#client());
    this.#every(50, () => world.admit());
    this.#every(this.#faultEveryMs, () => this.#fault());
    if (await world.until(() => this.#haveSeenMore !== undefined, this.#faultsMs)) await this.#afterRegression();
    else await this.#settle();
    return world.counts;
  }

  #every(ms: number, run: () => void): void {
    this.world.after(1 + this.world.random.below(2 * ms), () => {
      run();
      this.#every(ms, run);
    });
  }

  /** What the network, the coordinator and the disks do to what passes. */
  #disturb(): void {
    const { world } = this;
    const { random } = world;
    const wild = [0, 0.01, 0.05, 0.2][random.below(4)]!;
    const lossy = [0, 0.02, 0.1, 0.3][random.below(4)]!;
    const slow = [1, 5, 30][random.below(3)]!;
    world.fate = ({ from, to }) => {
      if (this.#cuts.has(`${from}>${to}`)) return 'lost';
      const delayMs = 1 + random.below(this.#quiet ? 3 : slow);
      if (this.#quiet || !random.chance(wild)) return { delayMs, ordered: true, copies: 1 };
      const kind = random.below(5);
      if (kind === 0) return this.#counted('messagesLost', 'lost');
      if (kind === 1) return this.#counted('messagesTwice', { delayMs, ordered: false, copies: 2 });
      if (kind === 2)
        return this.#counted('messagesAstray', {
          delayMs,
          ordered: false,
          copies: 1,
          astray: random.below(world.nodes.length),
        });
      return this.#counted('messagesLate', { delayMs: random.below(1_500), ordered: false, copies: 1 });
    };
    world.requestFate = (node, cas) => {
      if (this.#coordinatorCuts.has(node)) return { kind: 'lost', delayMs: 0 };
      const delayMs = 1 + random.below(this.#quiet ? 3 : slow);
      if (this.#quiet || !random.chance(lossy)) return { kind: 'normal', delayMs };
      const kind = (['lost', 'reply-lost', 'late'] as const)[random.below(3)]!;
      if (cas !== undefined) world.count(`cas-${kind}`);
      return { kind, delayMs, lateMs: 100 + random.below(3_000) };
    };
    const [commitFailure, death] = [random.chance(0.3) ? 0.02 : 0, random.chance(0.5) ? 0.01 : 0.05];
    world.commitFails = () => !this.#quiet && random.chance(commitFailure);
    world.rollbackDies = () => (!this.#quiet && random.chance(death) ? DEATHS[random.below(DEATHS.length)] : undefined);
    world.sinkFails = () => !this.#quiet && random.chance(0.2);
    const slowDisk = random.chance(0.3);
    world.syncMs = () => 1 + random.below(!this.#quiet && slowDisk && random.chance(0.05) ? 600 : 4);
  }

  #counted<T>(name: string, value: T): T {
    this.world.count(name);
    return value;
  }

  #client(): void {
    if (this.#clientsDone) return;
    const { world } = this;
    const { random } = world;
    for (const node of world.nodes) {
      if (random.chance(0.6)) node.write(random.chance(this.#localShare) ? 'local' : 'quorum');
      if (world.leasesHold && random.chance(0.3))
        node.read(!this.#quiet && random.chance(0.01) ? random.below(2 * SIM_LIMITS.leaseMs) : 0);
    }
  }

  #fault(): void {
    if (this.#quiet) return;
    const { world } = this;
    const { random } = world;
    const node = world.nodes[random.below(world.nodes.length)]!;
    const faults: readonly (readonly [weight: number, run: () => void])[] = [
      [30, () => {}],
      [5, () => this.#crash(node)],
      [4, () => void (world.crashAfterEffects = 1 + random.below(200))],
      [3, () => this.#pause(node)],
      [5, () => this.#partition(node)],
      [4, () => this.#awayFrom(node)],
      [3, () => this.#jumpClock(node)],
      [2, () => this.#fillDisk(node)],
      [1, () => node.isUp && node.step({ kind: 'log-failed' })],
      [1, () => this.#loseDisk(node)],
      [2, () => this.#images.set(node.index, node.store.image())],
      [2, () => this.#bringBackImage(node)],
      [1, () => this.#startCopy(node)],
      [3, () => this.#handOver()],
      [1, () => this.#removeMember(node)],
      [2, () => node.isUp && node.prune(node.store.watermark - random.below(20))],
      [0.4, () => this.#recoverWithLoss(node)],
      [0.05, () => this.#regress()],
    ];
    let at = (random.below(1_000_000) / 1_000_000) * faults.reduce((sum, [weight]) => sum + weight, 0);
    for (const [weight, run] of faults) if ((at -= weight) < 0) return run();
  }

  #crash(node: SimNode): void {
    if (!node.isUp) return;
    this.world.count('crashes');
    node.crashAndRestart(this.world.random.below(this.world.random.chance(0.2) ? 4_000 : 300));
  }

  #pause(node: SimNode): void {
    if (!node.isUp) return;
    this.world.count('pauses');
    node.pause(this.world.random.below(3 * SIM_LIMITS.leaseMs));
  }

  /** Cuts a node off, or one direction of one of its links. */
  #partition(node: SimNode): void {
    const { random, nodes } = this.world;
    this.world.count('partitions');
    const others = nodes.filter((other) => other !== node && random.chance(0.7));
    const direction = random.below(3);
    const links = others.flatMap((other) => [
      ...(direction === 1 ? [] : [`${node.index}>${other.index}`]),
      ...(direction === 2 ? [] : [`${other.index}>${node.index}`]),
    ]);
    for (const link of links) this.#cuts.add(link);
    this.world.after(random.below(2_500), () => links.forEach((link) => this.#cuts.delete(link)));
  }

  #awayFrom(node: SimNode): void {
    const { random, nodes } = this.world;
    this.world.count('coordinatorAway');
    const cut = random.chance(0.3) ? nodes.map(({ index }) => index) : [node.index];
    for (const index of cut) this.#coordinatorCuts.add(index);
    this.world.after(random.below(2_500), () => cut.forEach((index) => this.#coordinatorCuts.delete(index)));
  }

  #jumpClock(node: SimNode): void {
    this.world.count('clockJumps');
    node.wallOffsetMs += this.world.random.below(20_000) - 10_000;
  }

  #fillDisk(node: SimNode): void {
    if (node.full) return;
    this.world.count('disksFull');
    node.full = true;
    this.world.after(this.world.random.below(2_000), () => this.#makeRoom(node));
  }

  #makeRoom(node: SimNode): void {
    node.full = false;
    node.step({ kind: 'eligible', eligible: true });
  }

  #loseDisk(node: SimNode): void {
    if (!this.#survivesWithout(node)) return;
    this.world.count('disksLost');
    this.#images.delete(node.index);
    node.crash(node.store.end.lsn);
    this.world.oracle.diskLost(node.store);
    node.renew();
    node.restart(this.world.random.below(500));
  }

  /** Whether enough of the group is left for it to go on once the store of this node is lost. */
  #survivesWithout(node: SimNode): boolean {
    const { members, inSync, minInSync } = this.world.current.record;
    const others = this.world.nodes.filter((other) => other !== node && members.includes(other.store.store));
    const whole = others.filter((other) => !inSync.includes(other.store.store) || other.holdsCommitted);
    return whole.length >= minInSync && whole.some((other) => inSync.includes(other.store.store));
  }

  /** A disk of the past. Where nothing can show it, the design does not promise anything. */
  #bringBackImage(node: SimNode): void {
    const image = this.#images.get(node.index);
    if (image === undefined || image.store !== node.store.store) return;
    if (this.#broken !== 'diskOld' && !this.#lacksCommitted(image)) return;
    if (!this.#survivesWithout(node)) return;
    this.world.count('oldDisks');
    node.crash(node.store.end.lsn);
    this.world.oracle.diskLost(node.store, image);
    node.store = image;
    this.#images.delete(node.index);
    node.restart(this.world.random.below(500));
  }

  /** An old copy of a directory is started beside the one it was made of. */
  #startCopy(node: SimNode): void {
    const image = this.#images.get(node.index);
    const spare = this.world.nodes.find((other) => !other.joins && other.boots === 0);
    if (spare === undefined || image === undefined || image.store !== node.store.store) return;
    if (!this.#lacksCommitted(image) || !this.world.current.record.inSync.includes(image.store)) return;
    this.world.count('copies');
    spare.store = image.image();
    spare.open();
  }

  #lacksCommitted(image: SimStore): boolean {
    const { committed } = this.world.current.record;
    return committed !== null && !holdsDurably(image, committed);
  }

  #handOver(): void {
    const { leader } = this.world;
    if (leader === undefined) return;
    this.world.count('handovers');
    leader.step({ kind: 'handover' });
  }

  #removeMember(node: SimNode): void {
    const { leader, current } = this.world;
    const { members, minInSync } = current.record;
    if (leader === undefined || members.length <= Math.max(2, minInSync)) return;
    leader.step({ kind: 'change-members', change: { remove: node.store.store } });
  }

  /** An operator has lost patience with those who are in sync, and goes on with a member that is not, and perhaps others. */
  #recoverWithLoss(node: SimNode): void {
    const { random, nodes } = this.world;
    const answering = nodes.filter((other) => other === node || random.chance(0.3));
    const { inSync } = this.world.current.record;
    if (this.world.recoverWith(answering.filter(({ store }) => !inSync.includes(store.store))))
      this.world.count('recoveriesWithLoss');
  }

  /** The coordinator loses its last writes. */
  #regress(): void {
    const { world } = this;
    const running = world.nodes.filter((node) => node.isUp && !node.isPaused);
    if (world.history.length < 4 || running.length < world.nodes.length) return;
    world.count('regressions');
    world.history.length -= 1 + world.random.below(3);
    world.trace(() => `the coordinator is back at version ${world.current.version}`);
    this.#haveSeenMore = running.filter((node) => node.machine.status.version > world.current.version);
  }

  /** Whoever has seen more stops; of the others nothing is asked, since their coordinator broke its promise. */
  async #afterRegression(): Promise<void> {
    const { world } = this;
    this.#calm();
    try {
      await world.run(4 * COORDINATOR_TIMEOUT_MS);
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      return world.count('regressionsThatLost');
    }
    for (const node of this.#haveSeenMore ?? []) {
      const { newest } = node.store;
      // What was lost may have been written once more; and who comes after later writes sees nothing amiss.
      const isBack = newest === undefined || world.history[newest.version - 1]?.record.nonce === newest.record.nonce;
      if (node.isUp && node.lastStop !== 'coordinator-regressed' && !isBack)
        throw new Violation(`${node.name} goes on although the coordinator was set back`);
    }
  }

  #calm(): void {
    this.#quiet = true;
    this.#cuts.clear();
    this.#coordinatorCuts.clear();
    this.world.crashAfterEffects = Infinity;
  }

  /** Nothing goes wrong any more: the group commits again within the bound, and all logs become equal. */
  async #settle(): Promise<void> {
    const { world } = this;
    this.#calm();
    Object.assign(world.options, SIM_LIMITS);
    for (const node of world.nodes) {
      if (node.full) this.#makeRoom(node);
      if (!node.isUp) node.restart(world.random.below(100));
    }
    const { record } = world.current;
    const living = world.nodes.filter((node) => record.members.includes(node.store.store));
    if (living.length < record.minInSync || !living.some((node) => this.#mayLead(node)))
      return world.count('beyondRepair');
    const before = world.counts['answersQuorum'] ?? 0;
    const commits = (): boolean => (world.counts['answersQuorum'] ?? 0) > before + 3;
    if (!(await world.until(commits, QUIET_BOUND_MS)))
      throw new Violation('G8: in quiet, nothing is committed within the bound');
    this.#clientsDone = true;
    const { committed } = world.oracle;
    const agreed = (): boolean =>
      world.nodes.every(({ store }) => store.end.lsn === committed.length && store.watermark === committed.length);
    if (!(await world.until(agreed, QUIET_BOUND_MS)))
      throw new Violation('G8: in quiet, a replica does not follow within the bound');
    await this.#tellAll();
    world.oracle.settle(
      world.nodes.map(({ store }) => store),
      world.told,
    );
    world.counts['rolledBackLocal'] = (world.counts['rolledBackLocal'] ?? 0) + world.oracle.rolledBackLocal;
  }

  /** Who has not told yet of a rollback, or not brought it to its end, does so when it starts. */
  async #tellAll(): Promise<void> {
    const { world } = this;
    const isOpen = ({ store: { directory } }: SimNode): boolean =>
      directory.outbox.size > 0 || isUnderWay(directory.journal.intent);
    for (const node of world.nodes.filter(isOpen)) {
      world.count('restartsToTell');
      node.crashAndRestart(1);
    }
    const isWhole = (node: SimNode): boolean =>
      node.isUp && !isOpen(node) && node.tenantsHave(world.oracle.committed.length);
    if (!(await world.until(() => world.nodes.every(isWhole), QUIET_BOUND_MS)))
      throw new Violation('G8: in quiet, a rollback is not told of, or a tenant does not have all, within the bound');
  }

  #mayLead(node: SimNode): boolean {
    return this.world.current.record.inSync.includes(node.store.store) && node.holdsCommitted;
  }
}
