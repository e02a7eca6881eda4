/** Coordinators of a group of real processes, which can go away, for all members or for one, and be set back. */
import { cpSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { EtcdCluster } from '../testing/etcd-cluster.ts';

/** Of a group of the harness. */
export const MEMBERS = 3;
const COPY_TRIES = 20;

/** A coordinator that can go away, for all members or for one, come back, and be set back to what it was. */
export interface HarnessCoordinator extends AsyncDisposable {
  urlOf(index: number): string;
  away(): Promise<void>;
  back(): Promise<void>;
  /** What only a coordinator in a directory of ours can do. */
  readonly onDisk?: {
    /** It is away for one member. */
    awayFor(index: number): void;
    /** Keeps what is there now; the answer sets the coordinator back to that, until it is `back`. */
    image(): () => void;
  };
}

/** Each member reaches the directory of the group's record through a link of its own, which is replaced at once. */
export class EmbeddedHarness implements HarnessCoordinator {
  readonly #dir: string;
  #images = 0;

  constructor(dir: string) {
    this.#dir = dir;
    for (const common of ['main', 'members']) mkdirSync(join(dir, common), { recursive: true });
    for (let index = 0; index < MEMBERS; index += 1) {
      mkdirSync(join(dir, `${index}`, 'groups'), { recursive: true });
      symlinkSync(join(dir, 'members'), join(dir, `${index}`, 'members'));
      this.#pointTo('main', index);
    }
  }

  urlOf(index: number): string {
    return `embedded:${join(this.#dir, `${index}`)}`;
  }

  #pointTo(target: string, index: number): void {
    const link = join(this.#dir, `${index}`, 'groups', 'main');
    rmSync(`${link}.new`, { force: true });
    symlinkSync(join(this.#dir, target), `${link}.new`);
    renameSync(`${link}.new`, link);
  }

  #pointAllTo(target: string): void {
    for (let index = 0; index < MEMBERS; index += 1) this.#pointTo(target, index);
  }

  async away(): Promise<void> {
    for (let index = 0; index < MEMBERS; index += 1) this.onDisk.awayFor(index);
  }

  async back(): Promise<void> {
    this.#pointAllTo('main');
  }

  readonly onDisk = {
    /** A file, which cannot be listed: without an answer, rather than empty. */
    awayFor: (index: number): void => {
      writeFileSync(join(this.#dir, 'no-directory'), '');
      this.#pointTo('no-directory', index);
    },
    image: (): (() => void) => {
      const copy = `image${++this.#images}`;
      this.#copy(join(this.#dir, 'main'), join(this.#dir, copy));
      return () => this.#pointAllTo(copy);
    },
  };

  /** Its files come and go meanwhile. */
  #copy(from: string, to: string): void {
    for (let tries = 1; ; tries += 1)
      try {
        return cpSync(from, to, { recursive: true });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || tries === COPY_TRIES) throw error;
      }
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

export class EtcdHarness implements HarnessCoordinator {
  readonly #cluster: EtcdCluster;

  private constructor(cluster: EtcdCluster) {
    this.#cluster = cluster;
  }

  static async start(dir: string): Promise<EtcdHarness> {
    return new EtcdHarness(await EtcdCluster.start({ dir }));
  }

  urlOf(): string {
    return `etcd://${this.#cluster.endpoints.join(',')}?timeout-ms=1000&attempt-timeout-ms=500`;
  }

  away(): Promise<void> {
    return this.#cluster.killAll();
  }

  back(): Promise<void> {
    return this.#cluster.startAll();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#cluster.close();
  }
}
