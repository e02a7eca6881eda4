/** What an adapter opens: the groups of a cluster, where their members are, and the directory that places things in them. */
import type { StoreId } from '../base/brands.ts';
import type { Coordinator, Register } from './coordinator.ts';
import type { Directory, ListOptions, Page } from './directory.ts';
import type { MemberEntry } from './member.ts';

export interface Coordination extends AsyncDisposable {
  /** The record of a group; its name is a lowercase word of letters, digits and dashes. */
  group(name?: string): Coordinator;
  readonly directory: Directory;
  /** Where the node that has this store open can be reached; stores are of one group, their ids of the whole cluster. */
  member(store: StoreId): Register<MemberEntry>;
  /** All that ever had an entry, those whose stores are gone too. The id is the store; `prefix` is the beginning of one. */
  members(options?: ListOptions): Promise<Page<MemberEntry>>;
  /**
   * Proves, where it can be reached, that the coordinator does what is asked of it; otherwise `COORDINATOR_UNSUITABLE`.
   * Nothing is written by compare-and-set before that was proven once.
   */
  check(): Promise<void>;
  close(): Promise<void>;
}
