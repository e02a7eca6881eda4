/** What the caller's thread and the engine thread say to each other. Plain data; buffers are transferred. */
import type { BootId, ClusterId, Generation, Lsn, NodeId, Position, StoreId, TenantId, Term } from '../base/brands.ts';
import type { SerializedError } from '../base/errors.ts';
import type { Limits } from '../base/limits.ts';
import type { Appended, PageRequest, TenantLocation } from '../log/commit-log.ts';
import type { GroupRecord } from '../coordination/coordinator.ts';
import type { ChainPoint } from '../log/chain.ts';
import type { GenerationEntry } from '../log/terms.ts';
import type { MemberChange, StepDownReason, StopReason } from '../replication/effects.ts';
import type { GroupStatus, Role } from '../replication/group-machine.ts';
import type { Instant } from '../replication/lease.ts';
import type { PositionOutlook } from '../replication/store-view.ts';
import type { RejoinDecision } from './rejoin-decision.ts';
import type { Finding } from './rejoin-file.ts';
import type { ListenAddress, LogStatus } from './types.ts';

/** The group that a node belongs to, and how it is reached there. */
export interface GroupSettings {
  /** URL of the coordinator; `coordination/README.md` has the schemes. */
  readonly coordinator: string;
  /** Name of the group at the coordinator. */
  readonly name: string;
  readonly node: NodeId;
  readonly listen: ListenAddress;
  /** `host:port` under which the others reach it, where that is not the one that is bound. */
  readonly advertise?: string;
  /** An earlier boot has found that this store lacks records that it has acknowledged: it neither stands nor follows. */
  readonly lostRecords?: boolean;
}

/** What the engine of a group tells the node's own thread; `group-engine.ts` has what is answered. */
export type GroupNotice =
  | { readonly kind: 'watermark'; readonly lsn: Lsn }
  | { readonly kind: 'lead'; readonly term: Term }
  /** The lease counts from then, by the clock of `hrtime`, which is the same in all threads, and by the wall clock. */
  | { readonly kind: 'lease'; readonly sent: Instant | null }
  | { readonly kind: 'drain' | 'resume' }
  | { readonly kind: 'step-down'; readonly term: Term; readonly reason: StepDownReason }
  | {
      readonly kind: 'rollback';
      readonly to: ChainPoint;
      /** Of the primary whom it follows then: its address, or its store where that is not known. */
      readonly address: string;
      readonly term: Term;
    }
  | {
      readonly kind: 'role';
      readonly role: Role;
      readonly term: Term;
      readonly inSync: boolean;
      /** Whom it follows, and where the other members reach that one, as far as it is known. */
      readonly primary: StoreId | null;
      readonly primaryAddress: string | null;
    }
  /** What is decided has changed; `home`: it streams or leads, and nothing is wrong with it. */
  | {
      readonly kind: 'rejoin';
      readonly decision: RejoinDecision;
      readonly home: boolean;
      readonly stopped: StopReason | null;
    }
  /** Reading the log has found it damaged. */
  | { readonly kind: 'damaged'; readonly what: string }
  /** The log could not be opened again after a failed write; it is tried again, or was for the last time. */
  | { readonly kind: 'reopen-failed'; readonly why: string }
  | {
      readonly kind: 'stopped';
      readonly reason: StopReason;
      readonly details: Readonly<Record<string, string | number>>;
    };

export interface GroupReport extends Omit<GroupStatus, 'version' | 'stopped'> {
  readonly name: string;
  readonly address: string;
  readonly boot: BootId;
  readonly stopped: { readonly reason: StopReason; readonly details: Readonly<Record<string, string | number>> } | null;
  readonly lastLsn: Lsn;
  /** Appends that the group has not committed yet. */
  readonly waiting: number;
  readonly rejoin: RejoinDecision;
  /** Conversations that were refused, by either side, or ended because of what a peer had sent. */
  readonly peerErrors: { readonly count: number; readonly last: string | null };
  /** The newest one that this node has read. */
  readonly record: GroupRecord | null;
}

export interface EngineOptions {
  readonly dir: string;
  /** Absent: a lone node, or a copy. */
  readonly group?: GroupSettings;
  readonly generation: Generation;
  readonly store: StoreId;
  readonly boot: BootId;
  readonly cluster: ClusterId;
  readonly limits: Limits;
  /** The log is a copy, which was made and verified up to here: it starts no term, and all that it holds is committed. */
  readonly copy?: { readonly lsn: Lsn };
}

/** The log from some record on, as files: of each so many bytes hold committed records. */
export interface LogFiles {
  readonly segments: readonly { readonly name: string; readonly bytes: number }[];
  readonly bytes: number;
  readonly term: Term;
  readonly watermark: Lsn;
}

export interface EngineOpened {
  /** Where each generation of the log begins, oldest first; none begins while it is open. */
  readonly generations: readonly GenerationEntry[];
  readonly watermark: Lsn;
  readonly term: Term;
  /** Tenants that have records which their files may lack. */
  readonly dirty: readonly TenantId[];
  /** Everything up to here is in the files of all tenants. */
  readonly durable: Lsn;
}

