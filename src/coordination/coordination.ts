/** What an adapter opens: the records of all groups of a cluster, and the directory that places things in them. */
import type { Coordinator } from './coordinator.ts';
import type { Directory } from './directory.ts';

export interface Coordination extends AsyncDisposable {
  /** The record of a group; its name is a lowercase word of letters, digits and dashes. */
  group(name?: string): Coordinator;
  readonly directory: Directory;
  /**
   * Proves, where it can be reached, that the coordinator does what is asked of it; otherwise `COORDINATOR_UNSUITABLE`.
   * Nothing is written by compare-and-set before that was proven once.
   */
  check(): Promise<void>;
  close(): Promise<void>;
}
