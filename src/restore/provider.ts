/**
 * Whom to copy from: pure choice among members that answered. Each round asks all who are left, so that load and lag are
 * those of now; who cannot serve is dropped for the rest of the run, with the reason.
 */
import { NostosError } from '../base/errors.ts';
import { sameHistory, type SourceHistory } from './local/identity.ts';
import type { SourceInfo } from './source.ts';

export interface Member {
  /** `host:port`. */
  readonly address: string;
  /** Where it is known beforehand. */
  readonly node?: string;
}

/** What a member says of itself when it is asked. */
export interface ProviderInfo extends SourceInfo {
  /** Copies that it is serving now. */
  readonly sessions: number;
}

export interface Asked {
  readonly member: Member;
  /** What it answered, or why it did not. */
  readonly answer: ProviderInfo | Error;
}

export interface Candidate {
  readonly member: Member;
  readonly info: ProviderInfo;
  /** Of all that could serve in this round. */
  readonly bestWatermark: number;
}

export interface Dropped {
  readonly member: Member;
  readonly why: string;
  readonly error?: Error;
}

export interface ChoiceRules {
  /** Who asks: never a provider of itself. */
  readonly self?: { readonly node?: string; readonly store?: string } | undefined;
  /** What a run has begun with, or what the directory has: others would not go on with it. */
  readonly history?: SourceHistory | undefined;
  /** It is that of the directory, which may be given up. */
  readonly replaceable?: boolean | undefined;
  readonly lagRecordsMax: number;
}

export interface Choice {
  /** The first one is asked first. */
  readonly order: readonly Candidate[];
  readonly dropped: readonly Dropped[];
}

/** Throws `DIRECTORY_FOREIGN` where nothing says which of several histories is wanted: positions of two mean nothing. */
export function chooseProvider(asked: readonly Asked[], rules: ChoiceRules): Choice {
  const dropped: Dropped[] = [];
  const able: Omit<Candidate, 'bestWatermark'>[] = [];
  for (const { member, answer } of asked) {
    if (answer instanceof Error) {
      dropped.push({ member, why: answer.message, error: answer });
      continue;
    }
    const refusal = unfit(member, answer, rules);
    if (refusal === undefined) able.push({ member, info: answer });
    else dropped.push({ member, ...refusal });
  }
  assertOneHistory(able);
  const bestWatermark = able.reduce((most, { info }) => Math.max(most, info.watermark), 0);
  const order: Candidate[] = [];
  for (const candidate of able) {
    const lag = bestWatermark - candidate.info.watermark;
    const why = tooFarBehind(candidate.info, lag, rules.lagRecordsMax);
    if (why === undefined) order.push({ ...candidate, bestWatermark });
    else dropped.push({ member: candidate.member, why });
  }
  return { order: order.sort(byPreference), dropped };
}

/** A replica catches up by itself; a copy stays where it is, so taking it would lose what the others have. */
function tooFarBehind({ role }: ProviderInfo, lag: number, lagRecordsMax: number): string | undefined {
  if (role !== 'replica' && role !== 'primary' && lag > 0)
    return `it is ${lag} records behind another one, and a ${role ?? 'member without a role'} does not catch up`;
  return lag > lagRecordsMax ? `it is ${lag} records behind, at most ${lagRecordsMax} are taken` : undefined;
}

function assertOneHistory(able: readonly Omit<Candidate, 'bestWatermark'>[]): void {
  const [first, ...rest] = able.map(({ member, info }) => ({
    address: member.address,
    cluster: info.cluster as SourceHistory['cluster'],
    generation: info.generation as SourceHistory['generation'],
  }));
  if (first === undefined || rest.every((other) => sameHistory(first, other))) return;
  const members = [first, ...rest];
  const named = members.map((one) => `${one.address}: cluster ${one.cluster}, generation ${one.generation}`).join('; ');
  throw new NostosError(
    'DIRECTORY_FOREIGN',
    `the members that were named serve different histories (${named}); name only those of the one that is wanted. Nothing was changed`,
    { details: { members } },
  );
}

function unfit(member: Member, info: ProviderInfo, rules: ChoiceRules): Omit<Dropped, 'member'> | undefined {
  const { self, history, replaceable } = rules;
  const sameNode = self?.node !== undefined && (info.node === self.node || member.node === self.node);
  if (sameNode || (self?.store !== undefined && info.store === self.store)) return { why: 'it is this node itself' };
  if (history === undefined || (info.cluster === history.cluster && info.generation === history.generation))
    return undefined;
  const what = info.cluster === history.cluster ? 'generation' : 'cluster';
  const serves = `serves ${what} ${String(info[what])}`;
  if (replaceable !== true) return { why: `it ${serves}, the copy is of ${history[what]}` };
  const error = new NostosError(
    'DIRECTORY_FOREIGN',
    `the directory belongs to ${what} ${history[what]}, and ${member.address} ${serves}; ` +
      'say --replace to set the directory aside whole and take the state of the source, or give another directory',
    { details: { found: history, offered: { cluster: info.cluster, generation: info.generation } } },
  );
  return { why: error.message, error };
}

const RANK: Readonly<Record<string, number>> = { replica: 0, primary: 1 };
const rank = ({ role }: ProviderInfo): number => RANK[role ?? ''] ?? 2;

/**
 * Replicas before the primary, which has writes to serve; last what does not follow it. Then who serves fewest copies; then
 * the newest.
 */
function byPreference(a: Candidate, b: Candidate): number {
  return (
    rank(a.info) - rank(b.info) ||
    a.info.sessions - b.info.sessions ||
    b.info.watermark - a.info.watermark ||
    (a.member.address < b.member.address ? -1 : 1)
  );
}