/** Records of a page, their payloads side by side in one buffer. */
export interface PackedPage {
  readonly generation: Generation;
  readonly count: number;
  readonly term: Float64Array<ArrayBuffer>;
  readonly lsn: Float64Array<ArrayBuffer>;
  readonly hlc: BigUint64Array<ArrayBuffer>;
  readonly tenant: Float64Array<ArrayBuffer>;
  readonly kind: Uint16Array<ArrayBuffer>;
  readonly watermark: Float64Array<ArrayBuffer>;
  /** Where each payload ends in `payloads`. */
  readonly ends: Float64Array<ArrayBuffer>;
  readonly hashes: Uint8Array<ArrayBuffer>;
  readonly payloads: Uint8Array<ArrayBuffer>;
  readonly next: Lsn;
  readonly end: Lsn;
}

export interface ProbeReport {
  readonly ticks: number;
  readonly appends: number;
  readonly latenessMaxMs: number;
}

/** What both threads see at the same time. */
export interface SharedMemory {
  /** `append-ring.ts` */
  readonly ring: SharedArrayBuffer;
  /** `log/shared-tail.ts` */
  readonly tail: SharedArrayBuffer;
}

/** Each request by name: what goes in, what comes out. Appends have a form of their own (`append-frame.ts`). */
export interface EngineRequests {
  readPage: [PageRequest, PackedPage];
  locate: [{ readonly tenant: TenantId; readonly lsn: Lsn }, TenantLocation];
  /** What became of records that the caller's thread has appended, and whose write or sync failed. */
  settle: [
    { readonly firstLsn: Lsn; readonly hashes: Uint8Array; readonly cause: SerializedError },
    Appended & { readonly watermark: Lsn },
  ];
  /** Everything up to `durable` is in the files of the tenants: the log may be pruned accordingly. */
  advance: [{ readonly durable: Lsn }, undefined];
  /** Holds the log from a record on; the answer is the number of the hold. */
  reserve: [{ readonly from: Lsn }, number];
  progress: [{ readonly hold: number; readonly lsn: Lsn }, undefined];
  release: [{ readonly hold: number }, undefined];
  /** Holds what a copy needs of which all files have everything up to `bound`; also answers with its first record. */
  reserveForCopy: [{ readonly bound: Lsn }, { readonly hold: number; readonly from: Lsn }];
  /** Holds all of the log that is there; also answers with its first record. Asked for in two steps, it may go between them. */
  reserveAll: [undefined, { readonly hold: number; readonly from: Lsn }];
  logFiles: [{ readonly from: Lsn }, LogFiles];
  outlook: [{ readonly position: Position }, PositionOutlook];
  steppedDown: [undefined, undefined];
  /** No append is under way; those in the ring are taken first. */
  drained: [undefined, undefined];
  rolledBack: [{ readonly ok: boolean }, undefined];
  /** The rollback that the last process had begun, if there was one, is at its end. */
  settled: [undefined, undefined];
  cutTo: [{ readonly lsn: Lsn }, undefined];
  /** Where the log ends, and what of it is committed as a fresh start would find it. */
  logEnd: [undefined, { readonly end: ChainPoint; readonly watermark: Lsn }];
  /** Records back to back, committed or not, and the one before them; none at the end of the log. */
  readRun: [
    { readonly from: Lsn; readonly bytesMax: number },
    { readonly previous: ChainPoint; readonly run: Uint8Array<ArrayBuffer> },
  ];
  handover: [{ readonly to?: StoreId }, undefined];
  changeMembers: [MemberChange, undefined];
  groupReport: [undefined, GroupReport];
  /** What the node's thread has found out about the store. */
  found: [Finding, undefined];
  /** Whether the store asks to be in sync, or to be dropped. */
  setEligible: [{ readonly eligible: boolean }, undefined];
  /** Where the node lets itself be copied now, as the others reach it. */
  copiesAt: [{ readonly address: string }, undefined];
  status: [undefined, LogStatus];
  /** Runs a 10 ms timer and an append stream in the engine thread, to measure that nothing stalls it. */
  probe: [{ readonly durationMs: number }, ProbeReport];
  close: [undefined, undefined];
}

export type EngineMethod = keyof EngineRequests;
export type GroupMethod = Extract<
  EngineMethod,
  | 'steppedDown'
  | 'rolledBack'
  | 'settled'
  | 'cutTo'
  | 'logEnd'
  | 'readRun'
  | 'handover'
  | 'changeMembers'
  | 'groupReport'
  | 'found'
  | 'setEligible'
  | 'copiesAt'
>;

export interface EngineRequest<M extends EngineMethod = EngineMethod> {
  readonly id: number;
  readonly method: M;
  readonly input: EngineRequests[M][0];
}

export type EngineReply =
  | Uint8Array
  | { readonly notice: GroupNotice }
  | { readonly id: number; readonly ok: true; readonly output: unknown }
  | { readonly id: number; readonly ok: false; readonly error: SerializedError };

/** What the thread says first, and only once. */
export type EngineStart = { readonly opened: EngineOpened } | { readonly failed: SerializedError };
